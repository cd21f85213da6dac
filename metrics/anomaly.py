"""AP, AUROC and FPR at TPR 95 % of a score that should be larger on outliers."""

import math

import numpy as np
import torch

from errors import WrongInput
from metrics.scores import Scores, counted_scores, sorted_on_gpu

TPR = 0.95  # of FPR95 and threshold95
BEYOND = 0.001  # of either kind's scores lie below the histogram, and as many above
BLOCK = 1 << 16  # outliers ranked at a time: what the ranking needs beside the scores stays below a few megabytes


class AnomalyMetrics:
    """Pools scores over images; the figures are those of scikit-learn, for any order and split of the updates.

    Keeps the scores of counted pixels and nothing else: 8 bytes a pixel if they came as float64, else 4 (as float32).
    """

    def __init__(self):
        self._inliers = Scores()
        self._outliers = Scores()
        self._ignored_pixels = 0

    def update(self, scores, labels) -> "AnomalyMetrics":
        """scores  any shape, larger is more anomalous; infinities are fine, NaN is not unless ignored
        labels  same shape; OUTLIER against anything else, IGNORE left out
        """
        on_gpu = isinstance(scores, torch.Tensor) and scores.is_cuda
        inliers, outliers, ignored_pixels = (sorted_on_gpu if on_gpu else counted_scores)(scores, labels)
        for kept, added in ((self._inliers, inliers), (self._outliers, outliers)):
            kept.add(added, is_sorted=on_gpu)
            kept.gpu = scores.device if on_gpu else kept.gpu
        self._ignored_pixels += ignored_pixels
        return self

    def merge(self, other: "AnomalyMetrics") -> "AnomalyMetrics":
        """Takes over the pixels of another, as if they had been updated here; returns itself

        Copies nothing: both then hold the same arrays until one of them joins its own.
        raises  ValueError: other is of another kind
        """
        check_mergeable(self, other)
        self._inliers.take_over(other._inliers)
        self._outliers.take_over(other._outliers)
        self._ignored_pixels += other._ignored_pixels
        return self

    def compute(self) -> dict:
        """AP, AUROC, FPR95, threshold95 and pixel counts; without outliers or inliers the first three are NaN"""
        inliers, outliers = self._sorted()
        threshold = self.threshold(TPR)
        ap = auroc = fpr = math.nan
        if inliers.size and outliers.size:
            ap, auroc = _ap_and_auroc(inliers, outliers)
            first = int(np.searchsorted(inliers, inliers.dtype.type(threshold), "left"))
            fpr = (inliers.size - first) / inliers.size
        return {
            "AP": ap,
            "AUROC": auroc,
            "FPR95": fpr,
            "threshold95": threshold,
            "inlier_pixels": inliers.size,
            "outlier_pixels": outliers.size,
            "ignored_pixels": self._ignored_pixels,
        }

    def threshold(self, tpr: float = TPR) -> float:
        """The largest threshold that at least `tpr` of the outliers reach (score >= threshold); NaN without outliers"""
        outliers = self._outliers.sorted()
        k = outliers_to_reach(tpr, outliers.size)
        if not outliers.size:
            return math.nan
        # -0.0 becomes 0.0, for which of these equal scores comes first is chance.
        return float(outliers[outliers.size - k]) + 0.0

    def best_f1_threshold(self) -> tuple[float, float]:
        """The threshold of the largest F1 over all pixels (score >= threshold), and that F1; NaN without outliers

        Of equally good thresholds the largest. Here SegmentMeIfYouCan binarises the scores (see ComponentMetrics).
        """
        inliers, outliers = self._sorted()
        best = math.nan, math.nan
        for thresholds, _, true_positives, false_positives, _ in _ranked_blocks(inliers, outliers):
            f1 = 2 * true_positives / (true_positives + false_positives + outliers.size)
            at = f1.size - 1 - int(f1[::-1].argmax())  # thresholds ascend
            if not f1[at] < best[1]:  # also where that is still NaN
                best = float(thresholds[at]) + 0.0, float(f1[at])  # no -0.0, as in threshold()
        return best

    def curves(self, points: int = 500) -> dict[str, np.ndarray]:
        """At most `points` points of the exact precision-recall and ROC curves, both ends among them

        Keys threshold (descending), recall, precision, fpr, tpr, one value a point; the first stands for a threshold
        above all scores, where precision is 1 as in scikit-learn. Thresholds are scores at evenly spaced ranks and at
        ranks that double towards the top, of outliers and of inliers: a rare outlier and a small FPR stay visible.
        Without outliers or inliers there is no curve, and the arrays are empty.
        """
        kinds = self._sorted()
        places = ranks_of_curves(points, *(scores.size for scores in kinds))
        thresholds = np.unique(np.concatenate([scores[at] for scores, at in zip(kinds, places, strict=True)]))[::-1]
        false, true = (scores.size - np.searchsorted(scores, thresholds, "left") for scores in kinds)
        return curves_of(thresholds, false, true, *(scores.size for scores in kinds))

    def histogram(self, bins: int = 100) -> dict[str, np.ndarray]:
        """Pixels in each of `bins` equal bins: keys edges (bins + 1), inliers and outliers (bins,)

        The edges span the middle 99.8 % of either kind's finite scores; what lies beyond is counted in the first or
        the last bin. A bin holds its lower edge and, but for the last, not its upper one, as in NumPy.
        """
        kinds = self._sorted()
        middle = np.concatenate([_middle(scores) for scores in kinds])
        edges = histogram_edges(middle, bins, np.result_type(*kinds))  # no copy of the scores to compare
        inliers, outliers = (
            np.diff(np.r_[0, np.searchsorted(scores, edges[1:-1], "left"), scores.size]) for scores in kinds
        )
        return {"edges": edges, "inliers": inliers, "outliers": outliers}

    def _sorted(self):
        """Scores of inliers and of outliers, ascending, in one type"""
        inliers, outliers = self._inliers.sorted(), self._outliers.sorted()
        dtype = np.result_type(inliers, outliers)  # searchsorted copies its array wherever the types differ
        return inliers.astype(dtype, copy=False), outliers.astype(dtype, copy=False)

    @property
    def nbytes(self) -> int:
        """Bytes kept for the scores."""
        return self._inliers.nbytes + self._outliers.nbytes


def mean_of_images(figures: list[dict]) -> dict:
    """The mean of AP, AUROC and FPR95 over images, each given by its compute(), where they are defined.

    `images` counts those in the mean. An image without any outlier pixel is counted in `images_without_outliers`; one
    that has outliers but no inlier in `images_without_inliers`. The three add up to all images.
    """
    with_outliers = [image for image in figures if image["outlier_pixels"]]
    defined = [image for image in with_outliers if image["inlier_pixels"]]
    mean = {
        name: math.fsum(image[name] for image in defined) / len(defined) if defined else math.nan
        for name in ("AP", "AUROC", "FPR95")
    }
    return mean | {
        "images": len(defined),
        "images_without_outliers": len(figures) - len(with_outliers),
        "images_without_inliers": len(with_outliers) - len(defined),
    }


def check_mergeable(ours, other, *settings: str) -> None:
    """raises ValueError: other is of another kind, or was made with other `settings`, names of attributes"""
    kind = type(ours).__name__
    if type(other) is not type(ours):
        raise WrongInput(f"{kind} takes over what another {kind} counted, not {type(other).__name__}")
    for name in settings:
        here, there = getattr(ours, name), getattr(other, name)
        if here != there:
            raise WrongInput(f"{name} is {here} here and {there} there; {kind} merges counts of the same {name} only")


def outliers_to_reach(tpr: float, outliers: int) -> int:
    """The smallest k >= 1 with k / outliers >= tpr; ValueError unless 0 < tpr <= 1"""
    if not 0 < tpr <= 1:
        raise WrongInput(f"tpr is {tpr}, but a true positive rate to reach lies in 0 < tpr <= 1")
    k = max(1, math.floor(tpr * outliers) - 1)
    while outliers and k / outliers < tpr:
        k += 1  # not ceil(tpr * outliers), which is one too many where the product rounds up, as 0.07 * 100 does
    return k


def ranks_of_curves(points: int, inliers: int, outliers: int) -> list[np.ndarray]:
    """The ranks, 0 the lowest, of the inliers and of the outliers whose scores are thresholds of curves()"""
    if points < 9:
        raise WrongInput(f"points is {points}, but a curve with both its ends takes at least 9")
    if not (inliers and outliers):
        return [np.empty(0, np.int64)] * 2
    return [_ranks(size, (points - 1) // 4) for size in (inliers, outliers)]


def curves_of(thresholds, false_positives, true_positives, inliers: int, outliers: int) -> dict[str, np.ndarray]:
    """What curves() returns, from descending thresholds and the pixels that reach each"""
    if not thresholds.size:
        return {name: np.empty(0) for name in ("threshold", "recall", "precision", "fpr", "tpr")}
    false, true = np.r_[0, false_positives], np.r_[0, true_positives]
    return {
        "threshold": np.r_[np.inf, thresholds] + 0.0,  # no -0.0, as in threshold()
        "recall": true / outliers,
        "precision": np.divide(true, true + false, out=np.ones(true.size), where=true + false > 0),
        "fpr": false / inliers,
        "tpr": true / outliers,
    }


def histogram_edges(middle, bins: int, dtype) -> np.ndarray:
    """(bins + 1,) from the lowest to the highest of some scores, of which there may be none; never of no width"""
    low, high = (float(middle.min()), float(middle.max())) if middle.size else (0.0, 0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1, dtype=dtype)


def _ranks(size, count):
    """At most 2 * count places in `size` ascending scores, the first and the last among them"""
    doubling = size - np.geomspace(1, size, count).round().astype(np.int64)
    return np.union1d(np.linspace(0, size - 1, count).round().astype(np.int64), doubling)


def _middle(scores):
    """The finite ones of ascending scores with a share of BEYOND below and above: lowest and highest, or none"""
    infinity = scores.dtype.type(np.inf)
    finite = scores[np.searchsorted(scores, -infinity, "right") : np.searchsorted(scores, infinity, "left")]
    cut = int(BEYOND * finite.size)
    return finite[[cut, -1 - cut]] if finite.size else finite


def _ap_and_auroc(inliers, outliers):
    """AP = sum_n (R_n - R_{n-1}) P_n over thresholds; AUROC = P(outlier > inlier) + P(equal) / 2. Both ascending."""
    ap, pairs = 0.0, 0
    for _, equal_outliers, true_positives, false_positives, inliers_up_to in _ranked_blocks(inliers, outliers):
        inliers_below = inliers.size - false_positives
        ap += float((equal_outliers * (true_positives / (true_positives + false_positives))).sum())
        pairs += int((equal_outliers * (inliers_below + inliers_up_to)).sum())  # twice the pairs in the right order
    return ap / outliers.size, pairs / (2 * outliers.size * inliers.size)


def _ranked_blocks(inliers, outliers):
    """Yields thresholds, outliers equal to each, true and false positives, and inliers up to each; all ascending.

    Recall moves only at the scores of outliers, so these are the thresholds, each distinct one once. They are ranked
    among the inliers block by block: a block's neighbourhood fits the cache.
    """
    first = 0
    while first < outliers.size:
        last_score = outliers[min(first + BLOCK, outliers.size) - 1]
        last = int(np.searchsorted(outliers, last_score, "right"))  # equal scores stay in one block
        block = outliers[first:last]
        starts = np.flatnonzero(np.r_[True, block[1:] != block[:-1]])
        thresholds = block[starts]
        equal_outliers = np.diff(starts, append=block.size)

        low, high = np.searchsorted(inliers, block[0], "left"), np.searchsorted(inliers, last_score, "right")
        inliers_below = low + np.searchsorted(inliers[low:high], thresholds, "left")
        inliers_up_to = inliers_below.copy()
        if inliers.size:  # only where an inlier ties with the threshold are there more up to it than below it
            tied = np.flatnonzero(inliers[np.minimum(inliers_below, inliers.size - 1)] == thresholds)
            inliers_up_to[tied] = low + np.searchsorted(inliers[low:high], thresholds[tied], "right")
        yield thresholds, equal_outliers, outliers.size - first - starts, inliers.size - inliers_below, inliers_up_to
        first = last
