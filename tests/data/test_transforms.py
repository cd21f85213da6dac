"""Crops. In a ramp the image's red and the label are the column, and green is the row."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data import (
    MaskedPatches,
    StreetHazards,
    WithNegatives,
    filled_transform,
    train_transform,
)
from data.transforms import scaled_crop
from labels import IGNORE, OUTLIER
from tests.support.layouts import street_frame
from tests.support.samples import MEAN, Pictures, ramp, smooth_noise

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


def test_labels_are_taken_from_the_middle_of_what_a_pixel_covers():
    columns = torch.arange(8, dtype=torch.uint8).expand(8, 8)
    _, labels, _ = scaled_crop(torch.zeros(3, 8, 8, dtype=torch.uint8), columns, 0.5, 4, (0, 0, 0))
    assert labels[0].tolist() == [1, 3, 5, 7]  # the pixel that holds the centre (2 i + 1), not the first


# Crops that are filled. Pixels over 100 are the photograph's, those at 0 would be padding.


@pytest.mark.parametrize("scale", [(0.05, 0.1), (0.5, 2.0), (1.0, 1.0), (3.0, 4.0)])
def test_a_filled_crop_shows_no_padding_whatever_the_size_and_the_factor(scale):
    generator = torch.Generator().manual_seed(0)
    transform = filled_transform(24, scale)
    for _ in range(60):
        height, width = torch.randint(1, 120, (2,), generator=generator).tolist()
        image = torch.randint(100, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        crop, labels = transform(image, torch.zeros(height, width, dtype=torch.uint8))
        assert crop.shape == (3, 24, 24) and labels.shape == (24, 24)
        assert crop.min() >= 100 and not labels.any()


def test_a_filled_crop_of_its_own_size_is_the_photograph_or_its_mirror_image():
    image = torch.randint(0, 256, (3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = image[0] // 64
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        crop, cropped_labels = filled_transform(24, (0.5, 1.0))(image, labels)
        mirrored = crop.equal(image.flip(-1))
        assert mirrored or crop.equal(image)
        assert cropped_labels.equal(labels.flip(-1) if mirrored else labels)
        seen.add(mirrored)
    assert seen == {True, False}


def test_a_filled_crop_keeps_the_drawn_factor_where_the_photograph_is_large_enough():
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 200, 200)  # a column's number is its colour
    spans = []
    for _ in range(50):
        crop, _ = filled_transform(20, (0.5, 1.0))(ramp, ramp[0])
        spans.append(int(crop.max()) - int(crop.min()) + 1)
    assert min(spans) <= 22 and max(spans) >= 36  # 20 columns of the source at factor 1, 40 at one half
    assert min(spans) >= 18 and max(spans) <= 41
