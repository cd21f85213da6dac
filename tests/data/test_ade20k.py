"""ADE20K: labels, photographs and folders."""

import numpy as np
import pytest

from data import (
    ADE20K,
)
from tests.support.layouts import ade20k_photograph, noise
from tests.support.samples import error_of_sample

# ADE20K


def test_every_ade20k_id_is_its_own_label(tmp_path):
    ids = np.arange(151, dtype=np.uint8)[None]
    ade20k_photograph(tmp_path, "ADE_train_1", noise(1, 151), ids)
    image, labels, name = ADE20K(tmp_path)[0]
    assert labels.tolist() == ids.tolist()
    assert image.shape == (3, 1, 151)
    assert name == "images/training/ADE_train_1.jpg"


def test_ade20k_id_151_is_refused(tmp_path):
    _, label_path = ade20k_photograph(tmp_path, stored=np.full((40, 40), 151, np.uint8))
    told = error_of_sample(ValueError, ADE20K(tmp_path))
    assert f"{label_path} holds label value 151; this data set's values are 0-150" in told


def test_a_grey_photograph_is_taken_with_three_equal_channels(tmp_path):
    ade20k_photograph(tmp_path, mode="L")
    image, _, _ = ADE20K(tmp_path)[0]
    assert image.shape == (3, 40, 40)
    assert image[0].equal(image[1])
    assert image[0].equal(image[2])
    assert image.unique().numel() > 100


def test_a_missing_ade20k_folder_is_named_with_the_flag(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        ADE20K(tmp_path)
    folder = tmp_path / "images" / "training"
    assert f"no folder {folder}; --neg_dataroot is the folder ADEChallengeData2016" in str(error.value)
