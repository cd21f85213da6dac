import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import deeplabv3plus, load_weights
from models.wide_resnet import PreActivationBlock
from tests.golden.fill import golden_image, golden_state_dict

GOLDEN = Path(__file__).parents[1] / "golden"
GAIN = 0.6  # of the golden weights
TOLERANCE = 1e-4  # of the largest magnitude


@pytest.fixture(scope="module")
def hybrid():
    """The hybrid model with the golden weights; a test leaves its state and mode as they were"""
    model = deeplabv3plus(19).eval()
    model.load_state_dict(golden_state_dict(model.state_dict(), GAIN), assign=True)
    return model


@pytest.fixture(scope="module")
def closed_set(hybrid):
    """The closed-set model; a golden tensor depends on its key alone, so both models share theirs"""
    with torch.device("meta"):  # initialising 137 million weights takes seconds
        model = deeplabv3plus(19, hybrid=False).eval()
    shared = {key: value for key, value in hybrid.state_dict().items() if not key.startswith("logits_ood.")}
    model.load_state_dict(shared, assign=True)
    model.mean, model.std = hybrid.mean, hybrid.std
    return model


def meta_model(hybrid):
    with torch.device("meta"):
        return deeplabv3plus(19, hybrid=hybrid)


def assert_close_to_release(logits, name, key):
    released = np.load(GOLDEN / f"{name}.npz")[key]
    ours = logits[:, :, ::8, ::8].numpy()
    assert ours.shape == released.shape
    assert np.abs(ours - released).max() <= TOLERANCE * np.abs(released).max()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(96, 160), (128, 128), (64, 320)])
def test_hybrid_outputs_equal_the_released_ones(hybrid, size):
    with torch.inference_mode():
        class_logits, dataset_logits = hybrid(golden_image(*size))
    assert class_logits.shape == (2, 19, *size)
    assert dataset_logits.shape == (2, 2, *size)
    name = "deeplabv3plus_hybrid_19_{}x{}".format(*size)
    assert_close_to_release(class_logits, name, "logits")
    assert_close_to_release(dataset_logits, name, "logits_ood")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(96, 160), (128, 128)])
def test_closed_set_outputs_equal_the_released_ones(closed_set, size):
    with torch.inference_mode():
        class_logits = closed_set(golden_image(*size))
    assert class_logits.shape == (2, 19, *size)
    assert_close_to_release(class_logits, "deeplabv3plus_19_{}x{}".format(*size), "logits")


@pytest.mark.slow
@pytest.mark.parametrize(("hybrid", "layout"), [(True, "deeplabv3plus_hybrid_19"), (False, "deeplabv3plus_19")])
def test_keys_shapes_and_order_are_the_released_ones(hybrid, layout):
    released = json.loads((GOLDEN / f"{layout}.layout.json").read_text())
    ours = {key: list(value.shape) for key, value in meta_model(hybrid).state_dict().items()}
    assert list(ours.items()) == list(released.items())


@pytest.mark.slow
def test_nvidias_wrapped_file_loads_into_the_hybrid_model_and_leaves_its_dataset_head(tmp_path):
    released = json.loads((GOLDEN / "deeplabv3plus_19.layout.json").read_text())
    values = {key: torch.tensor(zlib.crc32(key.encode()) % 1000) for key in released}
    # One value a tensor, expanded: a small file of the full shapes.
    tensors = {
        f"module.{key}": values[key].to(torch.int64 if key.endswith("batches_tracked") else torch.float32).expand(shape)
        for key, shape in released.items()
    }
    path = tmp_path / "cityscapes_cv0_wideresnet38_nosdcaug.pth"
    torch.save({"state_dict": tensors, "epoch": 7, "mean_iu": 0.5}, path)

    model = deeplabv3plus(19)
    head = {key: value.clone() for key, value in model.logits_ood.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing: logits_ood\.norm\.weight"):
        load_weights(model, path)
    assert load_weights(model, path, new=("logits_ood.",)) is model
    for key, value in model.state_dict().items():
        expected = values[key] if key in values else head[key.removeprefix("logits_ood.")]
        assert (value == expected).all(), key


def test_mean_and_std_are_in_no_file_and_move_with_the_model():
    model = meta_model(True)
    assert not {"mean", "std"} & set(model.state_dict())
    model.mean, model.std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)  # on the CPU, the rest is on meta already
    model.to("meta", torch.float64)
    for statistic in (model.mean, model.std):
        assert statistic.is_meta
        assert statistic.dtype == torch.float64


@pytest.mark.slow
def test_one_image_trains_no_batchnorm_and_evaluates_at_any_size(hybrid):
    image = golden_image(33, 47, batch=1)
    before = hybrid.mod2.block1.bn1[0].running_mean.clone()
    hybrid.train()
    with pytest.raises(ValueError, match="at least two images per process, got 1"):
        hybrid(image)
    hybrid.eval()
    assert torch.equal(hybrid.mod2.block1.bn1[0].running_mean, before)
    with torch.inference_mode():
        class_logits, dataset_logits = hybrid(image)
    assert class_logits.shape == (1, 19, 33, 47)
    assert dataset_logits.shape == (1, 2, 33, 47)


def test_one_image_trains_a_model_whose_batchnorm_is_frozen():
    model = meta_model(True).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    class_logits, _ = model(torch.zeros(1, 3, 16, 24, device="meta"))
    assert class_logits.shape == (1, 19, 16, 24)


def test_two_images_give_every_parameter_a_gradient():
    model = meta_model(True).train()
    class_logits, dataset_logits = model(torch.zeros(2, 3, 32, 32, device="meta"))
    (class_logits.sum() + dataset_logits.sum()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_dropout_zeroes_whole_channels_before_the_last_convolution_of_mod6_and_mod7():
    torch.manual_seed(0)
    block = PreActivationBlock(4, (8, 4000, 16), stride=1, dilation=4, dropout=0.3).train()
    nn.init.constant_(block.convs.bn3[0].bias, 10.0)  # so that ReLU zeroes nothing
    seen = []
    block.convs.conv3.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    block(torch.randn(2, 4, 5, 5))
    zeros = (seen[0] == 0).float().mean((2, 3))
    assert set(zeros.unique().tolist()) == {0.0, 1.0}
    assert zeros.mean().item() == pytest.approx(0.3, abs=0.02)  # of 8000 channels, four standard deviations

    dropouts = {name: module.p for name, module in meta_model(True).named_modules() if isinstance(module, nn.Dropout2d)}
    assert dropouts == {"mod6.block1.convs.dropout": 0.3, "mod7.block1.convs.dropout": 0.5}


def test_batchnorm_is_pytorchs_default_but_for_the_dataset_head():
    norms = {name: module for name, module in meta_model(True).named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms.pop("logits_ood.norm").momentum == 0.01
    assert {(norm.momentum, norm.eps) for norm in norms.values()} == {(0.1, 1e-5)}


@pytest.mark.slow
def test_final_starts_from_kaiming_normal():
    model = deeplabv3plus(19, hybrid=False)
    for index, fan_in in ((0, 304 * 9), (3, 256 * 9), (6, 256)):
        weight = model.final[index].weight.detach()
        std = (2 / fan_in) ** 0.5
        assert weight.std().item() == pytest.approx(std, rel=0.05)
        assert weight.abs().max() > 3 * std  # a uniform distribution ends at 1.7 standard deviations


def test_the_dataset_head_costs_at_most_a_thousandth_of_the_operations():
    flops = {}
    for hybrid in (False, True):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            meta_model(hybrid).eval()(torch.zeros(1, 3, 64, 128, device="meta"))
        flops[hybrid] = counter.get_total_flops()
    assert flops[True] - flops[False] == 2 * 304 * 2 * 32 * 64  # a 1x1 convolution from 304 to 2 at stride 2
    assert flops[True] <= 1.001 * flops[False]
