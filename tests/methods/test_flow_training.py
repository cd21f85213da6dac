"""A flow trained alone: its loss and its validation beside another implementation's, and its warm-up."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import plain_denseflow
from engine import Run
from methods import Warmup, likelihood_step, likelihood_validation, samples_picture
from tests.golden.fill import golden_state_dict
from tests.support.networks import small_flow

RUN = Run(Path("run"), torch.device("cpu"), record={})


@pytest.fixture(scope="module")
def flow():
    small = small_flow()
    small.load_state_dict(golden_state_dict(small.state_dict(), gain=0.3))
    return small.eval()


def crops(count):
    return torch.randint(256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def bits_plainly(flow, images):
    """Bits per dimension of each image, with the noise that torch draws next"""
    return -plain_denseflow.log_prob(flow.state_dict(), images.float()) / (math.log(2) * 3 * 16 * 16)


def test_the_loss_is_the_bits_per_dimension_of_whole_numbers(flow):
    images = crops(3)
    torch.manual_seed(1)
    terms = likelihood_step().loss(flow, images / 255 + 1.5e-3, None)  # as resizing leaves them: no whole numbers
    torch.manual_seed(1)
    assert terms.keys() == {"bits_per_dimension"}
    assert terms["bits_per_dimension"].item() == pytest.approx(bits_plainly(flow, images).mean().item(), rel=1e-5)


def test_a_validation_is_the_mean_over_images_and_always_the_same():
    class Sums(nn.Module):
        def forward(self, images):
            return images.flatten(1).sum(1) + torch.rand(len(images))

    images = crops(5)
    dataset = [(image, torch.zeros(16, 16, dtype=torch.uint8), f"{number}.png") for number, image in enumerate(images)]
    validate = likelihood_validation(dataset, 2, RUN)  # the last batch is smaller
    figures = validate(Sums())
    expected = -images.flatten(1).sum(1).float().mean().item() / (math.log(2) * 3 * 16 * 16)
    assert figures == {"bits_per_dimension": pytest.approx(expected, rel=1e-5)}
    torch.manual_seed(8)
    assert validate(Sums()) == figures


def test_the_rate_rises_in_equal_steps_to_its_own():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.3)
    state, rates = Warmup(optimizer, 2), []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert state.state_dict()["last_epoch"] == 4


def test_the_picture_is_a_square_of_samples(flow, tmp_path):
    samples_picture(5, 16, RUN)(flow, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        width, height = picture.size
    assert width >= 3 * 16 and height >= 2 * 16 and 2 * height > width > height  # five in rows of three
