"""Real data, where they are."""

import os
from pathlib import Path

import pytest
import torch

from data import (
    ADE20K,
    MaskedPatches,
    StreetHazards,
    WithNegatives,
    paste,
    train_transform,
)
from labels import IGNORE, OUTLIER

# Real data, where they are


@pytest.fixture
def real_data():
    """The folder that holds street_hazards/ and ade20k/"""
    if not os.environ.get("DENSEHYBRID_DATA"):
        pytest.skip("the environment variable DENSEHYBRID_DATA names no folder of real data")
    return Path(os.environ["DENSEHYBRID_DATA"])


@pytest.mark.slow
def test_real_streets_hold_known_classes_and_anomalies_only_in_test(real_data):
    counts = {}
    for split in ("training", "validation", "t5", "t6"):
        frames = StreetHazards(real_data / "street_hazards", split)
        counts[split] = len(frames)
        for image, labels, name in frames:
            values = set(labels.unique().tolist())
            assert values - {OUTLIER, IGNORE} <= set(range(12)), name
            assert values - {OUTLIER, IGNORE}, name
            assert (OUTLIER in values) == (split in ("t5", "t6")), name
            assert image.shape[1:] == labels.shape
    assert counts["training"] == 367
    assert counts["validation"] == 26
    assert (counts["t5"], counts["t6"]) in ((37, 38), (38, 37))
    assert len(StreetHazards(real_data / "street_hazards", "test")) == 75


@pytest.mark.slow
def test_real_negatives_are_pasted_into_real_streets(real_data):
    torch.manual_seed(0)
    photographs = ADE20K(real_data / "ade20k")
    assert len(photographs) == 100
    transform = train_transform(160, (0.5, 2.0), StreetHazards.mean_colour)
    streets = StreetHazards(real_data / "street_hazards", "training", transform)
    samples = WithNegatives(streets, MaskedPatches(photographs, 96, 96))
    outliers = 0
    for index in range(0, len(streets), 20):
        image, labels, patch, mask, corner, name = samples[index]
        assert " with images/training/" in name
        pasted, pasted_labels = paste(image[None], labels[None], patch[None], mask[None], corner[None])
        assert (pasted_labels == OUTLIER).sum() == mask.sum()
        changed = (pasted[0] != image).any(0)
        assert (pasted_labels[0][changed] == OUTLIER).all()
        outliers += int(mask.sum())
    assert outliers > 0
