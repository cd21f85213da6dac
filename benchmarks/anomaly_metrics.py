"""AnomalyMetrics beside scikit-learn: the same pixels, in turns, in one run.

    python benchmarks/anomaly_metrics.py [--pixels 20000000] [--repeats 3]

Timed on our side: `update` in frames of FRAME pixels, and `compute`. On scikit-learn's: average_precision_score,
roc_auc_score and roc_curve(drop_intermediate=False) on ready arrays, and nothing for collecting them.
Memory is traced in one further, untimed pass a side, beyond the scores and labels that both are given.
"""

import argparse
import os
import platform
import statistics
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import sklearn
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

from labels import OUTLIER
from metrics import AnomalyMetrics

OUTLIER_SHARES = (0.01, 0.3)
FRAME = 1024 * 2048  # a Cityscapes frame
SEPARATION = 1.5  # between the means of inliers and outliers, in standard deviations
TPR = 0.95
FIGURES = ("AP", "AUROC", "FPR95", "threshold95")


def ours(scores, labels):
    pooled = AnomalyMetrics()
    for start in range(0, scores.size, FRAME):
        pooled.update(scores[start : start + FRAME], labels[start : start + FRAME])
    return pooled.compute() | {"kept": pooled.nbytes}


def scikit_learn(scores, outlier):
    fpr, tpr, thresholds = roc_curve(outlier, scores, drop_intermediate=False)
    at = np.flatnonzero(tpr >= TPR)[0]
    return {
        "AP": average_precision_score(outlier, scores),
        "AUROC": roc_auc_score(outlier, scores),
        "FPR95": fpr[at],
        "threshold95": thresholds[at],
    }


def seconds(function, *inputs):
    start = time.perf_counter()
    function(*inputs)
    return time.perf_counter() - start


def traced(function, *inputs):
    """Its result, and the most bytes it held at once"""
    tracemalloc.start()
    result = function(*inputs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    print(f"Python {platform.python_version()}, NumPy {np.__version__}, scikit-learn {sklearn.__version__}", end="; ")
    print(f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}")
    print(f"{args.pixels:,} float32 scores, medians of {args.repeats} runs a side, in turns (smallest to largest)\n")
    for share in OUTLIER_SHARES:
        rng = np.random.default_rng(args.seed)
        outlier = rng.random(args.pixels) < share
        scores = rng.standard_normal(args.pixels, dtype=np.float32) + outlier * np.float32(SEPARATION)
        labels = np.where(outlier, OUTLIER, 0).astype(np.uint8)

        sides = {"AnomalyMetrics": (ours, scores, labels), "scikit-learn": (scikit_learn, scores, outlier)}
        times = {name: [] for name in sides}
        for _ in range(args.repeats):
            for name, side in sides.items():
                times[name].append(seconds(*side))
        results, peaks = zip(*(traced(*side) for side in sides.values()), strict=True)

        print(f"{share:.0%} outliers      seconds                      peak bytes a pixel")
        for (name, runs), peak in zip(times.items(), peaks, strict=True):
            spread = f"({min(runs):.3f} to {max(runs):.3f})"
            print(f"  {name:<16}{statistics.median(runs):8.3f} {spread:<20}{peak / args.pixels:12.1f}")
        our_median, their_median = (statistics.median(runs) for runs in times.values())
        difference = ", ".join(f"{name} {abs(results[0][name] - results[1][name]):.1e}" for name in FIGURES)
        kept = results[0]["kept"] / args.pixels
        print(f"  {their_median / our_median:.1f} times faster; kept: {kept:.1f} bytes a pixel")
        print(f"  |difference|: {difference}\n")


if __name__ == "__main__":
    main()
