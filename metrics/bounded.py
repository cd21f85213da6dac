"""The figures of metrics/anomaly.py in memory that does not grow with the pixels, and how far off they can be."""

import math
from typing import NamedTuple

import numpy as np

from errors import WrongInput
from metrics.anomaly import (
    BEYOND,
    TPR,
    check_mergeable,
    curves_of,
    histogram_edges,
    outliers_to_reach,
    ranks_of_curves,
)
from metrics.scores import counted_scores

ROUNDING = 1e-12  # more than the sums below lose in float64, and those of AnomalyMetrics
INLIERS, OUTLIERS = 0, 1  # rows of the counts


class BoundedAnomalyMetrics:
    """Pools scores over images like AnomalyMetrics, but keeps counts per bin of scores instead of the scores.

    bits    of a float32 that choose its bin, the sign and the 8 of the exponent among them: in a bin, scores differ by
            less than 2^-(bits - 9) of their size, or of 1.2e-38 if that is more; infinities have bins of their own
    raises  ValueError: bits are not 10..26

    Keeps 24 * 2^bits bytes, 96 MiB by default, whatever the number of pixels. The figures lie in the middle of what
    the counts allow, and those of AnomalyMetrics no further off than the errors that compute() states. float64 scores
    are rounded to float32 at the door, and all is said of the rounded ones: they may tie where the float64 ones do not.

    Measured with the default bits on 8 million drawn pixels (0.1, 1 or 30 % outliers, AUROC 0.85): scores like a
    negated log-sum-exp around -5, -20 or -45 had errors of at most 2.1e-4 in AP, 1.1e-4 in AUROC and 2.6e-4 in FPR95;
    1 - p for probabilities p spread over 0..1 had 1.6e-4, 2.5e-5 and 2.5e-5. A score -p that crowds near -1 had errors
    up to 0.03 in AUROC and 0.27 in FPR95: give 1 - p or -ln p instead, worked out from logits.
    """

    def __init__(self, bits: int = 22):
        if not 10 <= bits <= 26:
            raise WrongInput(f"bits is {bits}; 10..26 are possible, for 24 KiB to 1.5 GiB")
        self.bits = bits
        self._counts = np.zeros((2, 1 << bits), np.int64)
        self._least = np.full(1 << bits, np.inf, np.float32)  # of the scores in each bin
        self._most = np.full(1 << bits, -np.inf, np.float32)
        self._ignored_pixels = 0

    def update(self, scores, labels) -> "BoundedAnomalyMetrics":
        """scores  any shape, larger is more anomalous; infinities are fine, NaN is not unless ignored
        labels  same shape; OUTLIER against anything else, IGNORE left out
        raises  ValueError: other shapes, NaN on a counted pixel, labels of a type too narrow for OUTLIER
        """
        *kinds, ignored_pixels = counted_scores(scores, labels)
        for counts, of_kind in zip(self._counts, kinds, strict=True):
            with np.errstate(over="ignore"):  # beyond float32 is infinity
                of_kind = of_kind.astype(np.float32) + np.float32(0)  # -0.0 becomes 0.0
            bins = _ascending_integers(of_kind) >> np.uint32(32 - self.bits)
            np.add.at(counts, bins, 1)
            np.minimum.at(self._least, bins, of_kind)
            np.maximum.at(self._most, bins, of_kind)
        self._ignored_pixels += ignored_pixels
        return self

    def merge(self, other: "BoundedAnomalyMetrics") -> "BoundedAnomalyMetrics":
        """Takes over the counts of another, as if its pixels had been updated here; returns itself

        raises  ValueError: other is of another kind or has other bits
        """
        check_mergeable(self, other, "bits")
        self._counts += other._counts
        np.minimum(self._least, other._least, out=self._least)
        np.maximum(self._most, other._most, out=self._most)
        self._ignored_pixels += other._ignored_pixels
        return self

    def compute(self) -> dict:
        """What AnomalyMetrics.compute() gives, and how far off it can be, as plain numbers

        AP, AUROC, FPR95                    fractions; NaN without outliers or inliers
        AP_error, AUROC_error, FPR95_error  the exact figure lies within figure - error .. figure + error; NaN likewise
        threshold95, threshold95_high       the exact threshold lies in threshold95 .. threshold95_high, both of them
                                            scores; TPR at threshold95 is at least 0.95; NaN without outliers
        inlier_pixels, outlier_pixels, ignored_pixels    exact

        Which scores of a bin are the larger is not known, unless all are equal: then the bin adds nothing to an error.
        """
        bins = self._bins()
        figures = dict.fromkeys(("AP", "AP_error", "AUROC", "AUROC_error", "FPR95", "FPR95_error"), math.nan)
        at = bins.reached(outliers_to_reach(TPR, bins.outlier_pixels))
        if bins.inlier_pixels and bins.outlier_pixels:
            for name, (low, high) in {"AP": _ap(bins), "AUROC": _auroc(bins), "FPR95": _fpr(bins, at)}.items():
                figures[name] = (low + high) / 2
                figures[f"{name}_error"] = (high - low) / 2 + ROUNDING
        return figures | {
            "threshold95": float(bins.least[at]) if bins.outlier_pixels else math.nan,
            "threshold95_high": float(bins.most[at]) if bins.outlier_pixels else math.nan,
            "inlier_pixels": bins.inlier_pixels,
            "outlier_pixels": bins.outlier_pixels,
            "ignored_pixels": self._ignored_pixels,
        }

    def threshold(self, tpr: float = TPR) -> float:
        """A threshold that at least `tpr` of the outliers reach (score >= threshold); NaN without outliers

        The least score in the bin of the largest such threshold, so at most the width of a bin below it.
        raises  ValueError: not 0 < tpr <= 1
        """
        bins = self._bins()
        at = bins.reached(outliers_to_reach(tpr, bins.outlier_pixels))
        return float(bins.least[at]) if bins.outlier_pixels else math.nan

    def best_f1_threshold(self) -> tuple[float, float]:
        """The threshold of the largest F1 among the bins' least scores, and that F1, which is exact; NaN without
        outliers. Of equally good thresholds the largest.
        """
        bins = self._bins()
        if not bins.outlier_pixels:
            return math.nan, math.nan
        f1 = 2 * bins.true_positives / (bins.true_positives + bins.false_positives + bins.outlier_pixels)
        at = int(f1.argmax())
        return float(bins.least[at]), float(f1[at])

    def curves(self, points: int = 500) -> dict[str, np.ndarray]:
        """At most `points` points of the exact precision-recall and ROC curves: as AnomalyMetrics.curves() gives, but
        thresholds are the least scores of bins
        """
        bins = self._bins()
        ranks = ranks_of_curves(points, bins.inlier_pixels, bins.outlier_pixels)
        reached = bins.false_positives, bins.true_positives
        at = np.unique(np.concatenate([_bins_of_ranks(*each) for each in zip(reached, ranks, strict=True)]))
        false, true = (of_kind[at] for of_kind in reached)
        return curves_of(bins.least[at], false, true, bins.inlier_pixels, bins.outlier_pixels)

    def histogram(self, bins: int = 100) -> dict[str, np.ndarray]:
        """Pixels in each of `bins` equal bins, as AnomalyMetrics.histogram() gives: edges, inliers, outliers

        Where an edge divides scores that were counted together, all of them are counted where the least belongs.
        """
        counted = self._bins()
        kinds = counted.inliers, counted.outliers
        middle = np.concatenate([counted.least[_middle(counted.least, of_kind)] for of_kind in kinds])
        edges = histogram_edges(middle, bins, np.float32)
        place = np.searchsorted(edges[1:-1], counted.least, "right")
        inliers, outliers = np.zeros((2, bins), np.int64)
        np.add.at(inliers, place, counted.inliers)
        np.add.at(outliers, place, counted.outliers)
        return {"edges": edges, "inliers": inliers, "outliers": outliers}

    @property
    def nbytes(self) -> int:
        """Bytes kept for the counts, 24 * 2^bits."""
        return self._counts.nbytes + self._least.nbytes + self._most.nbytes

    def _bins(self) -> "_Bins":
        used = np.flatnonzero(self._counts.any(0))[::-1]
        inliers, outliers = self._counts[:, used]
        positives = inliers.cumsum(), outliers.cumsum()
        return _Bins(self._least[used], self._most[used], inliers, outliers, *positives)


class _Bins(NamedTuple):
    """The bins that hold any pixel, from the highest score to the lowest; false and true positives: up to each bin"""

    least: np.ndarray
    most: np.ndarray
    inliers: np.ndarray
    outliers: np.ndarray
    false_positives: np.ndarray
    true_positives: np.ndarray

    @property
    def inlier_pixels(self) -> int:
        return int(self.inliers.sum())

    @property
    def outlier_pixels(self) -> int:
        return int(self.outliers.sum())

    def reached(self, count) -> int:
        """The bin of the outlier of that rank from the top, 1 the first"""
        return int(np.searchsorted(self.true_positives, count, "left"))


def _ascending_integers(scores):
    """uint32 that order as the float32 scores do: negative ones have their bits flipped, the others their sign only"""
    stored = scores.view(np.uint32)
    sign = np.uint32(1 << 31)
    return np.where(stored & sign, ~stored, stored | sign)


def _ap(bins):
    """The least and the largest AP = sum over outliers of the precision at their score, divided by the outliers.

    An outlier's precision in a bin with i inliers and o outliers, below T outliers and F inliers, is
    (T + a) / (T + a + F + b) for some a in 1..o and b in 0..i. It is largest where a = o and b = 0: all outliers
    equal, above all inliers. It is smallest where b = i, and a = 1, 2 .. o if no outliers are equal. With N = F + i
    that sums f(T + a), f(x) = x / (x + N); f is concave, so f(x) is no less than its mean over x - 1/2 .. x + 1/2,
    and the sum no less than the integral from T + 1/2 to T + o + 1/2, which is o - N ln(1 + o / (T + 1/2 + N)).
    """
    bins = _Bins(*(values[bins.outliers > 0] for values in bins))
    above = bins.true_positives - bins.outliers
    equal = bins.outliers * (bins.true_positives / (bins.true_positives + bins.false_positives))
    high = bins.outliers * (bins.true_positives / (bins.true_positives + bins.false_positives - bins.inliers))
    low = bins.outliers - bins.false_positives * np.log1p(bins.outliers / (above + 0.5 + bins.false_positives))
    tied = bins.least == bins.most
    return tuple(float(np.where(tied, equal, bound).sum()) / bins.outlier_pixels for bound in (low, high))


def _auroc(bins):
    """The least and the largest share of pairs in the right order: those in one bin count nothing, or all; if equal,
    half
    """
    tied = bins.least == bins.most
    below = bins.inlier_pixels - bins.false_positives
    pairs = float(bins.outlier_pixels) * bins.inlier_pixels
    return tuple(
        float((bins.outliers * (below + np.where(tied, 0.5, share) * bins.inliers)).sum()) / pairs for share in (0, 1)
    )


def _fpr(bins, at):
    """The least and the largest FPR where the threshold is in the bin `at`: none or all of its inliers reach it"""
    high = int(bins.false_positives[at])
    low = high if bins.least[at] == bins.most[at] else high - int(bins.inliers[at])
    return low / bins.inlier_pixels, high / bins.inlier_pixels


def _bins_of_ranks(positives, ranks):
    """Where scores of these ranks are, 0 the lowest, if `positives` reach each bin, from the highest to the lowest"""
    return np.searchsorted(positives, positives[-1] - ranks, "left") if positives.size else ranks


def _middle(least, counts):
    """The bins of the lowest and the highest finite score with a share of BEYOND below and above; or none"""
    finite = np.flatnonzero(np.isfinite(least))
    reached = counts[finite].cumsum()
    if not finite.size or not reached[-1]:
        return finite[:0]
    cut = int(BEYOND * reached[-1])
    return finite[_bins_of_ranks(reached, np.array([cut, reached[-1] - 1 - cut]))]
