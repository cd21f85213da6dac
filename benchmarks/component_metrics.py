"""ComponentMetrics beside a loop over components with NumPy masks: the same frames, in turns, in one run.

    python benchmarks/component_metrics.py [--repeats 3] [--json FILE]

A frame has some large objects, predicted shifted and frayed, ignored borders, and predicted specks: thousands of
components before the sizes are filtered. The loop masks the whole frame once or more for each component, as the
definition reads. Timed on both sides: one frame, from scores and labels to figures.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

from benchmarks.sides import benchmark_parser, compared, in_turns, machine, shown_times, write_table
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


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    scores, labels = frame(np.random.default_rng(args.seed))
    found = [ndimage.label(mask, EIGHT_NEIGHBOURS)[1] for mask in (labels == OUTLIER, scores >= THRESHOLD)]
    setting = (
        f"{machine(packages=('numpy', 'scipy'))}; one frame of {WIDTH}x{HEIGHT} with {found[0]} true and {found[1]} "
        f"predicted components of any size, {args.repeats} runs a side, in turns"
    )
    print(f"{setting}\n")
    rows = []
    for track, sizes in SIZES.items():
        inputs = scores, labels, *sizes
        figures, expected = ours(*inputs), loop(*inputs)
        sides = {"ComponentMetrics": partial(ours, *inputs), "loop with masks": partial(loop, *inputs)}
        times = in_turns(sides, args.repeats)

        counted = f"{figures['true_components']} true and {figures['predicted_components']} predicted components count"
        print(f"{track}: {counted}; " + ", ".join(f"{name} {figures[name]:.3f}" for name in expected))
        for name, runs in times.items():
            print(f"  {name:<18}{shown_times(runs)}")
        difference = ", ".join(f"{name} {abs(figures[name] - expected[name]):.1e}" for name in expected)
        rows.append(compared(f"{track}, one frame", times, *sides))
        print(f"  {rows[-1]['ratio']:.0f} times faster; |difference|: {difference}\n")
    write_table(args.json, "component_metrics", setting, rows)


if __name__ == "__main__":
    main()
