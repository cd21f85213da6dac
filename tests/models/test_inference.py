import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import densenet121
from torchvision.models.densenet import _DenseBlock, _Transition

from engine import SlidingWindows
from losses import hybrid_score
from models import deeplabv3plus, fast_inference, fused, ladder_densenet121
from models.deeplab import DeepLabV3Plus
from models.inference import inferring
from models.inference_layers import Bounds, Form, NormRelu, Product
from models.ladder_densenet import NormReluConv
from models.segmenter import Segmenter
from models.vit import VisionTransformer
from models.wide_resnet import PreActivationBlock
from tests.golden.fill import golden_image, golden_state_dict
from tests.support.networks import NARROW, narrow_trunk

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4  # of the largest magnitude
LAYOUTS = [torch.channels_last, torch.contiguous_format]
FORMS = [Form(None, fused, layout) for fused in (False, True) for layout in LAYOUTS]


def randomise_norms(module):
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


@pytest.fixture(params=FORMS, ids=["cpu", "cpu-nchw", "gpu", "gpu-nchw"])
def fast(request):
    """A module's copy in each of the forms that differ in their operations, those for a GPU, too"""

    @torch.no_grad()
    def fast(module):
        return inferring(module, request.param).eval().to(memory_format=request.param.layout)

    return fast


@pytest.fixture
def networks(monkeypatch):
    """The networks, the wide ones made narrow, and an image's size for each"""
    narrow_trunk(monkeypatch)

    def build(network, hybrid=True):
        torch.manual_seed(0)
        if network == "ladder_densenet121":
            return randomise_norms(ladder_densenet121(5, hybrid))
        if network == "deeplabv3plus":
            return randomise_norms(DeepLabV3Plus(5, hybrid, width=8, fine_width=4))
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


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_a_closed_set_network_gives_its_class_logits(networks, network, fast):
    model, images = networks(network, hybrid=False).double(), drawn(1, 3, 48, 64)
    with torch.no_grad():
        assert_same(fast(model)(images), model(images))


@pytest.mark.slow
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


@pytest.mark.slow
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
def test_layers_in_turn_do_what_they_did(layers, fast):
    torch.manual_seed(0)
    sequence = nn.Sequential(*layers())
    sequence = randomise_norms(sequence)
    sequence, features = sequence.double(), drawn(2, 6, 7, 9)
    with torch.no_grad():
        assert_same(fast(sequence)(features), sequence(features))
        assert fast(sequence)(features).equal(fast(sequence)(features.clone()))


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


def test_a_dense_block_and_a_transition_are_torchvisions(fast):
    torch.manual_seed(0)
    block = randomise_norms(_DenseBlock(3, 10, bn_size=2, growth_rate=4, drop_rate=0.2)).double()
    transition = randomise_norms(_Transition(22, 11))
    transition.pool = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
    transition, features = transition.double(), drawn(2, 10, 7, 9)
    with torch.no_grad():
        assert_same(fast(block)(features), block(features))
        assert_same(fast(transition)(block(features)), transition(block(features)))
        default = randomise_norms(_Transition(10, 5)).double()
        assert_same(fast(default)(features), default(features))


@pytest.mark.parametrize("arguments", [(12, (12, 12), 1, 1, 0.0), (12, (8, 12, 16), 2, 4, 0.3)])
def test_a_residual_block_keeps_its_shortcut(arguments, fast):
    torch.manual_seed(0)
    block, features = randomise_norms(PreActivationBlock(*arguments)).double(), drawn(1, 12, 8, 10)
    with torch.no_grad():
        assert_same(fast(block)(features), block(features))


def test_another_network_is_copied_as_far_as_it_is_not_known(fast):
    torch.manual_seed(0)
    model, images = randomise_norms(densenet121(weights=None)).double(), drawn(2, 3, 64, 64)
    with torch.no_grad():
        assert_same(fast(model)(images), model(images))


def test_all_the_released_widths_can_be_copied():
    with torch.device("meta"):
        fast = fast_inference(deeplabv3plus(19))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fast.modules()) == 17


def test_no_copy_in_the_form_of_a_gpu_moves_norms_through_a_product(networks):
    for network in ("ladder_densenet121", "deeplabv3plus"):
        with torch.no_grad():
            kinds = [type(module) for module in inferring(networks(network), FORMS[2]).modules()]
        assert not {nn.BatchNorm2d, Bounds} & set(kinds)
        assert Product in kinds
        assert (NormRelu in kinds) == (network == "deeplabv3plus")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_activations_of_a_dense_block_lie_as_they_should(layout):
    block = fast_inference(
        randomise_norms(_DenseBlock(2, 10, bn_size=2, growth_rate=4, drop_rate=0)), memory_format=layout
    )
    seen = []
    for layer in block.layers:
        layer["bottleneck"].register_forward_hook(lambda module, inputs, output: seen.extend([*inputs, output]))
    features = block(torch.rand(2, 10, 6, 8))
    assert len(seen) == 4
    assert all(tensor.is_contiguous(memory_format=layout) for tensor in (*seen, features))


# Narrow types


def errors(model, images, dtype):
    """Of class and dataset logits, (2, number of logits) each: those of the copy and those of autocast"""
    with torch.no_grad():
        expected, found = model(images), fast_inference(model, dtype)(images)
        with torch.autocast("cpu", dtype):
            autocast = model(images)
    for ours, theirs, right in zip(found, autocast, expected, strict=True):
        assert ours.dtype == torch.float32
        yield torch.stack([(ours - right).flatten(), (theirs - right).flatten()]).double()


def assert_as_near_as_autocast(errors):
    ours, autocast = errors.square().mean(1).sqrt()
    assert 0 < ours <= 1.2 * autocast
    ours, autocast = errors.abs().amax(1)
    assert ours <= 1.3 * autocast


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("network", ["ladder_densenet121", "deeplabv3plus"])
def test_a_narrow_copy_is_as_near_to_float32_as_autocast(networks, network, dtype):
    for each in errors(networks(network), torch.rand(1, 3, 48, 80), dtype):
        assert_as_near_as_autocast(each)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", ["decoder", "linear"])
def test_a_narrow_segmenter_is_as_near_to_float32_as_autocast(head, dtype):
    """Over several weights: the sign of a patch whose two dataset logits are about equal is a matter of luck"""
    found = []
    for seed in range(16):
        torch.manual_seed(seed)
        encoder = VisionTransformer(4, 4, width=24, depth=2, heads=3)
        model = Segmenter(encoder, 5, True, head, width=24, heads=2).eval()
        found.append(list(errors(model, torch.rand(2, 3, 32, 48), dtype)))
    for each in zip(*found, strict=True):
        assert_as_near_as_autocast(torch.cat(each, dim=1))


def test_a_narrow_copy_of_norms_whose_shifts_are_large_is_as_near_as_autocast():
    """They nearly cancel: a fold that is not wide enough loses what is left"""
    torch.manual_seed(0)
    block = _DenseBlock(3, 10, bn_size=2, growth_rate=4, drop_rate=0)
    layers = nn.Sequential(block, _Transition(22, 11), nn.Conv2d(11, 8, 3), nn.BatchNorm2d(8)).eval()
    features = 10 + torch.randn(1, 10, 24, 32)
    layers.train()
    for norm in (module for module in layers.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        layers(features)  # statistics of what comes
    model = Pair(layers.eval())
    for each in errors(model, features, torch.bfloat16):
        assert_as_near_as_autocast(each)


class Pair(nn.Module):
    """Features in float32, as the networks give them"""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, features):
        return (self.layers(features).float(),)


def test_a_narrow_copy_has_products_in_its_type_and_all_else_in_float32(networks):
    for network in NETWORKS:
        fast = fast_inference(networks(network), torch.bfloat16)
        of = {name: tensor.dtype for name, tensor in (*fast.named_parameters(), *fast.named_buffers())}
        narrow = {name for name, dtype in of.items() if dtype == torch.bfloat16}
        assert {name for name, tensor in fast.named_parameters() if tensor.dim() == 4} <= narrow
        assert not {name for name in narrow if "norm" in name or "scale" in name or "shift" in name}
        assert set(of.values()) == {torch.bfloat16, torch.float32}


def test_tokens_stay_in_float32_and_attention_is_narrow(networks, monkeypatch):
    attention, types = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *tokens, **options: types.append({each.dtype for each in tokens}) or attention(*tokens, **options),
    )
    fast = fast_inference(networks("segmenter-decoder"), torch.float16)
    residual = []
    for block in fast.network.model.encoder.blocks:
        block.register_forward_hook(lambda module, inputs, output: residual.append(output.dtype))
    with torch.no_grad():
        fast(torch.rand(1, 3, 16, 16))
    assert types == [{torch.float16}] * 6  # two blocks of the encoder and of each decoder
    assert residual == [torch.float32] * 2


def test_a_padded_convolution_that_is_not_known_is_narrow_too():
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4))
    randomise_norms(layers)
    features = torch.rand(1, 3, 6, 8)
    with torch.no_grad():
        found = fast_inference(layers, torch.bfloat16)(features)
        assert found.dtype == torch.bfloat16
        assert_same(found.float(), layers(features), 0.05)


def test_a_type_that_the_copy_cannot_compute_in_is_refused():
    with pytest.raises(ValueError, match="float64 is none of float32, bfloat16 and float16"):
        fast_inference(nn.Linear(1, 1), torch.float64)


# Between convolutions


def test_a_scaled_feature_by_hand():
    features = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    scale, shift = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0])
    assert fused.scaled(features, scale, shift).flatten().tolist() == [2.5, -2.0]
    assert fused.scaled(features, None, shift, relu=True).flatten().tolist() == [1.5, 4.0]
    assert fused.scaled(features, -scale, None, relu=True).flatten().tolist() == [0.0, 3.0]
    weight = torch.tensor([[10.0, 100.0]]).view(1, 2, 1, 1)
    assert fused.product(features, scale, shift, weight, torch.tensor([-26.0])).item() == -1.0
    assert fused.product(features, scale, shift, weight, None, relu=True).item() == 25.0
    # From a coarse 0, 4 the four pixels get 0, 1, 3, 4, times the scale.
    coarse = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    wide = torch.tensor([1.0, -9.0, 0.0, 2.0]).view(1, 1, 1, 4)
    assert fused.blended(wide, coarse, torch.tensor([0.5])).flatten().tolist() == [1.0, 0.0, 1.5, 4.0]


KERNELS = """
import sys
import torch
from models import fused, kernels

torch.manual_seed(0)
fused.kernels_for = lambda features: None

def compared(function, tolerance):
    fused.kernels_for = lambda features: None
    expected = function()
    fused.kernels_for = lambda features: kernels
    found = function()
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found.float() - expected.float()).abs().max() <= tolerance * expected.float().abs().max()

for dtype, tolerance in [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)]:
    block = torch.randn(2, 80, 9, 13).to(dtype).to(memory_format=torch.channels_last)
    seen, scale, shift = block[:, 3:76], torch.randn(73), torch.randn(73)
    own = torch.randn(2, 73, 9, 13).to(dtype)  # NCHW
    coarse = torch.randn(2, 73, 4, 5).to(dtype)
    before = block.clone()
    compared(lambda: fused.scaled(seen, scale, shift), tolerance)
    compared(lambda: fused.scaled(seen, None, shift, True, torch.float32), tolerance)
    compared(lambda: fused.scaled(own, scale, None, True), tolerance)
    compared(lambda: fused.blended(own.clone(), coarse, scale), tolerance)
    # Of float32 they are cuDNN's, and those of bfloat16 Triton's interpreter gets wrong.
    for out_width in (2, 70) if dtype == torch.float16 else ():
        weight, bias = torch.randn(out_width, 73, 1, 1).to(dtype), torch.randn(out_width)
        compared(lambda: fused.product(seen, scale, shift, weight, bias, True), tolerance)
        compared(lambda: fused.product(own, scale, shift, weight, None, False, torch.float32), tolerance)
    assert block.equal(before)
    wrong = torch.full((1, 2, 1, 1), torch.nan, dtype=dtype)
    assert fused.scaled(wrong, None, None, True).isnan().all()
kernels.MANY_ROWS = 1  # the large tiles
features, weight = torch.randn(2, 40, 9, 13).half(), torch.randn(130, 40, 1, 1).half()
compared(lambda: fused.product(features, scale[:40], shift[:40], weight, None), 1e-3)
inplace = torch.randn(1, 4, 2, 2).to(memory_format=torch.channels_last)
assert fused.scaled(inplace, None, shift[:4], inplace=True).data_ptr() == inplace.data_ptr()
print("compared")
"""


@pytest.mark.processes
@pytest.mark.slow
def test_kernels_give_what_torch_gives():
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True)
    assert done.stdout == "compared\n", done.stderr


def test_where_triton_does_not_work_torch_does(monkeypatch):
    monkeypatch.setitem(sys.modules, "models.kernels", None)
    with pytest.warns(UserWarning, match="without Triton's kernels, inference on cpu is slower"):
        assert fused.working_kernels.__wrapped__(torch.device("cpu")) is None
