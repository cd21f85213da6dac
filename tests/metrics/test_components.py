"""The figures of SegmentMeIfYouCan against sets of pixels, and the threshold they are read at."""

import itertools
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import sklearn.metrics
import torch

import metrics.anomaly
from labels import IGNORE, OUTLIER
from metrics.anomaly import AnomalyMetrics
from metrics.components import ComponentMetrics

SYMBOLS = {"o": OUTLIER, ".": 0, "-": IGNORE}


def frame(scores, labels):
    """Drawn row by row: # is score 1 and . is 0; o is an outlier, . an inlier, - ignored"""
    return (
        np.array([[float(pixel == "#") for pixel in row] for row in scores.split()]),
        np.array([[SYMBOLS[pixel] for pixel in row] for row in labels.split()], np.uint8),
    )


def figures_of(*frames, min_predicted=1, min_true=1, threshold=0.5):
    pooled = ComponentMetrics(threshold, min_predicted, min_true)
    for scores, labels in frames:
        pooled.update(scores, labels)
    return pooled.compute()


# A second implementation, of sets of pixels and fractions, read off the definition.


def flood(pixels):
    """The 8-connected components of a set of pixels (row, column), as sets"""
    left, found = set(pixels), []
    while left:
        component, front = set(), [left.pop()]
        while front:
            row, column = front.pop()
            component.add((row, column))
            near = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= near
            front += near
        found.append(component)
    return found


def slow_figures(frames, min_predicted, min_true, threshold):
    siou, ppv = [], []
    for scores, labels in frames:
        everywhere = [(row, column) for row in range(labels.shape[0]) for column in range(labels.shape[1])]
        predicted = flood({pixel for pixel in everywhere if scores[pixel] >= threshold})
        predicted = [component for component in predicted if len(component) >= min_predicted]
        true = flood({pixel for pixel in everywhere if labels[pixel] == OUTLIER})
        ignored = {pixel for pixel in everywhere if labels[pixel] == IGNORE}
        ignored |= {pixel for component in true if len(component) < min_true for pixel in component}
        true = [component for component in true if len(component) >= min_true]
        predicted = [component - ignored for component in predicted if component - ignored]
        for component in true:
            union = {pixel for other in predicted if other & component for pixel in other}
            others = {pixel for other in true if other is not component for pixel in other}
            siou.append(Fraction(len(component & union), len(component | union) - len(union & others)))
        anywhere = {pixel for component in true for pixel in component}
        ppv += [Fraction(len(component & anywhere), len(component)) for component in predicted]
    f1 = {}
    for percent in (25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75):
        found = sum(value >= Fraction(percent, 100) for value in siou)
        missed = len(siou) - found
        false = sum(value < Fraction(percent, 100) for value in ppv)
        total = 2 * found + missed + false
        f1[f"0.{percent}"] = float(Fraction(2 * found, total)) if total else math.nan
    return {
        "sIoU": float(sum(siou) / len(siou)) if siou else math.nan,
        "PPV": float(sum(ppv) / len(ppv)) if ppv else math.nan,
        "F1": sum(f1.values()) / len(f1),
        "F1_by_threshold": f1,
        "true_components": len(siou),
        "predicted_components": len(ppv),
    }


def blobs(rng, height, width, share, width_of_blur):
    """A random mask of about this share, smoother where the blur is wider"""
    field = rng.standard_normal((height, width))
    for _ in range(width_of_blur):
        field = sum(np.roll(field, step, axis) for axis in (0, 1) for step in (-1, 0, 1))
    return field >= np.quantile(field, 1 - share) if share else np.zeros((height, width), bool)


def random_frame(rng):
    """Objects, predictions that cover some of them badly, and ignored regions, all blobs with crumbs"""
    height, width = rng.integers(1, 50, 2)
    labels = rng.integers(0, 3, (height, width)).astype(np.uint8)
    outlier = blobs(rng, height, width, rng.choice([0, 0.1, 0.3]), rng.integers(0, 6))
    labels[outlier] = OUTLIER
    labels[blobs(rng, height, width, rng.choice([0, 0.1, 0.3]), rng.integers(0, 4))] = IGNORE
    predicted = np.roll(outlier, rng.integers(0, 3, 2), (0, 1)) if rng.random() < 0.8 else np.zeros_like(outlier)
    predicted = predicted ^ blobs(rng, height, width, rng.choice([0, 0.05, 0.2]), rng.integers(0, 4))
    return predicted + rng.uniform(-0.4, 0.4, (height, width)), labels


def assert_same(figures, expected):
    assert list(figures) == list(expected)
    for name in expected:
        assert figures[name] == pytest.approx(expected[name], rel=0, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize(("min_predicted", "min_true"), [(1, 1), (5, 3), (12, 6), (2, 20)])
def test_figures_equal_sets_of_pixels_on_random_blobs(min_predicted, min_true):
    rng = np.random.default_rng(min_true)
    sizes = {"min_predicted": min_predicted, "min_true": min_true, "threshold": 0.5}
    frames = [random_frame(rng) for _ in range(120)]
    expected = [slow_figures([each], **sizes) for each in frames]
    for each, slow in zip(frames, expected, strict=True):
        assert_same(figures_of(each, **sizes), slow)
    pooled = figures_of(*frames, **sizes)
    assert_same(pooled, slow_figures(frames, **sizes))
    assert pooled["true_components"] > 50 and pooled["predicted_components"] > 50
    assert len({slow["sIoU"] for slow in expected if 0 < slow["sIoU"] < 1}) > 20, "the frames are all alike"
    assert 0 < pooled["F1"] < 1


def test_a_small_frame_by_hand():
    scores = """ ##....
                 ###...
                 ......
                 .....# """
    labels = """ oo....
                 oo....
                 ......
                 oo.... """
    f1 = {f"0.{percent}": 2 * 1 / (2 * 1 + 1 + 1) for percent in range(25, 80, 5)}
    assert figures_of(frame(scores, labels)) == {
        "sIoU": pytest.approx((4 / 5 + 0) / 2),
        "PPV": pytest.approx((4 / 5 + 0) / 2),
        "F1": pytest.approx(0.5),
        "F1_by_threshold": f1,
        "true_components": 2,
        "predicted_components": 2,
    }


def test_what_a_prediction_covers_of_other_objects_does_not_lower_an_objects_siou():
    # One prediction of 9 pixels over objects of 4 and 3: 4 / (9 - 3), and 3 / (9 - 4).
    figures = figures_of(frame("#########", "oooo..ooo"))
    assert figures["sIoU"] == pytest.approx((4 / 6 + 3 / 5) / 2)
    assert (figures["PPV"], figures["true_components"]) == (pytest.approx(7 / 9), 2)


def test_several_predictions_on_one_object_count_together():
    # Of 8 pixels, 2 and 3 are covered, the second prediction reaches 1 further: 5 / (8 + 1).
    figures = figures_of(frame("##..####.#", ".oooooooo."))
    assert figures["sIoU"] == pytest.approx((1 + 4) / (8 + 1))
    assert figures["PPV"] == pytest.approx((1 / 2 + 4 / 4 + 0) / 3)


def test_a_prediction_beside_an_object_does_not_touch_it():
    figures = figures_of(frame("###...", "...ooo"))
    assert (figures["sIoU"], figures["PPV"], figures["F1"]) == (0, 0, 0)


def test_pixels_that_meet_at_a_corner_are_one_component():
    both = figures_of(frame("#.. .#. ..#", "o.. .o. ..o"))
    assert (both["true_components"], both["predicted_components"], both["sIoU"]) == (1, 1, 1)
    anti = figures_of(frame("..# .#. #..", "..o .o. o.."))
    assert (anti["true_components"], anti["predicted_components"]) == (1, 1)


@pytest.mark.parametrize("percent", range(25, 80, 5))
def test_a_figure_that_equals_the_threshold_is_enough(percent):
    at, above = f"{percent / 100:.2f}", f"{percent / 100 + 0.05:.2f}"
    covered = frame("#" * percent + "." * (100 - percent), "o" * 100)  # sIoU is the threshold, PPV is 1
    f1 = figures_of(covered)["F1_by_threshold"]
    assert f1[at] == 1 and f1.get(above, 0) == 0
    # PPV is the threshold: false only above it. A second object far away is found at all of them.
    covering = frame("#" * 100 + ".#", "o" * percent + "." * (100 - percent) + ".o")
    f1 = figures_of(covering)["F1_by_threshold"]  # the first object's sIoU is the threshold too
    assert f1[at] == 1 and f1.get(above, 0.5) == 0.5


def test_counts_are_pooled_over_frames_before_f1():
    found, missed = frame("###.", "ooo."), frame("....", "o.o.")
    pooled = figures_of(found, missed)
    assert pooled["F1"] == pytest.approx(2 * 1 / (2 * 1 + 2))
    assert (figures_of(found)["F1"], figures_of(missed)["F1"]) == (1, 0)
    assert pooled["sIoU"] == pytest.approx(1 / 3)  # a mean over components, not over frames


def test_small_predictions_are_dropped_by_their_size_with_ignored_pixels():
    labels = "ooo...---."
    assert figures_of(frame("##...####.", labels), min_predicted=4) == figures_of(frame(".....#....", labels))
    assert figures_of(frame("##...####.", labels), min_predicted=5)["predicted_components"] == 0


def test_pieces_that_hang_together_over_ignored_pixels_are_one_prediction():
    figures = figures_of(frame("########", "oo---..."))
    assert (figures["predicted_components"], figures["PPV"]) == (1, pytest.approx(2 / 5))
    assert figures["sIoU"] == pytest.approx(2 / 5)


def test_a_prediction_on_ignored_pixels_alone_is_not_counted():
    figures = figures_of(frame("##.###", "oo.---"))
    assert (figures["predicted_components"], figures["F1"]) == (1, 1)


def test_small_objects_are_ignored_after_the_predictions_were_measured():
    figures = figures_of(frame("######.#", "oo..oooo"), min_predicted=5, min_true=3)
    # The prediction has 6 pixels, 2 of them on the small object: 4 are left, 2 on the large one.
    assert (figures["true_components"], figures["predicted_components"]) == (1, 1)
    assert (figures["PPV"], figures["sIoU"]) == (2 / 4, 2 / (4 + 2))
    assert figures_of(frame("##......", "oo..oooo"), min_true=3)["predicted_components"] == 0


def test_sizes_are_the_benchmarks_if_not_given():
    labels, scores = np.zeros((2, 40, 40), np.uint8), np.zeros((2, 40, 40))
    for pixels, number in ((99, 0), (100, 1)):
        labels[number].flat[:pixels] = OUTLIER
    for pixels, number in ((499, 0), (500, 1)):
        scores[number].flat[-pixels:] = 1
    for number in range(2):
        figures = ComponentMetrics(0.5).update(scores[number], labels[number]).compute()
        assert (figures["true_components"], figures["predicted_components"]) == (number, number)


def test_a_pixel_at_the_threshold_is_predicted():
    scores, labels = frame("##..", "oo..")
    assert figures_of((scores, labels), threshold=1.0)["sIoU"] == 1
    assert figures_of((scores, labels), threshold=np.nextafter(1.0, 2))["predicted_components"] == 0
    thirds = np.where(labels == OUTLIER, 1 / 3, 0.3).astype(np.float32)
    threshold = AnomalyMetrics().update(thirds, labels).best_f1_threshold()[0]
    assert figures_of((torch.from_numpy(thirds), labels), threshold=threshold)["sIoU"] == 1
    assert figures_of((scores, labels), threshold=-math.inf)["PPV"] == 0.5
    assert figures_of((scores, labels), threshold=math.inf)["predicted_components"] == 0


@pytest.mark.parametrize(
    "scores, labels, siou, ppv, f1",
    [
        ("....", "....", math.nan, math.nan, math.nan),
        ("####", "----", math.nan, math.nan, math.nan),
        ("##..", "....", math.nan, 0, 0),
        ("....", "oo..", 0, math.nan, 0),
        ("####", "oooo", 1, 1, 1),
    ],
)
def test_what_is_undefined_is_nan_without_a_warning(scores, labels, siou, ppv, f1):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = figures_of(frame(scores, labels))
    assert [figures[name] for name in ("sIoU", "PPV", "F1")] == pytest.approx([siou, ppv, f1], nan_ok=True)
    assert list(figures["F1_by_threshold"].values()) == pytest.approx([f1] * 11, nan_ok=True)


def test_no_frames_and_empty_frames_give_nan_and_zeros():
    for figures in (figures_of(), figures_of((np.zeros((0, 5)), np.zeros((0, 5), int)))):
        assert all(math.isnan(figures[name]) for name in ("sIoU", "PPV", "F1"))
        assert (figures["true_components"], figures["predicted_components"]) == (0, 0)


def test_figures_are_plain_numbers():
    figures = figures_of(frame("##..", "oo.."))
    assert [type(value) for value in figures.values()] == [float, float, float, dict, int, int]
    assert {type(value) for value in figures["F1_by_threshold"].values()} == {float}


def test_any_order_of_the_frames_gives_exactly_the_same_and_computing_in_between_changes_nothing():
    rng = np.random.default_rng(1)
    frames = [random_frame(rng) for _ in range(30)]
    expected = figures_of(*frames)
    assert figures_of(*frames[::-1]) == expected
    pooled = ComponentMetrics(0.5, 1, 1)
    for each in frames:
        pooled.update(*each).compute()
    assert pooled.compute() == pooled.compute() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_tensors_and_arrays_of_any_type_and_layout(dtype):
    scores, labels = frame("##...# ..###.", "oo.--- ..oooo")
    expected = figures_of((scores, labels))
    tensors = torch.from_numpy(scores).to(dtype).requires_grad_(dtype.is_floating_point), torch.from_numpy(labels)
    assert figures_of(tensors) == expected
    assert figures_of((tensors[0].T, tensors[1].long().T)) == expected
    assert figures_of((scores[::-1], labels.astype(np.int64)[::-1])) == expected


def test_the_callers_arrays_stay_as_they_are():
    scores, labels = frame("##..#", "oo--o")
    before = scores.copy(), labels.copy()
    figures_of((scores, labels), min_predicted=2, min_true=2)
    assert np.array_equal(scores, before[0]) and np.array_equal(labels, before[1])


def test_nan_scores_are_an_error_unless_ignored_and_leave_no_trace():
    scores, labels = frame("##.##", "oo.--")
    pooled = ComponentMetrics(0.5, 1, 1).update(scores, labels)
    before = pooled.compute()
    scores[0, 1:] = math.nan
    with pytest.raises(ValueError, match="2 of 5 scores are NaN"):
        pooled.update(scores, labels)
    assert pooled.compute() == before
    scores[0, 1:3] = 1
    assert figures_of((scores, labels)) == figures_of(frame("###..", "oo.--"))


def test_frames_of_other_shapes_and_narrow_labels_are_errors():
    for scores, labels in (((1, 2, 3), (1, 2, 3)), ((2, 3), (3, 2)), ((6,), (6,))):
        with pytest.raises(ValueError, match=r"scores have shape \(.*labels \(.*one frame"):
            figures_of((np.zeros(scores), np.zeros(labels, int)))
    with pytest.raises(ValueError, match="cannot hold OUTLIER"):
        figures_of((np.zeros((2, 3)), np.zeros((2, 3), bool)))
    with pytest.raises(ValueError, match="threshold is NaN"):
        ComponentMetrics(AnomalyMetrics().best_f1_threshold()[0])


# The threshold of the best pixel F1


def best_by_scikit_learn(scores, outlier):
    precision, recall, thresholds = sklearn.metrics.precision_recall_curve(outlier, scores)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))[:-1]
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)[-1]  # rounding tells equal ones apart; the last is the largest
    return thresholds[best], f1[best]


@pytest.mark.parametrize("n, share", [(2, 0.5), (3, 0.5), (40, 0.3), (5000, 0.01), (5000, 0.9), (200_000, 0.4)])
def test_the_threshold_of_the_best_f1_equals_scikit_learn(n, share):
    for levels, dtype in itertools.product([None, 1, 8], [np.float32, np.float64]):
        rng = np.random.default_rng(n)
        outlier = rng.random(n) < share
        outlier[0], outlier[-1] = True, False
        scores = rng.standard_normal(n) + outlier
        scores = (np.round(scores * levels) / levels if levels else scores).astype(dtype)
        labels = np.where(outlier, OUTLIER, 0)
        labels[1:-1:7] = IGNORE
        pooled = AnomalyMetrics()
        for half in (slice(0, n // 2), slice(n // 2, n)):
            pooled.update(scores[half], labels[half])
        threshold, f1 = best_by_scikit_learn(scores[labels != IGNORE], outlier[labels != IGNORE])
        assert pooled.best_f1_threshold() == (threshold, pytest.approx(f1, rel=0, abs=1e-12))
        assert [type(value) for value in pooled.best_f1_threshold()] == [float, float]


def test_the_best_f1_by_hand_and_of_equal_ones_the_largest_threshold(monkeypatch):
    labels = np.array([OUTLIER, 0, OUTLIER, 0, 0, OUTLIER])
    # At 6, 4 and 1 the F1 is 2/(1+3), 4/(3+3) and 6/(6+3): the last two are equal.
    for block in (1, 2, 1000):
        monkeypatch.setattr(metrics.anomaly, "BLOCK", block)
        pooled = AnomalyMetrics().update(np.array([6.0, 5, 4, 3, 2, 1]), labels)
        assert pooled.best_f1_threshold() == (4.0, 4 / 6)


def test_the_best_f1_of_mixed_types_and_without_outliers_or_inliers():
    pooled = AnomalyMetrics().update(np.float32([1, 2, 3]), np.array([0, 0, OUTLIER]))
    assert pooled.update(np.float64([3 - 1e-12]), np.array([0])).best_f1_threshold() == (3.0, 1.0)
    assert AnomalyMetrics().update(np.array([2.0, -0.0]), np.full(2, OUTLIER)).best_f1_threshold() == (0.0, 1.0)
    assert str(AnomalyMetrics().update(np.array([-0.0]), np.full(1, OUTLIER)).best_f1_threshold()[0]) == "0.0"
    assert np.isnan(AnomalyMetrics().update(np.array([2.0]), np.zeros(1, int)).best_f1_threshold()).all()
    infinite = AnomalyMetrics().update(np.array([-np.inf, np.inf, 0]), np.array([OUTLIER, OUTLIER, 0]))
    assert infinite.best_f1_threshold() == (-math.inf, pytest.approx(0.8))


def test_the_whole_protocol_on_two_frames():
    frames = [frame("####... .......", "oooo... ......."), frame("##.##.. .......", "..oooo. .......")]
    frames = [(scores + np.arange(14).reshape(2, 7) / 100, labels) for scores, labels in frames]
    pixels = AnomalyMetrics()
    for each in frames:
        pixels.update(*each)
    threshold, f1 = pixels.best_f1_threshold()
    assert (threshold, f1) == (1.0, pytest.approx(2 * 6 / (8 + 8)))
    figures = figures_of(*frames, threshold=threshold)
    assert figures["sIoU"] == pytest.approx((4 / 4 + 2 / 4) / 2)
    assert figures["PPV"] == pytest.approx((1 + 0 + 1) / 3)
    assert figures["F1_by_threshold"]["0.50"] == pytest.approx(4 / (4 + 1))
    assert figures["F1_by_threshold"]["0.55"] == pytest.approx(2 / (2 + 1 + 1))
