"""StreetHazards: labels, splits and folders."""

import numpy as np
import pytest
import torch
from PIL import Image

from data import (
    StreetHazards,
    train_transform,
)
from labels import IGNORE, OUTLIER
from tests.support.layouts import noise, street_frame, write
from tests.support.samples import MEAN, error_of_sample, ramp

# StreetHazards: folders and labels


STORED = {1: 0, 2: 1, 3: 2, 4: IGNORE, 5: 3, 6: 4, 7: 5, 8: 6, 9: 7, 10: 8, 11: 9, 12: 10, 13: 11, 14: OUTLIER}


def test_stored_values_become_the_known_classes_outlier_and_ignore(tmp_path):
    stored = np.array([list(STORED)], np.uint8)
    street_frame(tmp_path, image=noise(1, 14), stored=stored)
    image, labels, name = StreetHazards(tmp_path, "training")[0]
    assert labels.tolist() == [list(STORED.values())]
    assert labels.dtype == image.dtype == torch.uint8
    assert name == "train/images/training/t1/000.png"
    assert StreetHazards.num_classes == len(set(STORED.values()) - {OUTLIER, IGNORE}) == 12
    assert list(StreetHazards.class_colours) == [
        "background",
        "building",
        "fence",
        "person",
        "pole",
        "street lines",
        "road",
        "sidewalk",
        "vegetation",
        "car",
        "wall",
        "traffic sign",
    ]


@pytest.mark.parametrize("value", [0, 15, 254, 255])
def test_a_value_that_street_hazards_does_not_have_is_refused(value, tmp_path):
    stored = np.full((4, 6), 2, np.uint8)
    stored[3, 5] = value
    _, label_path = street_frame(tmp_path, stored=stored)
    told = error_of_sample(ValueError, StreetHazards(tmp_path, "training"))
    assert f"{label_path} holds label value {value}; this data set's values are 1-14" in told


def test_a_pixel_is_rgb_and_at_its_place(tmp_path):
    image = noise(4, 6)
    street_frame(tmp_path, image=image)
    taken, _, _ = StreetHazards(tmp_path, "training")[0]
    assert taken.shape == (3, 4, 6)
    assert all(taken[:, row, column].tolist() == image[row, column].tolist() for row in range(4) for column in range(6))


def test_an_alpha_channel_is_dropped_and_not_blended(tmp_path):
    image = np.dstack([noise(4, 6), np.arange(24, dtype=np.uint8).reshape(4, 6)])  # 0 is fully transparent
    street_frame(tmp_path, image=image)
    assert StreetHazards(tmp_path, "training")[0][0].permute(1, 2, 0).tolist() == image[..., :3].tolist()


def test_a_label_map_of_sixteen_bits_is_read_by_value(tmp_path):
    stored = np.full((4, 6), 14, np.uint16)
    _, label_path = street_frame(tmp_path, stored=stored)
    assert Image.open(label_path).mode == "I;16"
    assert StreetHazards(tmp_path, "training")[0][1].unique().tolist() == [OUTLIER]
    stored[0, 0] = 256 + 14
    write(label_path, stored)
    assert "holds label value 270" in error_of_sample(ValueError, StreetHazards(tmp_path, "training"))


def test_a_coloured_label_map_is_read_by_index(tmp_path):
    _, label_path = street_frame(tmp_path)
    palette = Image.fromarray(np.full((4, 6), 13, np.uint8))
    palette.putpalette([1, 2, 3] * 256)
    palette.save(label_path)
    assert Image.open(label_path).mode == "P"
    assert StreetHazards(tmp_path, "training")[0][1].unique().tolist() == [11]


@pytest.fixture
def towns(tmp_path):
    for split, name in (("training", "t1/b"), ("training", "t2/a"), ("training", "t1/a"), ("validation", "t3/9"),
                        ("test", "t6/1"), ("test", "t5/2"), ("test", "t5/1")):  # fmt: skip
        street_frame(tmp_path, split, f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("split, names", [
    ("training", ["t1/a", "t1/b", "t2/a"]), ("validation", ["t3/9"]), ("test", ["t5/1", "t5/2", "t6/1"]),
    ("t5", ["t5/1", "t5/2"]), ("t6", ["t6/1"]),
])  # fmt: skip
def test_a_split_holds_its_own_towns_in_sorted_order(split, names, towns):
    frames = StreetHazards(towns, split)
    assert len(frames) == len(names)
    where = f"train/images/{split}" if split in ("training", "validation") else "test/images/test"
    assert [name for _, _, name in frames] == [f"{where}/{name}.png" for name in names]


def test_a_split_that_is_none_is_refused(towns):
    with pytest.raises(ValueError, match="no split 'train'; choose one of training, validation, test, t5, t6"):
        StreetHazards(towns, "train")


@pytest.mark.parametrize("folder", ["images", "images/annotations", "t5/ood", "a t5.png", "train/images/t6/test"])
def test_the_folders_above_may_have_any_name(folder, tmp_path):
    root = tmp_path / folder
    for town, value in (("t5", 1), ("t6", 14)):
        street_frame(root, "test", f"{town}/images_t6.png", stored=np.full((4, 6), value, np.uint8))
    for town, label in (("t5", 0), ("t6", OUTLIER)):
        ((_, labels, name),) = StreetHazards(root, town)
        assert name == f"test/images/test/{town}/images_t6.png"
        assert labels.unique().tolist() == [label]


def test_a_missing_folder_is_named_with_the_flag(tmp_path):
    for split, folder in (("training", "train/images/training"), ("t5", "test/images/test/t5")):
        with pytest.raises(FileNotFoundError) as error:
            StreetHazards(tmp_path, split)
        assert f"no folder {tmp_path / folder}; --dataroot is StreetHazards' folder" in str(error.value)
    (tmp_path / "train/images/training").mkdir(parents=True)
    with pytest.raises(FileNotFoundError) as error:
        StreetHazards(str(tmp_path), "training")
    assert f"no folder {tmp_path / 'train/annotations/training'}; --dataroot" in str(error.value)


def test_a_data_set_without_images_is_refused(tmp_path):
    image_path, label_path = street_frame(tmp_path)
    image_path.unlink()
    label_path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        StreetHazards(tmp_path, "training")
    assert f"no *.png under {tmp_path / 'train/images/training'}; --dataroot" in str(error.value)


def test_an_image_without_label_map_is_named(towns):
    lost = towns / "train/annotations/training/t1/b.png"
    lost.unlink()
    with pytest.raises(FileNotFoundError) as error:
        StreetHazards(towns, "training")
    image = towns / "train/images/training/t1/b.png"
    assert f"{image} has no label map: {lost} is missing; add it or take the image out" in str(error.value)


def test_a_label_map_without_image_is_named(towns):
    (towns / "train/images/training/t1/b.png").unlink()
    with pytest.raises(FileNotFoundError) as error:
        StreetHazards(towns, "training")
    told = str(error.value)
    assert told.startswith(f"{towns / 'train/annotations/training/t1/b.png'} has no image under")
    assert "add it or take the map out" in told


def test_image_and_label_map_of_two_sizes_are_named(tmp_path):
    image_path, label_path = street_frame(tmp_path, stored=np.full((6, 4), 2, np.uint8))
    told = error_of_sample(ValueError, StreetHazards(tmp_path, "training"))
    assert f"{image_path} is 6x4 but its label map {label_path} is 4x6" in told


def test_a_transform_is_applied_to_image_and_labels(tmp_path):
    image, labels = ramp(40, 60)
    street_frame(tmp_path, image=image.permute(1, 2, 0).numpy(), stored=(labels % 13 + 1).numpy())
    crop, crop_labels, _ = StreetHazards(tmp_path, "training", train_transform(24, (1.0, 1.0), MEAN))[0]
    assert crop_labels.tolist() == [[STORED[value % 13 + 1] for value in row] for row in crop[0].tolist()]
