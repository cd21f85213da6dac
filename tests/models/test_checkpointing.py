import copy

import pytest
import torch
from torch import nn

import models.checkpointing
from models import deeplabv3plus, frozen, ladder_densenet121, segmenter
from models.deeplab import DeepLabV3Plus
from models.segmenter import Segmenter
from models.vit import VisionTransformer
from tests.support.networks import gradients, images_of, loss_of, narrow_trunk, stepped

NETWORKS = ["ladder_densenet121", "deeplabv3plus", "segmenter"]


@pytest.fixture
def build(monkeypatch):
    """build(network, checkpointing): the network in train mode, the wide ones made narrow, weights always the same"""
    narrow_trunk(monkeypatch)

    def build(network, checkpointing):
        torch.manual_seed(0)
        if network == "ladder_densenet121":
            return ladder_densenet121(4, checkpointing=checkpointing).train()
        if network == "deeplabv3plus":
            return DeepLabV3Plus(4, True, width=8, fine_width=4, checkpointing=checkpointing).train()
        encoder = VisionTransformer(4, 4, width=24, depth=3, heads=3, drop_path=0.5, checkpointing=checkpointing)
        sizes = {"width": 24, "heads": 2, "dropout": 0.3, "checkpointing": checkpointing}
        return Segmenter(encoder, 4, True, "decoder", **sizes).train()

    return build


@pytest.fixture
def no_second_time(monkeypatch):
    """Nothing may be checkpointed"""

    def refuse(*args, **kwargs):
        raise AssertionError("a part is checkpointed")

    monkeypatch.setattr(models.checkpointing, "checkpoint", refuse)


def assert_same(ours, theirs, tolerance=1e-5):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        largest = theirs[name].abs().max().item() if theirs[name].numel() else 0.0
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance * largest, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_gradients_and_statistics_are_the_same_with_less_kept(build, network):
    plain, again = build(network, False), build(network, True)
    outputs, expected, memory = stepped(plain, images_of(network))
    outputs_again, found, less = stepped(again, images_of(network))
    assert all(ours.equal(theirs) for ours, theirs in zip(outputs_again, outputs, strict=True))
    assert len(found) > 20
    assert_same(found, expected)
    assert_same(dict(again.named_buffers()), dict(plain.named_buffers()), 0)
    assert less < 0.5 * memory


@pytest.mark.slow
@pytest.mark.parametrize("network", ["ladder_densenet121", "deeplabv3plus"])
def test_running_statistics_are_updated_once_a_step(build, network):
    model = build(network, True)
    for steps in (1, 2):
        stepped(model, images_of(network))
        unused = "logits_aux"
        norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, nn.BatchNorm2d)}
        assert {int(norm.num_batches_tracked) for name, norm in norms.items() if unused not in name} == {steps}


def test_the_first_norm_remembers_one_hundredth_of_one_step(build):
    model = build("ladder_densenet121", True)
    images = images_of("ladder_densenet121")
    with torch.no_grad():
        seen = model.backbone.features.conv0(images).mean((0, 2, 3))
    stepped(model, images)
    torch.testing.assert_close(model.backbone.features.norm0.running_mean, 0.01 * seen, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_under_bfloat16_autocast_gradients_are_the_same(build, network):
    found = {}
    for checkpointing in (False, True):
        model = build(network, checkpointing)
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model(images_of(network)))
        loss.backward()
        found[checkpointing] = gradients(model)
    assert_same(found[True], found[False])


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_a_frozen_network_sends_its_gradient_to_the_images_alone(build, network):
    found = {}
    for checkpointing in (False, True):
        model, images = build(network, checkpointing), images_of(network, requires_grad=True)
        before = copy.deepcopy(dict(model.named_buffers()))
        torch.manual_seed(3)
        with frozen(model):
            outputs = model(images)
        loss_of(outputs).backward()  # once the weights learn again, as when a flow's negatives are trained
        assert not gradients(model)
        assert all(w.requires_grad or ".head." in n or "logits_aux" in n for n, w in model.named_parameters())
        assert_same(dict(model.named_buffers()), before, 0)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert all(norm.track_running_stats for norm in norms)
        found[checkpointing] = {"images": images.grad}
    assert_same(found[True], found[False])


@pytest.mark.parametrize("network", NETWORKS)
def test_without_training_nothing_is_computed_again(build, network, no_second_time):
    model, images = build(network, True), images_of(network)
    with torch.no_grad():
        model(images)
    loss_of(model.eval()(images)).backward()
    with pytest.raises(AssertionError, match="is checkpointed"):
        model.train()(images)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_is_not_checkpointed_unless_asked(build, network, no_second_time):
    stepped(build(network, False), images_of(network))


@pytest.mark.slow
@pytest.mark.parametrize("network", [ladder_densenet121, deeplabv3plus, segmenter])
def test_the_option_changes_no_key(network):
    with torch.device("meta"):
        plain, again = network(7), network(7, checkpointing=True)
    assert list(again.state_dict()) == list(plain.state_dict())
    parts = [module.checkpointing for module in again.modules() if hasattr(module, "checkpointing")]
    assert parts and all(parts)
    assert not any(module.checkpointing for module in plain.modules() if hasattr(module, "checkpointing"))
