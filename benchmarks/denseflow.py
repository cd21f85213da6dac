"""DenseFlow-25-6 beside a plain transcription of it: the same weights, images and noise, in turns, in one run.

    python benchmarks/denseflow.py [--sizes 32 64] [--patches 8] [--repeats 5] [--device cpu] \\
        [--json FILE]

The transcription (benchmarks/plain_denseflow.py) takes ActNorm, 1x1 convolution and coupling one after the other, each
with its own log-determinant, and inverts each matrix by itself. Timed are sampling without gradient, sampling with
gradient and its backward pass, the log-likelihood, and the log-likelihood with its backward pass; one untimed run of
each side goes before, and both must give the same values and gradients. Memory is the peak of drawing and scoring
patches with a backward pass, with and without checkpointing, each in a process of its own.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

from benchmarks import plain_denseflow
from models import denseflow_25_6

TOLERANCE = 1e-3  # of the largest magnitude: in float32, what a hundred layers' rounding leaves
SPREAD = 0.02  # of the random weights, so that no coupling is the identity
MIB = 2**20


def make_flow(device, checkpointing=False):
    torch.manual_seed(0)
    flow = denseflow_25_6(checkpointing)
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if "coupling_net" in name or name.endswith(("shift", "log_scale")):
                parameter.add_(SPREAD * torch.randn_like(parameter))
        for layer in flow.layers():
            layer.norm.initialized.fill_(1)
    return flow.eval().to(device)


def make_images(patches, side, device):
    generator = torch.Generator().manual_seed(side)
    return torch.randint(256, (patches, 3, side, side), generator=generator).float().to(device)


def tasks(flow, images):
    """{what is done: (ours, the transcription's)}, functions that return values and, after a backward, gradients"""
    weights, (patches, _, height, width) = dict(flow.named_parameters()), images.shape

    def without_gradient(function):
        with torch.no_grad():
            return function(), []

    def with_gradient(function):
        flow.zero_grad()
        result = function()
        result.mean().backward()
        return result.detach(), [parameter.grad for parameter in weights.values() if parameter.grad is not None]

    sample = (
        lambda: flow.sample(patches, height, width),
        lambda: plain_denseflow.sample(weights, patches, height, width),
    )
    log_prob = (lambda: flow.log_prob(images), lambda: plain_denseflow.log_prob(weights, images))
    return {
        f"{title}{how}": [lambda run=run, function=function: run(function) for function in sides]
        for title, sides in (("sample", sample), ("log_prob", log_prob))
        for how, run in (("", without_gradient), (" and backward", with_gradient))
    }


def seconds(run, device):
    """Its result and how long it took, with noise of its own seed"""
    torch.manual_seed(1)
    wait(device)
    start = time.perf_counter()
    result = run()
    wait(device)
    return result, time.perf_counter() - start


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def difference(one, other):
    """Largest difference of values and of gradients, each beside its own largest magnitude"""
    (value, gradients), (other_value, other_gradients) = one, other
    pairs = [(value, other_value), *zip(gradients, other_gradients, strict=True)]
    largest = max((theirs.abs().max() for _, theirs in pairs[1:]), default=1)
    values = (value - other_value).abs().max() / other_value.abs().max()
    worst = max(((ours - theirs).abs().max() / largest for ours, theirs in pairs[1:]), default=0)
    return float(values), float(worst)


def measure_memory(side, patches, device, checkpointing):
    """What a process of its own prints: MiB before, and at the peak of drawing, scoring and the backward passes"""
    flow, images = make_flow(device, checkpointing), make_images(patches, side, device)
    for parameter in flow.parameters():
        parameter.grad = torch.zeros_like(parameter)  # they are there in any training
    before = peak(device)
    (flow.sample(patches, side, side).mean() - flow.log_prob(images).mean()).backward()
    print(json.dumps([before, peak(device)]))


def peak(device):
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else MIB)


def memory_apart(side, args, checkpointing):
    """[before, at the peak] of measure_memory"""
    command = [sys.executable, __file__, "--memory_of", str(side), "--patches", str(args.patches)]
    command += ["--device", args.device, *["--checkpointing"] * checkpointing]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64], help="sides of the patches, multiples of 8")
    parser.add_argument("--patches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the table there, too")
    parser.add_argument("--memory_of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.backends.cudnn.allow_tf32 = False  # as our scripts run
    if args.memory_of:
        measure_memory(args.memory_of, args.patches, device, args.checkpointing)
        return

    print(f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads", end="; ")
    print(f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{where}, float32; medians of {args.repeats} runs a side, in turns (smallest to largest)\n")
    # Before anything grows here: on Linux the peak of a process that is started begins at that of its parent.
    for side in args.sizes:
        print(f"memory for {args.patches} patches of {side}x{side}, drawn, scored and with their backward passes")
        for checkpointing in (False, True):
            before, most = memory_apart(side, args, checkpointing)
            how = f"{'with' if checkpointing else 'without'} checkpointing"
            print(f"  {how:<23}peak {most:,.0f} MiB, {most - before:,.0f} beyond PyTorch, weights and gradients")
    print()

    flow, rows = make_flow(device), []
    for side in args.sizes:
        print(f"{args.patches} patches of {side}x{side}")
        for title, sides in tasks(flow, make_images(args.patches, side, device)).items():
            (ours, _), (plain, _) = (seconds(run, device) for run in sides)
            values, gradients = difference(ours, plain)
            assert max(values, gradients) < TOLERANCE, f"{title}: {values:.1e} in values, {gradients:.1e} in gradients"
            del ours, plain
            times = {"DenseFlow": [], "transcription": []}
            for repeat in range(args.repeats):
                for name, run in list(zip(times, sides, strict=True))[:: 1 if repeat % 2 else -1]:
                    times[name].append(seconds(run, device)[1])
            told = [f"{name} {statistics.median(t):.3f} s ({min(t):.3f} to {max(t):.3f})" for name, t in times.items()]
            medians = [statistics.median(runs) for runs in times.values()]
            ratios = [plain / ours for ours, plain in zip(*times.values(), strict=True)]
            spread = f"{statistics.median(ratios):.2f} times faster ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"  {title:<23}{told[0]:<40}{told[1]:<44}{spread}; |difference| {values:.0e}, {gradients:.0e}")
            what, ratio = f"{title}, {args.patches} patches of {side}x{side}", statistics.median(ratios)
            row = {"what": what, "ours_seconds": medians[0], "other": "transcription", "other_seconds": medians[1]}
            rows.append(row | {"ratio": ratio})
        print()
    if args.json:
        table = {"benchmark": "denseflow", "setting": f"{where}, float32, {args.repeats} runs a side", "rows": rows}
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
