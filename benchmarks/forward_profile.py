"""Where the time of a forward pass goes, and how near it comes to what the machine can do.

    python benchmarks/forward_profile.py [--networks ldn121 deeplabv3plus] [--height 1024] [--width 2048] [--device cpu]

The pass is that of the evaluations: models.fast_inference(model) in float32. The machine's speed is the best of a few
matrix products and convolutions, measured in the same run; memory's is that of a copy. Operations are counted in the
network itself, for the copy calls oneDNN by names that the counter does not know.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

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


def seconds(function, device):
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@torch.inference_mode()
def machine_speed(device):
    """Operations a second of the best matrix product or convolution, bytes a second read and written by a copy"""
    products = []
    for side in MATRIX_SIDES:
        one, other = torch.rand(2, side, side, device=device)
        runs = [seconds(lambda one=one, other=other: one @ other, device) for _ in range(4)]
        products.append(2 * side**3 / min(runs))
    for width in CONVOLVED_WIDTHS:
        conv = nn.Conv2d(width, width, 3, padding=1).to(device, memory_format=torch.channels_last)
        image = torch.rand(1, width, 128, 128, device=device).to(memory_format=torch.channels_last)
        runs = [seconds(lambda conv=conv, image=image: conv(image), device) for _ in range(4)]
        products.append(2 * 9 * width**2 * 128**2 / min(runs))
    source = torch.rand(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return max(products), 2 * COPIED / min(seconds(lambda: target.copy_(source), device) for _ in range(4))


def kind_of(name):
    for kind, parts in KINDS.items():
        if any(part in name for part in parts):
            return kind
    return "other"


def by_kind(function, device):
    """Seconds of the operations' own time, by kind"""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiled:
        function()
        if cuda:
            torch.cuda.synchronize(device)
    spent = defaultdict(float)
    for event in profiled.key_averages():
        spent[kind_of(event.key)] += (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


@torch.inference_mode()
def profiled(name, size, device, repeats):
    network, num_classes = NETWORKS[name]
    model = network(num_classes).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.device("meta"):
        network(num_classes).eval()(torch.empty(1, 3, *size))
    fast, image = fast_inference(model.to(device)), torch.rand(1, 3, *size, device=device)
    fast(image)
    runs = [seconds(lambda: fast(image), device) for _ in range(repeats)]
    spent = by_kind(lambda: fast(image), device)
    return {
        "what": name,
        "flops": counter.get_total_flops(),
        "seconds": statistics.median(runs),
        "shares": {kind: time / sum(spent.values()) for kind, time in spent.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["ldn121", "deeplabv3plus"])
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    device = torch.device(args.device)

    print(f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads", end="; ")
    print(f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}")
    operations, bandwidth = machine_speed(device)
    print(f"matrix products and convolutions reach {operations / 1e9:,.0f} GFLOP/s", end=", ")
    print(f"copies {bandwidth / 1e9:.1f} GB/s in and out\n")
    rows = []
    for name in args.networks:
        row = profiled(name, (args.height, args.width), device, args.repeats)
        rows.append(row | {"share_of_machine": row["flops"] / row["seconds"] / operations})
        print(
            f"{name}, one {args.height}x{args.width} image: {row['seconds']:.2f} s, median of {args.repeats}; ", end=""
        )
        print(f"{row['flops'] / 1e9:,.0f} GFLOPs, {rows[-1]['share_of_machine']:.0%} of the machine's speed")
        for kind, share in row["shares"].items():
            print(f"  {kind:<16}{share:6.1%}")
        print()
    if args.json:
        setting = f"one {args.height}x{args.width} image, {args.device}, float32"
        table = {"benchmark": "forward_profile", "setting": setting, "matrix_flops_per_second": operations}
        table |= {"copy_bytes_per_second": bandwidth, "rows": rows}
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
