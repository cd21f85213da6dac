import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from models import deeplabv3plus, frozen, ladder_densenet121, segmenter, upsampling
from models.upsampling import Bilinear, by_products, interpolation_matrix, upsample

SIZES = [  # of the features, of what is made of them
    ((24, 24), (96, 96)),
    ((8, 8), (128, 128)),
    ((5, 7), (13, 31)),
    ((13, 31), (5, 7)),  # smaller
    ((6, 9), (6, 9)),
    ((6, 9), (6, 20)),
    ((4, 9), (11, 9)),
    ((3, 20), (17, 10)),  # higher, and narrower
    ((1, 1), (24, 24)),  # the pyramid's grids
    ((2, 4), (24, 48)),
    ((1, 2), (3, 5)),
    ((7, 3), (1, 1)),
    ((64, 64), (127, 127)),
]
LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}


def features(size, channels=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, *size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def pytorchs(maps, size, align_corners):
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


@pytest.mark.slow
@pytest.mark.parametrize(("small", "large"), SIZES, ids=str)
def test_the_gradient_is_that_of_pytorch(small, large):
    for channels, layout, align_corners in itertools.product([1, 3, 70], LAYOUTS, [False, True]):
        maps = features(small, channels)
        resized = Bilinear.apply(maps, large, align_corners)
        expected = pytorchs(maps, large, align_corners)
        assert resized.equal(expected)
        gradient = features(large, channels, seed=1).detach().contiguous(memory_format=LAYOUTS[layout])
        ours, theirs = (torch.autograd.grad(output, maps, gradient)[0] for output in (resized, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("align_corners", [False, True])
def test_first_and_second_derivatives_are_right(align_corners):
    def resized(maps):
        return Bilinear.apply(maps, (5, 4), align_corners)

    assert torch.autograd.gradcheck(resized, features((3, 4), 2))
    assert torch.autograd.gradgradcheck(resized, features((3, 4), 2))


def test_a_row_of_three_from_two_by_hand():
    assert interpolation_matrix(2, 3, True, torch.float32, torch.device("cpu")).tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    corners_apart = interpolation_matrix(2, 4, False, torch.float32, torch.device("cpu"))
    assert corners_apart.tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]


@pytest.mark.parametrize("small", [1, 7, 24, 64])
@pytest.mark.parametrize("align_corners", [False, True])
def test_float32_weights_are_those_of_pytorchs_float32_forward_pass(small, align_corners):
    for large in (1, 5, 24, 100, 255):
        row = torch.eye(small)[:, None, None]  # (small, 1, 1, small): one-hot rows
        expected = pytorchs(row, (1, large), align_corners)[:, 0, 0].T
        ours = interpolation_matrix(small, large, align_corners, torch.float32, torch.device("cpu"))
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6 * small)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gradient_keeps_its_type_and_is_added_up_in_float32(dtype):
    maps, gradient = features((4, 6), dtype=dtype), features((64, 96), dtype=dtype, seed=1).detach()
    ours = torch.autograd.grad(Bilinear.apply(maps, (64, 96), False), maps, gradient)[0]
    exact = maps.detach().double().requires_grad_()
    expected = torch.autograd.grad(pytorchs(exact, (64, 96), False), exact, gradient.double())[0]
    assert ours.dtype == dtype
    within = 4 * torch.finfo(dtype).eps * expected.abs().max()
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=within.item())


def test_autocast_around_the_backward_pass_changes_nothing():
    maps, gradient = features((4, 6), dtype=torch.float32), features((9, 8), dtype=torch.float32, seed=1).detach()
    expected = torch.autograd.grad(Bilinear.apply(maps, (9, 8), False), maps, gradient)[0]
    with torch.autocast("cpu", torch.bfloat16):
        ours = torch.autograd.grad(Bilinear.apply(maps, (9, 8), False), maps, gradient)[0]
    assert ours.equal(expected)


@pytest.mark.parametrize(("small", "large"), SIZES, ids=str)
def test_the_cheaper_order_is_taken_and_a_side_that_stays_costs_nothing(small, large):
    for layout in LAYOUTS.values():
        maps = features(small)
        gradient = torch.ones(2, 3, *large, dtype=torch.float64).contiguous(memory_format=layout)
        resized = Bilinear.apply(maps, large, False)
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(resized, maps, gradient)
        (h, w), (height, width) = small, large
        rows, columns = h * height * width * (h != height), w * height * width * (w != width)
        after_rows, after_columns = columns * h // height, rows * w // width
        assert counter.get_total_flops() == 2 * 2 * 3 * min(rows + after_rows, columns + after_columns)


def test_two_gradients_are_equal_to_the_bit_and_channels_last_stays_so():
    maps = features((24, 24), 128, torch.float32)
    gradient = features((48, 48), 128, torch.float32, seed=1).detach().contiguous(memory_format=torch.channels_last)
    first, second = (torch.autograd.grad(Bilinear.apply(maps, (48, 48), False), maps, gradient)[0] for _ in range(2))
    assert first.equal(second)
    assert first.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("align_corners", [False, True])
def test_on_a_cpu_it_is_pytorchs_own(align_corners):
    maps = features((5, 7), dtype=torch.float32)
    resized, expected = upsample(maps, (9, 20), align_corners), pytorchs(maps, (9, 20), align_corners)
    assert resized.equal(expected)
    assert resized.grad_fn.name() == expected.grad_fn.name()
    assert torch.autograd.grad(resized.sum(), maps)[0].equal(torch.autograd.grad(expected.sum(), maps)[0])


def test_products_are_for_gradients_on_a_gpu_outside_of_compiled_code(monkeypatch):
    on_gpu = SimpleNamespace(is_cuda=True, requires_grad=True)
    assert by_products(on_gpu)
    assert not by_products(SimpleNamespace(is_cuda=True, requires_grad=False))
    assert not by_products(SimpleNamespace(is_cuda=False, requires_grad=True))
    with torch.no_grad():
        assert not by_products(on_gpu)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not by_products(on_gpu)


@pytest.fixture
def resizings(monkeypatch):
    """Networks resize by products as on a GPU; the list of (size, align_corners)"""
    seen, apply = [], Bilinear.apply

    def noted(maps, size, align_corners):
        seen.append((tuple(size), align_corners))
        return apply(maps, size, align_corners)

    monkeypatch.setattr(upsampling, "by_products", lambda maps: maps.requires_grad and torch.is_grad_enabled())
    monkeypatch.setattr(Bilinear, "apply", noted)
    return seen


@pytest.mark.slow
def test_networks_train_through_it(resizings):
    logits, ladder = ((64, 96), False), [((2, 3), False)] * 4 + [((4, 6), False), ((8, 12), False), ((16, 24), False)]
    with torch.device("meta"):
        images = torch.rand(2, 3, 64, 96)
        for network, expected in (
            (ladder_densenet121(5), [*ladder, logits, logits]),
            (deeplabv3plus(5), [((32, 48), True), ((64, 96), True), ((64, 96), True)]),
            (segmenter(5), [logits, logits]),
        ):
            resizings.clear()
            assert all(output.requires_grad for output in network(images))
            assert resizings == expected


@pytest.mark.parametrize("held", [False, True])
def test_a_ladders_gradients_are_those_of_pytorch(resizings, monkeypatch, held):
    torch.manual_seed(0)
    network = ladder_densenet121(4).eval()
    images, gradient = torch.rand(2, 3, 64, 96, requires_grad=True), torch.randn(2, 4, 64, 96)

    def gradients():
        if held:
            with frozen(network):
                class_logits = network(images)[0]
        else:
            class_logits = network(images)[0]
        wanted = [images] if held else [images, network.logits.conv.weight, network.spp.spp.spp.spp3.conv.weight]
        return torch.autograd.grad(class_logits, wanted, gradient)

    ours = gradients()
    assert len(resizings) == 9
    monkeypatch.setattr(upsampling, "by_products", lambda maps: False)
    for one, other in zip(ours, gradients(), strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
