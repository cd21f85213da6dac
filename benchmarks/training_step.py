"""On a CPU, a training step of LDN-121 beside one that always checkpoints, as the release's does: in turns, in one run.

    python benchmarks/training_step.py [--batch 4] [--crop 256] [--pairs 7] [--json FILE]

A step is the forward pass, the DenseHybrid loss, the backward pass and Adam's update. Ours keeps what it computed, in
channels-last layout, with the fused Adam. The other computes again in the backward pass: of each dense layer the
concatenation, norm, ReLU and bottleneck (torchvision's memory_efficient), the pyramid and the ladder's steps; in the
default layout, with PyTorch's default Adam. Weights and batch are the same; the first step's loss terms must agree. A
pair is one step of each, which of them first alternating; one untimed pair goes before, and the ratio is the median of
the pairs' ratios. Ours with our own checkpointing (ladder_densenet121(..., checkpointing=True)) runs beside the two.

Memory is the process's peak of one step beyond weights, gradients and Adam's moments, each in a process of its own.
On a GPU, benchmarks/gpu.py has steps of all networks.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint
from torchvision.models.densenet import _DenseLayer

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

from benchmarks.sides import (
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
from labels import IGNORE, OUTLIER
from losses import dense_hybrid_loss
from models import ladder_densenet121
from models.ladder_densenet import LadderStep, SpatialPyramidPooling

NUM_CLASSES = 12  # of StreetHazards
BETA = 0.03
LR, EPS = 1e-5, 1e-7
TOLERANCE = 1e-4  # between the sides' first losses
OURS, OTHER, OURS_AGAIN = "ours", "always checkpointing", "ours, checkpointing"
SIDES = [OURS, OTHER, OURS_AGAIN]


def always_checkpointing(model):
    for module in model.modules():
        if isinstance(module, _DenseLayer):
            module.memory_efficient = True
        elif isinstance(module, SpatialPyramidPooling | LadderStep):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    return model


def make_step(side, args):
    """A function that trains one step and returns the loss's terms"""
    torch.manual_seed(0)
    model = ladder_densenet121(NUM_CLASSES, checkpointing=side == OURS_AGAIN).train()
    images = torch.rand(args.batch, 3, args.crop, args.crop)
    labels = torch.randint(NUM_CLASSES, (args.batch, args.crop, args.crop))
    labels[:, : args.crop // 4, : args.crop // 2] = OUTLIER
    labels[:, -args.crop // 8 :] = IGNORE
    if side == OTHER:
        always_checkpointing(model)
    else:
        model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LR, eps=EPS, fused=side != OTHER or None)
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()  # without gradients it moves nothing, but makes its moments

    def step():
        optimizer.zero_grad()
        terms = dense_hybrid_loss(*model(images), labels, beta=BETA)
        sum(terms.values()).backward()
        optimizer.step()
        return {name: term.item() for name, term in terms.items()}

    return step


def measure_memory(side, args):
    """What a process of its own prints: the MiB that a step takes beyond what stays"""
    step = make_step(side, args)
    before = peak_bytes()
    step()
    print(json.dumps((peak_bytes() - before) / MIB))


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=256, help="side of the images, pixels")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--memory_of", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        measure_memory(args.memory_of, args)
        return

    setting = f"{machine()}; float32, {args.batch} crops of {args.crop}x{args.crop}, {args.pairs} pairs"
    print(f"{setting}\n")
    sizes = "--batch", args.batch, "--crop", args.crop
    memory = {side: from_own_process(__file__, "--memory_of", side, *sizes) for side in SIDES}
    steps = {side: make_step(side, args) for side in SIDES}
    first = {side: step() for side, step in steps.items()}  # warms all up, too
    for side, terms in first.items():
        for term, value in terms.items():
            if not abs(value - first[OURS][term]) <= TOLERANCE * abs(first[OURS][term]):
                raise SystemExit(f"{term}: {value} ({side}) instead of {first[OURS][term]}")
    times = in_turns(steps, args.pairs)

    rows = [
        compared(f"training step, {side}", times, side, OTHER, ours_mib=memory[side], other_mib=memory[OTHER])
        for side in (OURS, OURS_AGAIN)
    ]
    for side in SIDES:
        print(f"  {side:<24}{shown_times(times[side])}{memory[side]:10,.0f} MiB")
    for row in rows:
        print(f"  {row['what']}: {shown_ratio(row)} times as fast as {OTHER}")
    write_table(args.json, "training_step", setting, rows)


if __name__ == "__main__":
    main()
