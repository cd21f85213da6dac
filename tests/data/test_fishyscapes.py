"""Fishyscapes Lost & Found and Static on made files in their layouts."""

import numpy as np
import pytest

from data import IGNORE, OUTLIER, FishyscapesStatic, LostAndFound
from tests.support.layouts import boxes, lost_and_found, static, write

SIZE = HEIGHT, WIDTH = 40, 64


def maps(ignored=2, outlier=1):
    return [boxes(number, outlier, ignored, SIZE) for number in range(3)]


@pytest.mark.parametrize("ignored", [2, 255])
@pytest.mark.parametrize("folder", ["food", "t5", "ood/leftImg8bit/images"])
def test_lost_and_found_takes_both_ways_to_mark_ignored_pixels_wherever_it_lies(tmp_path, ignored, folder):
    samples = LostAndFound(lost_and_found(tmp_path / folder, maps(ignored)))
    assert len(samples) == 3
    for number, (_, labels, _) in enumerate(samples[index] for index in range(3)):
        stored = maps(255)[number]
        assert np.array_equal(labels.numpy(), np.where(stored == 1, OUTLIER, stored))


def test_images_that_fishyscapes_does_not_label_are_left_out_of_lost_and_found(tmp_path):
    root = lost_and_found(tmp_path, maps())
    assert len([*root.glob("leftImg8bit/val/01/*")]) == 4
    assert len(LostAndFound(root)) == 3
    (root / "leftImg8bit/val/01/00_000000_leftImg8bit.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"00_000000_ood_segmentation\.png has no image"):
        LostAndFound(root)


def test_maps_of_roadanomaly_are_refused_in_lost_and_found_mode(tmp_path):
    with pytest.raises(ValueError, match="in RoadAnomaly's maps 2 is the outlier"):
        LostAndFound(lost_and_found(tmp_path, maps(ignored=0, outlier=2)))


def test_static_pairs_photographs_with_their_maps(tmp_path):
    samples = FishyscapesStatic(static(tmp_path, maps(255)))
    assert [name for _, _, name in (samples[index] for index in range(3))] == [
        f"000{n}_street_rgb.jpg" for n in range(3)
    ]
    assert samples[0][1].unique().tolist() == [0, OUTLIER, IGNORE]
    write(tmp_path / "0000_street_labels.png", np.full((HEIGHT, WIDTH), 2, np.uint8))
    with pytest.raises(ValueError, match=r"0000_street_labels.png holds label value 2.* values are 0-1, 255"):
        samples[0]
