"""On a CPU, DenseFlow-25-6 beside a plain transcription of it: the same weights, images and noise, in turns.

    python benchmarks/denseflow.py [--sizes 32 64] [--patches 8] [--repeats 5] [--json FILE]

The transcription (benchmarks/plain_denseflow.py) takes ActNorm, 1x1 convolution and coupling one after the other, each
with its own log-determinant, and inverts each matrix by itself. Timed are sampling without gradient, sampling with
gradient and its backward pass, the log-likelihood, and the log-likelihood with its backward pass; one untimed run of
each side goes before, and both must give the same values and gradients. Memory is the peak of drawing and scoring
patches with a backward pass, with and without checkpointing, each in a process of its own.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

from benchmarks import plain_denseflow
from benchmarks.sides import (
    CPU,
    MIB,
    benchmark_parser,
    compared,
    from_own_process,
    in_turns,
    machine,
    peak_bytes,
    shown_ratio,
    shown_times,
    write_table,
)
from models import denseflow_25_6

TOLERANCE = 1e-3  # of the largest magnitude: in float32, what a hundred layers' rounding leaves
SPREAD = 0.02  # of the random weights, so that no coupling is the identity


def make_flow(device=CPU, checkpointing=False):
    torch.manual_seed(0)
    flow = denseflow_25_6(checkpointing)
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if "coupling_net" in name or name.endswith(("shift", "log_scale")):
                parameter.add_(SPREAD * torch.randn_like(parameter))
        for layer in flow.layers():
            layer.norm.initialized.fill_(1)
    return flow.eval().to(device)


def make_images(patches, side):
    generator = torch.Generator().manual_seed(side)
    return torch.randint(256, (patches, 3, side, side), generator=generator).float()


def tasks(flow, images):
    """{what is done: (ours, the transcription's)}, functions that return values and, after a backward, gradients"""
    weights, (patches, _, height, width) = dict(flow.named_parameters()), images.shape

    def without_gradient(function):
        torch.manual_seed(1)
        with torch.no_grad():
            return function(), []

    def with_gradient(function):
        torch.manual_seed(1)
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


def difference(one, other):
    """Largest difference of values and of gradients, each beside its own largest magnitude"""
    (value, gradients), (other_value, other_gradients) = one, other
    pairs = [(value, other_value), *zip(gradients, other_gradients, strict=True)]
    largest = max((theirs.abs().max() for _, theirs in pairs[1:]), default=1)
    values = (value - other_value).abs().max() / other_value.abs().max()
    worst = max(((ours - theirs).abs().max() / largest for ours, theirs in pairs[1:]), default=0)
    return float(values), float(worst)


def measure_memory(side, patches, checkpointing):
    """What a process of its own prints: MiB before, and at the peak of drawing, scoring and the backward passes"""
    flow, images = make_flow(checkpointing=checkpointing), make_images(patches, side)
    for parameter in flow.parameters():
        parameter.grad = torch.zeros_like(parameter)  # they are there in any training
    before = peak_bytes()
    (flow.sample(patches, side, side).mean() - flow.log_prob(images).mean()).backward()
    print(json.dumps([before / MIB, peak_bytes() / MIB]))


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64], help="sides of the patches, multiples of 8")
    parser.add_argument("--patches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory_of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        measure_memory(args.memory_of, args.patches, args.checkpointing)
        return

    setting = f"{machine()}; float32, {args.repeats} runs a side, in turns"
    print(f"{setting}\n")
    for side in args.sizes:
        print(f"memory for {args.patches} patches of {side}x{side}, drawn, scored and with their backward passes")
        for flags in ([], ["--checkpointing"]):
            before, most = from_own_process(__file__, "--memory_of", side, "--patches", args.patches, *flags)
            how = f"{'with' if flags else 'without'} checkpointing"
            print(f"  {how:<23}peak {most:,.0f} MiB, {most - before:,.0f} beyond PyTorch, weights and gradients")
    print()

    flow, rows = make_flow(), []
    for side in args.sizes:
        print(f"{args.patches} patches of {side}x{side}")
        for title, (ours, plain) in tasks(flow, make_images(args.patches, side)).items():
            values, gradients = difference(ours(), plain())
            assert max(values, gradients) < TOLERANCE, f"{title}: {values:.1e} in values, {gradients:.1e} in gradients"
            times = in_turns({"DenseFlow": ours, "transcription": plain}, args.repeats)
            what = f"{title}, {args.patches} patches of {side}x{side}"
            rows.append(compared(what, times, "DenseFlow", "transcription"))
            measured = "".join(f"{name}{shown_times(runs)}" for name, runs in times.items())
            faster = f"{shown_ratio(rows[-1])} times faster"
            print(f"  {title:<23}{measured}   {faster}; |difference| {values:.0e}, {gradients:.0e}")
        print()
    write_table(args.json, "denseflow", setting, rows)


if __name__ == "__main__":
    main()
