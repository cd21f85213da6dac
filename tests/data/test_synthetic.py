"""Drawn negatives: their sizes, where they are pasted, and what they cover."""

import collections

import pytest
import torch

from data import cut_out, draw_patch_size, paste_at_random, whole_patches
from labels import OUTLIER


def a_batch(count, height=9, width=11, patch=(3, 4), dtype=torch.float64):
    """Two images, their labels, and `count` patches for each"""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, height, width, generator=generator, dtype=dtype)
    labels = torch.randint(12, (2, height, width), generator=generator)
    return images, labels, torch.rand(2 * count, 3, *patch, generator=generator, dtype=dtype)


# Sizes of patches


@pytest.mark.parametrize(
    ("sides", "allowed"),
    [((16, 48, 8), [16, 24, 32, 40, 48]), ((16, 16, 8), [16]), ((16, 64, 24), [16, 40, 64]), ((8, 16, 8), [8, 16])],
)
def test_every_allowed_side_is_drawn_equally_often_for_height_and_width_alike(sides, allowed):
    torch.manual_seed(0)
    sizes = collections.Counter(draw_patch_size(sides) for _ in range(200 * len(allowed) ** 2))
    assert sizes.keys() == {(height, width) for height in allowed for width in allowed}
    assert all(120 < count < 290 for count in sizes.values()) or len(allowed) == 1


# Pasting at random


@pytest.mark.parametrize("count", [1, 3])
def test_patches_are_pasted_one_after_the_other_at_their_corners(count):
    images, labels, patches = a_batch(count)
    torch.manual_seed(1)
    pasted, pasted_labels, corners = paste_at_random(images, labels, patches)
    assert corners.shape == (2 * count, 2)
    expected, expected_labels = images.clone(), labels.clone()
    for number, (row, column) in enumerate(corners.tolist()):  # those of the first image come first
        image = number // count
        expected[image, :, row : row + 3, column : column + 4] = patches[number]
        expected_labels[image, row : row + 3, column : column + 4] = OUTLIER
    assert pasted.equal(expected) and pasted_labels.equal(expected_labels)


def test_nothing_that_is_given_to_pasting_is_changed():
    parts = a_batch(2)
    before = [part.clone() for part in parts]
    paste_at_random(*parts)
    assert all(map(torch.equal, parts, before))


def test_every_place_where_a_patch_fits_is_drawn():
    images, labels, patches = a_batch(1, height=5, width=6)
    torch.manual_seed(0)
    drawn = collections.Counter(
        tuple(corner) for _ in range(300) for corner in paste_at_random(images, labels, patches)[2].tolist()
    )
    assert drawn.keys() == {(row, column) for row in range(3) for column in range(3)}
    assert all(35 < count < 105 for count in drawn.values())  # 600 draws of nine places


def test_a_patch_of_the_images_size_covers_it():
    images, labels, patches = a_batch(1, height=3, width=4)
    pasted, pasted_labels, corners = paste_at_random(images, labels, patches)
    assert pasted.equal(patches) and (pasted_labels == OUTLIER).all() and not corners.any()


def test_gradients_reach_patches_where_they_show_and_images_where_they_do_not():
    images, labels, patches = a_batch(2)
    images.requires_grad_()
    patches.requires_grad_()
    weights = torch.rand_like(images)
    pasted, pasted_labels, corners = paste_at_random(images, labels, patches)
    (weights * pasted).sum().backward()
    assert images.grad.equal(weights * (pasted_labels != OUTLIER)[:, None])
    on_top = torch.full(labels.shape, -1)  # the number of the patch that shows
    for number, (row, column) in enumerate(corners.tolist()):
        on_top[number // 2, row : row + 3, column : column + 4] = number
    for number, (row, column) in enumerate(corners.tolist()):
        place = (number // 2, ..., slice(row, row + 3), slice(column, column + 4))
        assert patches.grad[number].equal(weights[place] * (on_top[place] == number))


def test_patches_stay_inside_the_content():
    images, labels, patches = a_batch(3, height=12, width=14)
    content = torch.tensor([[2, 1, 6, 9], [0, 0, 12, 14]])
    for seed in range(40):
        torch.manual_seed(seed)
        pasted, pasted_labels, corners = paste_at_random(images, labels, patches, content)
        outside = torch.ones(12, 14, dtype=torch.bool)
        outside[2:8, 1:10] = False
        assert pasted[0][:, outside].equal(images[0][:, outside])
        assert not (pasted_labels[0][outside] == OUTLIER).any()
        rows, columns = corners[:3].T
        assert rows.min() >= 2 and rows.max() <= 5 and columns.min() >= 1 and columns.max() <= 6


def test_a_patch_that_is_larger_than_the_content_shows_inside_it_alone():
    images, labels, patches = a_batch(1)
    content = torch.tensor([[4, 5, 2, 3], [0, 0, 9, 11]])
    pasted, pasted_labels, corners = paste_at_random(images, labels, patches, content)
    inside = torch.zeros(9, 11, dtype=torch.bool)
    inside[4:6, 5:8] = True
    assert (pasted_labels[0] == OUTLIER).equal(inside)
    row, column = (4, 5) - corners[0].numpy()
    assert pasted[0, :, 4:6, 5:8].equal(patches[0, :, row : row + 2, column : column + 3])


def test_as_many_patches_for_each_image_is_asserted():
    images, labels, patches = a_batch(2)
    with pytest.raises(AssertionError, match="3 patches for 2 images"):
        paste_at_random(images, labels, patches[:3])


# What patches cover, and patches to look at


@pytest.mark.parametrize("count", [1, 2])
def test_what_patches_covered_is_cut_out_in_whole_numbers(count):
    stored = torch.randint(256, (2, 3, 9, 11), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = stored.to(torch.float32, memory_format=torch.channels_last) / 255  # as the loader hands them over
    _, labels, patches = a_batch(count)
    _, _, corners = paste_at_random(images, labels, patches)
    covered = cut_out(images, corners, (3, 4))
    assert covered.shape == (2 * count, 3, 3, 4) and covered.dtype == torch.float32
    for number, (row, column) in enumerate(corners.tolist()):
        expected = stored[number // count, :, row : row + 3, column : column + 4]
        assert covered[number].equal(expected.float())


def test_every_stored_value_comes_back_when_it_is_cut_out():
    stored = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert cut_out(stored / 255, torch.tensor([[0, 0]]), (16, 16)).equal(stored.float())


def test_values_beside_whole_numbers_are_rounded_when_they_are_cut_out():
    images = torch.tensor([0.4, 0.6, 199.51, 254.7]).view(1, 1, 1, 4).expand(1, 3, 1, 4) / 255
    assert cut_out(images, torch.tensor([[0, 0]]), (1, 4))[0, 0, 0].tolist() == [0, 1, 200, 255]


def test_drawn_images_become_negatives_that_are_shown_whole():
    drawn = [torch.tensor([0.4, 0.6, 254.7, 255]).view(1, 1, 4).expand(3, 1, 4), torch.zeros(3, 2, 2)]
    (patch, mask, name), (_, other_mask, other_name) = whole_patches(drawn)
    assert patch.dtype == torch.uint8 and patch[0, 0].tolist() == [0, 1, 255, 255]
    assert mask.dtype == other_mask.dtype == torch.bool and mask.shape == (1, 4) and other_mask.shape == (2, 2)
    assert mask.all() and other_mask.all()
    assert (name, other_name) == ("drawn patch 0", "drawn patch 1")
