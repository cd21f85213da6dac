"""Every comparison in one go, one after the other on a machine that does nothing else, and one table of their ratios.

    python benchmarks/run_all.py [--folder benchmark_results] [--only NAME ...]

Writes table.md, results.json and what each benchmark printed, NAME.txt, into the folder. A ratio is the other side's
time through ours, so that more than 1 is faster. What fails is told at the end, and the others are run.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
BENCHMARKS = {  # in the order they are run, and what each is called with
    "inference": [],
    "training_step": [],
    "loading": [],
    "anomaly_metrics": [],
    "metrics_at_scale": [],
    "component_metrics": [],
    "dataset_head_cost": [],
    "denseflow": ["--sizes", "32"],
    "forward_profile": [],
    "training_cost": [],
}
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "scipy", "scikit-learn", "torchmetrics", "pytorch-ood")


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def machine() -> dict:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    models = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": cores,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "unset"),
        "python": platform.python_version(),
        "versions": {package: installed(package) for package in PACKAGES},
    }


def lines_of(result: dict) -> list[str]:
    """Table lines of a benchmark that compares two sides; of others none, their own text tells more."""
    return [
        f"| {result['benchmark']} | {row['what']} | {row['ours_seconds']:.4g} | {row['other']} | "
        f"{row['other_seconds']:.4g} | {row['ratio']:.2f} |"
        for row in result["rows"]
        if row.get("ratio") is not None
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("benchmark_results"))
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS), metavar="NAME")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    results, failed = {}, []
    for name in args.only:
        start = time.monotonic()
        print(f"{name} ...", end=" ", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, "table.json")
            command = [sys.executable, str(HERE / f"{name}.py"), *BENCHMARKS[name], "--json", str(file)]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            (args.folder / f"{name}.txt").write_text(done.stdout)
            if done.returncode or not file.exists():
                failed.append(name)
                print(f"failed, see {args.folder / name}.txt")
                continue
            results[name] = json.loads(file.read_text())
        print(f"{time.monotonic() - start:.0f} s")

    told = machine()
    versions = ", ".join(f"{package} {number}" for package, number in told["versions"].items())
    head = f"{told['processor']}, {told['cores']} cores, OMP_NUM_THREADS {told['OMP_NUM_THREADS']}; "
    table = [head + f"Python {told['python']}, {versions}", ""]
    table += ["| benchmark | what | ours, s | other | other, s | other / ours |", "|---|---|---|---|---|---|"]
    table += [line for result in results.values() for line in lines_of(result)]
    text = "\n".join(table) + "\n"
    (args.folder / "table.md").write_text(text)
    (args.folder / "results.json").write_text(json.dumps({"machine": told, "results": results}, indent=2) + "\n")
    print(f"\n{text}\nwritten: {args.folder}/table.md, results.json, and NAME.txt of each")
    if failed:
        sys.exit(f"error: {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
