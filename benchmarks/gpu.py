"""Training steps, frames and the flow on a GPU beside the plain PyTorch way: the same weights and images, in turns.

    python benchmarks/gpu.py [--rows ldn_step ...] [--columns plain tf32 ...] [--quick] [--json FILE]
    python benchmarks/gpu.py --device cpu --shrink 16 --batch 2    # a trial without a GPU; its times mean nothing

plain     PyTorch as it comes: eager, default layout (NCHW), TF32 in convolutions and not in matrix products, Adam's
          default implementation, negatives pasted and the loss computed as they read, each term brought to the host in
          each step. LDN-121 computes in the backward pass again what the release's does (see training_step.py), which
          of the original's networks is the one that checkpoints. The flow is the transcription, plain_denseflow.py.
float32, tf32, bfloat16
          ours with that --precision; tf32 is the default of our scripts on a GPU
compiled  ours with --precision bfloat16 --compile

A training step is forward pass, DenseHybrid loss, backward pass and Adam's update on a batch that is on the device:
paste, Step and Update as fit runs them, without the loader. A frame goes through models.fast_inference as in the
evaluations. The flow's patches are sampled with gradients, and a backward pass follows.

A time is the median of --rounds times --passes passes by the GPU's clock, the sides in turns; memory is the peak of
PyTorch's tensors in a pass, weights included, other sides left out. `differs` is how far the first output (the loss's
terms, the logits, the patches) is from the plain side's, in parts of the largest magnitude. A side that fails is
reported, and the others run.
"""

import gc
import statistics
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

from benchmarks.gpu_rows import COLUMNS, PLAIN, ROWS, Sizes, use_precision
from benchmarks.sides import MIB, benchmark_parser, column_table, in_turns, machine, write_table
from engine import run_script
from engine.device import start_process

WARM_UP = 5  # untimed passes of a side: our fourth step is recorded, and replayed from then on
DEFAULT = {"cuda": "tf32", "cpu": "float32"}  # of our scripts
SLOW = {("dlv3_step", "float32"), ("dlv3_frame", "float32")}  # left out with --quick


def tensors_of(output: dict[str, Tensor | float] | tuple[Tensor, ...] | Tensor) -> list[Tensor]:
    if isinstance(output, dict):
        return [torch.tensor([float(value) for value in output.values()])]
    return [part.float().cpu() for part in (output if isinstance(output, tuple) else (output,))]


def difference(output: list[Tensor], expected: list[Tensor]) -> float:
    """The largest, in parts of the largest magnitude"""
    pairs = zip(output, expected, strict=True)
    return max(((found - right).abs().max() / right.abs().max()).item() for found, right in pairs)


def rest(side: Callable) -> None:
    """Let go of the memory that a side keeps between its passes, such as a recorded step's."""
    getattr(side, "rest", lambda: None)()


def tidy(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measured(row, columns: list[str], sizes: Sizes, device: torch.device, rounds: int, passes: int) -> dict[str, dict]:
    """A cell of the table by column."""
    cells, sides, outputs = {}, {}, {}
    cuda = device.type == "cuda"
    for column in columns:
        tidy(device)
        held = torch.cuda.memory_allocated(device) if cuda else 0  # by the other sides
        try:
            use_precision(column, device)
            side = row.make(column, sizes, device)
            torch.manual_seed(1)
            outputs[column] = tensors_of(side())
            if cuda:
                torch.cuda.reset_peak_memory_stats(device)
            for _ in range(WARM_UP - 1):
                side()
            peak = torch.cuda.max_memory_allocated(device) - held if cuda else None
        except Exception as error:  # the other sides are worth having
            traceback.print_exc()
            cells[column], side = failed_cell(error), None
            continue
        rest(side)
        sides[column], side = side, None
        cells[column] = {"peak_mib": None if peak is None else peak / MIB}

    def before(column: str) -> None:
        for side in sides.values():
            rest(side)
        tidy(device)
        use_precision(column, device)
        for _ in range(WARM_UP if hasattr(sides[column], "rest") else 1):  # what rested is recorded anew
            sides[column]()

    for column, times in in_turns(sides, rounds, device, passes, before).items():
        cell = cells[column]
        cell |= {"ms": 1e3 * statistics.median(times), "smallest_ms": 1e3 * min(times), "largest_ms": 1e3 * max(times)}
        if PLAIN in outputs and column != PLAIN:
            cell["difference"] = difference(outputs[column], outputs[PLAIN])
        memory = "" if cell["peak_mib"] is None else f" ({cell['peak_mib']:,.0f})"
        cell["text"] = f"{cell['ms']:.4g}{memory}"
    return cells


def failed_cell(error: Exception) -> dict:
    return {"failed": f"{type(error).__name__}: {error}", "text": "failed"}


def report(cells: dict[str, dict]) -> None:
    for column, cell in cells.items():
        if "ms" in cell:
            spread = f"({cell['smallest_ms']:.4g} to {cell['largest_ms']:.4g})"
            memory = "" if cell["peak_mib"] is None else f"{cell['peak_mib']:10,.0f} MiB"
            differs = f"   differs by {cell['difference']:.0e}" if "difference" in cell else ""
            print(f"  {column:<10}{cell['ms']:10.4g} ms {spread:<26}{memory}{differs}", flush=True)
        else:
            print(f"  {column:<10}failed: {cell['failed'].splitlines()[0]}", flush=True)


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, metavar="COLUMN")
    parser.add_argument("--quick", action="store_true", help="leave out true float32 of DeepLabV3+")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--passes", type=int, default=6, help="of each side in a round")
    parser.add_argument("--shrink", type=int, default=1, help="divide all sides of images by this, for a trial")
    parser.add_argument("--batch", type=int, help="images in a batch, for a trial")
    args = parser.parse_args()
    device, sizes = start_process(args.device), Sizes(args.shrink, args.batch)
    usual = COLUMNS if device.type == "cuda" else (PLAIN, "float32", "bfloat16")
    columns = [column for column in COLUMNS if column in (args.columns or usual)]

    setting = f"{machine(device)}; {args.rounds} times {args.passes} passes a side"
    print(f"{setting}\n")
    torch.ones(1, 1, device=device) @ torch.ones(1, 1, device=device)  # cuBLAS's workspace is no side's own
    rows = []
    for name in args.rows:
        row = ROWS[name]
        asked = [column for column in columns if column in row.columns]
        if args.quick:
            asked = [column for column in asked if (name, column) not in SLOW]
        if not asked:
            continue
        print(row.what(sizes), flush=True)
        try:
            cells = measured(row, asked, sizes, device, args.rounds, args.passes)
        except Exception as error:  # the other rows are worth having
            traceback.print_exc()
            cells = dict.fromkeys(asked, failed_cell(error))
        report(cells)
        rows.append({"what": row.what(sizes), "cells": cells})
        write_table(args.json, "gpu", setting, rows)  # what is measured is kept, whatever happens to the next row
    print("\n" + "\n".join(column_table(rows, columns, PLAIN, DEFAULT[device.type])))
    if any("failed" in cell for row in rows for cell in row["cells"].values()):
        sys.exit("error: not all sides ran")


if __name__ == "__main__":
    run_script(main)
