"""Where the time of a forward pass on a CPU goes, and how near it comes to what the machine can do.

    python benchmarks/forward_profile.py [--networks ldn121 deeplabv3plus] [--height 1024] [--width 2048]

The pass is that of the evaluations: models.fast_inference(model) in float32. The machine's speed is the best of a few
matrix products and convolutions, measured in the same run; memory's is that of a copy. Operations are counted in the
network itself, for the copy calls oneDNN by names that the counter does not know.
"""

import os
import statistics
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

from benchmarks.sides import benchmark_parser, machine, seconds, write_table
from models import deeplabv3plus, fast_inference, ladder_densenet121, segmenter

NETWORKS = {"ldn121": (ladder_densenet121, 12), "deeplabv3plus": (deeplabv3plus, 19), "segmenter": (segmenter, 20)}
KINDS = {  # of the operations that the profiler names, by the first part of a name that is found
    "resizing": ("upsample", "interpolate"),
    "convolution": ("conv", "mkldnn_convolution", "cudnn"),
    "matrix product": ("mm", "linear", "attention"),
    "pooling": ("pool", "mean"),
    "moving": ("copy_", "cat", "contiguous", "clone", "pad"),
    "pointwise": ("add", "mul", "div", "sub", "relu", "clamp", "batch_norm", "gelu", "softmax", "layer_norm"),
}
MATRIX_SIDES = (1024, 2048, 4096)
CONVOLVED_WIDTHS = (128, 256, 512)
COPIED = 2**28  # bytes


@torch.inference_mode()
def machine_speed():
    """Operations a second of the best matrix product or convolution, bytes a second read and written by a copy"""
    products = []
    for side in MATRIX_SIDES:
        one, other = torch.rand(2, side, side)
        runs = seconds(partial(torch.matmul, one, other), passes=4)
        products.append(2 * side**3 / min(runs))
    for width in CONVOLVED_WIDTHS:
        conv = nn.Conv2d(width, width, 3, padding=1).to(memory_format=torch.channels_last)
        image = torch.rand(1, width, 128, 128).to(memory_format=torch.channels_last)
        runs = seconds(partial(conv, image), passes=4)
        products.append(2 * 9 * width**2 * 128**2 / min(runs))
    source = torch.rand(COPIED // 4)
    target = torch.empty_like(source)
    return max(products), 2 * COPIED / min(seconds(partial(target.copy_, source), passes=4))


def kind_of(name):
    for kind, parts in KINDS.items():
        if any(part in name for part in parts):
            return kind
    return "other"


def by_kind(function):
    """Seconds of the operations' own time, by kind"""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        function()
    spent = defaultdict(float)
    for event in profiled.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


@torch.inference_mode()
def profiled(name, size, repeats):
    network, num_classes = NETWORKS[name]
    model = network(num_classes).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.device("meta"):
        network(num_classes).eval()(torch.empty(1, 3, *size))
    fast, image = fast_inference(model), torch.rand(1, 3, *size)
    fast(image)
    runs = seconds(partial(fast, image), passes=repeats)
    spent = by_kind(partial(fast, image))
    return {
        "what": name,
        "flops": counter.get_total_flops(),
        "seconds": statistics.median(runs),
        "shares": {kind: time / sum(spent.values()) for kind, time in spent.items()},
    }


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["ldn121", "deeplabv3plus"])
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    setting = f"{machine()}; one {args.height}x{args.width} image, float32"
    print(setting)
    operations, bandwidth = machine_speed()
    print(f"matrix products and convolutions reach {operations / 1e9:,.0f} GFLOP/s", end=", ")
    print(f"copies {bandwidth / 1e9:.1f} GB/s in and out\n")
    rows = []
    for name in args.networks:
        row = profiled(name, (args.height, args.width), args.repeats)
        rows.append(row | {"share_of_machine": row["flops"] / row["seconds"] / operations})
        print(
            f"{name}, one {args.height}x{args.width} image: {row['seconds']:.2f} s, median of {args.repeats}; ", end=""
        )
        print(f"{row['flops'] / 1e9:,.0f} GFLOPs, {rows[-1]['share_of_machine']:.0%} of the machine's speed")
        for kind, share in row["shares"].items():
            print(f"  {kind:<16}{share:6.1%}")
        print()
    reached = {"matrix_flops_per_second": operations, "copy_bytes_per_second": bandwidth}
    write_table(args.json, "forward_profile", setting, rows, **reached)


if __name__ == "__main__":
    main()
