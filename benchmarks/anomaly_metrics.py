"""AnomalyMetrics beside scikit-learn, torchmetrics and pytorch-ood: the same pixels, in turns, in one run.

    pip install -r requirements/benchmarks.txt
    python benchmarks/anomaly_metrics.py [--pixels 20000000] [--repeats 3] [--json FILE]

Timed on our side: `update` in frames of FRAME pixels, and `compute`. On scikit-learn's: average_precision_score,
roc_auc_score and roc_curve(drop_intermediate=False) on ready arrays, and nothing for collecting them. On
torchmetrics': BinaryAveragePrecision, BinaryAUROC and BinaryROC in a MetricCollection, which keeps their pixels once,
on ready tensors, updated in the same frames; it takes scores beyond 0..1 for logits, and their sigmoid in float32 can
tie where the scores do not. On pytorch-ood's: OODMetrics likewise, which has AUTC and AUPR-IN to work out as well;
its AUPR is the trapezoidal rule's, not AP. All with their defaults. A peer that is not installed is left out.

Memory is the growth of the peak of a process of each side's own, beyond the scores and labels that all are given.
"""

import importlib.util
import multiprocessing
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

from benchmarks.sides import benchmark_parser, compared, in_turns, machine, peak_bytes, shown_times, write_table
from labels import OUTLIER
from metrics import AnomalyMetrics

OUTLIER_SHARES = (0.01, 0.3)
FRAME = 1024 * 2048  # a Cityscapes frame
SEPARATION = 1.5  # between the means of inliers and outliers, in standard deviations
TPR = 0.95
FIGURES = ("AP", "AUROC", "FPR95", "threshold95")
PACKAGES = ("numpy", "torch", "scikit-learn", "torchmetrics", "pytorch-ood")
INSTALL = "pip install -r requirements/benchmarks.txt"


def ours(scores, labels):
    pooled = AnomalyMetrics()
    for start in range(0, scores.size, FRAME):
        pooled.update(scores[start : start + FRAME], labels[start : start + FRAME])
    return pooled.compute()


def scikit_learn(scores, outlier):
    fpr, tpr, thresholds = roc_curve(outlier, scores, drop_intermediate=False)
    at = np.flatnonzero(tpr >= TPR)[0]
    return {
        "AP": average_precision_score(outlier, scores),
        "AUROC": roc_auc_score(outlier, scores),
        "FPR95": fpr[at],
        "threshold95": thresholds[at],
    }


def torch_metrics(scores, outlier):
    from torchmetrics import MetricCollection
    from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision, BinaryROC

    pooled = MetricCollection([BinaryAveragePrecision(), BinaryAUROC(), BinaryROC()])
    for some_scores, some_outlier in zip(scores.split(FRAME), outlier.split(FRAME), strict=True):
        pooled.update(some_scores, some_outlier)
    figures = pooled.compute()
    fpr, tpr, _ = figures["BinaryROC"]
    fpr95 = fpr[torch.nonzero(tpr >= TPR)[0, 0]]
    return {
        "AP": float(figures["BinaryAveragePrecision"]),
        "AUROC": float(figures["BinaryAUROC"]),
        "FPR95": float(fpr95),
    }


def pytorch_ood(scores, labels):
    from pytorch_ood.metrics import OODMetrics

    pooled = OODMetrics()
    for some_scores, some_labels in zip(scores.split(FRAME), labels.split(FRAME), strict=True):
        pooled.update(some_scores, some_labels)
    figures = pooled.compute()
    return {"AP": figures["AUPR-OUT"], "AUROC": figures["AUROC"], "FPR95": figures["FPR95TPR"]}


SIDES = {  # the package, the function, and the labels that it takes
    "AnomalyMetrics": ("numpy", ours, lambda outlier: np.where(outlier, np.uint8(OUTLIER), np.uint8(0))),
    "scikit-learn": ("sklearn", scikit_learn, lambda outlier: outlier),
    "torchmetrics": ("torchmetrics", torch_metrics, lambda outlier: torch.from_numpy(outlier.view(np.uint8))),
    "pytorch-ood": ("pytorch_ood", pytorch_ood, lambda outlier: torch.from_numpy(-outlier.view(np.int8))),
}


def drawn(pixels, share, seed):
    """Scores float32 and outlier bool (pixels,), made frame by frame, so that making them leaves no peak of memory"""
    rng = np.random.default_rng(seed)
    scores, outlier = np.empty(pixels, np.float32), np.empty(pixels, bool)
    for start in range(0, pixels, FRAME):
        part = slice(start, min(start + FRAME, pixels))
        size = part.stop - part.start
        outlier[part] = rng.random(size, np.float32) < share
        scores[part] = rng.standard_normal(size, np.float32) + outlier[part] * np.float32(SEPARATION)
    return scores, outlier


def inputs_of(name, scores, outlier):
    _, _, labels_of = SIDES[name]
    return (scores if name in ("AnomalyMetrics", "scikit-learn") else torch.from_numpy(scores)), labels_of(outlier)


def grown(name, *setting):
    """A side's figures, and the bytes by which it raised the peak of this process, which is its own"""
    _, function, _ = SIDES[name]
    function(*inputs_of(name, *drawn(1000, 0.5, 0)))  # imports what it needs
    inputs = inputs_of(name, *drawn(*setting))
    before = peak_bytes()
    return function(*inputs), peak_bytes() - before


def in_a_process_of_its_own(function, *inputs):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, inputs)


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument("--pixels", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    sides = [name for name, (package, _, _) in SIDES.items() if importlib.util.find_spec(package)]
    left_out = [name for name in SIDES if name not in sides]
    setting = machine(packages=PACKAGES)
    print(setting)
    if left_out:
        print(f"left out, as not installed: {', '.join(left_out)}; {INSTALL}")
    print(f"{args.pixels:,} float32 scores, medians of {args.repeats} runs a side, in turns (smallest to largest)\n")
    inputs = {share: (args.pixels, share, args.seed) for share in OUTLIER_SHARES}
    results = {  # before anything is large here: a process starts with the peak of the one that starts it
        share: {name: in_a_process_of_its_own(grown, name, *given) for name in sides} for share, given in inputs.items()
    }
    rows = []
    for share, given in inputs.items():
        scores, outlier = drawn(*given)
        runs = {}
        for name in sides:
            function = SIDES[name][1]
            function(*inputs_of(name, scores[:1000], outlier[:1000]))  # imports what it needs
            runs[name] = partial(function, *inputs_of(name, scores, outlier))
        times = in_turns(runs, args.repeats)

        our_figures, our_bytes = results[share]["AnomalyMetrics"]
        print(f"{share:.0%} outliers      seconds                      peak bytes a pixel")
        for name in sides:
            figures, grew = results[share][name]
            line = f"  {name:<16}{shown_times(times[name])}{grew / args.pixels:12.1f}"
            if name != "AnomalyMetrics":
                difference = {
                    figure: abs(our_figures[figure] - figures[figure]) for figure in FIGURES if figure in figures
                }
                row = compared(f"{args.pixels:,} pixels, {share:.0%} outliers", times, "AnomalyMetrics", name)
                row["ours_peak_bytes_a_pixel"] = our_bytes / args.pixels
                row["other_peak_bytes_a_pixel"] = grew / args.pixels
                rows.append(row | {"difference": difference})
                differences = ", ".join(f"{figure} {value:.1e}" for figure, value in difference.items())
                line += f"   {row['ratio']:.1f} times ours; |difference|: {differences}"
            print(line)
        print()
    write_table(args.json, "anomaly_metrics", setting, rows, left_out=left_out)


if __name__ == "__main__":
    main()
