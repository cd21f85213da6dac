import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import SlidingWindows
from engine.windows import window_starts
from models.segmenter import Segmenter
from models.vit import VisionTransformer


class Seen(nn.Module):
    """Gives back what it is given, twice over, and remembers the shapes"""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        return images, 2 * images


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    encoder = VisionTransformer(patch=4, grid=4, width=24, depth=2, heads=3)
    return Segmenter(encoder, 5, hybrid=True, dataset_head="linear", width=24, heads=2).eval()


def random_cases(number):
    """(height, width, window, stride, at_a_time, images), among them strips one pixel high or wide"""
    rng = random.Random(0)
    cases = []
    for _ in range(number):
        sides = [rng.choice([1, rng.randint(1, 12), rng.randint(10, 40), rng.randint(60, 150)]) for _ in range(2)]
        window = rng.randint(1, 24)
        cases.append((*sides, window, rng.randint(1, window), rng.choice([1, 2, 8, 1000]), rng.randint(1, 3)))
    return cases


@pytest.mark.slow
def test_every_pixel_is_covered_and_in_its_place():
    for height, width, window, stride, at_a_time, number in random_cases(60):
        network = Seen()
        images = torch.rand(number, 3, height, width, dtype=torch.float64)
        ours, doubled = SlidingWindows(network, window, stride, at_a_time)(images)
        torch.testing.assert_close(ours, images)
        torch.testing.assert_close(doubled, 2 * images)
        sizes = {shape[2:] for shape in network.shapes}
        assert sizes == {(min(window, height), min(window, width))}
        assert max(shape[0] for shape in network.shapes) <= number * at_a_time


@pytest.mark.slow
def test_enlarged_images_are_seen_through_whole_windows_and_come_back_at_their_size():
    strips = [(1, 100, 8, 5, 4, 2), (100, 1, 8, 5, 4, 2)]
    for height, width, window, stride, at_a_time, number in [*random_cases(30), *strips]:
        network = Seen()
        images = torch.rand(number, 3, height, width, dtype=torch.float64)
        ours, _ = SlidingWindows(network, window, stride, at_a_time, enlarge=True)(images)
        assert {shape[2:] for shape in network.shapes} == {(window, window)}
        expected = images
        if min(height, width) < window:
            larger = [int(side * window / min(height, width) + 1e-9) for side in (height, width)]
            larger = F.interpolate(images, size=larger, mode="bilinear", align_corners=False)
            expected = F.interpolate(larger, size=(height, width), mode="bilinear", align_corners=False)
        torch.testing.assert_close(ours, expected)


def test_an_enlargement_by_hand():
    images = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    ours, _ = SlidingWindows(Seen(), 2, 1, enlarge=True)(images)
    # Two rows of 0, 1/4, 3/4, 1, brought back by the means of neighbours.
    assert ours.flatten().tolist() == pytest.approx([0.125, 0.875])


def test_the_longer_side_is_rounded_down():
    network = Seen()
    SlidingWindows(network, 5, 1, enlarge=True)(torch.rand(1, 3, 3, 4))
    assert len(network.shapes) == 2  # 4 * 5 / 3 is 6 pixels: windows from 0 and from 1


def test_nothing_is_enlarged_unless_asked_for():
    network = Seen()
    SlidingWindows(network, 8, 8)(torch.rand(1, 3, 3, 20))
    assert {shape[2:] for shape in network.shapes} == {(3, 8)}


@pytest.mark.parametrize("at_a_time", [1, 2, 4, 5, 6, 100])
def test_the_number_of_windows_at_a_time_changes_nothing(at_a_time, network):
    images = torch.rand(2, 3, 24, 37)
    passes = []
    with torch.no_grad():
        expected = [SlidingWindows(network, 16, 11)(image[None]) for image in images]
        handle = network.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
        outputs = SlidingWindows(network, 16, 11, at_a_time)(images)
        handle.remove()
    for ours, *alone in zip(outputs, *expected, strict=True):
        torch.testing.assert_close(ours, torch.cat(alone))
    assert sum(passes) == 2 * 2 * 3  # images, rows of windows, columns of windows
    assert len(passes) == -(-6 // at_a_time)


@pytest.mark.parametrize("enlarge", [False, True])
def test_a_window_over_the_whole_image_gives_what_the_image_gives(enlarge, network):
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        for ours, whole in zip(SlidingWindows(network, 16, 10, 8, enlarge)(images), network(images), strict=True):
            assert ours.equal(whole)


def test_a_network_of_one_output_gives_one():
    network = nn.Conv2d(3, 4, 1)
    images = torch.rand(1, 3, 5, 9)
    for enlarge in (False, True):
        ours = SlidingWindows(network, 5, 3, 2, enlarge)(images)
        torch.testing.assert_close(ours, network(images))
    assert SlidingWindows(network, 7, 3, 2, enlarge=True)(images).shape == (1, 4, 5, 9)


def test_no_windows_at_a_time_are_refused():
    with pytest.raises(ValueError, match="0 windows at a time"):
        SlidingWindows(nn.Identity(), 8, 4, at_a_time=0)


def test_windows_of_narrow_logits_are_added_up_in_float32():
    class Narrow(nn.Module):
        def forward(self, images):
            return (1 + images[:, :1] / 128).bfloat16()  # steps that bfloat16 holds, and sums of three do not

    image = torch.randint(0, 2, (1, 3, 8, 16), generator=torch.Generator().manual_seed(0)).float()
    mean = SlidingWindows(Narrow(), window=8, stride=3)(image)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, 1 + image[:, :1] / 128, rtol=1e-7, atol=0)


def test_one_window_over_the_whole_image_is_the_image():
    network = torch.nn.Conv2d(3, 4, 3, padding=1)
    images = torch.rand(2, 3, 20, 30)
    assert torch.equal(SlidingWindows(network, 30, 10)(images), network(images))


def test_windows_average_what_overlaps():
    class Position(torch.nn.Module):
        """Two outputs: each pixel's column inside its window, and ones"""

        def forward(self, images):
            columns = torch.arange(images.shape[3], dtype=torch.float32).expand(1, 1, *images.shape[2:])
            return columns, torch.ones_like(columns)

    columns, ones = SlidingWindows(Position(), 4, 3)(torch.zeros(1, 3, 1, 6))
    # Windows at columns 0 and 2, both of 4: by hand.
    assert columns.flatten().tolist() == [0, 1, (2 + 0) / 2, (3 + 1) / 2, 2, 3]
    assert torch.equal(ones, torch.ones(1, 1, 1, 6))


def test_windows_cover_every_pixel_and_end_flush():
    for length, (window, stride) in itertools.product([1, 7, 8, 9, 31, 100], [(8, 8), (8, 5), (16, 1)]):
        starts = window_starts(length, window, stride)
        covered = {pixel for start in starts for pixel in range(start, min(start + window, length))}
        assert covered == set(range(length))
        assert starts == sorted(set(starts)) and starts[-1] == max(0, length - window)


def test_windows_with_gaps_are_refused():
    with pytest.raises(ValueError, match="stride"):
        SlidingWindows(torch.nn.Identity(), 8, 9)
