import os
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms

from data import (
    ADE20K,
    MaskedPatches,
    StreetHazards,
    WithNegatives,
    paste,
    train_transform,
)
from data.files import label_table, open_image, plain_png, read_image, read_labels
from data.transforms import scaled_crop
from labels import IGNORE, OUTLIER
from tests.support.layouts import ade20k_photograph, noise, street_frame, write
from tests.support.samples import MEAN, Pictures, ramp, smooth_noise


def told_by(error, dataset, index=0):
    """What the data set says of a sample that cannot be had"""
    with pytest.raises(error) as raised:
        dataset[index]
    return str(raised.value)


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
    told = told_by(ValueError, StreetHazards(tmp_path, "training"))
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
    assert "holds label value 270" in told_by(ValueError, StreetHazards(tmp_path, "training"))


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
    told = told_by(ValueError, StreetHazards(tmp_path, "training"))
    assert f"{image_path} is 6x4 but its label map {label_path} is 4x6" in told


@pytest.mark.parametrize("which", [0, 1], ids=["image", "label map"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.8])
def test_a_truncated_file_is_named_wherever_it_is_cut(which, share, tmp_path):
    stored = np.random.default_rng(0).integers(1, 15, (40, 60), dtype=np.uint8)
    path = street_frame(tmp_path, image=noise(40, 60), stored=stored)[which]
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    told = told_by(ValueError, StreetHazards(tmp_path, "training"))
    assert f"{path} cannot be read as an image" in told
    assert "fetch or write it again" in told


def test_a_file_that_went_away_is_named(tmp_path):
    image_path, _ = street_frame(tmp_path)
    frames = StreetHazards(tmp_path, "training")
    image_path.unlink()
    assert f"{image_path} is gone" in told_by(FileNotFoundError, frames)


@pytest.mark.parametrize("mode, words", [("L", "a greyscale image"), ("LA", "a greyscale image"),
                                         ("P", "a palette image"), ("1", "a black-and-white image")])  # fmt: skip
def test_an_image_that_may_be_a_label_map_is_refused(mode, words, tmp_path):
    image_path, _ = street_frame(tmp_path)
    write(image_path, noise(4, 6), mode)
    told = told_by(ValueError, StreetHazards(tmp_path, "training"))
    assert f"{image_path} is stored as {words} (mode {mode}); expected RGB or RGBA" in told
    assert "convert it, or check that no label map lies among the images" in told


def test_an_rgb_label_map_is_refused(tmp_path):
    _, label_path = street_frame(tmp_path, stored=noise(4, 6))
    told = told_by(ValueError, StreetHazards(tmp_path, "training"))
    assert f"{label_path} is stored as an image (mode RGB); a label map has one value per pixel" in told


def interlaced_png(pixels):
    """The bytes of an interlaced PNG file of (8, 8, 3): Pillow reads such files and writes none"""
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    rows = [b"\0" + row.tobytes() for y, dy, x, dx in passes for row in pixels[y::dy, x::dx]]
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 1)),
        (b"IDAT", zlib.compress(b"".join(rows))),
        (b"IEND", b""),
    )
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_whoever_decodes_a_png_file_it_gives_pillows_pixels(tmp_path, capfd):
    pixels, path = noise(8, 8), tmp_path / "a.png"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for options, quick in (
        ({}, True),
        ({"dpi": (72, 72)}, True),
        ({"transparency": tuple(pixels[0, 0].tolist())}, True),
        ({"icc_profile": profile}, True),
    ):
        Image.fromarray(pixels).save(path, **options)
        assert (plain_png(path) is not None) == quick
        assert read_image(path).permute(1, 2, 0).tolist() == pixels.tolist()
    path.write_bytes(interlaced_png(pixels))
    assert plain_png(path) is None
    assert read_image(path).permute(1, 2, 0).tolist() == pixels.tolist() == np.array(Image.open(path)).tolist()
    Image.fromarray(pixels).save(path, "JPEG")
    assert plain_png(path) is None
    assert read_image(path).permute(1, 2, 0).tolist() == np.array(Image.open(path)).tolist()
    assert capfd.readouterr() == ("", "")


def test_a_png_file_with_a_wrong_byte_anywhere_reads_as_pillow_reads_it(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(noise(8, 8)).save(path)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            with open_image(path) as image:
                expected = np.array(image.convert("RGB")).tolist() if image.mode == "RGB" else "another mode"
        except ValueError as error:
            expected = str(error)
        try:
            found = read_image(path).permute(1, 2, 0).tolist()
        except ValueError as error:
            found = "another mode" if "is stored as" in str(error) else str(error)
        assert found == expected, place


def test_every_byte_may_be_a_known_label(tmp_path):
    path = write(tmp_path / "a.png", np.arange(256, dtype=np.uint8)[None])
    backwards = label_table({value: 255 - value for value in range(256)})
    assert read_labels(path, backwards).tolist() == [[*range(255, -1, -1)]]
    without_seven = label_table({value: 255 - value for value in range(256) if value != 7})
    with pytest.raises(ValueError, match=r"holds label value 7; this data set's values are 0-6, 8-255"):
        read_labels(path, without_seven)


def test_of_several_strange_values_the_least_is_told(tmp_path):
    path = write(tmp_path / "a.png", np.array([[300, 9, 2, 1, 70]], np.uint16))
    with pytest.raises(ValueError, match="holds label value 9; this data set's values are 1-2"):
        read_labels(path, label_table({1: 0, 2: 1}))
    path = write(tmp_path / "b.png", np.array([[1, 258]], np.uint16))
    with pytest.raises(ValueError, match="holds label value 258"):
        read_labels(path, label_table({1: 0, 2: 1}))


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
    told = told_by(ValueError, ADE20K(tmp_path))
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


# The drawn world is read by the same data sets


def test_the_drawn_world_is_read_as_the_real_one(street_hazards, ade20k):
    for split, outliers in (("training", False), ("validation", False), ("t5", True), ("t6", True)):
        for image, labels, _ in StreetHazards(street_hazards, split):
            assert image.shape[1:] == labels.shape
            assert (labels == OUTLIER).any() == outliers
    patch, mask, _ = MaskedPatches(ADE20K(ade20k), 48, 32)[1]
    assert patch.shape == (3, 32, 32)
    assert mask.shape == (32, 32)


# Crops. In a ramp the image's red and the label are the column, and green is the row.


def nearest_place(whole, part, margin):
    """The smallest mean absolute difference of the part's interior from any place of the whole"""
    size = part.shape[-1] - 2 * margin
    part = part[..., margin : margin + size, margin : margin + size].float()
    places = whole.float().unfold(1, size, 1).unfold(2, size, 1)  # (C, rows, columns, size, size)
    return min((row - part[:, None]).abs().mean((0, 2, 3)).min().item() for row in places.unbind(1))


def test_a_crop_at_factor_one_is_cut_out_exactly():
    torch.manual_seed(0)
    image, labels = smooth_noise(50, 70)
    for _ in range(20):
        crop, crop_labels, _ = scaled_crop(image, labels, 1.0, 32, MEAN)
        both = torch.cat([image, labels[None]]), torch.cat([crop, crop_labels[None]])
        assert nearest_place(*both, margin=0) == 0


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.3, 2.0])
def test_a_scaled_crop_is_a_part_of_the_resized_image(factor):
    torch.manual_seed(0)
    image, labels = smooth_noise(96, 120)
    size = (round(96 * factor), round(120 * factor))
    whole = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)[0]
    for _ in range(4):
        crop, crop_labels, _ = scaled_crop(image, labels, factor, 32, MEAN)
        assert crop.shape == (3, 32, 32)
        assert crop_labels.shape == (32, 32)
        assert nearest_place(whole, crop, margin=4) < 3 / factor  # of 255: the place is rounded to source pixels
    strange, _ = smooth_noise(96, 120, seed=1)
    other = scaled_crop(image, labels, 1.4 * factor, 32, MEAN)[0], scaled_crop(strange, labels, factor, 32, MEAN)[0]
    assert all(nearest_place(whole, crop, margin=4) > 6 / factor for crop in other)  # another factor, another image


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 2.0)])
def test_image_and_labels_stay_aligned(scale):
    torch.manual_seed(0)
    image, labels = ramp(120, 200)
    transform = train_transform(48, scale, MEAN)
    for _ in range(50):
        crop, crop_labels = transform(image, labels)
        difference = (crop[0].int() - crop_labels.int()).abs()
        assert difference.max() <= (0 if scale == (1.0, 1.0) else 2)  # source pixels: nearest against bilinear
        assert (crop[2] == 77).all()


def test_labels_are_never_mixed():
    torch.manual_seed(0)
    image, _ = ramp(60, 80)
    labels = torch.tensor([0, 11, IGNORE, OUTLIER], dtype=torch.uint8)[torch.randint(4, (60, 80))]
    transform = train_transform(32, (0.55, 2.0), MEAN)
    assert all(set(transform(image, labels)[1].unique().tolist()) == {0, 11, IGNORE, OUTLIER} for _ in range(20))


@pytest.mark.parametrize(
    "height, width, factor", [(20, 60, 1.0), (60, 20, 1.0), (20, 30, 1.0), (40, 40, 0.5), (1, 1, 1.0)]
)
def test_what_lies_beyond_the_image_is_exactly_mean_colour_and_ignore(height, width, factor):
    torch.manual_seed(0)
    image, labels = torch.full((3, height, width), 200, dtype=torch.uint8), torch.full((height, width), 7).byte()
    for _ in range(10):
        crop, crop_labels, _ = scaled_crop(image, labels, factor, 32, MEAN)
        beyond = crop_labels == IGNORE
        assert (crop_labels[~beyond] == 7).all()
        assert (crop[:, ~beyond] == 200).all()
        assert (crop[:, beyond] == torch.tensor(MEAN)[:, None]).all()
        shown = [min(32, round(side * factor)) for side in (height, width)]
        assert [(~beyond).any(axis).sum().item() for axis in (1, 0)] == shown
        assert (~beyond).sum() == shown[0] * shown[1]


def test_a_small_image_is_whole_and_unchanged_anywhere_in_its_crop():
    torch.manual_seed(0)
    image, labels = ramp(6, 7)
    corners = Counter()
    for _ in range(800):
        crop, crop_labels, _ = scaled_crop(image, labels, 1.0, 10, MEAN)
        row, column = (crop_labels != IGNORE).nonzero()[0].tolist()
        assert crop[:, row : row + 6, column : column + 7].equal(image)
        assert crop_labels[row : row + 6, column : column + 7].equal(labels)
        corners[row, column] += 1
    assert len(corners) == 5 * 4
    assert all(abs(count - 40) < 5 * 40**0.5 for count in corners.values())


def test_crops_fall_uniformly_on_the_image_up_to_its_corners():
    torch.manual_seed(0)
    image, labels = ramp(12, 15)
    corners = Counter()
    for _ in range(3500):
        crop, _, _ = scaled_crop(image, labels, 1.0, 8, MEAN)
        corners[int(crop[1, 0, 0]), int(crop[0, 0, 0])] += 1
    assert corners.keys() == {(row, column) for row in range(5) for column in range(8)}
    expected = 3500 / 40
    assert sum((count - expected) ** 2 / expected for count in corners.values()) < 72.1  # chi-square, 39 dof, p = 0.001


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_scaled_crops_reach_all_borders(factor):
    torch.manual_seed(0)
    image, labels = ramp(24, 30)
    crops = torch.stack([scaled_crop(image, labels, factor, 10, MEAN)[0] for _ in range(400)])
    reached = [(int(crops[:, channel].min()), int(crops[:, channel].max())) for channel in (1, 0)]
    # at 0.5 a pixel at the border is the mean of the last two
    assert reached == ([(0, 23), (0, 29)] if factor == 2 else [(1, 22), (1, 28)])


def test_every_other_crop_is_flipped_image_and_labels_alike():
    torch.manual_seed(0)
    image, labels = ramp(16, 16)
    flips = 0
    for _ in range(600):
        crop, crop_labels = train_transform(16, (1.0, 1.0), MEAN)(image, labels)
        flipped = bool(crop[0, 0, 0] == 15)
        assert crop.equal(image.flip(-1) if flipped else image)
        assert crop_labels.equal(labels.flip(-1) if flipped else labels)
        flips += flipped
    assert abs(flips - 300) < 50  # four deviations


def test_the_scale_is_drawn_uniformly_from_its_range():
    torch.manual_seed(0)
    image, labels = ramp(80, 200)
    factors = []
    for _ in range(400):
        _, crop_labels = train_transform(240, (0.5, 2.0), MEAN)(image, labels)
        factors.append(int((crop_labels != IGNORE).any(1).sum()) / 80)
    assert min(factors) == pytest.approx(0.5, abs=0.03)
    assert max(factors) == pytest.approx(2.0, abs=0.03)
    assert np.median(factors) == pytest.approx(1.25, abs=0.12)


def test_draws_are_a_function_of_torchs_seed():
    image, labels = smooth_noise(60, 80)
    negatives = MaskedPatches(Pictures((image, labels)), 40, 32)
    samples = WithNegatives(Pictures((image, labels)), negatives)

    def draw(seed):
        torch.manual_seed(seed)
        return [*train_transform(32, (0.5, 2.0), MEAN)(image, labels), *samples[0][2:5]]

    assert all(a.equal(b) for a, b in zip(draw(1), draw(1), strict=True))
    assert len({draw(seed)[0].numpy().tobytes() for seed in range(10)}) == 10
    assert len({draw(seed)[2].numpy().tobytes() for seed in range(10)}) == 10


def test_a_transform_is_applied_to_image_and_labels(tmp_path):
    image, labels = ramp(40, 60)
    street_frame(tmp_path, image=image.permute(1, 2, 0).numpy(), stored=(labels % 13 + 1).numpy())
    crop, crop_labels, _ = StreetHazards(tmp_path, "training", train_transform(24, (1.0, 1.0), MEAN))[0]
    assert crop_labels.tolist() == [[STORED[value % 13 + 1] for value in row] for row in crop[0].tolist()]


@pytest.mark.parametrize("scale", [(0.5, 2.0), (0.05, 0.5), (1.0, 1.0)])
def test_the_content_of_a_crop_is_where_its_image_is_past_the_flip(scale):
    torch.manual_seed(0)
    transform, plain = (train_transform(32, scale, MEAN, with_content) for with_content in (True, False))
    lefts = set()
    for _ in range(300):
        height, width = torch.randint(8, 80, (2,)).tolist()
        image, labels = torch.full((3, height, width), 200, dtype=torch.uint8), torch.full((height, width), 7).byte()
        state = torch.get_rng_state()
        crop, crop_labels, content = transform(image, labels)
        assert content.dtype == torch.int64
        rows, columns = ((crop_labels != IGNORE).any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        assert content.tolist() == [rows[0], columns[0], len(rows), len(columns)]
        lefts.add(int(content[1]))
        torch.set_rng_state(state)
        assert all(a.equal(b) for a, b in zip(plain(image, labels), (crop, crop_labels), strict=True))
    assert len(lefts) > 10


def test_what_a_transform_returns_besides_stands_before_the_name(tmp_path):
    street_frame(tmp_path)
    transform = train_transform(8, (1.0, 1.0), MEAN, with_content=True)
    image, labels, content, name = StreetHazards(tmp_path, "training", transform)[0]
    assert image.shape == (3, 8, 8) and labels.shape == (8, 8)
    assert content[2:].tolist() == [4, 6]
    assert name == "train/images/training/t1/000.png"


# Real data, where they are


@pytest.fixture
def real_data():
    """The folder that holds street_hazards/ and ade20k/"""
    if not os.environ.get("DENSEHYBRID_DATA"):
        pytest.skip("the environment variable DENSEHYBRID_DATA names no folder of real data")
    return Path(os.environ["DENSEHYBRID_DATA"])


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


def test_labels_are_taken_from_the_middle_of_what_a_pixel_covers():
    columns = torch.arange(8, dtype=torch.uint8).expand(8, 8)
    _, labels, _ = scaled_crop(torch.zeros(3, 8, 8, dtype=torch.uint8), columns, 0.5, 4, (0, 0, 0))
    assert labels[0].tolist() == [1, 3, 5, 7]  # the pixel that holds the centre (2 i + 1), not the first
