"""RoadAnomaly on made files in its layout."""

import numpy as np
import pytest

from data import OUTLIER, RoadAnomaly
from tests.support.layouts import boxes, noise, road_anomaly, write

SIZE = HEIGHT, WIDTH = 12, 20
ROAD_MAPS = [boxes(number, 2, size=SIZE) for number in range(3)]


@pytest.mark.parametrize("folder", ["road", "frames/a.labels"])
def test_road_anomaly_pairs_each_frame_with_the_map_in_its_folder(tmp_path, folder):
    samples = RoadAnomaly(road_anomaly(tmp_path / folder, ROAD_MAPS))
    assert [samples[index][2] for index in range(len(samples))] == [f"frames/zebra{n}_road.jpg" for n in range(3)]
    for number in range(3):
        image, labels, _ = samples[number]
        assert np.array_equal(labels.numpy(), boxes(number, OUTLIER, size=SIZE))
        assert image.shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("value", [1, 3, 255])
def test_other_values_are_refused_in_road_anomaly(tmp_path, value):
    root = road_anomaly(tmp_path, ROAD_MAPS)
    write(root / "frames/zebra0_road.labels/labels_semantic.png", boxes(0, 2, value, SIZE))
    with pytest.raises(ValueError, match=rf"holds label value {value}; this data set's values are 0, 2"):
        RoadAnomaly(root)[0]


def test_frames_and_maps_of_road_anomaly_that_are_alone_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*frames; --dataroot is RoadAnomaly"):
        RoadAnomaly(tmp_path)
    root = road_anomaly(tmp_path, ROAD_MAPS)
    write(root / "frames/alone.jpg", noise(*SIZE, 5))
    with pytest.raises(FileNotFoundError, match=r"alone\.jpg has no label map"):
        RoadAnomaly(root)
    (root / "frames/alone.jpg").unlink()
    (root / "frames/zebra1_road.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"zebra1_road\.labels/labels_semantic\.png has no image"):
        RoadAnomaly(root)
