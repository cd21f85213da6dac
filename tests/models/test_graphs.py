import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from engine import SlidingWindows
from models import fast_inference, graphs, ladder_densenet121
from models.graphs import SIZES, Captured, Replayed
from models.segmenter import ReleasedScoring


class OnCuda(torch.Tensor):
    """A CPU tensor that says it is on a GPU"""

    is_cuda = True

    def record_stream(self, stream):
        pass


class Graph:
    """Computes again, from and into the memory of the recording, as a CUDA graph does"""

    def __init__(self, network):
        self.network, self.replays = network, 0

    def recorded(self, images):
        static = torch.full_like(images, torch.nan)
        self.captured = Captured(self, static, self.network(static))
        return self.captured

    def replay(self):
        self.replays += 1
        _, images, output = self.captured
        for memory, logits in zip(output, self.network(images), strict=True):
            memory.copy_(logits)


class Recorded(Replayed):
    """Replayed, with recordings of that kind"""

    def forget(self):
        super().forget()
        self.graphs = []

    @torch.inference_mode(False)
    @torch.no_grad()
    def capture(self, images):
        self.graphs.append(Graph(self.network))
        return self.graphs[-1].recorded(images)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.eager = nn.Parameter(torch.tensor(3.0)), 0

    def forward(self, images):
        self.eager += 1
        return self.weight * images, images.sum(1, keepdim=True)


@pytest.fixture(autouse=True)
def streams(monkeypatch):
    waited = []
    stream = SimpleNamespace(record_event=lambda: "event", wait_event=waited.append)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(graphs, "capturing", lambda: False)
    return waited


def frame(height, width, value=1.0, dtype=torch.float32):
    return torch.full((1, 3, height, width), value, dtype=dtype).as_subclass(OnCuda)


@torch.inference_mode()
def run(replayed, *frames):
    return [replayed(each) for each in frames]


def test_a_size_is_recorded_when_it_comes_again_and_then_replayed():
    replayed = Recorded(Network())
    outputs = run(replayed, *(frame(4, 6, value) for value in (1.0, 2.0, 3.0, 4.0)))
    assert [logits.flatten()[0].item() for logits, _ in outputs] == [3.0, 6.0, 9.0, 12.0]  # and none overwritten
    assert [sums.flatten()[0].item() for _, sums in outputs] == [3.0, 6.0, 9.0, 12.0]
    assert [graph.replays for graph in replayed.graphs] == [3]


def test_sizes_and_types_are_recorded_apart():
    replayed = Recorded(Network())
    run(replayed, frame(4, 6), frame(6, 4), frame(4, 6, dtype=torch.float64), torch.cat(2 * [frame(4, 6)]))
    assert replayed.graphs == []
    run(replayed, frame(6, 4), frame(4, 6))
    assert [graph.captured.images.shape[2:] for graph in replayed.graphs] == [(6, 4), (4, 6)]


def test_photographs_of_all_sizes_are_never_recorded_and_few_are_remembered():
    replayed = Recorded(Network())
    run(replayed, *(frame(4, width) for width in range(1, 30)))
    assert replayed.graphs == [] and len(replayed.sizes) == SIZES


def test_the_size_used_longest_ago_is_let_go():
    replayed = Recorded(Network())
    for width in range(1, SIZES + 1):
        run(replayed, frame(4, width), frame(4, width))
    run(replayed, frame(4, 1), frame(4, SIZES + 1))
    assert [shape[3] for shape, *_ in replayed.sizes] == [*range(3, SIZES + 1), 1, SIZES + 1]
    run(replayed, frame(4, 2), frame(4, 1))
    assert [graph.replays for graph in replayed.graphs] == [3] + [1] * (SIZES - 1)


def test_a_replay_waits_for_the_one_before(streams):
    run(Recorded(Network()), *(frame(4, 6) for _ in range(4)))
    assert streams == ["event"] * 2


def test_outputs_and_frames_may_be_used_outside_of_inference_mode():
    replayed = Recorded(Network())
    run(replayed, frame(4, 6), frame(4, 6))
    with torch.no_grad():
        logits, _ = replayed(frame(4, 6, 2.0))
    logits += 1
    assert logits.flatten()[0] == 7


def test_weights_that_move_are_recorded_again_and_those_changed_in_place_count():
    replayed = Recorded(Network())
    run(replayed, frame(4, 6), frame(4, 6))
    replayed.load_state_dict({"network.weight": torch.tensor(5.0)})
    assert run(replayed, frame(4, 6))[0][0].flatten()[0] == 5
    assert replayed.to(torch.float64).sizes == {}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("must not wait")])
def test_what_cannot_be_recorded_runs_as_it_is_after_one_warning(monkeypatch, error):
    def fails(self, images):
        raise error

    monkeypatch.setattr(Recorded, "capture", fails)
    replayed = Recorded(Network())
    run(replayed, frame(4, 6))
    with pytest.warns(UserWarning, match=f"no CUDA graphs from here on.* 6 x 4 pixels .*{error}"):
        run(replayed, frame(4, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = run(replayed, frame(4, 6, 2.0), frame(5, 6), frame(5, 6))
    assert [logits.flatten()[0].item() for logits, _ in outputs] == [6.0, 3.0, 3.0]
    assert replayed.network.eager == 5


def test_recordings_make_room_for_a_frame_that_does_not_fit_beside_them():
    class Large(Network):
        def forward(self, images):
            if images.shape[3] == 9 and replayed.sizes and any(replayed.sizes.values()):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    replayed = Recorded(Large())
    run(replayed, frame(4, 6), frame(4, 6))
    with pytest.warns(UserWarning, match="9 x 4 pixels"):
        (logits, _), *_ = run(replayed, frame(4, 9, 2.0))
    assert logits.flatten()[0] == 6
    replayed = Recorded(Network())
    replayed.network.forward = Graph.replay  # whatever else it raises is the caller's
    with pytest.raises(AttributeError):
        run(replayed, frame(4, 6))


def test_elsewhere_it_is_the_network_alone(monkeypatch):
    replayed = Recorded(Network())
    run(replayed, *(torch.rand(1, 3, 4, 6) for _ in range(3)))
    for _ in range(3):
        replayed(frame(4, 6))[0].sum().backward()
    monkeypatch.setattr(graphs, "capturing", lambda: True)
    run(replayed, frame(4, 6), frame(4, 6))
    assert replayed.sizes == {} and replayed.network.eager == 8


def test_autocast_around_it_changes_nothing():
    replayed, images = Replayed(nn.Conv2d(3, 2, 1)), torch.rand(1, 3, 4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert replayed(images).dtype == torch.float32
        assert replayed.network(images).dtype == torch.bfloat16


def test_of_wrapped_networks_the_network_is_replayed(monkeypatch):
    monkeypatch.setattr("models.inference.on_cuda", lambda module: True)
    wrapped = fast_inference(ReleasedScoring(SlidingWindows(ladder_densenet121(2), 32, 32)))
    assert [name for name, module in wrapped.named_modules() if isinstance(module, Replayed)] == ["model.model"]
    assert not any(isinstance(module, Replayed) for module in fast_inference(nn.Conv2d(3, 4, 1)).modules())


def test_on_a_cpu_in_float32_nothing_is_wrapped():
    assert not any(isinstance(module, Replayed) for module in fast_inference(ladder_densenet121(2)).modules())
