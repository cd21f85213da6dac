"""Every comparison in one go, one after the other on a machine that does nothing else, and one table of them.

    python benchmarks/run_all.py                         # on a CPU, about twenty minutes
    python benchmarks/run_all.py --device cuda           # on a GPU, at most --seconds
    python benchmarks/run_all.py --only loading denseflow [--folder benchmark_results]

Writes table.md, results.json and what each benchmark printed, NAME.txt, into the folder. A ratio is the other side's
time through ours, so that more than 1 is faster. On a GPU the table has the plain PyTorch way and our precisions as
columns (benchmarks/gpu.py says what they are), and benchmarks that a GPU changes nothing in run only where --only names
them. What fails is reported at the end, and the others are run.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

import torch

from benchmarks.sides import column_table, machine

HERE = Path(__file__).resolve().parent
COLUMNS = ("plain", "float32", "tf32", "bfloat16", "compiled")
ON_CPU = {  # in the order they are run: name, script, what it is called with
    "inference": ("inference", []),
    "training_step": ("training_step", []),
    "loading": ("loading", []),
    "anomaly_metrics": ("anomaly_metrics", []),
    "metrics_at_scale": ("metrics_at_scale", []),
    "component_metrics": ("component_metrics", []),
    "dataset_head_cost": ("dataset_head_cost", []),
    "denseflow": ("denseflow", ["--sizes", "32"]),
    "forward_profile": ("forward_profile", []),
    "training_cost": ("training_cost", []),
}
ON_GPU = {  # compiling takes the longest, and comes last
    "gpu": ("gpu", ["--columns", *COLUMNS[:-1]]),
    "evaluation": ("evaluation", []),
    "gpu_compiled": ("gpu", ["--columns", COLUMNS[-1], "--rows", "segmenter_step", "dlv3_step", "ldn_step"]),
}
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "imagecodecs", "scipy", "scikit-learn")
PEERS = ("torchmetrics", "pytorch-ood")


def ended(command: list[str], printed: Path, timeout: float | None) -> int | None:
    """A command's exit status, None where it was stopped after `timeout` seconds; its output goes into a file."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with open(printed, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started itself
                process.wait()


def table_of(results: dict[str, dict]) -> list[str]:
    """Markdown lines of all rows that compare sides; of others none, their own text says more."""
    rows = [(result["benchmark"], row) for result in results.values() for row in result["rows"]]
    columns: dict[str, dict] = {}
    for _, row in rows:
        if "cells" in row:
            columns.setdefault(row["what"], {}).update(row["cells"])
    lines = []
    if columns:
        lines += column_table(
            [{"what": what, "cells": cells} for what, cells in columns.items()], COLUMNS, "plain", "tf32"
        )
        lines.append("")
    pairs = [(benchmark, row) for benchmark, row in rows if row.get("ratio") is not None]
    if pairs:
        lines += ["| benchmark | what | ours, s | other | other, s | other / ours |", "|---|---|---|---|---|---|"]
    for benchmark, row in pairs:
        times = f"{row['ours_seconds']:.4g} | {row['other']} | {row['other_seconds']:.4g}"
        lines.append(f"| {benchmark} | {row['what']} | {times} | {row['ratio']:.2f} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("benchmark_results"))
    parser.add_argument("--only", nargs="+", choices=[*ON_CPU, *ON_GPU], metavar="NAME")
    parser.add_argument(
        "--quick", action="store_true", help="on a GPU: nothing compiled, no true float32 of DeepLabV3+"
    )
    parser.add_argument(
        "--seconds", type=float, help="stop then, and keep what was measured (default: 410 on a GPU, never on a CPU)"
    )
    args = parser.parse_args()
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    names = args.only or [
        name for name in (ON_GPU if on_gpu else ON_CPU) if not (args.quick and name == "gpu_compiled")
    ]
    limit = args.seconds or (410 if on_gpu else None)
    args.folder.mkdir(parents=True, exist_ok=True)

    began, results, failed = time.monotonic(), {}, []
    for name in names:
        script, flags = (ON_CPU | ON_GPU)[name]
        if name in ON_GPU:
            flags = [*flags, "--device", args.device, *["--quick"] * (args.quick and script == "gpu")]
        start, printed = time.monotonic(), args.folder / f"{name}.txt"
        print(f"{name} ...", end=" ", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, "table.json")
            left = None if limit is None else max(1, began + limit - start)
            status = ended([sys.executable, str(HERE / f"{script}.py"), *flags, "--json", str(file)], printed, left)
            if file.exists():  # also of one that did not come to its end
                results[name] = json.loads(file.read_text())
        seconds = f"{time.monotonic() - start:.0f} s"
        if status == 0 and name in results:
            print(seconds)
        else:
            failed.append(name)
            print(f"{seconds}, {'stopped' if status is None else 'failed'}, see {printed}")

    machine_text = machine(device, PACKAGES if on_gpu else PACKAGES + PEERS)
    text = "\n".join([machine_text, "", *table_of(results)]) + "\n"
    (args.folder / "table.md").write_text(text)
    (args.folder / "results.json").write_text(
        json.dumps({"machine": machine_text, "results": results}, indent=2) + "\n"
    )
    print(f"\n{text}\nwritten: {args.folder}/table.md, results.json, and NAME.txt of each")
    if failed:
        sys.exit(f"error: {', '.join(failed)} did not come to the end")


if __name__ == "__main__":
    main()
