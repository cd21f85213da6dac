"""What the dataset head costs: a hybrid network beside its closed-set one, forward passes in turns, in one run.

    python benchmarks/dataset_head_cost.py [--network deeplabv3plus] [--height 256] [--width 512] [--pairs 20] \\
        [--json FILE]

A pair is one forward pass of each on the same image, which of them first alternating; the time ratio is the
median of the pairs' ratios. One untimed pair goes before. The operations counted are those of convolutions and matrix
products.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

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


def seconds(model, image):
    start = time.perf_counter()
    model(image)
    return time.perf_counter() - start


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), default="deeplabv3plus")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the table there, too")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    network, num_classes = NETWORKS[args.network]
    hybrid, closed_set = (network(num_classes, hybrid).eval() for hybrid in (True, False))
    shared = {key: value for key, value in hybrid.state_dict().items() if key in closed_set.state_dict()}
    closed_set.load_state_dict(shared, assign=True)  # the very same tensors: the models differ in the head alone
    image = torch.rand(1, 3, args.height, args.width)

    print(f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads", end="; ")
    print(f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}")
    print(f"{args.network}, one {args.height}x{args.width} image, CPU, float32; {args.pairs} pairs\n")
    sides = {"hybrid": hybrid, "closed-set": closed_set}
    flops = {name: operations(model, image) for name, model in sides.items()}  # warms both up, too
    times = {name: [] for name in sides}
    for pair in range(args.pairs):
        for name in sorted(sides, reverse=pair % 2 == 1):
            times[name].append(seconds(sides[name], image))

    for name, runs in times.items():
        spread = f"({min(runs):.3f} to {max(runs):.3f})"
        print(f"  {name:<12}{statistics.median(runs):8.3f} s {spread:<20}{flops[name] / 1e9:12.2f} GFLOPs")
    ratios = [ours / theirs for ours, theirs in zip(times["hybrid"], times["closed-set"], strict=True)]
    print(f"  FLOP ratio  {flops['hybrid'] / flops['closed-set']:8.6f}")
    print(f"  time ratio  {statistics.median(ratios):8.4f}   median of pairs ({min(ratios):.4f} to {max(ratios):.4f})")
    if args.json:
        medians = {name: statistics.median(runs) for name, runs in times.items()}
        row = {"what": f"{args.network}, hybrid", "ours_seconds": medians["hybrid"], "other": "closed-set"}
        row |= {"other_seconds": medians["closed-set"], "ratio": 1 / statistics.median(ratios)}
        setting = f"one {args.height}x{args.width} image, CPU, float32, {args.pairs} pairs"
        table = {"benchmark": "dataset_head_cost", "setting": setting, "rows": [row]}
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
