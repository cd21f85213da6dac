import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.densenet import _DenseBlock

from models import frozen, ladder_densenet121, norms
from models.deeplab import DeepLabV3Plus
from models.norms import DenseBlock, Layers, NormRelu
from tests.support import plain_kernels
from tests.support.networks import gradients, images_of, loss_of, narrow_trunk, stepped

WIDTH, GROWTH = 6, 4


@pytest.fixture
def fused(monkeypatch):
    """fused(): from now on torch's operators stand in for the kernels; a dict of the calls of each"""

    def fused():
        calls = {}

        class Counted:
            def __getattr__(self, name):
                calls[name] = calls.get(name, 0) + 1
                return getattr(plain_kernels, name)

        monkeypatch.setattr(norms, "working_kernels", lambda device, dtype: Counted())
        return calls

    return fused


def randomise_norms(module, seed=0):
    """In train mode, channels last, with norms that are no longer as they began"""
    torch.manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.affine:
            nn.init.normal_(norm.weight, 0.7, 0.5)
            nn.init.normal_(norm.bias, 0.2, 0.5)
    return module.train().to(memory_format=torch.channels_last)


def channels_last(*shape, dtype=torch.float64, requires_grad=True):
    torch.manual_seed(1)
    features = torch.randn(shape, dtype=dtype) + 0.5
    return features.contiguous(memory_format=torch.channels_last).requires_grad_(requires_grad)


def small_block(**options):
    block = _DenseBlock(3, WIDTH, bn_size=2, growth_rate=GROWTH, drop_rate=options.pop("drop_rate", 0.0), **options)
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.3
    return randomise_norms(block)


def outcome(module, features, compute=None):
    """Everything that a step of training changes"""
    out = (compute or module)(features)
    torch.manual_seed(2)
    (out.double() * torch.randn(out.shape, dtype=torch.float64).to(out.device)).sum().backward()
    return {"out": out.detach(), "features": features.grad, **gradients(module), **dict(module.named_buffers())}


def assert_same(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        largest = theirs[name].abs().max().item() if theirs[name].is_floating_point() else 0
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=tolerance * (1 + largest), msg=name)


def dense(block, checkpointing):
    return lambda features: norms.dense_block(
        block, features, norms.dense_block_kernels(block, features), checkpointing
    )


CHAINS = {
    "norm, ReLU, convolution": lambda: [nn.BatchNorm2d(6, momentum=0.2), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3)],
    "twice": lambda: [nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 7, 1, bias=False), nn.BatchNorm2d(7), nn.ReLU()],
    "no weights learn": lambda: [nn.BatchNorm2d(6, eps=0.1).requires_grad_(False), nn.ReLU()],
    "untracked": lambda: [nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU(), nn.AvgPool2d(2)],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_layers_in_one_pass_train_as_layers_one_by_one(fused, chain):
    module = randomise_norms(nn.Sequential(*CHAINS[chain]())).double()
    again = Layers(*copy.deepcopy(module))
    expected = outcome(module, channels_last(3, 6, 4, 5))
    calls = fused()
    found = outcome(again, channels_last(3, 6, 4, 5))
    assert_same(found, expected, 1e-12)
    count = sum(isinstance(norm, nn.BatchNorm2d) for norm in module)
    assert calls == dict.fromkeys(("moments_of", "norm_relu", "summed", "features_gradient"), count)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_dense_block_in_one_tensor_trains_as_its_layers(fused, checkpointing):
    block = small_block().double()
    again = copy.deepcopy(block)
    expected = outcome(block, channels_last(2, WIDTH, 5, 4))
    calls = fused()
    assert_same(outcome(again, channels_last(2, WIDTH, 5, 4), dense(again, checkpointing)), expected, 1e-12)
    assert calls["moments_of"] == 7  # of the input, and of what each layer computes in between and appends
    assert calls["norm_relu"] == (12 if checkpointing else 6)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_dense_block_are_those_of_finite_differences(checkpointing):
    block = small_block().double()
    layers = list(block.children())[:2]
    weights = [weight for layer in layers for weight in (
        layer.norm1.weight, layer.norm1.bias, layer.conv1.weight, layer.norm2.weight, layer.norm2.bias,
        layer.conv2.weight,
    )]  # fmt: skip
    features = channels_last(2, WIDTH, 2, 2)
    torch.autograd.gradcheck(
        lambda features, *weights: DenseBlock.apply(features, layers, plain_kernels, not checkpointing, *weights),
        (features, *weights),
    )


def test_gradients_of_norm_and_relu_are_those_of_finite_differences():
    features = channels_last(2, 3, 2, 3)
    weight, bias = torch.tensor([[0.8, -1.2, 0.5], [0.1, 0.3, -0.2]], dtype=torch.float64).requires_grad_()

    def function(features, weight, bias):
        moments = torch.empty(3, 3, dtype=torch.float64)
        plain_kernels.moments_of(norms.as_rows(features.detach()), moments, 1e-5)
        return NormRelu.apply(features, moments, weight, bias, torch.float64, plain_kernels)

    torch.autograd.gradcheck(function, (features, weight.detach().requires_grad_(), bias.detach().requires_grad_()))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gradient_that_others_need_stays_as_it_is(checkpointing):
    block = small_block().double()
    layers, weights = list(block.children()), []
    for layer in layers:
        weights += [layer.norm1.weight, layer.norm1.bias, layer.conv1.weight]
        weights += [layer.norm2.weight, layer.norm2.bias, layer.conv2.weight]
    out = DenseBlock.apply(channels_last(2, WIDTH, 4, 4), layers, plain_kernels, not checkpointing, *weights)
    grad = torch.randn_like(out)
    before = grad.clone()
    out.backward(grad)
    assert torch.equal(grad, before)


def network(name, checkpointing):
    torch.manual_seed(0)
    if name == "ladder_densenet121":
        return randomise_norms(ladder_densenet121(4, checkpointing=checkpointing))
    return randomise_norms(DeepLabV3Plus(4, True, width=8, fine_width=4, checkpointing=checkpointing))


@pytest.fixture
def narrow(monkeypatch):
    narrow_trunk(monkeypatch)


def step_of(model, images):
    outputs, found, memory = stepped(model, images)
    logits = {f"logits {number}": logits for number, logits in enumerate(outputs)}
    return {**logits, **found, **dict(model.named_buffers())}, memory


def images_in(dtype):
    return images_of("any").to(dtype=dtype, memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ladder_densenet121", "deeplabv3plus"])
def test_networks_train_the_same_in_one_pass(narrow, fused, name):
    expected, memory = step_of(network(name, False).double(), images_in(torch.float64))
    calls = fused()
    for checkpointing in (False, True):
        calls.clear()
        model = network(name, checkpointing).double()
        found, kept = step_of(model, images_in(torch.float64))
        assert_same(found, expected, 1e-9)
        trained = [norm for n, norm in model.named_modules() if type(norm) is nn.BatchNorm2d and "logits_aux" not in n]
        assert {int(norm.num_batches_tracked) for norm in trained} == {1}
        if not checkpointing:
            assert calls["norm_relu"] == len(trained)
        assert kept < (0.4 if checkpointing else 1) * memory


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_network_sends_its_gradient_to_the_images_alone(fused, checkpointing):
    found = []
    for patch in (lambda: None, fused):
        calls = patch()
        model = network("ladder_densenet121", checkpointing).double()
        images = images_in(torch.float64).requires_grad_()
        before = copy.deepcopy(dict(model.named_buffers()))
        with frozen(model):
            outputs = model(images)
        loss_of(outputs).backward()
        assert not gradients(model)
        assert_same(dict(model.named_buffers()), before, 0)
        found.append({"images": images.grad})
    assert calls["settled"] == 58 + 4
    assert_same(found[1], found[0], 1e-9)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_under_autocast_one_pass_rounds_no_more_than_layers(fused, checkpointing):
    exact = outcome(small_block().double(), channels_last(2, WIDTH, 16, 16))

    def errors(compute):
        block = small_block()
        features = channels_last(2, WIDTH, 16, 16).detach().bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            found = outcome(block, features, compute(block))
        assert found["out"].dtype == torch.bfloat16
        pairs = {name: (found[name].double(), exact[name].double()) for name in exact}
        return {name: ((ours - theirs).norm() / theirs.norm()).item() for name, (ours, theirs) in pairs.items()}

    plain = errors(lambda block: block)
    fused()
    found = errors(lambda block: dense(block, checkpointing))
    assert found.keys() == plain.keys()
    for name, error in found.items():
        assert error <= 1.5 * plain[name] + 1e-3, name


def test_under_autocast_features_before_a_convolution_are_rounded_at_once(fused):
    layers = [nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)]
    plain = randomise_norms(nn.Sequential(*layers))
    again = Layers(*randomise_norms(copy.deepcopy(plain)))
    seen = []
    again[2].register_forward_pre_hook(lambda conv, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        expected = outcome(plain, channels_last(2, 6, 5, 5, dtype=torch.float32))
        fused()
        found = outcome(again, channels_last(2, 6, 5, 5, dtype=torch.float32))
    assert seen == [torch.bfloat16]
    assert_same(found, expected, 0.01)


def without_statistics(norm):
    norm.momentum = None


PLAIN = {
    "eval mode": lambda layers: layers.eval(),
    "a mean over all batches": lambda layers: without_statistics(layers[0]) or layers,
    "several processes": nn.SyncBatchNorm.convert_sync_batchnorm,
    "no weights": lambda layers: Layers(nn.BatchNorm2d(6, affine=False), *layers[1:]),
    "another activation": lambda layers: Layers(layers[0], nn.ReLU6()),
}


@pytest.mark.parametrize("case", PLAIN)
def test_other_layers_are_computed_one_by_one(fused, case):
    calls = fused()
    layers = PLAIN[case](Layers(*randomise_norms(nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()))))
    assert norms.kernels_for(channels_last(2, 6, 4, 4, dtype=torch.float32), nn.BatchNorm2d(6))
    if case != "several processes":  # which wants a GPU
        layers(channels_last(2, 6, 4, 4, dtype=torch.float32))
    else:
        assert not norms.kernels_for(channels_last(2, 6, 4, 4, dtype=torch.float32), layers[0])
    assert not calls


def test_features_of_another_layout_or_of_one_number_are_computed_one_by_one(fused):
    calls = fused()
    layers = Layers(nn.BatchNorm2d(6), nn.ReLU())
    layers(torch.randn(2, 6, 4, 4))
    with pytest.raises(ValueError, match="more than 1 value"):
        layers(torch.randn(1, 6, 1, 1))
    assert not calls


def test_dense_blocks_that_draw_or_differ_are_computed_one_by_one(fused):
    fused()
    features = channels_last(2, WIDTH, 4, 4, dtype=torch.float32)
    assert norms.dense_block_kernels(small_block(), features)
    other = small_block()
    other.denselayer2.norm1.eps = 0.1
    for block in (small_block(drop_rate=0.1), small_block(memory_efficient=True), small_block().eval(), other):
        assert not norms.dense_block_kernels(block, features)
    with torch.autocast("cpu", torch.bfloat16):
        assert not norms.dense_block_kernels(small_block(), features)
        assert norms.dense_block_kernels(small_block(), features.bfloat16())


def test_on_a_cpu_layers_are_computed_one_by_one():
    features = channels_last(2, 6, 4, 4, dtype=torch.float32)
    assert norms.kernels_for(features, nn.BatchNorm2d(6)) is None
    assert norms.dense_block_kernels(small_block(), features) is None


def test_tensors_without_numbers_pass_through_dense_blocks():
    with torch.device("meta"):
        out = ladder_densenet121(4).train().backbone(torch.rand(2, 3, 64, 64))
    assert [features.shape[1] for features in out] == [256, 512, 1024, 1024]


def test_a_triton_that_does_not_work_is_reported_and_done_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "models.norm_kernels", None)
    monkeypatch.delattr("models.norm_kernels", raising=False)
    with pytest.warns(UserWarning, match=r"without Triton's kernels, training on cuda:0 is slower \(.*Error: "):
        assert norms.working_kernels.__wrapped__(torch.device("cuda:0"), torch.bfloat16) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_kernels_compute_what_torch_does(monkeypatch):
    from tests.support import norm_kernel_checks

    for constant in ("PROGRAMS", "FEW_PARTS", "MANY_PARTS"):
        value = getattr(norm_kernel_checks.norm_kernels, constant)
        monkeypatch.setattr(norm_kernel_checks.norm_kernels, constant, value)  # put back afterwards
    with torch.device("cuda"):
        norm_kernel_checks.main()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_on_a_gpu_a_dense_block_trains_as_its_layers(monkeypatch, checkpointing):
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")
    block = _DenseBlock(4, 64, bn_size=4, growth_rate=32, drop_rate=0.0)
    features = channels_last(3, 64, 21, 17, requires_grad=False).bfloat16()
    expected = outcome(randomise_norms(copy.deepcopy(block)).double(), features.double().requires_grad_())
    for dtype, tolerance in ((torch.float32, 0.01), (torch.bfloat16, 0.3)):  # where a ReLU is near zero, it may flip
        again = randomise_norms(copy.deepcopy(block)).to("cuda")
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            found = outcome(again, features.to("cuda", dtype).requires_grad_(), dense(again, checkpointing))
        for name, tensor in found.items():
            error = (tensor.cpu().double() - expected[name]).norm() / (expected[name].double().norm() + 1e-9)
            assert error < tolerance, f"{name} in {dtype}: {error}"


@pytest.mark.processes
@pytest.mark.slow
def test_the_kernels_compute_what_torch_does():
    pytest.importorskip("triton")
    project = Path(__file__).parents[2]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(project / "tests" / "support" / "norm_kernel_checks.py")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
