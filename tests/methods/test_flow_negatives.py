"""Negatives of a flow, a small one: what it samples, where they are pasted, and what a training keeps of it."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import plain_denseflow
from engine import Run
from engine.recipe import read_recipe
from labels import IGNORE, OUTLIER
from methods import FlowNegatives, FlowRecipe
from tests.golden.fill import golden_state_dict
from tests.support.networks import small_flow
from tests.support.stand_ins import put_in_place

CPU = torch.device("cpu")
SIDES = {"patch_sides": [8, 16, 8], "crop_size": 24}


@pytest.fixture
def negatives(monkeypatch, in_tmp):
    """negatives(flow_state, per_image, a recipe number=...): FlowNegatives of a small flow"""
    put_in_place(monkeypatch, {"models.denseflow_25_6": small_flow})
    torch.save(golden_state_dict(small_flow().state_dict(), gain=0.3), "flow.pth")

    def make(flow_state="flow.pth", per_image=1, **changes):
        recipe, _ = read_recipe("dlv3_cityscapes_finetune_flow", FlowRecipe, SIDES | changes)
        return FlowNegatives(flow_state, recipe, Run(Path("run"), CPU, record={}), per_image=per_image)

    return make


def sampled_plainly(negatives, count, height, width):
    """By another implementation, from the numbers that torch draws next"""
    return plain_denseflow.sample(negatives.flow.state_dict(), count, height, width)


def test_samples_are_patches_in_0_to_1_of_sides_that_are_drawn_anew(negatives, monkeypatch):
    flow, sizes = negatives(), set()
    patches = flow.sample(2)
    assert patches.requires_grad and patches.shape[:2] == (2, 3) and 0 <= patches.min() < patches.max() <= 1
    monkeypatch.setattr(flow.flow, "sample", lambda count, *size, check: sizes.add(size) or torch.zeros(count, 3, 1, 1))
    for _ in range(100):
        flow.sample(2)
    assert sizes == {(8, 8), (8, 16), (16, 8), (16, 16)}


@pytest.mark.parametrize("per_image", [1, 3])
def test_each_image_gets_its_own_patches_without_gradient(per_image, negatives, monkeypatch):
    flow = negatives(per_image=per_image)

    def sample(count, height, width, check):
        assert not check  # for which a GPU would be waited for
        return torch.arange(1.0, count + 1)[:, None, None, None].expand(count, 3, 8, 8).clone().requires_grad_()

    monkeypatch.setattr(flow.flow, "sample", sample)
    torch.manual_seed(0)
    images, labels = torch.zeros(4, 3, 24, 24), torch.full((4, 24, 24), IGNORE)
    pasted, pasted_labels = flow.paste(images, labels)
    assert not pasted.requires_grad and not images.any() and (labels == IGNORE).all()
    outlier = pasted_labels == OUTLIER
    assert (pasted_labels[~outlier] == IGNORE).all() and (pasted.amax(1) > 0).equal(outlier)
    for number, image in enumerate((255 * pasted).round().int()):
        own = set(range(number * per_image + 1, (number + 1) * per_image + 1))
        assert max(own) in image.unique().tolist() and set(image.unique().tolist()) <= own | {0}
        assert (image[0] == max(own)).sum() == 64  # the last one covers the others
    assert 64 <= outlier[0].sum() <= 64 * per_image


def test_patches_are_pasted_onto_the_photograph_alone(negatives):
    flow = negatives(per_image=2)
    content = torch.tensor([[0, 0, 12, 24], [6, 0, 18, 24]])  # top, left, height, width
    images, labels = torch.zeros(2, 3, 24, 24), torch.zeros(2, 24, 24, dtype=torch.int64)
    for _ in range(4):
        _, pasted_labels = flow.paste(images, labels, content)
        outlier = pasted_labels == OUTLIER
        assert outlier[0].any() and not outlier[0, 12:].any() and outlier[1].any() and not outlier[1, :6].any()


class Seen(nn.Module):
    def forward(self, images):
        self.images = images
        return images.sum(1, keepdim=True) * torch.tensor([1.0, -2.0])[:, None, None], None


def test_the_flows_own_patch_lies_on_the_photograph_too_and_is_one(negatives):
    flow, model = negatives(per_image=3), Seen()
    content = torch.tensor([[0, 0, 12, 24]] * 4)
    images, labels = torch.zeros(4, 3, 24, 24), torch.zeros(4, 24, 24, dtype=torch.int64)
    terms = flow.loss(model, images, labels, content)
    assert list(terms) == ["jensen_shannon", "bits_per_dimension"]
    changed = model.images.detach().amax(1) > 0
    assert changed.any() and not changed[:, 12:].any()
    for each in changed:
        rows, columns = (each.any(dim).sum().item() for dim in (1, 0))
        assert rows in (8, 12) and columns in (8, 16)  # one patch, or what of it the photograph shows
    sum(terms.values()).backward()
    assert all(weight.grad is not None for weight in flow.flow.parameters())


def test_the_patches_of_validations_are_the_first_samples_as_whole_numbers(negatives):
    flow = negatives(validation_patches=5, patch_sides=[8, 8, 8])
    torch.manual_seed(3)
    found = flow.validation_patches()
    torch.manual_seed(3)
    assert len(found) == 5
    for patch, mask, _ in found:
        for _ in range(2):
            torch.randint(1, ())  # of the sides
        expected = sampled_plainly(flow, 1, 8, 8)[0]
        assert patch.dtype == torch.uint8 and mask.all() and mask.shape == (8, 8)
        assert (patch.float() - expected).abs().max() <= 0.5 + 1e-3


def test_what_a_training_keeps_is_the_flow_and_what_trains_it(negatives):
    for flow_state, lr, best in (("flow.pth", 1e-5, "AP"), ("none", 1e-3, "mIoU")):
        flow = negatives(flow_state)
        assert flow.best == best and list(flow.state) == ["flow", "flow_optimizer", "flow_schedule"]
        (group,) = flow.state["flow_optimizer"].param_groups
        assert flow.state["flow"] is flow.flow and group["lr"] == lr
        assert {id(weight) for weight in group["params"]} == {id(weight) for weight in flow.flow.parameters()}
        flow.state["flow_optimizer"].step()
        flow.state["flow_schedule"].step()
        assert group["lr"] == pytest.approx(0.99 * lr)


def test_a_picture_shows_eight_samples_and_leaves_the_numbers_alone(negatives):
    flow = negatives()
    before = torch.get_rng_state()
    for path in (Path("first.png"), Path("second.png")):
        flow.save_picture(None, path)
    assert torch.get_rng_state().equal(before)
    assert Path("first.png").read_bytes() == Path("second.png").read_bytes()
    with Image.open("first.png") as picture:
        assert picture.size[0] >= 4 * 16 and picture.size[1] >= 2 * 16


def test_another_file_than_a_flows_is_refused_with_where_to_get_one(negatives):
    with pytest.raises(FileNotFoundError, match=r"no weight file gone\.pth; --flow_state takes a file of train"):
        negatives("gone.pth")
