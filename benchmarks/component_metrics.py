"""ComponentMetrics beside a loop over components with NumPy masks: the same frames, in turns, in one run.

    python benchmarks/component_metrics.py [--repeats 3] [--json FILE]

A frame has some large objects, predicted shifted and frayed, ignored borders, and predicted specks: thousands of
components before the sizes are filtered. The loop masks the whole frame once or more for each component, as the
definition reads. Timed on both sides: one frame, from scores and labels to figures.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import scipy
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

from labels import IGNORE, OUTLIER
from metrics.components import EIGHT_NEIGHBOURS, F1_THRESHOLDS, ComponentMetrics

HEIGHT, WIDTH = 1024, 2048  # a Cityscapes frame
OBJECTS = 12
SPECKS = 6000  # each a disc of 1 to 5 pixels' radius, some of them grown together
THRESHOLD = 0.5
SIZES = {"AnomalyTrack": (500, 100), "ObstacleTrack": (50, 10)}  # min_predicted, min_true


def frame(rng):
    """Scores float32 and labels uint8 (HEIGHT, WIDTH)"""
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(OBJECTS):
        row, column, height, width = rng.integers((100, 100, 8, 8), (HEIGHT - 100, WIDTH - 100, 90, 90))
        labels[((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 < 1] = OUTLIER
    scores = np.roll(labels == OUTLIER, rng.integers(-9, 10, 2), (0, 1)).astype(np.float32)
    centres = np.zeros((HEIGHT, WIDTH), bool)
    centres.flat[rng.integers(0, HEIGHT * WIDTH, SPECKS)] = True
    radius = ndimage.distance_transform_edt(~centres)
    scores += radius <= ndimage.zoom(rng.uniform(0.5, 5, (8, 16)), 128, order=1)  # larger in some places
    small = ndimage.binary_dilation(rng.random((HEIGHT, WIDTH)) < 1e-4, EIGHT_NEIGHBOURS, 2)  # small true objects
    labels[small] = OUTLIER
    labels[:40], labels[:, :20] = IGNORE, IGNORE
    return scores + rng.uniform(-0.45, 0.45, scores.shape).astype(np.float32), labels


def ours(scores, labels, min_predicted, min_true):
    return ComponentMetrics(THRESHOLD, min_predicted, min_true).update(scores, labels).compute()


def loop(scores, labels, min_predicted, min_true):
    true, true_count = ndimage.label(labels == OUTLIER, EIGHT_NEIGHBOURS)
    predicted, predicted_count = ndimage.label(scores >= THRESHOLD, EIGHT_NEIGHBOURS)
    for number in range(1, predicted_count + 1):
        component = predicted == number
        if component.sum() < min_predicted:
            predicted[component] = 0
    ignored = labels == IGNORE
    for number in range(1, true_count + 1):
        component = true == number
        if component.sum() < min_true:
            ignored |= component
    true, predicted = true[~ignored], predicted[~ignored]
    siou, ppv = [], []
    for number in np.unique(true[true > 0]):
        component = true == number
        touching = np.unique(predicted[component & (predicted > 0)])
        union = np.isin(predicted, touching)
        others = (true > 0) & ~component
        siou.append((component & union).sum() / ((component | union).sum() - (union & others).sum()))
    for number in np.unique(predicted[predicted > 0]):
        component = predicted == number
        ppv.append((true[component] > 0).mean())
    siou, ppv = np.array(siou), np.array(ppv)
    found = [(siou >= threshold).sum() for threshold in F1_THRESHOLDS]
    false = [(ppv < threshold).sum() for threshold in F1_THRESHOLDS]
    f1 = [2 * hits / (hits + siou.size + alarms) for hits, alarms in zip(found, false, strict=True)]
    return {"sIoU": siou.mean(), "PPV": ppv.mean(), "F1": np.mean(f1)}


def seconds(function, *inputs):
    """Its result and how long it took"""
    start = time.perf_counter()
    result = function(*inputs)
    return result, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the table there, too")
    args = parser.parse_args()

    print(f"Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}", end="; ")
    print(f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}")
    scores, labels = frame(np.random.default_rng(args.seed))
    found = [ndimage.label(mask, EIGHT_NEIGHBOURS)[1] for mask in (labels == OUTLIER, scores >= THRESHOLD)]
    print(f"one frame of {WIDTH}x{HEIGHT} with {found[0]} true and {found[1]} predicted components of any size;")
    print(f"medians of {args.repeats} runs a side, in turns (smallest to largest)\n")
    rows = []
    for track, sizes in SIZES.items():
        times = {"ComponentMetrics": [], "loop with masks": []}
        for _ in range(args.repeats):
            figures, taken = seconds(ours, scores, labels, *sizes)
            times["ComponentMetrics"].append(taken)
            expected, taken = seconds(loop, scores, labels, *sizes)
            times["loop with masks"].append(taken)

        counted = f"{figures['true_components']} true and {figures['predicted_components']} predicted components count"
        print(f"{track}: {counted}; " + ", ".join(f"{name} {figures[name]:.3f}" for name in expected))
        for name, runs in times.items():
            print(f"  {name:<18}{statistics.median(runs):8.3f} s ({min(runs):.3f} to {max(runs):.3f})")
        our_median, their_median = (statistics.median(runs) for runs in times.values())
        difference = ", ".join(f"{name} {abs(figures[name] - expected[name]):.1e}" for name in expected)
        ratio = their_median / our_median
        print(f"  {ratio:.0f} times faster; |difference|: {difference}\n")
        row = {"what": f"{track}, one frame", "ours_seconds": our_median, "other": "loop with masks"}
        rows.append(row | {"other_seconds": their_median, "ratio": ratio})
    if args.json:
        setting = f"one frame of {WIDTH}x{HEIGHT}, {found[1]} predicted components, {args.repeats} runs a side"
        table = {"benchmark": "component_metrics", "setting": setting, "rows": rows}
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
