"""On a CPU, our copies for inference beside the networks themselves: the same weights and image, in turns, in one run.

    python benchmarks/inference.py [--networks ldn121 deeplabv3plus segmenter] [--pairs 9] [--json FILE]

The other side is what calling a network gives: model.eval() under torch.no_grad(), float32, PyTorch's default layout.
Ours is models.fast_inference(model) under torch.inference_mode(), which is what the evaluations run. A pair is one pass
of each, which of them first alternating; the ratio is the median of the pairs' ratios. One untimed pair goes before. Of
both sides' logits and hybrid scores, the largest difference is given in parts of the largest magnitude; past TOLERANCE,
the benchmark fails. The weights are random; the norms have random statistics, scales and shifts.
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

from benchmarks.sides import benchmark_parser, compared, in_turns, machine, shown_ratio, write_table
from losses import hybrid_score
from models import deeplabv3plus, fast_inference, ladder_densenet121, segmenter

TOLERANCE = 1e-4  # of the largest magnitude
NETWORKS = {  # the number of known classes, and the image's height and width
    "ldn121": (ladder_densenet121, 19, (512, 1024)),
    "deeplabv3plus": (deeplabv3plus, 19, (256, 512)),
    "segmenter": (segmenter, 20, (512, 512)),
}


def randomise_norms(model):
    """With norms as after training: no fold is trivial."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias, std=0.3)
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
    return model.eval()


def largest_difference(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def measured(name, pairs):
    """A row of the table: seconds and ratio of one network."""
    torch.manual_seed(0)
    build, num_classes, size = NETWORKS[name]
    model = randomise_norms(build(num_classes))
    image = torch.rand(1, 3, *size)
    start = time.perf_counter()
    fast = fast_inference(model)
    copying = time.perf_counter() - start

    @torch.no_grad()
    def plain():
        return model(image)

    @torch.inference_mode()
    def ours():
        return fast(image)

    expected, found = plain(), ours()  # warms both up, too
    logits = max(largest_difference(*both) for both in zip(found, expected, strict=True))
    scores = largest_difference(hybrid_score(*found), hybrid_score(*expected))
    if not max(logits, scores) <= TOLERANCE:
        raise SystemExit(f"{name}: logits differ by {logits:.1e}, scores by {scores:.1e} of the largest magnitude")
    what, times = f"{name}, one {size[0]}x{size[1]} image", in_turns({"ours": ours, "plain": plain}, pairs)
    row = compared(what, times, "ours", "plain", score_difference=scores, logit_difference=logits)
    return row | {"other": "plain eager float32", "copying_seconds": copying}


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--pairs", type=int, default=9)
    args = parser.parse_args()

    setting = f"{machine()}; {args.pairs} pairs"
    print(f"{setting}\n")
    print(f"  {'':<36}{'ours':>9}{'plain':>9}   times faster           scores differ by   copying")
    rows = []
    for network in args.networks:
        row = measured(network, args.pairs)
        print(
            f"  {row['what']:<36}{row['ours_seconds']:7.3f} s{row['other_seconds']:7.3f} s   {shown_ratio(row):<23}"
            f"{row['score_difference']:.0e}              {row['copying_seconds']:.2f} s",
            flush=True,
        )
        rows.append(row)
    write_table(args.json, "inference", setting, rows)


if __name__ == "__main__":
    main()
