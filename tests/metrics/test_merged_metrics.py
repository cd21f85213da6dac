"""merge: figures counted in parts, in any order and in processes, are exactly those of one object."""

import multiprocessing
import pickle

import numpy as np
import pytest

import metrics.scores
from labels import IGNORE, OUTLIER
from metrics import AnomalyMetrics, BoundedAnomalyMetrics, ComponentMetrics, ConfusionMatrix

KINDS = {
    "AnomalyMetrics": AnomalyMetrics,
    "BoundedAnomalyMetrics": lambda: BoundedAnomalyMetrics(14),
    "ComponentMetrics": lambda: ComponentMetrics(0.5, 3, 2),
    "ConfusionMatrix": lambda: ConfusionMatrix(5),
}


def frames(kind, count=12, dtype=np.float32):
    """Frames (8, 12) of scores, or class ids, and labels; zeros have both signs"""
    rng = np.random.default_rng(count)
    for _ in range(count):
        labels = rng.choice([0, 1, 4, OUTLIER, IGNORE], (8, 12), p=[0.3, 0.2, 0.2, 0.2, 0.1]).astype(np.uint8)
        scores = np.round(rng.standard_normal((8, 12)) + (labels == OUTLIER), 1).astype(dtype)
        yield (rng.integers(0, 6, (8, 12)) if kind == "ConfusionMatrix" else scores), labels


def everything(counts):
    """All that an object says, with nothing left to compare by identity"""
    said = counts.compute()
    for name in ("curves", "histogram"):
        if hasattr(counts, name):
            said |= {key: values.tolist() for key, values in getattr(counts, name)().items()}
    if hasattr(counts, "best_f1_threshold"):
        said["best"] = counts.best_f1_threshold()
    return repr(said)


def updated(counts, parts):
    for values, labels in parts:
        counts.update(values, labels)
    return counts


def counted(kind, parts):
    return updated(KINDS[kind](), parts)


@pytest.mark.parametrize("large", [None, 1, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_merged_in_any_order_equal_one_object(kind, large, monkeypatch):
    if large:
        monkeypatch.setattr(metrics.scores, "LARGE", large)
    pixels = list(frames(kind))
    expected = everything(counted(kind, pixels))
    rng = np.random.default_rng(0)
    for _ in range(12):
        cuts = np.sort(rng.integers(0, len(pixels) + 1, rng.integers(0, 5)))
        parts = [[pixels[at] for at in part] for part in np.split(rng.permutation(len(pixels)), cuts)]
        parts = [counted(kind, part) for part in parts]
        for part in parts:
            if rng.random() < 0.4:
                part.compute()  # sorts it
        while len(parts) > 1:  # as a tree of any form
            at, other = rng.permutation(len(parts))[:2]
            assert parts[at].merge(parts[other]) is parts[at]
            del parts[other]
        assert everything(parts[0]) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_merged_stays_as_it_is_and_both_go_on_apart(kind):
    first, second, third, fourth = (list(frames(kind))[start : start + 3] for start in (0, 3, 6, 9))
    for sort_first in (False, True):
        ours, theirs = KINDS[kind](), counted(kind, second)
        if sort_first:
            everything(theirs)
        ours.merge(theirs)  # into an empty one: the same arrays
        updated(ours, first)
        updated(theirs, third)
        assert everything(ours) == everything(counted(kind, first + second))
        updated(ours, fourth)
        assert everything(theirs) == everything(counted(kind, second + third))
        assert everything(ours) == everything(counted(kind, first + second + fourth))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_one_adds_nothing_and_itself_doubles(kind):
    pixels = list(frames(kind, 3))
    counts = counted(kind, pixels)
    assert everything(counts.merge(KINDS[kind]())) == everything(counted(kind, pixels))
    assert everything(KINDS[kind]().merge(counts)) == everything(counted(kind, pixels))
    assert everything(counts.merge(counts)) == everything(counted(kind, pixels + pixels))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_copy_says_the_same_and_goes_on_counting(kind):
    pixels = list(frames(kind))
    counts = pickle.loads(pickle.dumps(counted(kind, pixels[:5])))
    everything(counts)
    assert everything(pickle.loads(pickle.dumps(counts))) == everything(counts)
    assert everything(updated(counts, pixels[5:])) == everything(counted(kind, pixels))


def count_part(kind, part):
    return counted(kind, part)


@pytest.mark.processes
@pytest.mark.slow
def test_parts_counted_in_processes_equal_one_object():
    tasks = [(kind, list(frames(kind))[start::2]) for kind in KINDS for start in (0, 1)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.starmap(count_part, tasks)
    for kind, one, other in zip(KINDS, parts[::2], parts[1::2], strict=True):
        assert everything(one.merge(other)) == everything(counted(kind, frames(kind)))


def test_float32_and_float64_parts_merge():
    narrow, wide = list(frames("AnomalyMetrics", 4)), list(frames("AnomalyMetrics", 5, np.float64))
    expected = everything(counted("AnomalyMetrics", narrow + wide))
    for one, other in ((narrow, wide), (wide, narrow)):
        merged = counted("AnomalyMetrics", one).merge(counted("AnomalyMetrics", other))
        assert everything(merged) == expected


def test_merged_scores_are_not_copied():
    parts = [counted("AnomalyMetrics", frames("AnomalyMetrics", count)) for count in (3, 4)]
    arrays = {id(array) for part in parts for array in part._inliers.arrays + part._outliers.arrays}
    merged = AnomalyMetrics().merge(parts[0]).merge(parts[1])
    assert {id(array) for array in merged._inliers.arrays + merged._outliers.arrays} == arrays
    assert merged.nbytes == parts[0].nbytes + parts[1].nbytes


def test_many_small_parts_are_joined_at_the_next_update(monkeypatch):
    pixels = list(frames("AnomalyMetrics"))
    merged = AnomalyMetrics()
    for frame in pixels:
        merged.merge(counted("AnomalyMetrics", [frame]))
    monkeypatch.setattr(metrics.scores, "LARGE", 1000)
    assert merged._inliers.nbytes > 1000 and len(merged._inliers.arrays) == len(pixels)
    merged.update(*pixels[0])
    assert len(merged._inliers.arrays) == 1


@pytest.mark.parametrize(
    "ours, theirs, message",
    [
        (ConfusionMatrix(3), ConfusionMatrix(4), "num_classes is 3 here and 4 there"),
        (BoundedAnomalyMetrics(10), BoundedAnomalyMetrics(11), "bits is 10 here and 11 there"),
        (ComponentMetrics(0.5), ComponentMetrics(0.6), "threshold is 0.5 here and 0.6 there"),
        (ComponentMetrics(0.5, 500), ComponentMetrics(0.5, 50), "min_predicted is 500 here and 50 there"),
        (ComponentMetrics(0.5, 500, 100), ComponentMetrics(0.5, 500, 10), "min_true is 100 here and 10 there"),
        (AnomalyMetrics(), BoundedAnomalyMetrics(10), "AnomalyMetrics.*not BoundedAnomalyMetrics"),
        (BoundedAnomalyMetrics(10), AnomalyMetrics(), "BoundedAnomalyMetrics.*not AnomalyMetrics"),
        (ConfusionMatrix(3), ComponentMetrics(0.5), "ConfusionMatrix.*not ComponentMetrics"),
        (ComponentMetrics(0.5), None, "ComponentMetrics.*not NoneType"),
    ],
)
def test_other_settings_and_other_kinds_are_errors_that_leave_no_trace(ours, theirs, message):
    before = repr(ours.compute())
    with pytest.raises(ValueError, match=message):
        ours.merge(theirs)
    assert repr(ours.compute()) == before
