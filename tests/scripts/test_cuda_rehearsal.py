"""Every script's way through CUDA, rehearsed on a CPU; and that the rehearsal catches what a GPU would."""

import contextlib
import copy
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import nn

from engine import same_noise
from engine.graphs import WARM_UP, Replay
from engine.loader import batches, evaluation_loader
from tests.support.cuda_rehearsal import CudaTensor, rehearsed_cuda
from tests.support.script_runs import (
    EVALUATIONS,
    TRAININGS,
    World,
    assert_close,
    ctrl_c,
    each_epoch_within,
    figures_of,
    log_of,
    small_networks,
    stopped_after,
)
from tests.support.tiny import Specks
from tools import export_onnx

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which test_cuda.py goes the same ways"),
    pytest.mark.filterwarnings("ignore:.*without .*Triton"),
]
ROUNDING = 1e-4  # both are computed on the CPU, but some of its convolutions in other kernels
HALF = ("bfloat16", "float16")


@pytest.fixture
def cuda():
    with rehearsed_cuda() as machine:
        yield machine


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world") / "files")


# The scripts


@pytest.mark.slow
@pytest.mark.parametrize("script", TRAININGS)
def test_the_steps_of_a_training_wait_for_nothing(script, world, cuda, in_tmp):
    waits = []

    @contextlib.contextmanager
    def counted():
        with cuda.syncs_of() as found:
            yield
        waits.extend(found)

    with each_epoch_within(counted):
        world.run(script, "--device", "cuda")
    assert cuda.replays > 0 or script == "train_denseflow"
    # Once in a run a flow looks whether it was ever set; from scratch its first batch sets its five layers.
    once = 7 if script == "train_denseflow" else 1 if script.endswith("_flow") else 0
    assert len(waits) <= once and all("models/denseflow.py" in sync.where for sync in waits), waits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "precision"),
    [
        ("ldn_streethazards", "bfloat16"),
        ("dlv3_cityscapes_finetune_flow", "bfloat16"),
        ("segmenter_coco20_finetune", "bfloat16"),
        ("segmenter_coco20_finetune", "float16"),
        ("train_denseflow", "float16"),
    ],
)
def test_a_training_in_half_precision_runs_to_its_end(script, precision, world, cuda, in_tmp):
    world.run(script, "--device", "cuda", "--precision", precision)
    steps = [line for line in log_of(script) if "validation" not in line]
    assert len(steps) >= 4 and all(("scale" in "".join(step)) == (precision == "float16") for step in steps)


def terms_of(script):
    """Each step's, in their order"""
    return [
        [line[term] for term in line if term not in ("epoch", "step")] for line in log_of(script) if "class" in line
    ]


@pytest.mark.slow
def test_a_training_has_the_losses_of_the_cpu(world, in_tmp):
    script = "ldn_streethazards_finetune"
    world.run(script, "--device", "cpu")
    expected = terms_of(script)
    Path("logs").rename("logs_of_the_cpu")
    with rehearsed_cuda():
        world.run(script, "--device", "cuda")
    found = terms_of(script)
    assert found[0] == pytest.approx(expected[0], rel=ROUNDING)
    np.testing.assert_allclose(found, expected, rtol=0.1)  # so small a network makes much of a rounding


@pytest.mark.slow
@pytest.mark.parametrize("script", ["dlv3_cityscapes_finetune", "segmenter_coco20"])
def test_replayed_steps_are_to_the_bit_those_that_are_not(script, world, in_tmp):
    found = []
    for flags in ([], ["--no_graphs"]):
        with rehearsed_cuda() as machine:
            world.run(script, "--device", "cuda", *flags)
        found.append((terms_of(script), torch.load(f"logs/{script}/final.pth", weights_only=True)))
        assert bool(machine.replays) == (not flags)
        Path("logs").rename("".join(["before", *flags]))
    (terms, weights), (expected_terms, expected) = found
    assert terms == expected_terms and all(torch.equal(weights[key], expected[key]) for key in weights | expected)


def test_a_flow_refuses_what_is_of_batchnorm_on_a_gpu_too(world, in_tmp):
    with rehearsed_cuda(), pytest.raises(ValueError, match="sync_batchnorm must be false: a flow has no BatchNorm"):
        world.run("train_denseflow", "--device", "cuda", "--sync_batchnorm", "true")
    assert not Path("logs").exists()


@pytest.mark.slow
def test_batches_of_another_shape_come_between_replayed_ones(world, in_tmp):
    script = "dlv3_cityscapes_finetune"
    flags = ["--device", "cuda", "--batch_size", "4", "--epochs", "4", "--validate_every", "4"]  # of ten images
    found = []
    for more in ([], ["--no_graphs"]):
        with rehearsed_cuda() as machine:
            world.run(script, *flags, *more)
        found.append((terms_of(script), torch.load(f"logs/{script}/final.pth", weights_only=True)))
        assert machine.replays == (0 if more else 5)  # of eight whole batches, all but the first three
        Path("logs").rename("".join(["before", *more]))
    (terms, weights), (expected_terms, expected) = found
    assert terms == expected_terms and all(torch.equal(weights[key], expected[key]) for key in weights | expected)


def test_memory_that_does_not_suffice_beside_a_recorded_step_takes_the_recording(cuda, capsys):
    failed = []

    def compute(inputs, counts):
        if len(inputs[0]) == 1 and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        loss = (layer(inputs[0]) ** 2).sum() / counts["images"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return {"loss": loss.detach()}

    layer = nn.Linear(3, 2).to("cuda")
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    replay = Replay(compute, optimizer)
    for _ in range(WARM_UP + 2):
        replay([torch.ones(2, 3, device="cuda")], {"images": 2})
    assert replay.graph is not None
    images = torch.rand(1, 3, device="cuda")
    terms = replay([images], {"images": 1})
    assert replay.graph is None and failed and terms["loss"].item() == (layer(images) ** 2).sum().item()
    assert "launched kernel by kernel" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_goes_on_in_a_precision_that_lays_weights_out_otherwise(world, cuda, in_tmp):
    """True float32 on a GPU lies NCHW; a fused optimizer goes through weights and moments by address."""
    script, gpu = "dlv3_cityscapes_finetune", ["--device", "cuda", "--precision", "float32"]
    with stopped_after(1, ctrl_c), pytest.raises(SystemExit):
        world.run(script, *gpu, "--epochs", "2")
    world.run(script, "--device", "cpu", "--epochs", "2", "--resume")
    saved = torch.load(f"logs/{script}/last.pt", weights_only=True)
    layouts = {(value.shape, value.stride()) for value in saved["model"].values()}
    moments = [state[name] for state in saved["optimizer"]["state"].values() for name in ("exp_avg", "exp_avg_sq")]
    assert moments and all((moment.shape, moment.stride()) in layouts for moment in moments)
    record = yaml.safe_load(Path("logs", script, "recipe.yaml").read_text())
    assert (record["precision"], record["device"][:4]) == ("float32", "cuda")
    assert [(each["after_epoch"], each["device"][:3]) for each in record["resumed"]] == [(1, "cpu")]


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on(world, cuda, in_tmp):
    script, flags = "segmenter_coco20_finetune_flow", ["--device", "cuda", "--precision", "float16", "--epochs", "2"]
    with stopped_after(1, ctrl_c), pytest.raises(SystemExit):
        world.run(script, *flags)
    world.run(script, *flags, "--resume")
    assert [line["epoch"] for line in log_of(script)] == [1] * 5 + [2] * 5


@pytest.mark.slow
@pytest.mark.parametrize("script", EVALUATIONS)
def test_an_evaluation_has_the_figures_of_the_cpu(script, world, in_tmp):
    expected = figures_of(world.run(script, "--device", "cpu"))
    with rehearsed_cuda() as machine:
        found = figures_of(world.run(script, "--device", "cuda"))
    assert_close(found, expected, ROUNDING)
    assert machine.replays > 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", *HALF])
def test_an_evaluation_runs_in_any_precision(precision, world, cuda, in_tmp):
    results = world.run("evaluate_ood lf", "--device", "cuda", "--precision", precision)
    assert 0 < results["figures"]["pooled"]["hybrid"]["AP"] < 1 and results["record"]["precision"] == precision


@pytest.mark.slow
def test_predict_writes_what_it_writes_on_the_cpu(world, in_tmp):
    world.run("predict", "--device", "cpu")
    Path("predict").rename("expected")
    with rehearsed_cuda():
        world.run("predict", "--device", "cuda")
    scores = sorted(Path("predict", "score").glob("*.npy"))
    assert len(scores) == 2
    for path in scores:
        np.testing.assert_allclose(np.load(path), np.load(Path("expected", "score", path.name)), ROUNDING, ROUNDING)
    for path in Path("predict", "closed").iterdir():
        ours, theirs = (np.array(Image.open(each)) for each in (path, Path("expected", "closed", path.name)))
        assert np.mean(ours != theirs) < 0.01


@pytest.mark.slow
def test_export_scores_writes_what_it_writes_on_the_cpu(world, in_tmp):
    world.run("export_scores", "--device", "cpu")
    Path("export_scores").rename("expected")
    with rehearsed_cuda():
        world.run("export_scores", "--device", "cuda")
    paths = sorted(Path("export_scores").glob("*.npy"))
    assert len(paths) == 2
    for path in paths:
        np.testing.assert_allclose(np.load(path), np.load(Path("expected", path.name)), ROUNDING, ROUNDING)


@pytest.mark.slow
def test_another_gpu_than_the_first_is_used_where_it_is_named(world, in_tmp):
    with rehearsed_cuda(gpus=2) as machine:
        world.run("evaluate_ood lf", "--device", "cuda:1")
        assert machine.allocated == {1} and torch.cuda.current_device() == 1


# What the rehearsal catches


def test_a_device_without_an_index_is_refused_where_torch_refuses_it(cuda):
    with pytest.raises(
        ValueError, match=r"Expected a torch\.device with a specified index or an integer, but got:cuda"
    ):
        torch.cuda.set_device(torch.device("cuda"))
    assert torch.ones(2, device="cuda").device == torch.device("cuda", 0) != torch.device("cuda")
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.ones(2, device="cuda:1")


MIXED = {
    "added to one on the CPU": lambda ours, theirs: ours + theirs,
    "added into one on the CPU": lambda ours, theirs: theirs.add_(ours),
    "concatenated": lambda ours, theirs: torch.cat([ours, theirs]),
    "stacked with a number": lambda ours, theirs: torch.stack([ours.sum(), theirs.sum()]),
    "chosen by a mask": lambda ours, theirs: torch.where(theirs > 0, ours, ours),
    "masked": lambda ours, theirs: ours.masked_fill_(theirs > 0, 1),
    "in a loss": lambda ours, theirs: F.cross_entropy(ours[None], theirs.sum()[None].long()),
    "in a layer": lambda ours, theirs: F.linear(ours, theirs[None]),
    "an index of one on the CPU": lambda ours, theirs: theirs[ours.long()],
    "a single number of a GPU, with one on the CPU": lambda ours, theirs: theirs * ours.sum(),
}


@pytest.mark.parametrize("mixed", MIXED)
def test_a_tensor_left_on_another_device_is_caught(mixed, cuda):
    with pytest.raises(RuntimeError, match=r"Expected all tensors to be on the same device|should be the same"):
        MIXED[mixed](torch.zeros(3, device="cuda"), torch.zeros(3))


def test_tensors_of_two_gpus_are_not_mixed():
    with rehearsed_cuda(gpus=2):
        one, other = (torch.ones(2, device=f"cuda:{index}") for index in (0, 1))
        with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cuda:1!"):
            one + other
        assert (one + other.to(one.device)).tolist() == [2, 2]


def test_what_a_gpu_takes_from_the_cpu_is_taken(cuda):
    ours = torch.arange(4.0, device="cuda")
    assert (ours + torch.tensor(1.0)).tolist() == [1, 2, 3, 4]
    assert ours[torch.tensor([0, 3])].tolist() == [0, 3]
    assert ours[torch.tensor([True, False, False, True])].tolist() == [0, 3]
    ours[torch.tensor([1])] = 7
    assert ours.tolist() == [0, 7, 2, 3]


def test_numpy_of_a_gpus_tensor_is_refused(cuda):
    ours = torch.ones(2, device="cuda")
    for attempt in (ours.numpy, lambda: np.asarray(ours)):
        with pytest.raises(TypeError, match=r"can't convert cuda:0 device type tensor to numpy\. Use Tensor\.cpu"):
            attempt()
    assert ours.cpu().numpy().tolist() == [1, 1]


def test_a_generator_of_another_device_is_refused(cuda):
    of_cpu, of_gpu = torch.Generator(), torch.Generator(device="cuda")
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        torch.rand(2, device="cuda", generator=of_cpu)
    with pytest.raises(RuntimeError, match="Expected a 'cpu' device type for generator but found 'cuda'"):
        torch.rand(2, generator=of_gpu)
    drawn = [torch.rand(3, device="cuda", generator=of_gpu.manual_seed(1)).tolist() for _ in range(2)]
    assert drawn[0] == drawn[1] and of_gpu.device == torch.device("cuda", 0) and isinstance(of_cpu, torch.Generator)


def test_a_gpu_draws_other_numbers_and_takes_none_from_the_cpu(cuda):
    torch.manual_seed(0)
    expected = torch.rand(4).tolist()
    torch.manual_seed(0)
    ours = torch.rand(4, device="cuda").tolist()
    assert torch.rand(4).tolist() == expected != ours
    torch.manual_seed(0)
    assert torch.rand(4, device="cuda").tolist() == ours
    torch.manual_seed(1)
    with same_noise(torch.device("cuda", 0)):
        assert torch.empty(4, device="cuda").uniform_().tolist() == ours
    with torch.random.fork_rng(devices=[]):  # without the GPU's generator
        torch.rand(1, device="cuda")
    after = torch.rand(1, device="cuda").item()
    torch.manual_seed(1)
    assert torch.rand(2, device="cuda").tolist()[1] == pytest.approx(after)


# Waiting

WAITING = {
    "item": lambda ours: ours.sum().item(),
    "float": lambda ours: float(ours.sum()),
    "if": lambda ours: bool((ours > 0).all()),
    "cpu": lambda ours: ours.cpu(),
    "tolist": lambda ours: ours.tolist(),
    "to the CPU": lambda ours: ours.to("cpu"),
    "copied to the CPU": lambda ours: torch.empty(3).copy_(ours),
    "from the CPU": lambda ours: torch.ones(3).to("cuda"),
    "made of a number": lambda ours: torch.tensor(1.0, device="cuda"),
    "nonzero": lambda ours: ours.nonzero(),
    "where": lambda ours: torch.where(ours > 0),
    "a mask": lambda ours: ours[ours > 0],
    "an index on the CPU": lambda ours: ours[torch.tensor([0])],
    "equal": lambda ours: torch.equal(ours, ours),
    "unique": lambda ours: ours.unique(),
}
NOT_WAITING = {
    "sum": lambda ours: ours.sum(),
    "all": lambda ours: ours.isfinite().all(),
    "a number": lambda ours: ours[0] + 1,
    "filled by a mask": lambda ours: ours.masked_fill(ours > 0, 2),
    "assigned by a mask": lambda ours: ours.__setitem__(ours > 0, 2.0),
    "assigned": lambda ours: ours.__setitem__(0, 2.0),
    "made on the GPU": lambda ours: torch.full((2,), 3.0, device="cuda"),
    "to the CPU, later": lambda ours: ours.to("cpu", non_blocking=True),
    "from the CPU, beside": lambda ours: torch.ones(3).pin_memory().to("cuda", non_blocking=True),
    "an event": lambda ours: torch.cuda.current_stream().record_event().synchronize(),
}


@pytest.mark.parametrize("inference", [False, True], ids=["training", "inference"])
@pytest.mark.parametrize("operation", [*WAITING, *NOT_WAITING])
def test_what_makes_the_host_wait_is_counted_with_its_place(operation, inference, cuda):
    with torch.inference_mode(inference):
        ours = torch.ones(3, device="cuda")
        with cuda.syncs_of() as found:
            (WAITING | NOT_WAITING)[operation](ours)
        assert len(found) == (operation in WAITING), found
        assert all(sync.where.startswith(f"{__file__}:") for sync in found)
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError, match="synchronizing") if found else contextlib.nullcontext():
            (WAITING | NOT_WAITING)[operation](ours)


@pytest.mark.parametrize("wait", ["event", "stream", "device", "another value"])
def test_a_copy_that_nobody_waited_for_has_not_arrived(wait, cuda):
    ours, event = torch.arange(3.0, device="cuda"), torch.cuda.Event()
    copies = [ours.to("cpu", non_blocking=True), torch.zeros(3, pin_memory=True).copy_(ours, non_blocking=True)]
    event.record()
    late = ours.to("cpu", non_blocking=True)
    ours.add_(5)  # after the copies, in the order of the stream
    assert copies[0].isnan().all() and copies[1].tolist() == [0, 0, 0]
    {
        "event": event.synchronize,
        "stream": torch.cuda.current_stream().synchronize,
        "device": torch.cuda.synchronize,
        "another value": ours.sum().item,
    }[wait]()
    assert all(copied.tolist() == [0, 1, 2] for copied in copies)
    assert late.isnan().all() == (wait == "event")


def test_another_stream_waits_for_a_copy_only_where_it_is_asked_to(cuda):
    ours, side = torch.ones(2, device="cuda"), torch.cuda.Stream()
    with torch.cuda.stream(side):
        copied = ours.to("cpu", non_blocking=True)
        assert torch.cuda.current_stream() is side
    torch.cuda.current_stream().synchronize()
    assert copied.isnan().all()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.current_stream().synchronize()
    assert copied.tolist() == [1, 1]


# CUDA graphs


def recorded(network, images, mode="global"):
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph, capture_error_mode=mode):
        return graph, network(images)


def a_network():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(4 * 36, 3),
    )
    return nn.Sequential(*layers).eval()


def test_a_graph_does_again_what_was_recorded_with_what_its_inputs_hold(cuda):
    network = a_network()
    first, second = torch.rand(2, 2, 3, 8, 8)
    with torch.inference_mode():
        expected = network(second)
    images = first.to("cuda")
    graph, output = recorded(network.to("cuda"), images)
    assert output.isnan().all()  # nothing is computed while it is recorded
    place = output.data_ptr()
    graph.replay()
    assert not torch.allclose(output.cpu(), expected)
    images.copy_(second)
    with cuda.syncs_of() as waits:
        graph.replay()
    torch.testing.assert_close(output.cpu(), expected)
    assert output.data_ptr() == place and not waits


def test_waiting_while_a_graph_is_recorded_is_refused(cuda):
    images = torch.rand(2, 3, device="cuda")
    for waiting in (lambda images: images * images.max().item(), lambda images: images + torch.ones(3).to("cuda")):
        with pytest.raises(RuntimeError, match="operation not permitted when stream is capturing"):
            recorded(waiting, images)
    with pytest.raises(RuntimeError, match="must be captured on a non-default stream"):
        torch.cuda.CUDAGraph().capture_begin()
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        torch.cuda.CUDAGraph().replay()
    assert images.sum().item() > 0 and not torch.cuda.is_current_stream_capturing()


@pytest.mark.parametrize("mode", ["global", "thread_local"])
def test_other_threads_may_wait_while_a_graph_is_recorded_for_one_thread(mode, cuda):
    ours = torch.ones(2, device="cuda")

    def another_thread_waits(images):
        with ThreadPoolExecutor(1) as pool:
            return images + (pool.submit(ours.tolist).result() == [1, 1])

    expected = pytest.raises(RuntimeError, match="capturing") if mode == "global" else contextlib.nullcontext()
    with expected:
        recorded(another_thread_waits, ours, mode)


# That it is torch's own way


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_it_does_for_cuda(dtype, cuda):
    images, network = torch.rand(2, 3, 8, 8, device="cuda"), a_network().to("cuda")
    with torch.autocast("cuda", dtype):
        assert network(images).dtype == dtype
        # Of these, autocast of the CPU leaves the first two as they are.
        assert images.to(dtype).softmax(1).dtype == images.to(dtype).exp().dtype == torch.float32
        assert (images.to(dtype) + images).dtype == torch.float32
        with torch.autocast("cuda", enabled=False):
            assert network(images).dtype == torch.float32
    with torch.autocast("cpu", dtype):
        assert network(images).dtype == torch.float32


def test_gradients_are_those_of_the_cpu_and_a_network_keeps_its_parameters(cuda):
    network, images = a_network().train(), torch.rand(2, 3, 8, 8)
    there = copy.deepcopy(network)
    parameters = list(there.parameters())
    optimizers = [torch.optim.Adam(each.parameters(), fused=True) for each in (network, there)]
    there.to("cuda").to(memory_format=torch.channels_last)
    for each, device, optimizer in ((network, "cpu", optimizers[0]), (there, "cuda", optimizers[1])):
        each(images.to(device)).square().mean().backward()
        optimizer.step()
    assert all(after is before for after, before in zip(there.parameters(), parameters, strict=True))
    assert all(isinstance(parameter, nn.Parameter) and parameter.is_cuda for parameter in parameters)
    for ours, theirs in zip(parameters, network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad)
        torch.testing.assert_close(ours.detach().cpu(), theirs.detach())
    assert optimizers[1].state[parameters[0]]["step"].is_cuda


def test_files_hold_tensors_of_the_cpu_and_copies_are_on_the_gpu(cuda):
    network = a_network().to("cuda")
    copied = copy.deepcopy(network)
    assert all(isinstance(value, CudaTensor) and torch.equal(value, network.state_dict()[key])
               for key, value in copied.state_dict().items())  # fmt: skip
    copied[0].weight.data.zero_()
    assert network[0].weight.all() and isinstance(copied[0].weight, nn.Parameter)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    for key, value in torch.load(file, weights_only=True).items():
        assert type(value) is torch.Tensor and value.equal(network.state_dict()[key].cpu())


def test_a_thread_begins_on_the_first_gpu():
    with rehearsed_cuda(gpus=2), ThreadPoolExecutor(1) as pool:
        torch.cuda.set_device(1)
        assert torch.ones(1, device="cuda").device.index == 1
        assert pool.submit(lambda: torch.ones(1, device="cuda").device.index).result() == 0


def test_a_loader_pins_its_batches(cuda):
    loader = evaluation_loader(Specks(), 0, torch.device("cuda", 0))
    (images, _), _ = next(batches(loader))
    assert images.is_pinned() and not torch.ones(1).is_pinned()


def test_a_gpu_may_be_given_little_memory(cuda):
    torch.cuda.set_per_process_memory_fraction(2**-20)  # of 80 GiB
    assert torch.ones(100, device="cuda").sum().item() == 100
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        torch.ones(2**20, device="cuda")


def test_nothing_of_it_is_left_afterwards():
    names = ["is_available", "current_device", "_lazy_init", "default_generators", "Stream", "Event", "CUDAGraph"]

    def state():
        return [getattr(torch.cuda, name) for name in names] + [torch.Generator, threading.Thread.run]

    before = state()
    with rehearsed_cuda():
        assert torch.cuda.is_available()
    with pytest.raises(KeyboardInterrupt), rehearsed_cuda():
        raise KeyboardInterrupt
    assert state() == before and not torch.cuda.is_available()
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ones(2, device="cuda")
    assert type(torch.ones(2)) is torch.Tensor


@pytest.mark.slow
def test_the_export_leaves_the_gpu_alone(world, cuda, in_tmp):
    with small_networks(), cuda.syncs_of() as waits:
        export_onnx.main(
            ["--params", str(world.files["deeplab_hybrid"]), "--network", "deeplabv3plus", "--output", "out.onnx"]
        )
    assert Path("out.onnx").exists() and not waits
