"""LDN-121 against the released checkpoints' layouts and the released code's outputs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import (
    backbone_slower,
    ladder_densenet121,
    load_weights,
)
from tests.golden.fill import golden_image, golden_state_dict


def saved(content, path):
    torch.save(content, path)
    return path


def shapes(model):
    return {key: list(value.shape) for key, value in model.state_dict().items()}


GOLDEN = Path(__file__).parents[1] / "golden"
LAYOUTS = {"ldn121_12": (12, False), "ldn121_hybrid_12": (12, True), "ldn121_hybrid_19": (19, True)}
OUTPUTS = sorted(path.stem for path in GOLDEN.glob("ldn121_*.npz"))


# LDN-121 against the released checkpoints' layouts and the released code's outputs


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_that_of_the_released_checkpoint(name):
    layout = json.loads((GOLDEN / f"{name}.layout.json").read_text())
    assert list(shapes(ladder_densenet121(*LAYOUTS[name])).items()) == list(layout.items())


def test_there_are_outputs_of_every_layout():
    assert {name.rsplit("_", 1)[0] for name in OUTPUTS} == LAYOUTS.keys()
    assert "ldn121_hybrid_12_90x160" in OUTPUTS  # the size that shows the grid's rounding


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_those_of_the_released_code(name, tmp_path):
    layout, size = name.rsplit("_", 1)
    model = ladder_densenet121(*LAYOUTS[layout]).eval()
    load_weights(model, saved(golden_state_dict(model.state_dict()), tmp_path / "golden.pth"))
    images = golden_image(*map(int, size.split("x")))
    with torch.no_grad():
        outputs = model(images)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    golden = np.load(GOLDEN / f"{name}.npz")
    assert len(outputs) == len(golden.files) == 1 + LAYOUTS[layout][1]
    for key, output in zip(("logits", "logits_ood"), outputs, strict=False):
        assert output.shape[2:] == images.shape[2:]
        expected = torch.from_numpy(golden[key])
        assert (output[:, :, ::8, ::8] - expected).abs().max() < 1e-4 * expected.abs().max(), key


def test_every_batchnorm_remembers_ninety_nine_parts_of_the_past():
    model = ladder_densenet121(4).train()
    images = torch.rand(2, 3, 32, 64)
    model(images)
    seen = model.backbone.features.conv0(images).mean((0, 2, 3))
    torch.testing.assert_close(model.backbone.features.norm0.running_mean, 0.01 * seen, rtol=1e-4, atol=1e-6)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 120 + 6 + 9 + 2  # backbone without its last, pyramid, three steps of three, heads
    assert {norm.momentum for norm in norms} == {0.01}


def test_the_input_is_left_as_it_was():
    images = torch.rand(1, 3, 32, 32)
    before = images.clone()
    ladder_densenet121(4).eval()(images)
    assert images.equal(before)


# What trains, and how fast


def test_every_trainable_parameter_is_in_one_group_and_only_the_backbone_is_slower():
    model = ladder_densenet121(4)
    groups = backbone_slower(model, 4e-4, 0.25)
    lr_of = [(id(parameter), group["lr"]) for group in groups for parameter in group["params"]]
    assert len(lr_of) == len(dict(lr_of))
    assert dict(lr_of) == {
        id(parameter): 1e-4 if name.startswith("backbone.") else 4e-4
        for name, parameter in model.named_parameters()
        if ".logits_aux." not in name
    }
    torch.optim.Adam(groups)  # which refuses a parameter in two groups


def test_a_frozen_parameter_is_in_no_group():
    model = ladder_densenet121(4)
    frozen = [model.backbone.features.conv0.weight, model.logits.conv.bias]
    for parameter in frozen:
        parameter.requires_grad_(False)
    grouped = {id(parameter) for group in backbone_slower(model, 1e-3, 0.25) for parameter in group["params"]}
    assert not grouped & {id(parameter) for parameter in frozen}


def test_every_parameter_but_the_auxiliary_heads_gets_a_gradient():
    model = ladder_densenet121(4).eval()
    class_logits, dataset_logits = model(torch.rand(1, 3, 64, 64))
    (class_logits.square().sum() + dataset_logits.square().sum()).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in model.named_parameters() if ".logits_aux." in name}
    assert len(without) == 3 * 4  # three steps: a norm's weight and bias, a convolution's weight and bias


@pytest.mark.parametrize("factor", [0.0, -1.0, 1.5])
def test_a_backbone_that_learns_faster_or_not_at_all_is_refused(factor):
    with pytest.raises(ValueError, match="backbone_lr_factor"):
        backbone_slower(ladder_densenet121(2), 1e-3, factor)
