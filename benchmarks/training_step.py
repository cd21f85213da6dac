"""A training step of LDN-121 beside one that always checkpoints, as the release's does: in turns, in one run.

    python benchmarks/training_step.py [--batch 4] [--crop 256] [--pairs 7] [--device cpu] [--json FILE]

A step is the forward pass, the DenseHybrid loss, the backward pass and Adam's update. Ours keeps what it computed, in
channels-last layout, with the fused Adam. The other computes again in the backward pass: of each dense layer the
concatenation, norm, ReLU and bottleneck (torchvision's memory_efficient), the pyramid and the ladder's steps; in the
default layout, with PyTorch's default Adam. Weights and batch are the same; the first step's loss terms must agree. A
pair is one step of each, which of them first alternating; one untimed pair goes before, and the ratio is the median of
the pairs' ratios. Ours with our own checkpointing (ladder_densenet121(..., checkpointing=True)) runs beside the two.

Memory is the peak of one step beyond weights, gradients and Adam's moments, each in a process of its own: of the
process on a CPU, of PyTorch's tensors on CUDA.
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
from functools import partial
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint
from torchvision.models.densenet import _DenseLayer

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

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
MIB = 2**20


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
    device = torch.device(args.device)
    model = ladder_densenet121(NUM_CLASSES, checkpointing=side == OURS_AGAIN).train().to(device)
    images = torch.rand(args.batch, 3, args.crop, args.crop, device=device)
    labels = torch.randint(NUM_CLASSES, (args.batch, args.crop, args.crop), device=device)
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


def seconds(step):
    start = time.perf_counter()
    step()  # which waits for its loss
    return time.perf_counter() - start


def peak(device):
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else MIB)


def measure_memory(side, args):
    """What a process of its own prints: the MiB that a step takes beyond what stays"""
    step, device = make_step(side, args), torch.device(args.device)
    before = peak(device)
    step()
    print(json.dumps(peak(device) - before))


def memory_apart(side, args):
    command = [sys.executable, __file__, "--memory_of", side, "--batch", str(args.batch), "--crop", str(args.crop)]
    command += ["--device", args.device]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=256, help="side of the images, pixels")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the table there, too")
    parser.add_argument("--memory_of", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # as our scripts run
    if args.memory_of:
        measure_memory(args.memory_of, args)
        return

    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    setting = (
        f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads; "
        f"{platform.machine()}, {name}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}; "
        f"float32, {args.batch} crops of {args.crop}x{args.crop}, {args.pairs} pairs"
    )
    print(f"{setting}\n")
    # Before anything grows here: on Linux the peak of a process that is started begins at that of its parent.
    memory = {side: memory_apart(side, args) for side in SIDES}
    steps = {side: make_step(side, args) for side in SIDES}
    first = {side: step() for side, step in steps.items()}  # warms all up, too
    for side, terms in first.items():
        for term, value in terms.items():
            if not abs(value - first[OURS][term]) <= TOLERANCE * abs(first[OURS][term]):
                raise SystemExit(f"{term}: {value} ({side}) instead of {first[OURS][term]}")
    times = {side: [] for side in SIDES}
    for pair in range(args.pairs):
        for side in SIDES if pair % 2 else reversed(SIDES):
            times[side].append(seconds(steps[side]))

    rows = []
    for side in (OURS, OURS_AGAIN):
        ratios = [theirs / ours for ours, theirs in zip(times[side], times[OTHER], strict=True)]
        rows.append(
            {
                "what": f"training step, {side}",
                "ours_seconds": statistics.median(times[side]),
                "other": OTHER,
                "other_seconds": statistics.median(times[OTHER]),
                "ratio": statistics.median(ratios),
                "smallest_ratio": min(ratios),
                "largest_ratio": max(ratios),
                "ours_mib": memory[side],
                "other_mib": memory[OTHER],
            }
        )
    for side in SIDES:
        spread = f"({min(times[side]):.3f} to {max(times[side]):.3f})"
        print(f"  {side:<24}{statistics.median(times[side]):8.3f} s {spread:<22}{memory[side]:10,.0f} MiB")
    for row in rows:
        spread = f"({row['smallest_ratio']:.2f} to {row['largest_ratio']:.2f})"
        print(f"  {row['what']}: {row['ratio']:.2f} times as fast as {OTHER} {spread}")
    if args.json:
        table = {"benchmark": "training_step", "setting": setting, "rows": rows}
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
