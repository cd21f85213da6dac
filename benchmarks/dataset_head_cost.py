"""What the dataset head costs: a hybrid network beside its closed-set one, forward passes in turns, in one run.

    python benchmarks/dataset_head_cost.py [--network deeplabv3plus] [--height 256] [--width 512] [--pairs 20] \\
        [--json FILE]

A pair is one forward pass of each on the same image, which of them first alternating; the time ratio is the
median of the pairs' ratios. One untimed pair goes before. The operations counted are those of convolutions and matrix
products.
"""

import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

from benchmarks.sides import benchmark_parser, compared, in_turns, machine, shown_times, write_table
from models import deeplabv3plus, segmenter

NETWORKS = {  # and the number of known classes: Cityscapes, COCO20
    "deeplabv3plus": (deeplabv3plus, 19),
    "segmenter": (segmenter, 20),
    "segmenter-linear": (partial(segmenter, dataset_head="linear"), 20),
}


def operations(model, image):
    # The fused attention of the CPU is not counted; the plain one does the same products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(image)
    return counter.get_total_flops()


@torch.inference_mode()
def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument("--network", choices=list(NETWORKS), default="deeplabv3plus")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    network, num_classes = NETWORKS[args.network]
    hybrid, closed_set = (network(num_classes, hybrid).eval() for hybrid in (True, False))
    shared = {key: value for key, value in hybrid.state_dict().items() if key in closed_set.state_dict()}
    closed_set.load_state_dict(shared, assign=True)  # the very same tensors: the models differ in the head alone
    image = torch.rand(1, 3, args.height, args.width)

    setting = f"{machine()}; {args.network}, one {args.height}x{args.width} image, float32, {args.pairs} pairs"
    print(f"{setting}\n")
    flops = {"hybrid": operations(hybrid, image), "closed-set": operations(closed_set, image)}  # warms both up, too
    times = in_turns({"hybrid": partial(hybrid, image), "closed-set": partial(closed_set, image)}, args.pairs)

    for name, runs in times.items():
        print(f"  {name:<12}{shown_times(runs)}{flops[name] / 1e9:12.2f} GFLOPs")
    ratios = [ours / theirs for ours, theirs in zip(times["hybrid"], times["closed-set"], strict=True)]
    print(f"  FLOP ratio  {flops['hybrid'] / flops['closed-set']:8.6f}")
    print(f"  time ratio  {statistics.median(ratios):8.4f}   median of pairs ({min(ratios):.4f} to {max(ratios):.4f})")
    row = compared(f"{args.network}, hybrid", times, "hybrid", "closed-set")
    write_table(args.json, "dataset_head_cost", setting, [row])


if __name__ == "__main__":
    main()
