"""BoundedAnomalyMetrics: what it states of the exact figures, held against them in scikit-learn and AnomalyMetrics."""

import itertools
import math
import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch

from labels import IGNORE, OUTLIER
from metrics import AnomalyMetrics, BoundedAnomalyMetrics

FIGURES = ("AP", "AUROC", "FPR95")
STATED = tuple(name + kind for name in FIGURES for kind in ("", "_error"))
TIES_ONLY = 1e-11  # an error that is nothing but rounding


def bounded(scores, labels, bits=12):
    return BoundedAnomalyMetrics(bits).update(scores, labels)


def exact(scores, labels):
    return AnomalyMetrics().update(scores, labels).compute()


def labels_of(rng, n, share):
    labels = np.where(rng.random(n) < share, OUTLIER, rng.integers(0, 19, n)).astype(np.uint8)
    labels[rng.permutation(n)[:2]] = OUTLIER, 0
    return labels


def drawn(seed):
    """float32 scores of some size, some of them ties, infinities and zeros of both signs, and labels of all kinds"""
    rng = np.random.default_rng(seed)
    n = int(rng.choice([2, 3, 10, 100, 3000]))
    labels = labels_of(rng, n, rng.choice([0.01, 0.3, 0.9]))
    scores = rng.standard_normal(n) + (labels == OUTLIER) * rng.uniform(-1, 3)
    scores = scores * 10.0 ** rng.integers(-3, 3) + rng.choice([0, -1, 5, -40, 1000])
    if rng.random() < 0.4:
        scores = np.round(scores, rng.integers(-2, 4))
    if rng.random() < 0.3:
        scores = 1 / (1 + np.exp(-np.clip(scores, -300, 300)))  # probabilities, many of them 0 or 1
    scores = scores.astype(np.float32)
    if rng.random() < 0.4:
        for odd in (np.inf, -np.inf, 0.0, -0.0, 1e-44):
            scores[rng.random(n) < 0.05] = odd
    labels[(rng.random(n) < 0.1) & (np.arange(n) != labels.argmax()) & (np.arange(n) != labels.argmin())] = IGNORE
    return scores, labels


def sklearn_figures(scores, labels):
    outlier, scores = labels[labels != IGNORE] == OUTLIER, scores[labels != IGNORE]
    scores = np.unique(scores, return_inverse=True)[1]  # ranks: scikit-learn refuses infinities
    fpr, tpr, _ = sklearn.metrics.roc_curve(outlier, scores, drop_intermediate=False)
    return {
        "AP": sklearn.metrics.average_precision_score(outlier, scores),
        "AUROC": sklearn.metrics.roc_auc_score(outlier, scores),
        "FPR95": fpr[np.flatnonzero(tpr >= 0.95)[0]],
    }


def assert_within(stated, figures):
    for name in FIGURES:
        assert abs(stated[name] - figures[name]) <= stated[f"{name}_error"], name


@pytest.mark.parametrize("bits", [10, 13, 22])
def test_the_exact_figures_lie_within_the_stated_errors(bits):
    for seed in range(150 if bits < 22 else 30):
        scores, labels = drawn(seed)
        stated, figures = bounded(scores, labels, bits).compute(), exact(scores, labels)
        assert_within(stated, figures)
        assert_within(stated, sklearn_figures(scores, labels))
        assert stated["threshold95"] <= figures["threshold95"] <= stated["threshold95_high"]
        for kind in ("inlier_pixels", "outlier_pixels", "ignored_pixels"):
            assert stated[kind] == figures[kind] and type(stated[kind]) is int


def orders(kinds, start):
    """(scores, kinds) of the pixels of one bin in every order, ties among them, but not all of them equal"""
    for places in itertools.product(range(len(kinds)), repeat=len(kinds)):
        if len(set(places)) > 1 or len(kinds) == 1:
            yield [start + place / 1024 for place in places]


@pytest.mark.parametrize(
    "above, high, low, below",
    [
        ("", "oi", "oi", "i"),
        ("io", "oi", "o", "i"),
        ("o", "ooi", "i", ""),
        ("i", "iio", "oi", "o"),
        ("", "o", "iioo", "i"),
    ],
)
def test_the_bounds_are_the_best_and_the_worst_of_all_orders_within_the_bins(above, high, low, below):
    """A letter is a pixel, o an outlier, i an inlier: those of one bin, of the next, and each alone above and below"""
    labels = np.array([OUTLIER if kind == "o" else 0 for kind in above + high + low + below])
    alone = [4.0 * 2**place for place in range(len(above))], [0.5] * len(below)
    found, stated = [], set()
    for first, second in itertools.product(orders(high, 2.0), orders(low, 1.0)):
        scores = np.array([*alone[0], *first, *second, *alone[1]], np.float32)
        found.append(exact(scores, labels))
        figures = bounded(scores, labels, 10).compute()
        stated.add(tuple(figures[name] for name in STATED))
    assert len(stated) == 1, "the order within a bin is not known"
    stated = dict(zip(STATED, stated.pop(), strict=True))
    for name in FIGURES:
        best, worst = max(each[name] for each in found), min(each[name] for each in found)
        error = stated[f"{name}_error"]
        assert stated[name] + error == pytest.approx(best, abs=1e-11), name
        loose = 0.012 if name == "AP" else 1e-11  # the integral in place of the sum, for pixels as few as these
        assert worst - loose <= stated[name] - error <= worst + 1e-11, name


def test_two_pixels_of_one_bin_by_hand():
    figures = bounded(np.array([1.0, 1.0001], np.float32), np.array([OUTLIER, 0]), bits=10).compute()
    worst = 1 - math.log(1 + 1 / 1.5)  # 0.489, in place of 1/2
    assert figures["AP"] == pytest.approx((1 + worst) / 2) and figures["AP_error"] == pytest.approx((1 - worst) / 2)
    assert (figures["AUROC"], figures["FPR95"]) == (0.5, 0.5)
    assert figures["AUROC_error"] == figures["FPR95_error"] == pytest.approx(0.5)
    assert (figures["threshold95"], figures["threshold95_high"]) == (1.0, float(np.float32(1.0001)))


def test_four_pixels_in_bins_of_their_own_by_hand():
    figures = bounded(np.array([4.0, 3.0, 2.0, 1.0]), np.array([OUTLIER, 0, OUTLIER, 7])).compute()
    assert [figures[name] for name in FIGURES] == pytest.approx([0.5 * 1 + 0.5 * 2 / 3, 0.75, 0.5])
    assert all(figures[f"{name}_error"] <= TIES_ONLY for name in FIGURES)
    assert figures["threshold95"] == figures["threshold95_high"] == 2.0


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, 12.345, np.inf, -np.inf, 1e-45])
def test_equal_scores_are_no_uncertainty(value):
    labels = np.array([OUTLIER, 0, 0, OUTLIER, 3, IGNORE])
    scores = np.full(labels.size, value, np.float32)
    scores[1] = -scores[1] if value == 0 else value  # zeros of both signs are equal
    figures = bounded(scores, labels).compute()
    assert [figures[name] for name in FIGURES] == pytest.approx([2 / 5, 0.5, 1.0])
    assert all(figures[f"{name}_error"] <= TIES_ONLY for name in FIGURES)
    assert str(figures["threshold95"]) == str(float(np.float32(value)) + 0.0)


def test_infinities_share_no_bin_with_the_largest_finite_scores():
    largest = np.finfo(np.float32).max
    scores = np.array([np.inf, largest, -largest, -np.inf], np.float32)
    figures = bounded(scores, np.array([OUTLIER, 0, OUTLIER, 0]), bits=10).compute()
    assert figures["AUROC"] == 0.75 and figures["AUROC_error"] <= TIES_ONLY


@pytest.mark.parametrize("name", ["log-sum-exp", "probability"])
def test_the_errors_are_small_for_scores_as_networks_give_them(name):
    rng = np.random.default_rng(1)
    labels = labels_of(rng, 400_000, 0.01)
    scores = rng.standard_normal(labels.size) + 1.5 * (labels == OUTLIER)
    scores = {"log-sum-exp": 4 * scores - 20, "probability": 1 / (1 + np.exp(-scores))}[name].astype(np.float32)
    figures = BoundedAnomalyMetrics().update(scores, labels).compute()
    assert_within(figures, exact(scores, labels))
    assert all(figures[f"{name}_error"] < 5e-4 for name in FIGURES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_tensors_of_any_type_shape_and_layout(dtype):
    rng = np.random.default_rng(2)
    labels = torch.from_numpy(labels_of(rng, 1200, 0.3)).reshape(2, 30, 20)
    scores = torch.from_numpy(rng.standard_normal(1200) * 10).to(dtype).reshape(2, 30, 20)
    figures = bounded(scores, labels).compute()
    assert_within(figures, exact(scores.float(), labels))
    assert bounded(scores.transpose(1, 2), labels.transpose(1, 2)).compute() == figures


def test_float64_scores_are_rounded_to_float32():
    figures = bounded(np.array([1 + 1e-12, 1.0]), np.array([OUTLIER, 0])).compute()
    assert figures["AUROC"] == 0.5 and figures["AUROC_error"] <= TIES_ONLY
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bounded(np.array([1e300, -1e300]), np.array([OUTLIER, OUTLIER])).threshold(0.5) == math.inf


@pytest.mark.parametrize(
    "labels, inliers, outliers", [([0, 1], 2, 0), ([OUTLIER] * 2, 0, 2), ([IGNORE] * 2, 0, 0), ([], 0, 0)]
)
def test_without_outliers_or_without_inliers_the_figures_are_nan(labels, inliers, outliers):
    pooled = bounded(np.arange(len(labels)) + 1.0, np.array(labels, int))
    figures = pooled.compute()
    assert all(math.isnan(figures[name]) and math.isnan(figures[f"{name}_error"]) for name in FIGURES)
    assert (figures["inlier_pixels"], figures["outlier_pixels"]) == (inliers, outliers)
    assert figures["ignored_pixels"] == labels.count(IGNORE)
    assert all(values.size == 0 for values in pooled.curves().values())
    assert pooled.histogram(5)["inliers"].sum() == inliers and pooled.histogram(5)["outliers"].sum() == outliers
    if outliers:
        assert figures["threshold95"] == figures["threshold95_high"] == pooled.threshold() == 1.0
        assert pooled.best_f1_threshold() == (1.0, 1.0)
    else:
        assert all(map(math.isnan, (figures["threshold95"], figures["threshold95_high"], pooled.threshold())))
        assert all(map(math.isnan, pooled.best_f1_threshold()))


def test_the_threshold_reaches_the_rate_and_lies_less_than_a_bin_below_the_exact_one():
    for seed in range(60):
        scores, labels = drawn(seed)
        outliers = scores[labels == OUTLIER]
        ours, theirs = bounded(scores, labels), AnomalyMetrics().update(scores, labels)
        for tpr in (0.07, 0.5, 0.95, 1.0):
            threshold = ours.threshold(tpr)
            assert (outliers >= threshold).mean() >= tpr
            assert 0 <= theirs.threshold(tpr) - threshold < 2**-3 * abs(threshold) + 1e-37 or math.isinf(threshold)


def test_the_best_f1_is_that_of_its_threshold_and_no_other_bins_is_better():
    for seed in range(60):
        scores, labels = drawn(seed)
        scores, outlier = scores[labels != IGNORE], labels[labels != IGNORE] == OUTLIER
        pooled = bounded(scores, np.where(outlier, OUTLIER, 0))
        threshold, f1 = pooled.best_f1_threshold()
        assert f1 == pytest.approx(sklearn.metrics.f1_score(outlier, scores >= threshold))
        assert f1 <= AnomalyMetrics().update(scores, np.where(outlier, OUTLIER, 0)).best_f1_threshold()[1]
        others = pooled.curves()["threshold"][1:]
        each = [sklearn.metrics.f1_score(outlier, scores >= other) for other in others]
        assert max(each) <= f1 + 1e-12


def test_of_equally_good_thresholds_the_best_is_the_largest():
    pooled = bounded(np.array([4.0, 1.0, 3.0, 2.0]), np.array([OUTLIER, OUTLIER, 0, 0]))
    assert pooled.best_f1_threshold() == (4.0, pytest.approx(2 / 3))  # as at 1.0


def test_the_points_of_the_curves_are_exact():
    for seed in range(60):
        scores, labels = drawn(seed)
        inliers, outliers = (scores[kind] for kind in (~np.isin(labels, (OUTLIER, IGNORE)), labels == OUTLIER))
        curves = bounded(scores, labels).curves(60)
        assert len({values.size for values in curves.values()}) == 1 and 2 <= curves["fpr"].size <= 60
        assert (curves["threshold"][0], curves["recall"][0], curves["precision"][0], curves["fpr"][0]) == (
            np.inf,
            0,
            1,
            0,
        )
        assert curves["tpr"][-1] == curves["fpr"][-1] == 1 and (np.diff(curves["threshold"][1:]) < 0).all()
        for at, threshold in enumerate(curves["threshold"][1:], 1):
            true, false = (outliers >= threshold).sum(), (inliers >= threshold).sum()
            assert curves["recall"][at] == curves["tpr"][at] == pytest.approx(true / outliers.size)
            assert curves["fpr"][at] == pytest.approx(false / inliers.size)
            assert curves["precision"][at] == pytest.approx(true / (true + false))


def test_scores_with_bins_of_their_own_give_the_curves_histograms_and_thresholds_of_all_scores():
    rng = np.random.default_rng(3)
    labels = labels_of(rng, 5000, 0.2)
    scores = (rng.integers(-40, 40, 5000) + 20 * (labels == OUTLIER)).astype(np.float32)
    ours, theirs = bounded(scores, labels, 16), AnomalyMetrics().update(scores, labels)
    for expected, found in ((theirs.curves(40), ours.curves(40)), (theirs.histogram(33), ours.histogram(33))):
        assert expected.keys() == found.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert ours.best_f1_threshold() == theirs.best_f1_threshold()
    assert [ours.threshold(tpr) for tpr in (0.01, 0.5, 1)] == [theirs.threshold(tpr) for tpr in (0.01, 0.5, 1)]


def test_a_histogram_counts_every_pixel_once_infinities_too():
    for seed in range(60):
        scores, labels = drawn(seed)
        figures, histogram = exact(scores, labels), bounded(scores, labels).histogram(20)
        assert histogram["inliers"].sum() == figures["inlier_pixels"] and histogram["edges"].shape == (21,)
        assert histogram["outliers"].sum() == figures["outlier_pixels"] and (np.diff(histogram["edges"]) > 0).all()


@pytest.mark.parametrize("bits", [10, 16])
def test_memory_does_not_grow_with_the_pixels(bits):
    rng = np.random.default_rng(4)
    scores, labels = rng.standard_normal(50_000).astype(np.float32), labels_of(rng, 50_000, 0.1)
    pooled = BoundedAnomalyMetrics(bits).update(scores, labels)
    size = len(pickle.dumps(pooled))
    tracemalloc.start()
    for _ in range(20):
        pooled.update(scores * rng.uniform(0.1, 10), labels).compute()
    assert tracemalloc.get_traced_memory()[0] < 20_000
    tracemalloc.stop()
    assert pooled.nbytes == 24 * 2**bits and len(pickle.dumps(pooled)) - size < 100
    assert pooled.compute()["inlier_pixels"] + pooled.compute()["outlier_pixels"] == 21 * 50_000


def test_a_nan_score_on_a_counted_pixel_is_an_error_and_leaves_no_trace():
    pooled = bounded(np.array([2.0, 1.0]), np.array([OUTLIER, 0]))
    before = pooled.compute()
    for label in (OUTLIER, 3):
        with pytest.raises(ValueError, match="1 of 3 scores are NaN"):
            pooled.update(torch.tensor([0.0, math.nan, math.nan]), torch.tensor([0, label, IGNORE]))
    assert pooled.compute() == before


def test_bits_rates_and_points_out_of_range_are_errors():
    for bits in (9, 27):
        with pytest.raises(ValueError, match=f"bits is {bits}"):
            BoundedAnomalyMetrics(bits)
    pooled = BoundedAnomalyMetrics(10)
    with pytest.raises(ValueError, match="tpr is 95"):
        pooled.threshold(95)
    with pytest.raises(ValueError, match="points is 8"):
        pooled.curves(8)
