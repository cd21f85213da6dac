"""DenseFlow: against the released code's outputs, a transcription, autograd's Jacobian and its own inverse."""

import copy
import itertools
import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import plain_denseflow
from models import denseflow, denseflow_25_6, load_weights
from models.denseflow import ActNorm, Coupling, DenseFlow, FusedCoupling
from tests.golden.fill import golden_image, golden_state_dict

GOLDEN = Path(__file__).parents[1] / "golden"
LAYOUT = json.loads((GOLDEN / "denseflow_25_6.layout.json").read_text())
SIZES = ["32x32", "64x48"]


@pytest.fixture(scope="module")
def released():
    """DenseFlow-25-6 with the golden weights"""
    flow = denseflow_25_6()
    flow.load_state_dict(golden_state_dict(flow.state_dict(), gain=0.3))
    return flow.eval()


@pytest.fixture
def no_noise(monkeypatch):
    """All Gaussian noise 0, the dequantization noise one half"""
    monkeypatch.setattr(torch, "rand", lambda *size, **kind: torch.full(*size, 0.5, **kind))
    monkeypatch.setattr(torch, "randn", lambda *size, **kind: torch.zeros(*size, **kind))


@pytest.fixture(params=["modules", "fused"])
def each_way(request, monkeypatch):
    """Both ways to run the flow, on this CPU: that of CPUs and that of GPUs"""
    monkeypatch.setattr(denseflow, "fused", lambda features: request.param == "fused")


def small_flow(checkpointing=False, filled=True, seed=None, dense_layers=2):
    """Three dense blocks as in DenseFlow-25-6, of a few narrow layers, in float64 and with every weight filled"""
    if seed is not None:
        torch.manual_seed(seed)
    flow = DenseFlow((2, 3, 1), (2, 1, 2), growth=2, width=4, dense_layers=dense_layers, checkpointing=checkpointing)
    if filled:
        flow.load_state_dict(golden_state_dict(flow.state_dict(), gain=0.3))
        flow.eval()
    return flow.double()


def whole_numbers(batch, height, width, most=255, seed=0):
    return torch.randint(0, most + 1, (batch, 3, height, width), generator=torch.Generator().manual_seed(seed))


def seeded(seed, function, *inputs):
    torch.manual_seed(seed)
    return function(*inputs)


def assert_close_to_golden(ours, golden):
    golden = torch.from_numpy(golden)
    assert ours.shape == golden.shape
    assert (ours - golden).abs().max() < 1e-4 * golden.abs().max()


# DenseFlow-25-6 against the released checkpoints and the released code's outputs


@pytest.mark.slow
def test_the_layout_is_that_of_the_released_checkpoint(released):
    assert [(key, list(value.shape)) for key, value in released.state_dict().items()] == list(LAYOUT.items())
    assert sum(parameter.numel() for parameter in released.parameters()) == 35_736_742


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_the_density_and_the_latent_are_those_of_the_released_code(size, released, no_noise, each_way):
    golden = np.load(GOLDEN / f"denseflow_25_6_{size}.npz")
    images = (golden_image(*map(int, size.split("x"))) * 255).long()
    with torch.no_grad():
        latent, log_likelihood, _ = released.encode(images)
        log_prob = log_likelihood + released.base_dist.log_prob(latent)
    assert_close_to_golden(latent, golden["z"])
    assert_close_to_golden(log_prob, golden["log_prob"])


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_samples_are_those_of_the_released_code(size, released, no_noise, each_way):
    golden = np.load(GOLDEN / f"denseflow_25_6_{size}.npz")["sample"]
    with torch.no_grad():
        assert_close_to_golden(released.sample(len(golden), *golden.shape[2:]), golden)


@pytest.mark.slow
def test_the_density_is_that_of_its_parts(released):
    images = whole_numbers(2, 16, 8)
    with torch.no_grad():
        latent, log_likelihood, _ = seeded(3, released.encode, images)
        assert seeded(3, released.log_prob, images).equal(log_likelihood + released.base_dist.log_prob(latent))
        assert seeded(3, released, images).equal(seeded(3, released.log_prob, images.to(torch.uint8)))


@pytest.mark.parametrize("prefix", ["", "flow.", "module.", "module.flow."])
def test_both_kinds_of_released_files_are_loaded_strictly(prefix, tmp_path):
    state = small_flow().float().state_dict()
    torch.save({"model": {prefix + key: value for key, value in state.items()}}, tmp_path / "flow.pt")
    flow = load_weights(small_flow(filled=False).float(), tmp_path / "flow.pt")
    assert all(value.equal(state[key]) for key, value in flow.state_dict().items())


@pytest.mark.slow
def test_a_file_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "flow.pt"
    state = small_flow().float().state_dict()
    for wrong, message in (
        ({"logits.weight": torch.zeros(3)}, r"flow\.pt does not fit DenseFlow: .* missing: .*1 unexpected: logits"),
        ({key: value for key, value in state.items() if key != "base_dist.loc"}, r"1 missing: base_dist\.loc"),
        (state | {"base_dist.loc": torch.zeros(1, 4, 1, 1)}, r"base_dist\.loc \(1, 4, 1, 1\) instead of"),
    ):
        torch.save({"model": wrong}, path)
        with pytest.raises(ValueError, match=message):
            load_weights(small_flow(), path)


# Its parts on a small flow, in float64


def test_the_density_is_that_of_a_transcription_layer_by_layer(each_way):
    flow, images = small_flow(), whole_numbers(2, 16, 24)
    weights = dict(flow.named_parameters())
    ours = seeded(1, flow.log_prob, images)
    plain = seeded(1, plain_denseflow.log_prob, weights, images)
    torch.testing.assert_close(ours, plain, rtol=1e-7, atol=0)
    gradients = torch.autograd.grad(ours.sum(), weights.values())
    expected = torch.autograd.grad(plain.sum(), weights.values())
    for key, one, other in zip(weights, gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * other.abs().max().item(), msg=key)


def test_samples_are_those_of_a_transcription_layer_by_layer(each_way):
    flow = small_flow()
    ours = seeded(1, flow.sample, 3, 16, 24)
    torch.testing.assert_close(ours, seeded(1, plain_denseflow.sample, dict(flow.named_parameters()), 3, 16, 24))
    assert 0.1 < ((ours > 0) & (ours < 255)).double().mean() < 0.9  # so that both were seen, the clamped and the rest


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (40, 8)])
def test_an_image_is_recovered_from_its_latent_and_the_dropped_halves(size, each_way):
    flow, images = small_flow(), whole_numbers(2, *size, most=254)
    latent, _, dropped = seeded(2, flow.encode, images)
    torch.manual_seed(2)
    noise = torch.rand(images.shape, dtype=torch.float64)  # the first that encode draws
    torch.testing.assert_close(flow.decode(latent, dropped), images + noise, rtol=0, atol=1e-4)
    assert latent.shape == (2, flow.channels, size[0] // 8, size[1] // 8)
    assert [tuple(half.shape[1:]) for half in dropped] == [
        (28, size[0] // 4, size[1] // 4),
        (64, size[0] // 8, size[1] // 8),
    ]


def test_dropped_halves_that_are_not_given_are_drawn_from_a_standard_normal():
    flow = small_flow()
    latent, _, dropped = flow.encode(whole_numbers(2, 16, 16))
    torch.manual_seed(4)
    drawn = [torch.randn(half.shape, dtype=torch.float64) for half in reversed(dropped)]  # the deepest first
    assert flow.decode(latent, drawn[::-1]).equal(seeded(4, flow.decode, latent))
    assert not flow.decode(latent).equal(flow.decode(latent))


@pytest.mark.slow
def test_what_encoding_gains_is_the_jacobians_determinant_and_the_densities_of_the_noise(monkeypatch):
    # The map from the image, with its place inside each level, and the noise of the cross-unit couplings to the
    # dropped halves and the latent is one to one. An image's share of ln p is ln|det| of it, plus the density of the
    # dropped halves, minus that of the noise.
    flow, images = small_flow(), whole_numbers(1, 8, 8)
    shapes = [(1, 2, 4, 4), (1, 2, 2, 2), (1, 2, 2, 2)]  # 2 channels before every step of a block but its first
    sizes = [math.prod(shape) for shape in shapes]
    generator = torch.Generator().manual_seed(7)
    dequantized = images.double().flatten() + torch.rand(images.numel(), generator=generator, dtype=torch.float64)
    noise = torch.randn(sum(sizes), generator=generator, dtype=torch.float64)
    gained = []

    def one_to_one(inputs):
        """(192 + 48,) -> as many"""
        pixels, *noises = inputs.split([images.numel(), *sizes])
        drawn = iter([part.view(shape) for part, shape in zip(noises, shapes, strict=True)])
        monkeypatch.setattr(torch, "rand", lambda shape, **kind: (pixels - images.flatten()).view(shape))
        monkeypatch.setattr(torch, "randn", lambda shape, **kind: next(drawn))
        latent, log_likelihood, dropped = flow.encode(images)
        gained.append(log_likelihood.item())
        return torch.cat([part.flatten() for part in (latent, *dropped)])

    inputs = torch.cat([dequantized, noise])
    outputs = one_to_one(inputs)
    jacobian = torch.autograd.functional.jacobian(one_to_one, inputs)
    assert jacobian.shape == (len(inputs), len(inputs))
    dropped = outputs[flow.channels :]  # the latent is a single pixel
    expected = torch.linalg.slogdet(jacobian).logabsdet
    expected = expected + torch.distributions.Normal(0, 1).log_prob(dropped).sum()
    expected = expected - torch.distributions.Normal(0, 1).log_prob(noise).sum()
    assert gained[0] == pytest.approx(expected.item(), rel=1e-6)


def test_the_base_density_is_a_gaussian_of_each_channel():
    flow = small_flow()
    latent = torch.randn(2, flow.channels, 2, 3, dtype=torch.float64)
    gaussian = torch.distributions.Normal(flow.base_dist.loc, flow.base_dist.log_scale.exp())
    torch.testing.assert_close(flow.base_dist.log_prob(latent), gaussian.log_prob(latent).sum((1, 2, 3)))
    drawn = flow.base_dist.sample(4, 40, 40)
    torch.testing.assert_close(drawn.mean((0, 2, 3)), flow.base_dist.loc.flatten(), rtol=0, atol=0.1)
    torch.testing.assert_close(drawn.std((0, 2, 3)), flow.base_dist.log_scale.exp().flatten(), rtol=0.1, atol=0)


def test_a_new_flow_only_turns_what_it_is_given():
    # Couplings and norms start as the identity, and the matrices as rotations: with plain noise appended, lengths are
    # kept, and all that the likelihood gains is known.
    flow, images = small_flow(filled=False, seed=0).eval(), whole_numbers(2, 8, 8)
    for parameter in (value for name, value in flow.named_parameters() if "noise_params" in name):
        torch.nn.init.zeros_(parameter)
    latent, gained, dropped = seeded(5, flow.encode, images)
    torch.manual_seed(5)
    dequantized = (images + torch.rand(images.shape, dtype=torch.float64)) / 256 - 0.5
    noise = [torch.randn(2, 2, side, side, dtype=torch.float64).flatten(1) for side in (4, 2, 2)]
    noise, halves = torch.cat(noise, 1), torch.cat([half.flatten(1) for half in dropped], 1)
    normal = torch.distributions.Normal(0, 1)
    expected = -192 * math.log(256) + normal.log_prob(halves).sum(1) - normal.log_prob(noise).sum(1)
    torch.testing.assert_close(gained, expected, rtol=1e-7, atol=0)
    before = dequantized.square().sum((1, 2, 3)) + noise.square().sum(1)
    after = latent.square().sum((1, 2, 3)) + halves.square().sum(1)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=0)


# Samples and their gradients


def test_samples_send_gradients_to_all_that_the_inverse_uses():
    flow = small_flow()
    flow.sample(2, 16, 16).sum().backward()
    for name, parameter in flow.named_parameters():
        if "noise_params" in name:  # the inverse drops the noise's channels
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_the_gradient_of_a_sample_is_that_of_a_small_change():
    flow, direction = small_flow(), torch.Generator().manual_seed(1)
    weights = torch.randn(2, 3, 8, 8, generator=direction, dtype=torch.float64)

    def value():
        return (weights * seeded(3, flow.sample, 2, 8, 8)).sum()

    layer = flow.transforms[5].blocks[1].transforms[0]
    for parameter in (layer.mix.weight, layer.norm.log_scale, flow.base_dist.loc):
        (gradient,) = torch.autograd.grad(value(), parameter)
        change = torch.randn(parameter.shape, generator=direction, dtype=torch.float64)
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                parameter += sign * 1e-7 * change
                ends.append(value())
                parameter -= sign * 1e-7 * change
        assert ((ends[0] - ends[1]) / 2e-7).item() == pytest.approx((gradient * change).sum().item(), rel=1e-4)


def test_gradients_stop_at_clamped_values(each_way):
    flow = small_flow()
    latent = flow.base_dist.sample(1, 1, 1).detach().requires_grad_()
    dropped = [torch.randn(1, 28, 2, 2, dtype=torch.float64), torch.randn(1, 64, 1, 1, dtype=torch.float64)]
    image = flow.decode(latent, dropped)
    for clamped in (0, 255):
        mask = image == clamped
        assert mask.any()
        assert not torch.autograd.grad(image[mask].sum(), latent, retain_graph=True)[0].any()
    free = image[(image > 0) & (image < 255)]
    assert torch.autograd.grad(free.sum(), latent)[0].any()


def test_samples_lie_within_the_pixels_range_and_are_not_rounded():
    with torch.no_grad():
        drawn = seeded(0, small_flow().sample, 4, 24, 16)
    assert drawn.shape == (4, 3, 24, 16)
    assert drawn.min() == 0 and drawn.max() == 255
    assert (drawn != drawn.round()).double().mean() > 0.1


@pytest.mark.parametrize(("height", "width"), [(12, 16), (16, 20), (0, 8), (8, 4), (-8, 8), (7, 8)])
def test_sides_that_do_not_divide_by_eight_are_refused(height, width):
    flow = small_flow()
    with pytest.raises(ValueError, match=rf"images of {width}x{height} pixels: sides must be multiples of 8"):
        flow.sample(1, height, width)
    if min(height, width) > 0:
        with pytest.raises(ValueError, match=rf"images of {width}x{height} pixels: sides must be multiples of 8"):
            flow.log_prob(torch.zeros(1, 3, height, width))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_flow_that_has_diverged_says_so_when_it_draws(value):
    flow = small_flow()
    with torch.no_grad():
        flow.base_dist.loc[0, 5] = value
    with pytest.raises(FloatingPointError, match=r"\d+ of 192 values drawn from the flow are not finite: it has div"):
        flow.sample(1, 8, 8)


# Setting the ActNorm layers


def outputs_of_norms(flow, images, seed=0):
    """What each ActNorm makes of its input when the images go through the flow, in order"""
    found = []

    def record(layer, inputs, _):
        norm = layer.norm
        found.append(((inputs[0] - norm.shift) * (-norm.log_scale).exp()).detach())

    hooks = [layer.register_forward_hook(record) for layer in flow.layers()]
    seeded(seed, flow.encode, images)
    for hook in hooks:
        hook.remove()
    return found


def test_the_first_images_in_train_mode_set_every_norm(no_noise, each_way):
    flow, images = small_flow(filled=False, seed=0).train(), whole_numbers(4, 16, 16)
    assert len(flow.layers()) == 2 * 2 + 3 * 1 + 1 * 2 and not flow.is_initialized()
    flow.log_prob(images)
    assert flow.is_initialized()
    without_noise = 0
    for output in outputs_of_norms(flow, images):
        assert output.mean((0, 2, 3)).abs().max() < 1e-6
        spread = output.std((0, 2, 3))  # unbiased; zero where a channel is noise, which is zero here
        assert ((spread - 1).abs() < 1e-3).logical_or(spread < 1e-3).all()
        without_noise += int(((spread - 1).abs() < 1e-3).sum())
    assert without_noise > 200


def test_norms_are_set_from_images_with_all_their_noise():
    flow, images = small_flow(filled=False, seed=0).train(), whole_numbers(16, 32, 32)
    flow.log_prob(images)
    for output in outputs_of_norms(flow, images, seed=9):  # other noise than when they were set
        assert output.mean((0, 2, 3)).abs().max() < 0.2
        assert (output.std((0, 2, 3)) - 1).abs().max() < 0.2


def test_a_norm_is_set_by_the_unbiased_deviation():
    norm = ActNorm(2).double()
    norm.initialize(torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]]], dtype=torch.float64))
    assert norm.shift.flatten().tolist() == [2, 5]
    assert norm.log_scale.flatten().tolist() == pytest.approx([math.log(math.sqrt(2) + 1e-6), math.log(1e-6)])
    assert norm.initialized.item() == 1


def norms(flow):
    return [value for key, value in flow.state_dict().items() if key.endswith(("0.shift", "0.log_scale"))]


def test_norms_are_set_once_and_never_in_evaluation():
    flow = small_flow(filled=False, seed=0)
    before = [value.clone() for value in norms(flow)]
    flow.eval().log_prob(whole_numbers(2, 16, 16))
    flow.train().sample(2, 16, 16)
    assert not flow.is_initialized() and all(map(torch.equal, norms(flow), before))
    flow.log_prob(whole_numbers(2, 16, 16))
    once = [value.clone() for value in norms(flow)]
    assert flow.is_initialized() and not any(map(torch.equal, once[::2], before[::2]))
    flow.log_prob(whole_numbers(3, 16, 16, most=99, seed=1))
    flow.eval().log_prob(whole_numbers(3, 16, 16, most=99, seed=1))
    assert all(map(torch.equal, norms(flow), once))


def test_a_flow_that_is_set_draws_its_noise_once_in_train_mode_too():
    flow, images = small_flow(), whole_numbers(2, 16, 16)
    assert seeded(1, flow.train().log_prob, images).equal(seeded(1, flow.eval().log_prob, images))


def test_norms_that_were_set_keep_their_values_while_others_are_set():
    flow = small_flow().train()
    last, before = flow.layers()[-1].norm, [value.clone() for value in norms(flow)]
    last.initialized.zero_()
    flow.log_prob(whole_numbers(2, 16, 16))
    kept = [value.equal(other) for value, other in zip(norms(flow), before, strict=True)]
    assert kept == [True] * (len(kept) - 2) + [False] * 2 and last.initialized


def test_that_norms_were_set_is_saved_and_loaded(tmp_path):
    flow = small_flow(filled=False, seed=0).train()
    flow.log_prob(whole_numbers(2, 16, 16))
    torch.save(flow.state_dict(), tmp_path / "flow.pt")
    again = load_weights(small_flow(filled=False, seed=1).train(), tmp_path / "flow.pt")
    assert again.is_initialized()
    again.log_prob(whole_numbers(2, 16, 16, most=99))
    assert all(map(torch.equal, norms(again), norms(flow)))


def test_images_of_a_wrong_size_leave_nothing_behind_that_sets_the_norms():
    flow = small_flow(filled=False, seed=0).train()
    with pytest.raises(ValueError, match="multiples of 8"):
        flow.log_prob(whole_numbers(2, 12, 12))
    flow.eval().log_prob(whole_numbers(2, 16, 16))
    assert not any(layer.norm.initialized for layer in flow.layers())


def test_norms_are_not_set_from_one_value_per_channel():
    flow = small_flow(filled=False, seed=0).train()
    with pytest.raises(ValueError, match="one value per channel: take larger patches or a larger batch"):
        flow.log_prob(whole_numbers(1, 8, 8))
    last = flow.layers()[-1].norm
    assert not last.initialized
    flow.eval().log_prob(whole_numbers(2, 16, 16))  # the failed call has left nothing behind that sets them
    assert not last.initialized
    flow.train().log_prob(whole_numbers(2, 8, 8))
    assert flow.is_initialized()


# Memory and precision


def drawn_and_scored(flow, checkpointing):
    """Values and gradients of sampling and of the density, and how many values autograd kept for them"""
    for layer in flow.layers():
        layer.coupling.checkpointing = checkpointing
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        log_prob = seeded(1, flow.log_prob, whole_numbers(2, 32, 32))
        drawn = seeded(2, flow.sample, 2, 32, 32)
        memory = sum(kept.values())
    flow.zero_grad()
    (log_prob.sum() + drawn.square().sum()).backward()
    gradients = [parameter.grad.clone() for parameter in flow.parameters()]
    return log_prob, drawn, gradients, memory


def test_checkpointing_changes_neither_values_nor_gradients_and_keeps_less(each_way):
    assert small_flow(checkpointing=True).layers()[0].coupling.checkpointing
    flow = small_flow(dense_layers=7)
    log_prob, drawn, gradients, memory = drawn_and_scored(flow, checkpointing=False)
    again, drawn_again, gradients_again, less = drawn_and_scored(flow, checkpointing=True)
    assert log_prob.equal(again) and drawn.equal(drawn_again)
    for ours, theirs in zip(gradients_again, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * theirs.abs().max().item())
    assert less < 0.4 * memory


@pytest.mark.parametrize("checkpointing", [False, True])
def test_under_autocast_the_flow_keeps_its_precision(checkpointing, each_way):
    flow, images = small_flow(checkpointing).float(), whole_numbers(2, 16, 16)
    results = []
    for autocast in (False, True):
        flow.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            log_prob, drawn = seeded(1, flow.log_prob, images), seeded(1, flow.sample, 2, 16, 16)
        (log_prob.sum() + drawn.sum()).backward()
        results.append([log_prob, drawn, *(parameter.grad.clone() for parameter in flow.parameters())])
    assert results[1][0].dtype == torch.float32
    assert all(map(torch.equal, *results))


def test_nothing_is_drawn_but_by_rand_and_randn(no_noise, each_way):
    flow = small_flow()
    before = torch.get_rng_state()
    flow.log_prob(whole_numbers(2, 8, 8))
    flow.sample(2, 8, 8)
    assert torch.equal(before, torch.get_rng_state())


def test_a_flow_whose_matrix_has_no_inverse_says_so_when_it_draws(each_way):
    flow = small_flow()
    with torch.no_grad():
        flow.layers()[0].mix.weight.zero_()
    with pytest.raises(FloatingPointError, match="drawn from the flow are not finite: it has div"):
        flow.sample(1, 8, 8)


# Without waiting for a GPU


class CountedOperations(TorchDispatchMode):
    """How often each of PyTorch's operations was run inside"""

    def __enter__(self):
        self.counts = Counter()
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_reads_no_value_back(checkpointing, each_way):
    flow, images = small_flow(checkpointing).train(), whole_numbers(2, 16, 16)
    assert flow.is_initialized()
    with CountedOperations() as seen:
        (flow.sample(2, 16, 16, check=False).sum() + flow.log_prob(images).sum()).backward()
    assert seen.counts.keys().isdisjoint({"_local_scalar_dense", "nonzero", "item", "is_nonzero"})
    with CountedOperations() as seen:
        flow.sample(2, 16, 16)
    assert seen.counts["_local_scalar_dense"] == 1  # whether all values are finite


def test_that_norms_were_set_is_remembered_until_others_are_loaded():
    flow = small_flow().train()
    fresh = {key: value.clone() for key, value in small_flow(filled=False, seed=0).state_dict().items()}
    assert flow.is_initialized()
    with CountedOperations() as seen:
        assert flow.is_initialized() and copy.deepcopy(flow).is_initialized()
    assert not seen.counts["_local_scalar_dense"]
    whole = torch.nn.ModuleDict({"flow": flow})
    whole.load_state_dict({"flow." + key: value for key, value in fresh.items()})
    assert not flow.is_initialized() and not copy.deepcopy(flow).is_initialized()
    flow.log_prob(whole_numbers(2, 16, 16))
    assert flow.is_initialized()
    flow.load_state_dict(fresh)
    assert not flow.is_initialized()


@pytest.mark.slow
def test_unchecked_samples_are_those_that_are_checked():
    flow = small_flow()
    torch.manual_seed(4)
    unchecked = flow.sample(2, 16, 16, check=False)
    assert unchecked.equal(seeded(4, flow.sample, 2, 16, 16))
    gradients = [torch.autograd.grad(drawn.sum(), flow.base_dist.loc)[0] for drawn in (unchecked, flow.sample(1, 8, 8))]
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_unchecked_image_with_a_value_that_is_not_finite_is_all_nan(value):
    flow = small_flow()
    dropped = [torch.randn(2, 28, 4, 4, dtype=torch.float64), torch.randn(2, 64, 2, 2, dtype=torch.float64)]
    latent = flow.base_dist.sample(2, 2, 2)
    expected = flow.decode(latent, dropped)
    latent[0, 0, 0, 0] = value
    with pytest.raises(FloatingPointError):
        flow.decode(latent, dropped)
    unchecked = flow.decode(latent, dropped, check=False)
    assert unchecked[0].isnan().all() and unchecked[1].equal(expected[1])


def test_an_infinity_does_not_become_a_bright_pixel(monkeypatch):
    flow, added = small_flow(), torch.zeros(2, 3, 8, 8)
    added[1, 0, 2, 3] = math.inf
    monkeypatch.setattr(flow.transforms[0], "inverse", lambda features: features + added)
    drawn = flow.sample(2, 8, 8, check=False)
    assert drawn[0].isfinite().all() and drawn[1].isnan().all()


def test_an_unchecked_flow_whose_matrix_has_no_inverse_draws_nan(each_way):
    flow = small_flow()
    with torch.no_grad():
        flow.layers()[0].mix.weight.zero_()
    assert flow.sample(2, 8, 8, check=False).isnan().all()


# The way of GPUs, on a CPU


def make_coupling(channels, dense_layers=2, checkpointing=False, layout=torch.contiguous_format):
    torch.manual_seed(0)
    coupling = Coupling(channels, 4, dense_layers, checkpointing).double()
    for parameter in coupling.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return coupling.to(memory_format=layout)


def run_coupling(coupling, features, inverse):
    """Output, log-determinant of the forward direction, and the gradients to features and weights (None where none)"""
    features = features.detach().clone().requires_grad_(features.requires_grad)
    outputs = (coupling.inverse(features),) if inverse else coupling(features)
    torch.manual_seed(1)
    loss = sum((torch.randn_like(output.contiguous()) * output).sum() for output in outputs)
    coupling.zero_grad()
    loss.backward()
    return outputs, [features.grad, *(parameter.grad for parameter in coupling.parameters())]


def both_ways(monkeypatch, function, *inputs):
    results = []
    for way in (False, True):
        monkeypatch.setattr(denseflow, "fused", lambda features, way=way: way)
        results.append(function(*inputs))
    return results


def assert_same(ours, expected):
    assert [value is None for value in ours] == [value is None for value in expected]
    for one, other in zip(ours, expected, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * other.abs().max().item())


def test_the_fused_way_is_that_of_gpus_and_not_of_a_compiler(monkeypatch):
    assert not denseflow.fused(torch.zeros(1)) and denseflow.fused(SimpleNamespace(is_cuda=True))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not denseflow.fused(SimpleNamespace(is_cuda=True))


@pytest.mark.parametrize("size", [(2, 6, 3, 5), (1, 7, 2, 3), (3, 2, 1, 1)])
def test_a_fused_coupling_is_its_modules(size, monkeypatch):
    layouts = (torch.contiguous_format, torch.channels_last)
    for layout, checkpointing, inverse in itertools.product(layouts, (False, True), (False, True)):
        coupling = make_coupling(size[1], 3, checkpointing, layout)
        features = torch.randn(size, dtype=torch.float64, requires_grad=True)
        (expected, gradients), (ours, our_gradients) = both_ways(monkeypatch, run_coupling, coupling, features, inverse)
        assert "FusedCoupling" in ours[0].grad_fn.name() and "FusedCoupling" not in expected[0].grad_fn.name()
        assert_same(ours, expected)
        assert_same(our_gradients, gradients)


@pytest.mark.parametrize("inverse", [False, True])
def test_the_gradients_of_a_fused_coupling_are_those_of_small_changes(inverse):
    coupling = make_coupling(4, dense_layers=1)
    features = torch.randn(2, 4, 2, 1, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda features, *weights: FusedCoupling.apply(features, inverse, False, *weights),
        (features, *coupling.weights()),
    )


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("frozen", ["features", "all weights", "every second", "every third", "but one"])
def test_a_fused_coupling_has_no_gradients_to_what_is_frozen(frozen, inverse, monkeypatch):
    coupling = make_coupling(6)
    features = torch.randn(2, 6, 3, 2, dtype=torch.float64, requires_grad=frozen != "features")
    for number, parameter in enumerate(coupling.parameters()):
        hidden = {"all weights": True, "every second": number % 2, "every third": number % 3, "but one": number != 4}
        parameter.requires_grad_(not hidden.get(frozen, False))
    (_, gradients), (_, ours) = both_ways(monkeypatch, run_coupling, coupling, features, inverse)
    assert_same(ours, gradients)
    assert [gradient is not None for gradient in ours[1:]] == [p.requires_grad for p in coupling.parameters()]


def test_a_frozen_fused_coupling_works_out_no_gradients_to_its_weights(monkeypatch):
    monkeypatch.setattr(denseflow, "fused", lambda features: True)
    coupling, masks = make_coupling(6).requires_grad_(False), []

    class Masks(CountedOperations):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "convolution_backward" in function.name():
                masks.append(args[-1])
            return super().__torch_dispatch__(function, types, args, kwargs)

    drawn = coupling.inverse(torch.randn(2, 6, 3, 2, dtype=torch.float64, requires_grad=True))
    with Masks() as seen:
        drawn.backward(drawn.detach())
    assert masks == [[True, False, False]] * 2
    assert seen.counts["sum"] == 0 and seen.counts["mm"] == 2  # to what goes into the last and the mixing convolution


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_fused_flow_runs_without_gradients(context, monkeypatch):
    flow, images = small_flow(), whole_numbers(2, 16, 24)

    def run():
        with context():
            return seeded(1, flow.sample, 2, 16, 24), seeded(2, flow.log_prob, images)

    expected, ours = both_ways(monkeypatch, run)
    assert_same(ours, expected)
    assert not any(value.requires_grad for value in ours)


def test_a_fused_coupling_does_without_the_undocumented_product(monkeypatch):
    inputs, matrix, bias = (torch.randn(size, dtype=torch.float64) for size in ((5, 3), (4, 3), (4,)))
    expected = (inputs @ matrix.T + bias).clamp(min=0)
    assert_same([denseflow.product_relu(inputs, matrix, bias)], [expected])
    monkeypatch.delattr(torch, "_addmm_activation")
    assert_same([denseflow.product_relu(inputs, matrix, bias)], [expected])


def test_a_fused_coupling_keeps_its_precision_where_its_backward_pass_is_under_autocast(monkeypatch):
    monkeypatch.setattr(denseflow, "fused", lambda features: True)
    coupling, results = make_coupling(6).float(), []
    for autocast in (False, True):
        features = seeded(1, torch.randn, 2, 6, 3, 2).requires_grad_()
        loss = coupling.inverse(features).square().sum()
        coupling.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss.backward()
        results.append([features.grad, *(parameter.grad for parameter in coupling.parameters())])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_fused_flow_convolves_in_the_layout_of_its_weights(layout, monkeypatch):
    monkeypatch.setattr(denseflow, "fused", lambda features: True)
    flow, layouts = small_flow().to(memory_format=layout), []

    class Layouts(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "convolution" in function.name():
                convolved = args[1:3] if "backward" in function.name() else args[:2]  # features and kernel
                layouts.extend(tensor.is_contiguous(memory_format=layout) for tensor in convolved)
            return function(*args, **(kwargs or {}))

    with Layouts():
        (flow.sample(2, 16, 24).sum() + flow.log_prob(whole_numbers(2, 16, 24)).sum()).backward()
    assert len(layouts) > 100 and all(layouts)


def test_layers_of_a_fused_flow_do_not_copy_their_features(monkeypatch):
    monkeypatch.setattr(denseflow, "fused", lambda features: True)
    copies = []
    for layers in (1, 3):
        flow = DenseFlow((2, 2, 1), (layers,) * 3, growth=2, width=4, dense_layers=2)
        flow.to(memory_format=torch.channels_last)
        with CountedOperations() as seen:
            flow.sample(2, 16, 24, check=False).sum().backward()
        copies.append([seen.counts[name] for name in ("clone", "cat", "slice_backward", "select_backward")])
        assert seen.counts["convolution"] == 2 * len(flow.layers())  # those of 3x3; all others are matrix products
    assert copies[0] == copies[1] and copies[0][1] == 2  # cat is for the halves that are drawn anew
