"""AnomalyMetrics and BoundedAnomalyMetrics on a data set of 100 frames of 2 megapixels: seconds and peak memory.

    python benchmarks/metrics_at_scale.py [--frames 100] [--json FILE]

Frames are drawn one at a time, as a network would give them, and each goes through `update`; then `compute`. Drawing is
timed apart. Each side has a process of its own, whose peak memory (ru_maxrss) contains Python, NumPy and torch: "at
start".
"""

import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

from benchmarks.sides import MIB, benchmark_parser, machine, peak_bytes, write_table
from labels import IGNORE, OUTLIER
from metrics import AnomalyMetrics, BoundedAnomalyMetrics

HEIGHT, WIDTH = 1024, 2048  # a Cityscapes frame
OUTLIER_SHARE, IGNORED_SHARE = 0.01, 0.05
INLIER_MEAN, OUTLIER_MEAN, DEVIATION = -20.0, -14.0, 4.0  # nats, as of a negated log-sum-exp
SIDES = {"AnomalyMetrics": AnomalyMetrics, "BoundedAnomalyMetrics": BoundedAnomalyMetrics}
FIGURES = ("AP", "AUROC", "FPR95")
MOST_SECONDS, MOST_BYTES = 60, 2 << 30  # what the exact figures may take on two cores


def frame(rng):
    """Scores float32 and labels uint8 (HEIGHT, WIDTH)"""
    kind = rng.random((HEIGHT, WIDTH), np.float32)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[kind < OUTLIER_SHARE] = OUTLIER
    labels[kind > 1 - IGNORED_SHARE] = IGNORE
    scores = rng.standard_normal((HEIGHT, WIDTH), np.float32)
    scores *= np.float32(DEVIATION)
    scores += np.where(labels == OUTLIER, np.float32(OUTLIER_MEAN), np.float32(INLIER_MEAN))
    return scores, labels


def measured(side, frames, seed):
    """What one side took in this process, which is its own"""
    rng = np.random.default_rng(seed)
    times = dict.fromkeys(("drawing", "update", "compute"), 0.0)

    def timed(part, function, *inputs):
        start = time.perf_counter()
        result = function(*inputs)
        times[part] += time.perf_counter() - start
        return result

    at_the_start = peak_bytes()
    pooled = SIDES[side]()
    for _ in range(frames):
        pooled = timed("update", pooled.update, *timed("drawing", frame, rng))
    figures = timed("compute", pooled.compute)
    return {
        **{f"{part}_seconds": value for part, value in times.items()},
        "seconds": times["update"] + times["compute"],
        "bytes_at_the_start": at_the_start,
        "peak_bytes": peak_bytes(),
        "kept_bytes": pooled.nbytes,
        "figures": figures,
    }


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    frames = f"{args.frames} frames of {WIDTH}x{HEIGHT}, {OUTLIER_SHARE:.0%} outliers"
    setting = f"{machine(packages=('numpy', 'torch'))}; {frames}"
    print(f"{setting}\n")
    columns = ("update s", "compute s", "drawing s", "peak MiB", "at start MiB", "kept MiB")
    print(" " * 24 + "".join(f"{column:>13}" for column in columns))
    sides = {}
    for side in SIDES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            sides[side] = pool.apply(measured, (side, args.frames, args.seed))
        values = [f"{sides[side][f'{part}_seconds']:.2f}" for part in ("update", "compute", "drawing")]
        values += [f"{sides[side][name] / MIB:.0f}" for name in ("peak_bytes", "bytes_at_the_start", "kept_bytes")]
        print(f"{side:<24}" + "".join(f"{value:>13}" for value in values))

    exact, bounded = (sides[side] for side in SIDES)
    print()
    for name in FIGURES:
        off = abs(exact["figures"][name] - bounded["figures"][name])
        error = bounded["figures"][f"{name}_error"]
        print(f"{name:<6}{exact['figures'][name]:.6f}, bounded {off:.1e} off, at most {error:.1e}")
    kept = exact["seconds"] <= MOST_SECONDS and exact["peak_bytes"] <= MOST_BYTES
    print(f"\nexact in at most {MOST_SECONDS} s and {MOST_BYTES >> 20} MiB: {'yes' if kept else 'no'}")
    row = {
        "what": "update and compute",
        "ours_seconds": exact["seconds"],
        "other": "BoundedAnomalyMetrics",
        "other_seconds": bounded["seconds"],
        "ratio": bounded["seconds"] / exact["seconds"],
        "ours_peak_bytes": exact["peak_bytes"],
        "other_peak_bytes": bounded["peak_bytes"],
    }
    write_table(args.json, "metrics_at_scale", setting, [row], sides=sides)


if __name__ == "__main__":
    main()
