from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import (
    ADE20K,
    IGNORE,
    OUTLIER,
    MaskedPatches,
    StreetHazards,
)
from demo.world import draw_negatives, draw_street_hazards
from demo.world.negatives import NEGATIVES
from demo.world.unknowns import ANOMALIES

TRAINING, VALIDATION, TEST, COUNT = 4, 1, 2, 4
SIZE = {"width": 96, "height": 64}  # small, for speed


def draw(root, **counts):
    """Streets and negatives of seed 3 under root."""
    streets = {"training": TRAINING, "validation": VALIDATION, "test": TEST} | counts
    draw_street_hazards(root / "streets", **streets, seed=3, **SIZE)
    draw_negatives(root / "negatives", count=COUNT, seed=3, **SIZE)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    draw(root)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.*")}


def stored_values(folder: Path) -> list[set[int]]:
    """The values of each label file below the folder."""
    return [set(np.unique(np.asarray(Image.open(path))).tolist()) for path in sorted(folder.rglob("*.png"))]


@pytest.mark.slow
def test_the_same_seed_writes_the_same_bytes(world, tmp_path):
    draw(tmp_path)
    assert contents(tmp_path) == contents(world)


@pytest.mark.slow
def test_another_seed_draws_another_world(world, tmp_path):
    draw_street_hazards(tmp_path, training=1, validation=0, test=0, seed=4, **SIZE)
    draw_negatives(tmp_path, count=1, seed=4, **SIZE)
    before = set(contents(world).values())
    assert not before & set(contents(tmp_path).values())


def test_other_counts_leave_the_other_frames_alone(world, tmp_path):
    draw_street_hazards(tmp_path / "streets", training=2, validation=2, test=1, seed=3, **SIZE)
    draw_negatives(tmp_path / "negatives", count=1, seed=3, **SIZE)
    before, after = contents(world), contents(tmp_path)
    added = {path for path in after if path not in before}
    assert added == {f"streets/train/{kind}/validation/t3/0001.png" for kind in ("images", "annotations")}
    assert all(after[path] == before[path] for path in after.keys() - added)


def test_training_holds_all_known_values_and_no_unknown_thing(world):
    values = stored_values(world / "streets/train/annotations/training")
    assert len(values) == TRAINING and set.union(*values) == set(range(1, 14))
    assert all(frame <= set(range(1, 14)) for frame in stored_values(world / "streets/train/annotations/validation"))


def test_every_test_frame_holds_an_unknown_thing(world):
    values = stored_values(world / "streets/test/annotations")
    assert len(values) == TEST and all(14 in frame for frame in values)


def test_no_unknown_thing_is_a_negative():
    assert not set(ANOMALIES) & set(NEGATIVES)
    assert not {draw.__name__ for draw in ANOMALIES} & {draw.__name__ for draw in NEGATIVES}


@pytest.mark.parametrize(
    ("split", "count"), [("training", TRAINING), ("validation", VALIDATION), ("test", TEST), ("t5", 1), ("t6", 1)]
)
def test_streethazards_reads_the_streets(world, split, count):
    frames = StreetHazards(world / "streets", split)
    assert len(frames) == count
    for image, labels, _ in frames:
        assert image.shape == (3, 64, 96) and labels.shape == (64, 96)
        assert set(labels.unique().tolist()) <= {*range(12), OUTLIER, IGNORE}
        assert (labels == OUTLIER).any() == (split in ("test", "t5", "t6"))


def test_ade20k_reads_the_negatives(world):
    negatives = ADE20K(world / "negatives")
    assert len(negatives) == COUNT
    for image, ids, _ in negatives:
        assert image.shape == (3, 64, 96) and ids.shape == (64, 96)
        things = set(ids.unique().tolist()) - set(range(17))
        assert things and things <= set(range(20, 20 + len(NEGATIVES)))


# The drawn world is read by the same data sets


def test_the_drawn_world_is_read_as_the_real_one(street_hazards, ade20k):
    for split, outliers in (("training", False), ("validation", False), ("t5", True), ("t6", True)):
        for image, labels, _ in StreetHazards(street_hazards, split):
            assert image.shape[1:] == labels.shape
            assert (labels == OUTLIER).any() == outliers
    patch, mask, _ = MaskedPatches(ADE20K(ade20k), 48, 32)[1]
    assert patch.shape == (3, 32, 32)
    assert mask.shape == (32, 32)
