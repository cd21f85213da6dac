import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.fill import golden_image, golden_state_dict
from torch import nn
from torchvision.models import densenet121
from torchvision.models.densenet import _DenseBlock, _Transition

from engine import SlidingWindows
from losses import hybrid_score
from models import deeplabv3plus, fast_inference, ladder_densenet121, wide_resnet
from models.deeplab import DeepLabV3Plus
from models.ladder_densenet import NormReluConv
from models.segmenter import Segmenter
from models.vit import VisionTransformer
from models.wide_resnet import PreActivationBlock

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4  # of the largest magnitude
NARROW = {  # as STAGES, with a few channels
    "mod2": (1, (8, 8), 1, 1, 0.0),
    "mod3": (2, (8, 8), 1, 1, 0.0),
    "mod4": (1, (12, 12), 2, 1, 0.0),
    "mod5": (1, (8, 16), 1, 2, 0.0),
    "mod6": (1, (8, 16, 24), 1, 4, 0.3),
    "mod7": (1, (8, 16, 32), 1, 4, 0.5),
}


def lived_in(module):
    """The module in eval mode, its norms with scales of both signs, none among them, and statistics of their own"""
    torch.manual_seed(5)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
            if not norm.affine:
                continue
            with torch.no_grad():
                norm.weight.normal_()
                norm.bias.normal_()
                norm.weight[::5] = 0
                norm.weight[1::5] = 1e-40  # with which a bound would not be finite
    return module.eval()


def drawn(*shape):
    torch.manual_seed(6)
    return torch.randn(shape, dtype=torch.float64)


def assert_same(found, expected, tolerance=1e-10):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture
def networks(monkeypatch):
    """The networks, the wide ones made narrow, and an image's size for each"""
    monkeypatch.setattr(wide_resnet, "STAGES", NARROW)
    monkeypatch.setattr(DeepLabV3Plus, "fine_width", 8)
    monkeypatch.setattr(DeepLabV3Plus, "coarse_width", 32)

    def build(network, hybrid=True):
        torch.manual_seed(0)
        if network == "ladder_densenet121":
            return lived_in(ladder_densenet121(5, hybrid))
        if network == "deeplabv3plus":
            return lived_in(DeepLabV3Plus(5, hybrid, width=8, fine_width=4))
        kind = network.removeprefix("segmenter-")
        encoder = VisionTransformer(4, 4, width=24, depth=2, heads=3)
        return Segmenter(encoder, 5, hybrid, kind, width=24, heads=2).eval()

    return build


NETWORKS = ["ladder_densenet121", "deeplabv3plus", "segmenter-decoder", "segmenter-linear"]

# Against the networks themselves, and the released code


@pytest.mark.parametrize("size", [(2, 3, 64, 96), (1, 3, 45, 77)])
@pytest.mark.parametrize("network", NETWORKS)
def test_scores_and_logits_are_those_of_the_network(networks, network, size):
    model, images = networks(network), torch.rand(size)
    with torch.no_grad():
        expected = model(images)
    with torch.inference_mode():
        found = fast_inference(model)(images)
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs, TOLERANCE)
    assert_same(hybrid_score(*found), hybrid_score(*expected), TOLERANCE)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_closed_set_network_gives_its_class_logits(networks, network):
    model, images = networks(network, hybrid=False).double(), drawn(1, 3, 48, 64)
    with torch.no_grad():
        assert_same(fast_inference(model)(images), model(images))


def test_outputs_are_those_of_the_released_code():
    model = ladder_densenet121(12)
    model.load_state_dict(golden_state_dict(model.state_dict()))
    with torch.inference_mode():
        found = fast_inference(model)(golden_image(90, 160))
    golden = np.load(GOLDEN / "ldn121_hybrid_12_90x160.npz")
    for key, logits in zip(("logits", "logits_ood"), found, strict=True):
        assert_same(logits[:, :, ::8, ::8], torch.from_numpy(golden[key]), TOLERANCE)


def test_windows_around_a_network_may_be_given(networks):
    windows = SlidingWindows(networks("segmenter-linear"), 16, 12)
    images = torch.rand(1, 3, 24, 40)
    with torch.inference_mode():
        for ours, theirs in zip(fast_inference(windows)(images), windows(images), strict=True):
            assert_same(ours, theirs, TOLERANCE)


# The copy and the original


@pytest.mark.parametrize("network", NETWORKS)
def test_the_original_stays_as_it_was(networks, network):
    model = networks(network).train()
    model.logits_frozen = nn.Linear(1, 1).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    layers = [(name, type(module), module.training) for name, module in model.named_modules()]
    weights = [(name, weight.requires_grad, weight.stride()) for name, weight in model.named_parameters()]
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        fast_inference(model)(images)
    assert [(name, type(module), module.training) for name, module in model.named_modules()] == layers
    assert [(name, w.requires_grad, w.stride()) for name, w in model.named_parameters()] == weights
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("network", NETWORKS)
def test_the_copy_shares_nothing_with_the_original(networks, network):
    model, images = networks(network), torch.rand(1, 3, 32, 32)
    fast = fast_inference(model)
    with torch.no_grad():
        before = fast(images)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.5)
        assert all(ours.equal(theirs) for ours, theirs in zip(fast(images), before, strict=True))


def test_the_copy_of_a_network_in_training_is_in_eval_mode_and_learns_nothing(networks):
    model, images = networks("ladder_densenet121").double(), drawn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
    fast = fast_inference(model.train())
    assert not any(module.training for module in fast.modules())
    assert not any(weight.requires_grad for weight in fast.parameters())
    for ours, theirs in zip(fast(images), expected, strict=True):
        assert_same(ours, theirs)


def test_only_norms_that_cannot_be_folded_are_left(networks):
    def norms(network):
        return [n for n, m in fast_inference(networks(network)).named_modules() if isinstance(m, nn.BatchNorm2d)]

    assert norms("ladder_densenet121") == []
    kept = norms("deeplabv3plus")
    assert len(kept) == sum(stage[0] for stage in NARROW.values())
    assert all(name.endswith("bn1.0") for name in kept)


def test_norms_synchronised_over_processes_are_folded_too(networks):
    model, images = networks("ladder_densenet121").double(), drawn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
    fast = fast_inference(nn.SyncBatchNorm.convert_sync_batchnorm(model))
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in fast.modules())
    for ours, theirs in zip(fast(images), expected, strict=True):
        assert_same(ours, theirs)


def test_a_norm_without_statistics_is_refused():
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ValueError, match="without running statistics"):
        fast_inference(layers)


# The parts, in double precision


@pytest.mark.parametrize("layers", [
    lambda: [nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()],
    lambda: [nn.Conv2d(6, 8, 3, stride=2, dilation=2), nn.BatchNorm2d(8)],
    lambda: [nn.Conv2d(6, 6, 3, groups=3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(6, 2, 1)],
    lambda: [nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1)],
    lambda: [nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU()],
    lambda: [nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1, padding=1)],
    lambda: [nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1, groups=2)],
    lambda: [nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1)],
    lambda: [nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1), nn.ReLU(), nn.BatchNorm2d(8)],
    lambda: [nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), nn.ReLU()],
    lambda: [nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)],
    lambda: [nn.Conv2d(6, 8, 3, padding="same"), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.ReLU()],
], ids=lambda layers: "")  # fmt: skip
def test_layers_in_turn_do_what_they_did(layers):
    torch.manual_seed(0)
    sequence = nn.Sequential(*layers())
    sequence = lived_in(sequence)
    sequence, features = sequence.double(), drawn(2, 6, 7, 9)
    with torch.no_grad():
        assert_same(fast_inference(sequence)(features), sequence(features))
        assert fast_inference(sequence)(features).equal(fast_inference(sequence)(features.clone()))


def test_a_bound_by_hand():
    chain = NormReluConv(3, 1).double().eval()
    chain.norm.eps = 0.0
    chain.norm.weight.data = torch.tensor([2.0, -3.0, 0.0]).double()
    chain.norm.bias.data = torch.tensor([-4.0, 6.0, 5.0]).double()
    chain.conv.weight.data = torch.tensor([1.0, 10.0, 100.0]).double().view(1, 3, 1, 1)
    fast = fast_inference(chain)
    # 2x - 4 is over 0 from x = 2 on, 6 - 3x up to x = 2; the third is 5 whatever comes.
    for features, expected in [((1.0, 1.0, 9.0), 530.0), ((3.0, 3.0, -9.0), 502.0), ((2.0, 2.0, 0.0), 500.0)]:
        assert fast(torch.tensor(features).double().view(1, 3, 1, 1)).item() == pytest.approx(expected)
    assert fast.norm.lower.flatten().tolist() == [2.0, -torch.inf, 0.0]
    assert fast.norm.upper.flatten().tolist() == [torch.inf, 2.0, 0.0]


def test_a_dense_block_and_a_transition_are_torchvisions():
    torch.manual_seed(0)
    block = lived_in(_DenseBlock(3, 10, bn_size=2, growth_rate=4, drop_rate=0.2)).double()
    transition = lived_in(_Transition(22, 11))
    transition.pool = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
    transition, features = transition.double(), drawn(2, 10, 7, 9)
    with torch.no_grad():
        assert_same(fast_inference(block)(features), block(features))
        assert_same(fast_inference(transition)(block(features)), transition(block(features)))
        default = lived_in(_Transition(10, 5)).double()
        assert_same(fast_inference(default)(features), default(features))


@pytest.mark.parametrize("arguments", [(12, (12, 12), 1, 1, 0.0), (12, (8, 12, 16), 2, 4, 0.3)])
def test_a_residual_block_keeps_its_shortcut(arguments):
    torch.manual_seed(0)
    block, features = lived_in(PreActivationBlock(*arguments)).double(), drawn(1, 12, 8, 10)
    with torch.no_grad():
        assert_same(fast_inference(block)(features), block(features))


def test_another_network_is_copied_as_far_as_it_is_not_known():
    torch.manual_seed(0)
    model, images = lived_in(densenet121(weights=None)).double(), drawn(2, 3, 64, 64)
    with torch.no_grad():
        assert_same(fast_inference(model)(images), model(images))


def test_all_the_released_widths_can_be_copied():
    with torch.device("meta"):
        fast = fast_inference(deeplabv3plus(19))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fast.modules()) == 17
