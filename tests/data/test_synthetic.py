"""Drawn negatives, the photographs a flow learns from, and a network that is used without being trained."""

import collections

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data import ImageFolder, cut_out, draw_patch_size, filled_transform, paste_at_random, whole_patches
from labels import OUTLIER
from models import frozen, ladder_densenet121
from tests.support.layouts import write


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


# Photographs of any folder


def test_images_at_any_depth_are_found_in_order(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    write(tmp_path / "b/deep/er.PNG", colours)
    write(tmp_path / "a.jpg", colours)
    write(tmp_path / "b/grey.png", colours[:, :, 0])
    write(tmp_path / "c.bmp", colours)
    (tmp_path / "notes.txt").write_text("no image")
    folder = ImageFolder(tmp_path)
    samples = [folder[index] for index in range(len(folder))]
    assert [name for *_, name in samples] == ["a.jpg", "b/deep/er.PNG", "b/grey.png", "c.bmp"]
    for image, labels, _ in samples:
        assert image.shape == (3, 6, 5) and image.dtype == labels.dtype == torch.uint8
        assert labels.shape == (6, 5) and not labels.any()
    assert samples[1][0].equal(torch.from_numpy(colours).permute(2, 0, 1))
    assert all(channel.equal(torch.from_numpy(colours[:, :, 0])) for channel in samples[2][0])


def test_label_maps_of_a_folder_lie_at_the_same_places_and_255_is_an_id_too(tmp_path):
    photograph = np.zeros((4, 6, 3), np.uint8)
    ids = np.array([[0, 1, 2, 7, 254, 255]] * 4, np.uint8)
    for place in ("images/a", "masks/a"):
        (tmp_path / place).mkdir(parents=True)
    Image.fromarray(photograph).save(tmp_path / "images/a/b.jpg")
    Image.fromarray(ids).save(tmp_path / "masks/a/b.png")
    _, labels, name = ImageFolder(tmp_path / "images", masks=tmp_path / "masks")[0]
    assert (labels.tolist(), name) == ([[0, 1, 2, 7, 254, 254]] * 4, "a/b.jpg")
    Image.fromarray(ids[:2]).save(tmp_path / "masks/a/b.png")
    with pytest.raises(ValueError, match=r"b.jpg is 6x4 but its label map .*b.png is 6x2"):
        ImageFolder(tmp_path / "images", masks=tmp_path / "masks")[0]
    (tmp_path / "masks/a/b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b.jpg has no label map .*b.png \(1 such images\)"):
        ImageFolder(tmp_path / "images", masks=tmp_path / "masks")


def test_missing_and_empty_folders_of_photographs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder nowhere; give one that holds images"):
        ImageFolder("nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=rf"no image \(\.jpg, .*\) below {tmp_path}"):
        ImageFolder(tmp_path)


def test_a_broken_photograph_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises((ValueError, OSError), match=r"broken\.png"):
        ImageFolder(tmp_path)[0]


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


# A network that is used without being trained


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
    )


def applied(model, images):
    torch.manual_seed(1)  # of dropout
    return model(images)


@pytest.mark.parametrize("training", [True, False])
def test_a_frozen_network_gives_the_same_outputs_and_input_gradients_and_keeps_its_state(training):
    model = small_network().train(training)
    model(torch.rand(4, 3, 8, 8))
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with frozen(model) as inside:
        assert inside is model and model.training == training
        output = applied(model, images)
    (ours,) = torch.autograd.grad(output.square().sum(), images)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())

    expected = applied(model, images)  # with batch normalisation by the batch, in train mode
    assert output.equal(expected)
    assert ours.equal(torch.autograd.grad(expected.square().sum(), images)[0])
    after = model.state_dict()
    assert all(value.equal(before[key]) for key, value in after.items()) != training


def test_a_frozen_networks_weights_get_no_gradient():
    model = small_network().train()
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    with frozen(model):
        output = applied(model, images)
    output.square().sum().backward()
    assert images.grad.any() and all(parameter.grad is None for parameter in model.parameters())


def test_gradients_that_were_there_before_stay_as_they_are():
    model = small_network().train()
    model(torch.rand(3, 3, 8, 8)).square().sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    with frozen(model):
        output = model(torch.rand(3, 3, 8, 8, requires_grad=True))
    output.square().sum().backward()
    assert all(parameter.grad.equal(grad) for parameter, grad in zip(model.parameters(), before, strict=True))


def test_everything_is_as_it_was_after_an_error():
    model = small_network().train()
    model[0].weight.requires_grad_(False)
    model[1].track_running_stats = False
    with pytest.raises(RuntimeError), frozen(model):
        model(torch.rand(1, 4, 8, 8))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name != "0.weight")
    assert [model[1].track_running_stats, model[5].track_running_stats] == [False, True]
    model(torch.rand(3, 3, 8, 8)).sum().backward()
    assert model[0].weight.grad is None and model[4].weight.grad is not None
    assert model[5].num_batches_tracked == 1


def test_the_statistics_of_ldn_are_left_alone():
    model = ladder_densenet121(4).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    with frozen(model):
        class_logits, _ = model(images)
    class_logits.square().sum().backward()
    assert images.grad.any()
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
