"""Rehearsed CUDA (tests/support/cuda_rehearsal.py): what Replayed asks of torch.cuda itself."""

import threading

import pytest
import torch
from torch import nn

from models import fast_inference, fused, ladder_densenet121
from models.graphs import Replayed
from tests.support.cuda_rehearsal import rehearsed_cuda


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr(fused, "working_kernels", lambda device: None)
    with rehearsed_cuda() as machine, torch.no_grad():
        yield machine


@pytest.mark.slow
def test_a_network_on_a_gpu_is_recorded_without_the_host_waiting_and_gives_what_it_gave(machine):
    torch.manual_seed(0)
    model = ladder_densenet121(3).eval()
    frames = [torch.rand(1, 3, 32, 64) for _ in range(4)]
    expected = [model(frame) for frame in frames]
    fast = fast_inference(model.to("cuda"))
    on_gpu = [frame.to("cuda") for frame in frames]
    with machine.syncs_of() as syncs:
        found = [fast(frame) for frame in on_gpu]
    assert syncs == []
    assert [captured is not None for captured in fast.sizes.values()] == [True]
    for ours, theirs in zip(found, expected, strict=True):
        for logits, right in zip(ours, theirs, strict=True):
            assert (logits.cpu() - right).abs().max() <= 1e-4 * right.abs().max()


def test_other_threads_go_on_using_the_gpu_while_one_records(machine):
    class Slow(nn.Module):
        def forward(self, images):
            if torch.cuda.is_current_stream_capturing():
                beside = threading.Thread(target=lambda: read.append(values.sum().item()))
                beside.start()
                beside.join()
            return (2 * images,)

    values, read = torch.ones(5, device="cuda"), []
    replayed = Replayed(Slow())
    for _ in range(3):
        (logits,) = replayed(torch.ones(1, 3, 2, 2, device="cuda"))
    assert read == [5.0]
    assert logits.cpu().unique().item() == 2


def test_a_network_that_waits_for_the_gpu_runs_as_it_is(machine):
    class Waits(nn.Module):
        def forward(self, images):
            return (images * images.max().item(),)

    replayed, images = Replayed(Waits()), torch.full((1, 3, 2, 2), 3.0).to("cuda")
    replayed(images)
    with pytest.warns(UserWarning, match=r"no CUDA graphs from here on.*operation not permitted"):
        replayed(images)
    assert replayed(images)[0].cpu().unique().item() == 9
