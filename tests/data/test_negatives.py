"""Negatives: masks, places, pasting, and data sets whose samples carry them."""

from collections import Counter
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from data import (
    MaskedPatches,
    WithFixedNegatives,
    WithNegatives,
    paste,
    train_transform,
)
from data.negatives import draw_corner, mask_of_two_ids, permitted_places, place_negative, random_rectangle
from engine.loader import batches, to_device, training_loader
from labels import IGNORE, OUTLIER
from tests.support.samples import MEAN, Pictures, ramp, smooth_noise

CPU = torch.device("cpu")


# Pasting


def paste_slowly(images, labels, patches, masks, corners):
    images, labels = images.clone(), labels.clone()
    for number, (row, column) in enumerate(corners.tolist()):
        for y, x in masks[number].nonzero().tolist():
            images[number, :, row + y, column + x] = patches[number, :, y, x]
            labels[number, row + y, column + x] = OUTLIER
    return images, labels


def a_paste(seed=0, dtype=torch.float64):
    """Four images and patches, one corner at each corner of the image, and masks with holes"""
    generator = torch.Generator().manual_seed(seed)
    images, patches = (torch.rand(4, 3, *size, generator=generator, dtype=dtype) for size in ((9, 11), (4, 5)))
    labels = torch.randint(12, (4, 9, 11), generator=generator)
    labels[:, 4] = IGNORE
    masks = torch.rand(4, 4, 5, generator=generator) < 0.6
    corners = torch.tensor([[0, 0], [0, 6], [5, 0], [5, 6]])
    return images, labels, patches, masks, corners


def test_exactly_the_masked_pixels_are_pasted_and_become_outliers():
    parts = a_paste()
    images, labels = paste(*parts)
    expected_images, expected_labels = paste_slowly(*parts)
    assert images.equal(expected_images)
    assert labels.equal(expected_labels)
    assert (labels == OUTLIER).sum() == parts[3].sum()


def test_pasting_is_the_same_for_uint8():
    images, labels, patches, *place = a_paste()
    bytes_of = [(255 * tensor).to(torch.uint8) for tensor in (images, patches)]
    for ours, theirs in zip(paste(bytes_of[0], labels.byte(), bytes_of[1], *place),
                            paste_slowly(bytes_of[0], labels.byte(), bytes_of[1], *place), strict=True):  # fmt: skip
        assert ours.equal(theirs)
        assert ours.dtype == torch.uint8


def test_pasting_changes_nothing_in_place():
    parts = a_paste()
    before = [tensor.clone() for tensor in parts]
    images, labels = paste(*parts)
    images.zero_()
    labels.zero_()
    assert all(tensor.equal(original) for tensor, original in zip(parts, before, strict=True))


def test_an_empty_mask_pastes_nothing():
    images, labels, patches, masks, corners = a_paste()
    same_images, same_labels = paste(images, labels, patches, torch.zeros_like(masks), corners)
    assert same_images.equal(images)
    assert same_labels.equal(labels)


def test_a_patch_of_the_images_size_covers_it():
    images, labels, *_ = a_paste()
    covered, outliers = paste(images, labels, 1 - images, torch.ones(4, 9, 11).bool(), torch.zeros(4, 2).long())
    assert covered.equal(1 - images)
    assert (outliers == OUTLIER).all()


def test_a_patch_beyond_the_image_is_a_programming_mistake():
    images, labels, patches, masks, _ = a_paste()
    for row, column in ((-1, 0), (0, -1), (6, 0), (0, 7)):
        with pytest.raises(AssertionError, match="leaves the image"):
            paste(images, labels, patches, masks, torch.tensor([[0, 0]] * 3 + [[row, column]]))


def test_gradients_flow_to_images_and_patches_where_each_is_seen():
    images, labels, patches, masks, corners = a_paste()
    images.requires_grad_()
    patches.requires_grad_()
    weights = torch.rand_like(images)
    (paste(images, labels, patches, masks, corners)[0] * weights).sum().backward()
    where = paste_slowly(torch.zeros(4, 3, 9, 11), labels, torch.ones(4, 3, 4, 5), masks, corners)[0].bool()
    assert images.grad.equal(weights.masked_fill(where, 0))
    for number, (row, column) in enumerate(corners.tolist()):
        seen = weights[number, :, row : row + 4, column : column + 5] * masks[number]
        assert patches.grad[number].equal(seen)


def several_pastes(seed=0, dtype=torch.float64):
    """Two images with three patches each, which lie partly over each other"""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, 6, 7, generator=generator, dtype=dtype)
    patches = torch.rand(2, 3, 3, 4, 3, generator=generator, dtype=dtype)
    labels = torch.randint(12, (2, 6, 7), generator=generator)
    masks = torch.rand(2, 3, 4, 3, generator=generator) < 0.7
    corners = torch.tensor([[[0, 0], [1, 1], [2, 4]], [[2, 2], [2, 2], [1, 3]]])
    return images, labels, patches, masks, corners


def paste_several_slowly(images, labels, patches, masks, corners):
    for number in range(patches.shape[1]):
        images, labels = paste_slowly(images, labels, patches[:, number], masks[:, number], corners[:, number])
    return images, labels


@pytest.mark.parametrize("seed", range(5))
def test_several_patches_are_pasted_one_after_the_other(seed):
    parts = several_pastes(seed)
    before = [tensor.clone() for tensor in parts]
    images, labels = paste(*parts)
    expected_images, expected_labels = paste_several_slowly(*parts)
    assert images.equal(expected_images)
    assert labels.equal(expected_labels)
    assert all(tensor.equal(original) for tensor, original in zip(parts, before, strict=True))


def test_one_of_one_patch_is_pasted_as_one_patch():
    images, labels, *patch = a_paste()
    alone, among = paste(images, labels, *patch), paste(images, labels, *(tensor[:, None] for tensor in patch))
    assert all(ours.equal(theirs) for ours, theirs in zip(alone, among, strict=True))


def test_a_later_patch_covers_an_earlier_one_which_then_gets_no_gradient():
    images, labels = torch.zeros(1, 3, 2, 4), torch.zeros(1, 2, 4, dtype=torch.long)
    patches = torch.stack([torch.full((3, 2, 2), 5.0), torch.full((3, 2, 2), 9.0)])[None].requires_grad_()
    masks = torch.ones(1, 2, 2, 2, dtype=torch.bool)
    pasted, outliers = paste(images, labels, patches, masks, torch.tensor([[[0, 0], [0, 1]]]))
    assert pasted[0].tolist() == [[[5, 9, 9, 0]] * 2] * 3
    assert outliers[0].tolist() == [[OUTLIER, OUTLIER, OUTLIER, 0]] * 2
    pasted.sum().backward()
    assert patches.grad[0, :, 0].tolist() == [[[1, 0]] * 2, [[1, 1]] * 2]


def test_gradients_of_several_patches_are_those_of_finite_differences():
    images, labels, patches, masks, corners = several_pastes()
    images.requires_grad_()
    patches.requires_grad_()

    def pasted(images, patches):
        return paste(images, labels, patches, masks, corners)[0] ** 2

    assert torch.autograd.gradcheck(pasted, (images, patches))


def test_several_patches_become_floats_on_the_device():
    patches = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(2, 4, 3, 5, 3)
    masks = torch.ones(2, 4, 5, 3, dtype=torch.bool)
    corners = torch.tensor([[1, 2]] * 4).expand(2, 4, 2)
    moved = to_device([patches, masks, corners], CPU)
    torch.testing.assert_close(moved[0], torch.tensor([0, 0.2, 1]).expand(2, 4, 3, 5, 3))
    assert moved[1].equal(masks) and moved[1].dtype == torch.bool
    assert moved[2].equal(corners) and moved[2].dtype == torch.int64


def test_corners_are_uniform_over_the_places_where_a_patch_fits():
    torch.manual_seed(0)
    corners = Counter(tuple(draw_corner((7, 9), (4, 6)).tolist()) for _ in range(1600))
    assert corners.keys() == {(row, column) for row in range(4) for column in range(4)}
    assert all(abs(count - 100) < 45 for count in corners.values())
    assert draw_corner((7, 9), (7, 9)).tolist() == [0, 0]
    assert draw_corner((7, 9), (4, 6)).dtype == torch.int64


@pytest.mark.parametrize("patch", [(8, 4), (4, 10), (8, 10)])
def test_a_patch_larger_than_the_image_is_refused(patch):
    with pytest.raises(ValueError, match=f"patch of {patch[1]}x{patch[0]} pixels is larger than the image of 9x7"):
        draw_corner((7, 9), patch)


# Masks of negatives


def rectangle_of(mask):
    """((top, left), (height, width)) of the mask's bounding box"""
    rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
    return (rows[0], columns[0]), (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)


def test_random_rectangles_are_solid_with_sides_16_24_and_so_on_below_the_patchs():
    torch.manual_seed(0)
    sides, corners, square = (Counter(), Counter()), set(), 0
    for _ in range(900):
        mask = random_rectangle(40)
        assert mask.shape == (40, 40)
        (top, left), (height, width) = rectangle_of(mask)
        assert mask.sum() == height * width
        sides[0][height] += 1
        sides[1][width] += 1
        square += height == width
        corners |= {(top == 0, left == 0, top + height == 40, left + width == 40)}
    for side in sides:
        assert side.keys() == {16, 24, 32}  # 40 itself is not below 40
        assert all(abs(count - 300) < 60 for count in side.values())
    assert abs(square - 300) < 60  # height and width are drawn independently
    assert {(True, True, False, False), (False, False, True, True)} <= corners
    assert {(True, False, False, True), (False, True, True, False)} <= corners


def test_a_mask_is_the_union_of_two_ids_and_sometimes_of_one():
    torch.manual_seed(0)
    ids = torch.randint(4, (12, 12), dtype=torch.uint8) * 50  # 0 is an id like any other
    found = Counter()
    for _ in range(800):
        mask = mask_of_two_ids(ids)
        inside, outside = set(ids[mask].tolist()), set(ids[~mask].tolist())
        assert not inside & outside
        found[tuple(sorted(inside))] += 1
    assert len(found) == 4 + 6
    for chosen, count in found.items():  # with replacement: a pair has two orders
        assert abs(count - (50 if len(chosen) == 1 else 100)) < 45, chosen


def test_a_patch_of_one_id_is_pasted_whole():
    assert mask_of_two_ids(torch.full((4, 4), 9, dtype=torch.uint8)).all()


def test_only_rare_ids_are_drawn_and_the_rarest_where_none_is_rare():
    torch.manual_seed(0)
    ids = torch.repeat_interleave(torch.tensor([3, 0, 8, 5], dtype=torch.uint8), torch.tensor([40, 30, 20, 10]))
    ids = ids[torch.randperm(100)].reshape(10, 10)

    def drawn(rare_below, draws=300):
        return Counter(tuple(sorted(set(ids[mask_of_two_ids(ids, rare_below)].tolist()))) for _ in range(draws))

    assert drawn(30).keys() == {(5,), (8,), (5, 8)}  # 30 pixels are not fewer than 30
    assert drawn(31).keys() == {(0,), (5,), (8,), (0, 5), (0, 8), (5, 8)}
    assert drawn(10).keys() == drawn(1).keys() == drawn(20).keys() == {(5,)}
    assert len(drawn(41)) == len(drawn(None)) == 4 + 6
    pairs = drawn(30, 800)
    assert abs(pairs[5, 8] - 400) < 75 and abs(pairs[5,] - 200) < 65  # with replacement, as without the rule
    halves = (torch.arange(16) // 8).reshape(4, 4) * 7
    assert mask_of_two_ids(halves, 5).equal(halves == 0)  # the lowest of several


@pytest.mark.parametrize("rare_below", [None, 100])
def test_of_left_out_ids_nothing_is_pasted_and_of_the_others_all(rare_below):
    ids = torch.arange(4, dtype=torch.uint8).repeat_interleave(6).repeat(24, 1)  # four stripes of 24 x 6
    pictures = Pictures((torch.zeros(3, 24, 24, dtype=torch.uint8), ids))
    negatives = MaskedPatches(pictures, 24, 24, rare_below=rare_below, leave_out=(1, 3))
    seen = torch.zeros(24, 24, dtype=torch.bool)
    for _ in range(60):
        _, mask, _ = negatives[0]
        assert not mask[(ids == 1) | (ids == 3)].any()
        seen |= mask
    assert seen.equal((ids == 0) | (ids == 2))


def test_where_all_ids_are_left_out_nothing_is_pasted():
    pictures = Pictures((torch.zeros(3, 24, 24, dtype=torch.uint8), torch.ones(24, 24, dtype=torch.uint8)))
    negatives = MaskedPatches(pictures, 24, 24, leave_out=(1,))
    assert not any(negatives[0][1].any() for _ in range(10))


def test_an_id_to_leave_out_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"--neg_leave_out 256: label ids lie in 0..255"):
        MaskedPatches(Pictures(), 60, 30, leave_out=(0, 256))


def test_masks_of_a_patch_keep_to_rare_ids_where_asked():
    torch.manual_seed(0)
    ids = torch.ones(24, 24, dtype=torch.uint8)
    ids[:, :4] = 9
    pictures = Pictures((torch.zeros(3, 24, 24, dtype=torch.uint8), ids))
    for rare_below, expected in ((100, {1}), (None, {1, 2, 3})):
        negatives = MaskedPatches(pictures, 24, 24, rare_below=rare_below)
        kinds = {1: ids == 9, 2: ids == 1, 3: ids > 0}
        masks = [negatives[0][1] for _ in range(60)]
        found = {kind for mask in masks for kind, pixels in kinds.items() if mask.equal(pixels)}
        assert found == expected
        assert any(rectangle_of(mask)[1] == (16, 16) for mask in masks)  # rectangles are drawn as ever


def test_every_other_mask_is_a_rectangle():
    torch.manual_seed(0)
    checkers = (torch.arange(24)[:, None] + torch.arange(24)) % 2
    negatives = MaskedPatches(Pictures((torch.zeros(3, 24, 24, dtype=torch.uint8), checkers.byte())), 24, 24)
    rectangles = 0
    for _ in range(600):
        _, mask, _ = negatives[0]
        of_ids = any(mask.equal(union) for union in (checkers == 0, checkers == 1, checkers >= 0))
        (_, sides) = rectangle_of(mask)
        rectangles += not of_ids
        assert of_ids or sides == (16, 16)
    assert abs(rectangles - 300) < 50


@pytest.mark.parametrize("resize, size", [(64, 16), (64, 8), (32, 33), (16, 24)])
def test_a_patch_size_that_cannot_be_is_refused(resize, size):
    with pytest.raises(ValueError, match=f"negative_size {size} must be over 16 and at most {resize} pixels"):
        MaskedPatches(Pictures(), resize, size)


def test_a_drawn_scale_makes_patches_of_half_to_twice_the_size():
    torch.manual_seed(0)
    negatives = MaskedPatches(Pictures(ramp(120, 160)), 60, 30, scale=(0.5, 2.0))
    shown = [int(patch[1].max()) - int(patch[1].min()) + 1 for patch, _, _ in (negatives[0] for _ in range(300))]
    assert min(shown) == pytest.approx(30, abs=2)  # rows of the picture, at twice the size of 60
    assert max(shown) == pytest.approx(120, abs=6)  # at half of it; a border pixel is a mean of several rows
    with pytest.raises(ValueError, match=r"at most 30 pixels, negative_resize 60 times the least negative_scale 0\.5"):
        MaskedPatches(Pictures(), 60, 31, scale=(0.5, 2.0))


@pytest.mark.parametrize("resize, size", [(17, 17), (24, 24), (64, 17)])
def test_the_smallest_and_the_largest_patch_work(resize, size):
    torch.manual_seed(0)
    image, ids = smooth_noise(48, 60)
    negatives = MaskedPatches(Pictures((image, ids)), resize, size)
    for _ in range(20):
        patch, mask, _ = negatives[0]
        assert patch.shape == (3, size, size)
        assert patch.dtype == torch.uint8
        assert mask.shape == (size, size)
        assert mask.dtype == torch.bool


@pytest.mark.parametrize("height, width", [(40, 100), (100, 40), (37, 53), (333, 500), (16, 16)])
def test_a_patch_never_shows_beyond_its_picture(height, width):
    torch.manual_seed(0)
    image, ids = torch.full((3, height, width), 200, dtype=torch.uint8), torch.zeros(height, width, dtype=torch.uint8)
    negatives = MaskedPatches(Pictures((image, ids)), 48, 48)
    assert all((negatives[0][0] == 200).all() for _ in range(5))  # the short side is the patch's


def test_the_short_side_is_resized():
    torch.manual_seed(0)
    image, ids = ramp(40, 200)
    patches = [MaskedPatches(Pictures((image, ids)), 80, 80)[0][0] for _ in range(20)]
    for patch in patches:  # twice as large: all 40 rows and 40 of the columns are seen
        assert patch[1].min() == 0
        assert patch[1].max() == 39
        assert abs(int(patch[0].max()) - int(patch[0].min()) - 39) <= 1
    assert len({int(patch[0].min()) for patch in patches}) > 10


def test_a_mask_is_never_on_ignored_pixels():
    torch.manual_seed(0)
    image, ids = torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(32, 32, dtype=torch.uint8)
    ids[:, 10:] = IGNORE
    negatives = MaskedPatches(Pictures((image, ids)), 32, 32)
    masks = [negatives[0][1] for _ in range(40)]
    assert any(mask.any() for mask in masks)
    assert not any(mask[:, 10:].any() for mask in masks)


# Places of negatives


def allowed(place, patch, first, length):
    """Whether pixels place..place+patch-1 lie inside the span, or all of the span in them where they are more"""
    ours, theirs = set(range(place, place + patch)), set(range(first, first + length))
    return ours <= theirs if patch <= length else theirs <= ours


def test_permitted_places_are_those_inside_image_and_content_or_covering_them():
    cases = 0
    for image, patch in product(range(1, 8), range(1, 11)):
        for first, last in product(range(image), repeat=2):
            if first <= last:
                spans = (0, image), (first, last - first + 1)
                slow = [place for place in range(-12, 12) if all(allowed(place, patch, *span) for span in spans)]
                least, greatest = permitted_places(patch, *spans)
                assert list(range(least, greatest + 1)) == slow, (image, patch, first, last)
                assert slow  # there is always one
                cases += 1
    assert cases == 10 * sum(image * (image + 1) // 2 for image in range(1, 8))


@pytest.mark.parametrize(
    "image_size, content, patch_size, rows, columns",
    [  # by hand: the rows and columns at which the patch can begin
        ((9, 8), (2, 0, 5, 8), (3, 3), range(2, 5), range(6)),  # inside the content
        ((9, 8), (2, 3, 4, 2), (6, 4), range(3), range(1, 4)),  # over all of it
        ((9, 8), (2, 3, 6, 2), (9, 3), range(1), range(2, 4)),  # as high as the image
        ((4, 5), (0, 0, 4, 5), (6, 3), range(-2, 1), range(3)),  # higher than the image
        ((4, 5), None, (7, 8), range(-3, 1), range(-3, 1)),  # larger in both
        ((4, 5), (1, 1, 2, 3), (6, 4), range(-2, 1), range(2)),
    ],
)
def test_a_negative_is_at_every_permitted_place_equally_often_and_shows_only_inside_the_content(
    image_size, content, patch_size, rows, columns
):
    torch.manual_seed(0)
    top, left, height, width = content or (0, 0, *image_size)
    patch, _ = ramp(*patch_size)
    mask = torch.rand(patch_size) < 0.7
    places, draws = Counter(), 200 * len(rows) * len(columns)
    for _ in range(draws):
        shown, shown_mask, corner = place_negative(patch, mask, image_size, content)
        assert shown.shape == (3, *(min(sides) for sides in zip(patch_size, image_size, strict=True)))
        row, column = corner.tolist()
        x, y = shown[:2, 0, 0].tolist()  # which pixel of the patch is at the corner
        places[row - y, column - x] += 1
    assert places.keys() == set(product(rows, columns))
    assert all(abs(count - 200) < 75 for count in places.values())  # over five deviations

    labels = torch.zeros(1, *image_size, dtype=torch.long)
    pasted, outliers = paste(torch.zeros(1, 3, *image_size), labels, shown[None], shown_mask[None], corner[None])
    for r, c in product(range(image_size[0]), range(image_size[1])):
        y2, x2 = r - (row - y), c - (column - x)
        on_patch = 0 <= y2 < patch_size[0] and 0 <= x2 < patch_size[1]
        on_content = top <= r < top + height and left <= c < left + width
        if on_patch and on_content and mask[y2, x2]:
            assert outliers[0, r, c] == OUTLIER
            assert pasted[0, :, r, c].tolist() == [x2, y2, 77]
        else:
            assert outliers[0, r, c] == 0


def test_placing_a_negative_changes_nothing_in_place():
    patch, mask = ramp(6, 6)[0], torch.ones(6, 6, dtype=torch.bool)
    place_negative(patch, mask, (8, 8), (3, 3, 2, 2))
    assert mask.all()
    assert patch.equal(ramp(6, 6)[0])


# Scenes with negatives


def scenes_and_negatives():
    scenes = Pictures(*((torch.full((3, 40, 50), shade, dtype=torch.uint8), torch.full((40, 50), shade // 10).byte())
                        for shade in (10, 20, 30)))  # fmt: skip
    things = Pictures(*((torch.full((3, 30, 30), shade, dtype=torch.uint8), torch.zeros(30, 30).byte())
                        for shade in (210, 220, 230, 240)))  # fmt: skip
    return scenes, MaskedPatches(things, 24, 20)


def test_a_sample_with_a_negative_has_its_parts_and_names_both_files():
    torch.manual_seed(0)
    scenes, negatives = scenes_and_negatives()
    samples = WithNegatives(scenes, negatives)
    assert len(samples) == 3
    sources, corners = Counter(), set()
    for _ in range(400):
        image, labels, patch, mask, corner, name = samples[1]
        assert (image == 20).all()  # not yet pasted
        assert (labels == 2).all()
        number = int(patch[0, 0, 0]) // 10 - 21
        assert name == f"picture 1 with picture {number}"
        assert (patch.shape, mask.shape, mask.dtype) == ((3, 20, 20), (20, 20), torch.bool)
        assert 0 <= corner[0] <= 20
        assert 0 <= corner[1] <= 30
        sources[number] += 1
        corners.add(tuple(corner.tolist()))
    assert sources.keys() == {0, 1, 2, 3}
    assert all(abs(count - 100) < 45 for count in sources.values())
    assert {row for row, _ in corners} == set(range(21))
    assert {column for _, column in corners} == set(range(31))


def test_fixed_negatives_are_pasted_and_the_same_at_every_visit():
    scenes, negatives = scenes_and_negatives()
    torch.manual_seed(1)
    first = list(WithFixedNegatives(scenes, negatives))
    torch.manual_seed(2)
    again = WithFixedNegatives(scenes, negatives)
    assert len(first) == len(again) == 3
    for index in (2, 0, 1, 0):
        for ours, theirs in zip(first[index], again[index], strict=True):
            assert ours == theirs if isinstance(ours, str) else ours.equal(theirs)
    for index, (image, labels, name) in enumerate(first):
        pasted = labels == OUTLIER
        assert pasted.any()
        assert (image[:, pasted] >= 210).all()
        assert (image[:, ~pasted] == 10 * (index + 1)).all()
        assert (labels[~pasted] == index + 1).all()
        assert name.startswith(f"picture {index} with picture ")
    others = WithFixedNegatives(scenes, negatives, seed=1)
    assert not all(others[index][0].equal(first[index][0]) for index in range(3))


def test_fixed_negatives_leave_torchs_generator_as_it_was():
    samples = WithFixedNegatives(*scenes_and_negatives())
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(samples)
    assert torch.rand(3).equal(expected)


def test_draws_of_one_negative_are_those_recorded_before_there_could_be_several():
    image, columns = ramp(60, 80)
    things = Pictures(*[(image, columns // 7)] * 3)
    samples = WithNegatives(Pictures((image, columns)), MaskedPatches(things, 40, 32, (0.9, 2.0)))
    found = []
    for seed in range(5):
        torch.manual_seed(seed)
        _, _, patch, mask, corner, name = samples[0]
        found.append((int(mask.sum()), corner.tolist(), patch[:, 0, 0].tolist(), name[-1]))
    assert found == [
        (576, [13, 16], [12, 12, 77], "2"),
        (576, [7, 46], [14, 19, 77], "1"),
        (384, [1, 4], [7, 6, 77], "0"),
        (256, [16, 48], [15, 10, 77], "1"),
        (384, [21, 0], [23, 1, 77], "1"),
    ]


def test_several_negatives_of_a_sample_are_drawn_apart():
    torch.manual_seed(0)
    scenes, negatives = scenes_and_negatives()
    samples = WithNegatives(scenes, negatives, count=3)
    sources, places = set(), set()
    for _ in range(300):
        image, labels, patches, masks, corners, name = samples[1]
        assert image.equal(scenes[1][0]) and labels.equal(scenes[1][1])
        assert (patches.shape, masks.shape, corners.shape) == ((3, 3, 20, 20), (3, 20, 20), (3, 2))
        assert (patches.dtype, masks.dtype, corners.dtype) == (torch.uint8, torch.bool, torch.int64)
        numbers = [int(patch[0, 0, 0]) // 10 - 21 for patch in patches]
        assert name == f"picture 1 with picture {numbers[0]}, picture {numbers[1]}, picture {numbers[2]}"
        sources.add(tuple(numbers))
        places.add(len(set(map(tuple, corners.tolist()))))
    assert len(sources) == 4**3
    assert 3 in places


def test_the_first_of_several_negatives_is_the_one_of_a_single():
    scenes, negatives = scenes_and_negatives()
    drawn = []
    for count in (1, 2):
        torch.manual_seed(7)
        drawn.append(WithNegatives(scenes, negatives, count)[0][2:5])
    assert all(one.equal(several[0]) for one, several in zip(*drawn, strict=True))


def test_no_negatives_at_all_are_refused():
    with pytest.raises(ValueError, match="0 negatives for each image: there must be at least 1"):
        WithNegatives(*scenes_and_negatives(), count=0)


def test_batches_of_several_negatives_go_from_the_loader_to_paste():
    loader = training_loader(WithNegatives(*scenes_and_negatives(), count=2), 0, 3, True, 0, CPU, 0, 1)
    ((tensors, names),) = batches(loader)
    images, labels, patches, masks, corners = to_device(tensors, CPU)
    assert patches.shape == (3, 2, 3, 20, 20) and len(names) == 3
    pasted, outliers = paste(images, labels, patches, masks, corners)
    expected, expected_labels = paste_several_slowly(images, labels, patches, masks, corners)
    assert pasted.equal(expected) and outliers.equal(expected_labels)
    assert pasted.max() == patches.max() and pasted.max() <= 1


class Photographs(Dataset):
    """White photographs of class 5 in many sizes, transformed as for training"""

    def __init__(self, sizes, transform):
        self.sizes, self.transform = sizes, transform

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        size = self.sizes[index]
        white, fives = torch.full((3, *size), 255, dtype=torch.uint8), torch.full(size, 5, dtype=torch.uint8)
        return *self.transform(white, fives), f"photograph {index}"


@pytest.mark.parametrize("scale", [(0.5, 2.0), (0.1, 0.4), (1.0, 1.0)])
@pytest.mark.parametrize("size", [17, 32, 64])
def test_negatives_never_show_on_padding(scale, size):
    torch.manual_seed(size)
    sizes = [tuple(torch.randint(10, 120, (2,)).tolist()) for _ in range(12)]
    photographs = Photographs(sizes, train_transform(64, scale, MEAN, with_content=True))
    black = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.zeros(64, 64, dtype=torch.uint8)
    samples = WithNegatives(photographs, MaskedPatches(Pictures(black), 64, size), count=3)
    pasted_pixels, padded, fully_shown = 0, 0, 0
    for index in [*range(12)] * 6:
        image, labels, *negatives, _ = samples[index]
        pasted, outliers = paste(image[None], labels[None], *(tensor[None] for tensor in negatives))
        padding = labels == IGNORE
        assert (outliers[0][padding] == IGNORE).all()
        assert (pasted[0][:, padding] == torch.tensor(MEAN)[:, None]).all()
        changed = outliers[0] == OUTLIER
        assert (labels[changed] == 5).all()
        assert (pasted[0][:, changed] == 0).all()
        assert (pasted[0][:, ~changed & ~padding] == 255).all()
        shown_rows, shown_columns = (~padding).any(1).sum(), (~padding).any(0).sum()
        for mask, (row, column) in zip(*negatives[1:], strict=True):
            under = ~padding[row : row + size, column : column + size]
            assert under.any(1).sum() == min(size, shown_rows)
            assert under.any(0).sum() == min(size, shown_columns)
            fully_shown += bool(mask.all())
        pasted_pixels += int(changed.sum())
        padded += int(padding.any())
    assert pasted_pixels > 1000
    assert padded > 10
    assert fully_shown or scale == (0.1, 0.4) or size == 64


def test_several_fixed_negatives_are_the_pasted_samples_of_the_seed():
    scenes, negatives = scenes_and_negatives()
    fixed, samples = WithFixedNegatives(scenes, negatives, count=3, seed=2), WithNegatives(scenes, negatives, 3)
    for index in (2, 0, 2):
        torch.manual_seed(2 * 3 + index)
        *parts, name = samples[index]
        expected = paste_several_slowly(*(tensor[None] for tensor in parts))
        image, labels, fixed_name = fixed[index]
        assert image.equal(expected[0][0]) and labels.equal(expected[1][0]) and fixed_name == name


def test_negatives_are_cut_to_smaller_validation_photographs():
    small = Pictures(*((torch.zeros(3, *size, dtype=torch.uint8), torch.full(size, 5, dtype=torch.uint8))
                       for size in ((19, 50), (60, 7), (3, 3), (40, 40))))  # fmt: skip
    things = Pictures((torch.full((3, 40, 40), 200, dtype=torch.uint8), torch.ones(40, 40, dtype=torch.uint8)))
    outliers = 0
    for seed in range(6):
        samples = WithFixedNegatives(small, MaskedPatches(things, 40, 40), count=2, seed=seed)
        for (image, labels, _), (before, _, _) in zip(samples, small, strict=True):
            assert image.shape == before.shape and labels.shape == before.shape[1:]
            pasted = labels == OUTLIER
            assert (image[:, pasted] == 200).all() and (image[:, ~pasted] == 0).all() and (labels[~pasted] == 5).all()
            outliers += int(pasted.sum())
    assert outliers > 0


def test_photographs_of_many_sizes_with_several_negatives_are_a_function_of_the_seed():
    image, ids = smooth_noise(60, 80)
    transform = train_transform(40, (0.3, 2.0), MEAN, with_content=True)
    samples = WithNegatives(Photographs([(50, 30)], transform), MaskedPatches(Pictures((image, ids)), 40, 32), 3)

    def draw(seed):
        torch.manual_seed(seed)
        return samples[0][:5]

    assert all(a.equal(b) for a, b in zip(draw(1), draw(1), strict=True))
    assert len({draw(seed)[4].numpy().tobytes() for seed in range(20)}) > 10


@pytest.mark.parametrize("antialias", [True, False])
def test_negatives_are_smoothed_before_they_are_shrunk_or_as_in_the_release_not(antialias):
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (3, 96, 96), generator=generator, dtype=torch.uint8)

    class OneImage:
        mean_colour = (0, 0, 0)

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return image, torch.zeros(96, 96, dtype=torch.uint8), "noise"

    patch, _, _ = MaskedPatches(OneImage(), 24, 24, antialias=antialias)[0]
    shrunk = F.interpolate(image[None].float(), (24, 24), mode="bilinear", antialias=antialias)[0]
    assert (patch.float() - shrunk).abs().max() <= 1
    assert antialias == (patch.float().std() < image.float().std() / 3)
