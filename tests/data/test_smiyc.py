"""AnomalyTrack and ObstacleTrack on made files in their layouts."""

import numpy as np
import pytest

from data import IGNORE, OUTLIER, AnomalyTrack, ObstacleTrack
from metrics.components import ComponentMetrics
from tests.support.layouts import boxes, noise, track, write

SIZE = HEIGHT, WIDTH = 12, 20
MAPS = [boxes(number, 1, 255, SIZE) for number in range(3)]


@pytest.mark.parametrize("dataset", [AnomalyTrack, ObstacleTrack])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("folder", ["smiyc", "images/labels_masks.png"])
def test_a_track_pairs_the_labelled_images_wherever_it_lies(tmp_path, dataset, ending, folder):
    samples = dataset(track(tmp_path / folder, MAPS, ending))
    assert [samples[index][2] for index in range(len(samples))] == [f"images/validation{n}.{ending}" for n in range(3)]
    for number in range(3):
        image, labels, _ = samples[number]
        assert np.array_equal(labels.numpy(), boxes(number, OUTLIER, IGNORE, SIZE))
        if ending != "jpg":
            assert np.array_equal(image.permute(1, 2, 0).numpy(), noise(*SIZE, number))


def test_images_of_several_formats_may_lie_together(tmp_path):
    root = track(tmp_path, MAPS, "jpg")
    (root / "images/validation1.jpg").unlink()
    write(root / "images/validation1.png", noise(*SIZE, 1))
    names = [name for _, _, name in (AnomalyTrack(root)[index] for index in range(3))]
    assert names == ["images/validation0.jpg", "images/validation1.png", "images/validation2.jpg"]


def test_a_label_map_without_its_one_image_is_an_error(tmp_path):
    root = track(tmp_path, MAPS, "webp")
    write(root / "images/validation1.jpg", noise(*SIZE, 1))
    with pytest.raises(FileNotFoundError, match=r"validation1_labels_semantic\.png has 2 images validation1\.jpg, "):
        ObstacleTrack(root)
    for ending in ("jpg", "webp"):
        (root / f"images/validation1.{ending}").unlink()
    with pytest.raises(FileNotFoundError, match=r"validation1_labels_semantic\.png has 0 images"):
        ObstacleTrack(root)


def test_a_missing_folder_and_a_part_without_labels_are_errors_that_name_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*images; .*dataset_AnomalyTrack, which holds images/"):
        AnomalyTrack(tmp_path)
    root = track(tmp_path, MAPS, "png")
    for path in root.glob("labels_masks/*_semantic.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no \*_labels_semantic\.png under .*dataset_ObstacleTrack"):
        ObstacleTrack(root)


def test_other_values_are_refused_in_a_track(tmp_path):
    root = track(tmp_path, MAPS, "png")
    write(root / "labels_masks/validation0_labels_semantic.png", boxes(0, 2, 255, SIZE))
    with pytest.raises(ValueError, match=r"validation0_labels_semantic\.png holds label value 2.* values are 0-1, 255"):
        AnomalyTrack(root)[0]


def test_a_track_says_which_components_the_benchmark_counts():
    anomalies = ComponentMetrics(0.5, **AnomalyTrack.component_sizes)
    assert (anomalies.min_predicted, anomalies.min_true) == (500, 100)
    obstacles = ComponentMetrics(0.5, **ObstacleTrack.component_sizes)
    assert (obstacles.min_predicted, obstacles.min_true) == (50, 10)
