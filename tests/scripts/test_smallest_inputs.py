"""The smallest input of each network, found by trying, and where less is refused."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from engine import SlidingWindows, evaluated_frames
from engine.windows import check_sides, smallest_side
from models import deeplabv3plus, fast_inference, ladder_densenet121
from models.segmenter import Segmenter
from models.vit import VisionTransformer
from tests.support.tiny import CPU, train


def small_segmenter():
    return Segmenter(VisionTransformer(width=24, depth=1, heads=3), 5, True, "linear", width=24, heads=2)


NETWORKS = {"ldn121": lambda: ladder_densenet121(5), "segmenter": small_segmenter}


def runs(model, height, width):
    try:
        with torch.inference_mode():
            outputs = model(torch.rand(2, 3, height, width))
    except RuntimeError:
        return False
    return all(output.shape[2:] == (height, width) and output.isfinite().all() for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_takes_its_smallest_side_and_nothing_below(name):
    model = NETWORKS[name]()
    least = smallest_side(model)
    for network in (model.eval(), fast_inference(model), model.train()):
        for long in (least, 70):
            assert runs(network, least, long) and runs(network, long, least)
        if least > 1:
            assert not runs(network, least - 1, 70) and not runs(network, 70, least - 1)


@pytest.mark.slow
def test_deeplab_takes_a_single_pixel():
    model = deeplabv3plus(19).eval()
    assert smallest_side(model) == 1 and runs(model, 1, 1) and runs(model, 1, 30)


class Least(nn.Module):
    smallest_side = 6

    def forward(self, images):
        return images


def test_the_outermost_module_that_says_its_smallest_side_is_asked():
    assert smallest_side(nn.Sequential(nn.ReLU(), Least())) == 6 == smallest_side(fast_inference(Least()))
    assert smallest_side(nn.ReLU()) == 1
    assert smallest_side(SlidingWindows(Least(), 8, 4)) == 6
    assert smallest_side(SlidingWindows(Least(), 8, 4, enlarge=True)) == 1


def test_windows_smaller_than_the_network_takes_are_refused():
    with pytest.raises(ValueError, match=r"windows of 5 pixels: 5x5 pixels are too few for this network, .* least 6x6"):
        SlidingWindows(Least(), 5, 3)


class Frames(Dataset):
    def __init__(self, *sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        height, width = self.sizes[index]
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        return image, image[0], f"frame {index}"


@pytest.mark.parametrize("size", [(5, 9), (9, 5), (1, 1)])
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_evaluation_names_the_frame_that_is_too_small_after_those_before(size, wrapped):
    model = SlidingWindows(Least(), 8, 4) if wrapped else Least()
    frames, seen = evaluated_frames(model, Frames((6, 6), size), CPU), []
    with pytest.raises(ValueError, match=rf"frame 1: {size[1]}x{size[0]} pixels are too few for this network"):
        seen += [frame.name for frame in frames]
    assert [frame.name for frame in evaluated_frames(model, Frames((6, 6)), CPU)] == ["frame 0"]


def test_a_crop_smaller_than_the_network_takes_is_refused_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tests.support.tiny.tiny_model", lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), Least())
    )
    with pytest.raises(ValueError, match="crop_size: 5x5 pixels are too few for this network"):
        train(tmp_path / "run", crop_size=5)
    assert not (tmp_path / "run").exists()


def test_sides_are_compared_one_by_one():
    check_sides(Least(), "x", 6, 6)
    with pytest.raises(ValueError, match="x: 6x5 pixels"):
        check_sides(Least(), "x", 5, 6)
