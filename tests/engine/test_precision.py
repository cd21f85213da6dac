import pytest
import torch
from torch import nn

from engine.precision import choose_precision
from engine.readings import LAG, Readings

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def tf32_as_before():
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [backend.fp32_precision for backend in backends]
    yield lambda: [backend.fp32_precision for backend in backends]
    for backend, precision in zip(backends, before, strict=True):
        backend.fp32_precision = precision


# What is computed in


@pytest.mark.parametrize(
    ("asked", "name", "dtype", "layout", "tf32"),
    [
        (None, "tf32", torch.float32, torch.channels_last, "tf32"),
        ("tf32", "tf32", torch.float32, torch.channels_last, "tf32"),
        ("float32", "float32", torch.float32, torch.contiguous_format, "ieee"),
        ("bfloat16", "bfloat16", torch.bfloat16, torch.channels_last, "tf32"),
        ("float16", "float16", torch.float16, torch.channels_last, "tf32"),
    ],
)
def test_a_gpu_computes_in_tf32_unless_asked_otherwise(asked, name, dtype, layout, tf32, tf32_as_before):
    assert choose_precision(asked, GPU) == (name, dtype, layout)
    assert tf32_as_before() == [tf32, tf32]


@pytest.mark.parametrize("asked", [None, "float32", "bfloat16", "float16"])
def test_a_cpu_computes_in_float32_unless_asked_otherwise_and_channels_last(asked, tf32_as_before):
    before = tf32_as_before()
    name = asked or "float32"
    assert choose_precision(asked, CPU) == (name, getattr(torch, name), torch.channels_last)
    assert tf32_as_before() == before


def test_tf32_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="--precision tf32 is one of GPUs, and this run is on cpu: take float32"):
        choose_precision("tf32", CPU)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_products_are_of_the_precision(name):
    precision = choose_precision(name, CPU)
    with precision.autocast(CPU):
        assert nn.Linear(2, 2)(torch.rand(1, 2)).dtype is precision.dtype


# Numbers that come some steps later


def test_numbers_on_a_cpu_are_ready_at_once():
    readings = Readings(CPU)
    readings.put("first", {"a": torch.tensor(0.1), "b": torch.tensor(2.0, dtype=torch.float64)})
    assert list(readings.ready()) == [("first", {"a": torch.tensor(0.1).item(), "b": 2.0})]
    assert list(readings.ready()) == []


def test_numbers_that_lag_come_in_their_order_and_all_in_the_end():
    readings, came = Readings(CPU), []
    readings.lag = LAG  # as on a GPU
    for number in range(5):
        readings.put(number, {"value": torch.tensor(float(number))})
        came.append([about for about, _ in readings.ready()])
    assert came == [[], [], [0], [1], [2]]
    assert list(readings.ready(everything=True)) == [(3, {"value": 3.0}), (4, {"value": 4.0})]
