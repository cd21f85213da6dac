import itertools
import math
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch

import metrics.anomaly
import metrics.scores
from labels import IGNORE, OUTLIER
from metrics import AnomalyMetrics, ConfusionMatrix, classes_averaged, mean_of_images

FIGURES = ("AP", "AUROC", "FPR95")
UNKNOWN = 3  # the prediction, where a test has three classes


def figures_of(scores, labels):
    return AnomalyMetrics().update(scores, labels).compute()


def random_scores(rng, n, outlier_share, levels=None, dtype=np.float64):
    """Overlapping scores, rounded to so many levels per unit, and labels with at least one pixel of each kind"""
    outlier = rng.random(n) < outlier_share
    outlier[0], outlier[-1] = True, False
    scores = rng.standard_normal(n) + outlier
    if levels:
        scores = np.round(scores * levels) / levels
    return scores.astype(dtype), np.where(outlier, OUTLIER, rng.integers(0, 19, n)).astype(np.uint8)


def sklearn_figures(scores, labels):
    outlier, scores = labels[labels != IGNORE] == OUTLIER, scores[labels != IGNORE]
    false_positives, true_positives, thresholds = sklearn.metrics.roc_curve(outlier, scores, drop_intermediate=False)
    at = np.flatnonzero(true_positives >= 0.95)[0]
    return {
        "AP": sklearn.metrics.average_precision_score(outlier, scores),
        "AUROC": sklearn.metrics.roc_auc_score(outlier, scores),
        "FPR95": false_positives[at],
        "threshold95": thresholds[at],
    }


def slow_figures(scores, labels):
    inliers = [s for s, label in zip(scores, labels, strict=True) if label not in (OUTLIER, IGNORE)]
    outliers = [s for s, label in zip(scores, labels, strict=True) if label == OUTLIER]
    ap, recall_before, fpr_at = 0.0, 0.0, None
    for threshold in sorted({*inliers, *outliers}, reverse=True):
        hits, alarms = sum(s >= threshold for s in outliers), sum(s >= threshold for s in inliers)
        recall = hits / len(outliers)
        ap += (recall - recall_before) * hits / (hits + alarms)
        recall_before = recall
        if recall >= 0.95 and fpr_at is None:
            fpr_at, threshold_at = alarms / len(inliers), threshold
    wins = sum((o > i) + (o == i) / 2 for o in outliers for i in inliers)
    return {"AP": ap, "AUROC": wins / len(inliers) / len(outliers), "FPR95": fpr_at, "threshold95": threshold_at}


def assert_close(figures, expected):
    for name in expected:
        assert figures[name] == pytest.approx(expected[name], rel=0, abs=1e-10), name


def test_four_pixels_by_hand():
    figures = figures_of(np.array([4.0, 3.0, 2.0, 1.0]), np.array([OUTLIER, 0, OUTLIER, 7]))
    assert figures == {
        "AP": pytest.approx(0.5 * 1 + 0.5 * 2 / 3),
        "AUROC": 0.75,
        "FPR95": 0.5,
        "threshold95": 2.0,
        "inlier_pixels": 2,
        "outlier_pixels": 2,
        "ignored_pixels": 0,
    }


def test_an_outlier_equal_to_an_inlier_counts_half_in_auroc_and_full_in_fpr():
    figures = figures_of(np.array([1.0, 1.0]), np.array([OUTLIER, 0]))
    assert (figures["AP"], figures["AUROC"], figures["FPR95"]) == (0.5, 0.5, 1.0)


def test_figures_are_plain_numbers():
    figures = figures_of(torch.tensor([2.0, 1.0]), torch.tensor([OUTLIER, 0]))
    assert [type(value) for value in figures.values()] == [float] * 4 + [int] * 3


@pytest.mark.parametrize(
    "n, outlier_share", [(2, 0), (3, 0.5), (40, 0.3), (5000, 0), (5000, 1), (5000, 0.5), (200_000, 0.4)]
)
def test_figures_equal_scikit_learn(n, outlier_share):
    for levels, dtype in itertools.product([None, 1, 8, 256], [np.float32, np.float64]):
        scores, labels = random_scores(np.random.default_rng(n), n, outlier_share, levels, dtype)
        labels[1:-1:7] = IGNORE
        assert_close(figures_of(scores, labels), sklearn_figures(scores, labels))


def test_figures_equal_slow_loops_with_ties_and_infinities():
    rng = np.random.default_rng(1)
    for n in range(2, 40):
        scores, labels = random_scores(rng, n, 0.4, levels=2)
        scores[rng.random(n) < 0.1] = np.inf
        scores[rng.random(n) < 0.1] = -np.inf
        assert_close(figures_of(scores, labels), slow_figures(scores, labels))


def test_blocks_do_not_show(monkeypatch):
    rng = np.random.default_rng(2)
    cases = [random_scores(rng, 300, 0.5, levels) for levels in (None, 1, 4)]
    expected = [figures_of(*case) for case in cases]
    for block in (1, 2, 7, 150):
        monkeypatch.setattr(metrics.anomaly, "BLOCK", block)
        for case, figures in zip(cases, expected, strict=True):
            assert_close(figures_of(*case), figures)


def test_any_order_and_split_of_the_updates_gives_exactly_the_same():
    rng = np.random.default_rng(3)
    scores, labels = random_scores(rng, 20_000, 0.2, levels=64, dtype=np.float32)
    scores[rng.random(scores.size) < 0.5] *= np.float32(-1)  # zeros of both signs
    labels[::11] = IGNORE
    expected = figures_of(scores, labels)
    for _ in range(10):
        order = rng.permutation(scores.size)
        parts = np.split(order, np.sort(rng.integers(0, scores.size, 5)))
        pooled = AnomalyMetrics()
        for part in parts:
            pooled.update(scores[part], labels[part])
        assert pooled.compute() == expected


def test_the_sign_of_a_zero_threshold_does_not_depend_on_the_order():
    for scores in ([0.0, -0.0], [-0.0, 0.0], [-0.0, -0.0]):
        assert str(AnomalyMetrics().update(np.array(scores), np.full(2, OUTLIER)).threshold()) == "0.0"


def test_computing_twice_or_in_between_changes_nothing():
    scores, labels = random_scores(np.random.default_rng(4), 3000, 0.3)
    pooled = AnomalyMetrics()
    for part in (slice(0, 1000), slice(1000, 1001), slice(1001, 3000)):
        pooled.update(scores[part], labels[part]).compute()
    assert pooled.compute() == pooled.compute() == figures_of(scores, labels)


def test_the_callers_scores_stay_as_they_are():
    scores = np.array([3.0, 1.0, 2.0])
    AnomalyMetrics().update(scores, np.full(3, OUTLIER)).compute()
    AnomalyMetrics().update(scores, np.zeros(3, int)).compute()
    assert scores.tolist() == [3.0, 1.0, 2.0]


def test_float32_and_float64_updates_mix():
    scores, labels = random_scores(np.random.default_rng(5), 2000, 0.3, levels=3)  # thirds: float32 rounds them
    mixed = np.concatenate([scores[:1000].astype(np.float32).astype(np.float64), scores[1000:]])
    pooled = AnomalyMetrics().update(scores[:1000].astype(np.float32), labels[:1000])
    assert pooled.update(scores[1000:], labels[1000:]).compute() == figures_of(mixed, labels)
    for narrow in (labels == OUTLIER, labels != OUTLIER):
        pooled = AnomalyMetrics().update(scores[narrow].astype(np.float32), labels[narrow])
        mixed = np.where(narrow, scores.astype(np.float32).astype(np.float64), scores)
        assert pooled.update(scores[~narrow], labels[~narrow]).compute() == figures_of(mixed, labels)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int64]
)
def test_tensors_of_any_type_shape_and_layout(dtype):
    rng = np.random.default_rng(6)
    scores, labels = random_scores(rng, 2 * 30 * 20, 0.3)
    scores = torch.from_numpy(scores * 10 + 50).to(dtype).reshape(2, 30, 20)
    labels = torch.from_numpy(labels).reshape(2, 30, 20)
    expected = sklearn_figures(scores.double().flatten().numpy(), labels.flatten().numpy())
    assert_close(figures_of(scores, labels), expected)
    assert_close(figures_of(scores.transpose(1, 2), labels.transpose(1, 2)), expected)
    assert_close(figures_of(scores, labels.numpy().astype(np.int64)), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.uint8, ">f8", ">f4"])
def test_arrays_of_any_type_and_layout(dtype):
    scores, labels = random_scores(np.random.default_rng(7), 1200, 0.3)
    scores = (scores * 10 + 50).astype(dtype).reshape(30, 40)[::-1, ::3]
    labels = labels.reshape(30, 40)[::-1, ::3]
    assert_close(figures_of(scores, labels), sklearn_figures(scores.astype(np.float64).ravel(), labels.ravel()))


def test_scores_that_require_a_gradient_are_taken():
    assert figures_of(torch.tensor([2.0, 1.0], requires_grad=True), torch.tensor([OUTLIER, 0]))["AP"] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_on_the_gpu_give_the_same():
    scores, labels = random_scores(np.random.default_rng(8), 1000, 0.3)
    scores, labels = torch.from_numpy(scores), torch.from_numpy(labels)
    assert figures_of(scores.cuda(), labels.cuda()) == figures_of(scores, labels)


def test_scores_closer_than_float32_are_told_apart_if_they_come_as_float64():
    scores, labels = np.array([1 + 1e-12, 1.0]), np.array([OUTLIER, 0])
    assert figures_of(scores, labels)["AUROC"] == 1
    assert figures_of(scores.astype(np.float32), labels)["AUROC"] == 0.5


def test_ignored_pixels_change_nothing_but_their_count():
    scores, labels = random_scores(np.random.default_rng(9), 500, 0.3)
    expected = figures_of(scores, labels) | {"ignored_pixels": 4}
    scores, labels = np.append(scores, [np.nan, np.inf, -9, 0]), np.append(labels, np.full(4, IGNORE, np.uint8))
    assert figures_of(scores, labels) == expected


def test_a_nan_score_on_a_counted_pixel_is_an_error_and_leaves_no_trace():
    pooled = AnomalyMetrics().update(np.array([2.0, 1.0]), np.array([OUTLIER, 0]))
    before = pooled.compute()
    for label in (OUTLIER, 3):
        with pytest.raises(ValueError, match="1 of 3 scores are NaN"):
            pooled.update(torch.tensor([0.0, math.nan, math.nan]), torch.tensor([0, label, IGNORE]))
    assert pooled.compute() == before


def test_shapes_that_differ_are_an_error_that_names_both():
    with pytest.raises(ValueError, match=r"\(2, 1, 3\).*\(2, 3\)"):
        AnomalyMetrics().update(np.zeros((2, 1, 3)), np.zeros((2, 3), int))


@pytest.mark.parametrize("dtype", [bool, np.int8])
def test_labels_too_narrow_for_the_outlier_label_are_an_error(dtype):
    with pytest.raises(ValueError, match="cannot hold OUTLIER"):
        AnomalyMetrics().update(np.zeros(3), np.zeros(3, dtype))


@pytest.mark.parametrize(
    "labels, inliers, outliers", [([0, 1], 2, 0), ([OUTLIER] * 2, 0, 2), ([IGNORE] * 2, 0, 0), ([], 0, 0)]
)
def test_without_outliers_or_without_inliers_the_figures_are_nan(labels, inliers, outliers):
    figures = figures_of(np.arange(len(labels)) + 1.0, np.array(labels, int))
    assert all(math.isnan(figures[name]) for name in FIGURES)
    assert (figures["inlier_pixels"], figures["outlier_pixels"]) == (inliers, outliers)
    assert figures["ignored_pixels"] == labels.count(IGNORE)
    assert figures["threshold95"] == 1.0 if outliers else math.isnan(figures["threshold95"])


def test_no_updates_at_all_give_nan_and_zeros():
    figures = AnomalyMetrics().compute()
    assert all(math.isnan(figures[name]) for name in FIGURES) and figures["ignored_pixels"] == 0


@pytest.mark.parametrize("levels", [None, 3])
def test_the_threshold_is_the_largest_that_reaches_the_rate(levels):
    rng = np.random.default_rng(10)
    for n in [*range(1, 60), 100, 180, 200]:  # 0.07 * 100 is more than 7, 0.95 * 180 must not be taken for 172
        outliers = random_scores(rng, n + 1, 1, levels)[0]
        pooled = AnomalyMetrics().update(outliers, np.full(n + 1, OUTLIER))
        for tpr in (0.07, 0.29, 0.55, 0.95, 1.0, 1 / (n + 1), n / (n + 1)):
            reaching = [score for score in outliers if (outliers >= score).mean() >= tpr]
            assert pooled.threshold(tpr) == max(reaching)


def test_seven_percent_of_a_hundred_are_seven():
    pooled = AnomalyMetrics().update(np.arange(100.0), np.full(100, OUTLIER))
    assert pooled.threshold(0.07) == 93.0


@pytest.mark.parametrize("tpr", [0, -0.1, 1.1, 95, math.nan])
def test_a_rate_that_is_no_fraction_is_an_error(tpr):
    with pytest.raises(ValueError, match="tpr is"):
        AnomalyMetrics().threshold(tpr)


def test_eight_bytes_a_pixel_are_kept_for_float64_and_four_for_others():
    labels = np.array([OUTLIER, 0, 1, IGNORE] * 1000)
    for dtype, per_pixel in ((np.float64, 8), (np.float32, 4), (np.float16, 4), (np.int64, 4)):
        pooled = AnomalyMetrics().update(np.arange(4000).astype(dtype), labels)
        for _ in range(2):
            arrays = [*pooled._inliers.arrays, *pooled._outliers.arrays]
            assert sum(array.nbytes for array in arrays) == pooled.nbytes == 3000 * per_pixel
            assert all(array.base is None for array in arrays), "a view keeps a larger array alive"
            pooled.update(np.arange(0).astype(dtype), labels[:0]).compute()


def test_many_small_updates_are_joined_as_they_come(monkeypatch):
    monkeypatch.setattr(metrics.scores, "LARGE", 4000)
    scores, labels = random_scores(np.random.default_rng(13), 10_000, 0.3, dtype=np.float32)
    pooled = AnomalyMetrics()
    for part in np.split(np.arange(10_000), 1000):
        pooled.update(scores[part], labels[part])
        assert sum(array.nbytes for array in pooled._inliers.small) < 4000
    assert len(pooled._inliers.large) <= 10_000 * 4 / 4000
    assert pooled.compute() == figures_of(scores, labels)


def test_the_mean_of_images_leaves_out_and_counts_those_without_figures():
    images = [
        figures_of(np.array([2.0, 1.0]), np.array([OUTLIER, 0])),
        figures_of(np.array([1.0, 2.0]), np.array([OUTLIER, 0])),
        figures_of(np.array([1.0, 2.0]), np.array([1, 0])),
        figures_of(np.array([1.0, 2.0]), np.array([1, IGNORE])),
        figures_of(np.array([1.0, 2.0]), np.array([OUTLIER, OUTLIER])),
        figures_of(np.array([1.0, 2.0]), np.array([IGNORE, IGNORE])),
    ]
    assert mean_of_images(images) == {
        "AP": 0.75,
        "AUROC": 0.5,
        "FPR95": 0.5,
        "images": 2,
        "images_without_outliers": 3,
        "images_without_inliers": 1,
    }


def test_the_mean_of_no_images_is_nan():
    for images, left_out in (([], 0), ([figures_of(np.zeros(2), np.zeros(2, int))], 1)):
        mean = mean_of_images(images)
        assert all(math.isnan(mean[name]) for name in FIGURES)
        assert (mean["images"], mean["images_without_outliers"], mean["images_without_inliers"]) == (0, left_out, 0)


# Segmentation


def small_map():
    """Eight pixels, three classes; class 2 occurs only as the prediction of the ignored pixel"""
    labels = np.array([[0, 0, 0, 1], [1, OUTLIER, OUTLIER, IGNORE]], np.uint8)
    prediction = np.array([[0, 0, 1, 1], [UNKNOWN, 1, UNKNOWN, 2]])
    return prediction, labels


def test_a_small_map_by_hand():
    confusion = ConfusionMatrix(3).update(*small_map())
    assert confusion.matrix.tolist() == [[2, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]]
    assert confusion.matrix.dtype == np.int64
    np.testing.assert_allclose(confusion.iou(), [2 / 3, 1 / 3, np.nan])
    np.testing.assert_allclose(confusion.open_iou(), [2 / 3, 1 / 4, np.nan, 1 / 3])
    assert confusion.compute() == {
        "mIoU": pytest.approx((2 / 3 + 1 / 3) / 2),
        "mIoU_classes": 2,
        "open_mIoU": pytest.approx((2 / 3 + 1 / 4) / 2),
        "open_mIoU_classes": 2,
        "mIoU_with_unknown": pytest.approx((2 / 3 + 1 / 4 + 1 / 3) / 3),
        "mIoU_with_unknown_classes": 3,
    }


def test_an_outlier_predicted_known_costs_open_miou_alone():
    prediction, labels = np.array([0, 1, 0]), np.array([0, 1, OUTLIER])
    confusion = ConfusionMatrix(2).update(prediction, labels)
    assert (confusion.miou(), confusion.open_miou(), confusion.miou_with_unknown()) == (1.0, 0.75, 0.5)


def test_a_known_pixel_predicted_unknown_costs_both():
    confusion = ConfusionMatrix(2).update(np.array([0, 2, 1, 2]), np.array([0, 0, 1, OUTLIER]))
    assert (confusion.miou(), confusion.open_miou()) == (0.75, 0.75)
    assert confusion.miou_with_unknown() == pytest.approx((0.5 + 1 + 0.5) / 3)


def slow_iou(prediction, labels, class_id, outliers_too):
    both = either = 0
    for predicted_row, truth_row in zip(prediction, labels, strict=True):
        for predicted, truth in zip(predicted_row, truth_row, strict=True):
            if truth == IGNORE or (truth == OUTLIER and not outliers_too):
                continue
            is_class = truth == class_id or (truth == OUTLIER and class_id == UNKNOWN)
            both += is_class and predicted == class_id
            either += is_class or predicted == class_id
    return both / either if either else math.nan


def test_ious_equal_a_slow_triple_loop_on_random_maps():
    rng = np.random.default_rng(11)
    for height, width in ((1, 1), (1, 2), (2, 2), (3, 5), (20, 30)):
        for _ in range(10):
            prediction = rng.integers(0, UNKNOWN + 1, (height, width))
            labels = rng.choice([0, 1, 2, OUTLIER, IGNORE], (height, width)).astype(np.uint8)
            confusion = ConfusionMatrix(UNKNOWN).update(prediction, labels)
            closed = [slow_iou(prediction, labels, c, outliers_too=False) for c in range(UNKNOWN)]
            opened = [slow_iou(prediction, labels, c, outliers_too=True) for c in range(UNKNOWN + 1)]
            np.testing.assert_allclose(confusion.iou(), closed)
            np.testing.assert_allclose(confusion.open_iou(), opened)
            for mean, ious in (
                (confusion.miou(), closed),
                (confusion.open_miou(), opened[:UNKNOWN]),
                (confusion.miou_with_unknown(), opened),
            ):
                ious = [iou for iou in ious if not math.isnan(iou)]
                assert mean == pytest.approx(sum(ious) / len(ious) if ious else math.nan, nan_ok=True)


def test_closed_set_ious_equal_scikit_learn():
    rng = np.random.default_rng(12)
    prediction, labels = rng.integers(0, 5, 1000), rng.integers(0, 5, 1000)
    iou = ConfusionMatrix(5).update(prediction, labels).iou()
    np.testing.assert_allclose(iou, sklearn.metrics.jaccard_score(labels, prediction, average=None), rtol=1e-12)


def test_classes_with_an_empty_union_are_left_out_and_the_averaged_ones_counted():
    confusion = ConfusionMatrix(19).update(np.array([4, 4, 5]), np.array([4, 5, 5]))
    assert confusion.miou() == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert classes_averaged(confusion.iou()) == 2
    assert confusion.compute()["mIoU_with_unknown_classes"] == 2


@pytest.mark.parametrize("labels", [[], [IGNORE] * 3])
def test_without_counted_pixels_the_means_are_nan_without_a_warning(labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        confusion = ConfusionMatrix(3).update(np.zeros(len(labels), int), np.array(labels, int))
        assert math.isnan(confusion.miou()) and math.isnan(confusion.open_miou())
        assert math.isnan(confusion.miou_with_unknown()) and confusion.compute()["mIoU_classes"] == 0


def test_outliers_alone_leave_the_closed_set_miou_undefined():
    confusion = ConfusionMatrix(2).update(np.array([0, 2]), np.array([OUTLIER, OUTLIER]))
    assert math.isnan(confusion.miou())
    assert (confusion.open_miou(), confusion.miou_with_unknown()) == (0.0, 0.25)


def test_tensors_and_arrays_of_any_type_and_layout_give_the_same_matrix():
    prediction, labels = small_map()
    expected = ConfusionMatrix(3).update(prediction, labels).matrix
    tensors = torch.from_numpy(prediction), torch.from_numpy(labels)
    np.testing.assert_array_equal(ConfusionMatrix(3).update(*tensors).matrix, expected)
    np.testing.assert_array_equal(ConfusionMatrix(3).update(tensors[0].T, tensors[1].T).matrix, expected)
    for dtype in (np.uint8, np.uint64):
        flipped = prediction.astype(dtype)[::-1], labels.astype(np.int64)[::-1]
        np.testing.assert_array_equal(ConfusionMatrix(3).update(*flipped).matrix, expected)


def test_uint8_ids_do_not_wrap_with_many_classes():
    prediction, labels = np.arange(254, dtype=np.uint8), np.arange(254, dtype=np.uint8)
    assert ConfusionMatrix(254).update(prediction, labels).matrix.diagonal().tolist() == [1] * 254 + [0]


@pytest.mark.parametrize(
    "prediction, label, message",
    [
        (4, 0, "predictions must be 0..3.*such as 4"),
        (-1, 0, "predictions must be 0..3.*such as -1"),
        (0, 3, "labels must be 0..2.*such as 3"),
        (0, -2, "labels must be 0..2.*such as -2"),
        (0, 253, "labels must be 0..2.*such as 253"),
    ],
)
def test_wrong_values_are_an_error_that_names_them(prediction, label, message):
    confusion = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        confusion.update(np.array([prediction, 1]), np.array([label, 1]))
    assert confusion.matrix.sum() == 0


def test_predictions_on_ignored_pixels_are_not_looked_at():
    assert ConfusionMatrix(3).update(np.array([255, 1]), np.array([IGNORE, 1])).matrix.sum() == 1


def test_logits_in_place_of_class_ids_and_shapes_that_differ_are_errors():
    with pytest.raises(ValueError, match=r"float32.*argmax"):
        ConfusionMatrix(3).update(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(2, 1, 2\).*\(2, 2\)"):
        ConfusionMatrix(3).update(np.zeros((2, 1, 2), int), np.zeros((2, 2), int))
    for num_classes in (0, 255):
        with pytest.raises(ValueError, match=f"num_classes is {num_classes}"):
            ConfusionMatrix(num_classes)


# What a GPU sorts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_a_gpu_counts_is_what_a_cpu_counts_in_ascending_order(dtype):
    scores, labels = random_scores(np.random.default_rng(7), 500, 0.2, levels=10)
    labels[::9] = IGNORE
    scores = torch.from_numpy(scores).to(dtype)
    *kinds, ignored = metrics.scores.sorted_on_gpu(scores, labels)  # which runs on any device
    *expected, expected_ignored = metrics.scores.counted_scores(scores, labels)
    assert ignored == expected_ignored
    for found, of_kind in zip(kinds, expected, strict=True):
        assert found.dtype == of_kind.dtype
        np.testing.assert_array_equal(found, np.sort(of_kind))


@pytest.mark.parametrize(
    "labels", [np.full(4, OUTLIER, np.uint8), np.full(3, OUTLIER, np.uint8), np.zeros(3, np.int8), np.zeros(3, bool)]
)
def test_what_is_wrong_with_scores_on_a_gpu_is_said_as_on_a_cpu(labels):
    scores = torch.tensor([0.0, math.nan, 1.0])
    with pytest.raises(ValueError) as expected:
        metrics.scores.counted_scores(scores, labels)
    with pytest.raises(ValueError) as found:
        metrics.scores.sorted_on_gpu(scores, labels)
    assert str(found.value) == str(expected.value)


def test_scores_that_came_sorted_give_the_same_figures(monkeypatch):
    rng, ours, expected = np.random.default_rng(3), AnomalyMetrics(), AnomalyMetrics()
    for size in (40, 300, 7):
        scores, labels = random_scores(rng, size, 0.3, levels=5, dtype=np.float32)
        frame = AnomalyMetrics()
        *kinds, _ = metrics.scores.sorted_on_gpu(torch.from_numpy(scores), labels)
        for kept, of_kind in zip((frame._inliers, frame._outliers), kinds, strict=True):
            kept.add(of_kind, is_sorted=True)
            kept.gpu = torch.device("cpu")  # sorts as a GPU would
        assert frame.compute() == figures_of(scores, labels)
        ours.merge(frame)
        expected.update(scores, labels)
    assert ours.compute() == expected.compute()


def test_scores_are_sorted_without_a_gpu_whose_memory_does_not_suffice(monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    scores = np.array([3.0, 1.0, 2.0], np.float32)
    monkeypatch.setattr(torch, "from_numpy", full)
    metrics.scores.sort(scores, torch.device("cpu"))
    assert scores.tolist() == [1, 2, 3]
