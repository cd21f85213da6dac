"""On a GPU: that it runs, and that it is right. What a CPU can rehearse of it is in test_cuda_rehearsal.py."""

import contextlib
import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engine import SlidingWindows, start_process
from engine.graphs import Replay
from engine.precision import choose_precision
from engine.step import Step, Update
from models import deeplabv3plus, denseflow_25_6, fast_inference, ladder_densenet121, segmenter
from models.weights import NoInitialWeights
from tests.golden.fill import golden_image, golden_state_dict
from tests.support import script_runs
from tests.support.script_runs import (
    EVALUATIONS,
    TRAININGS,
    World,
    assert_close,
    each_epoch_within,
    figures_of,
    log_of,
    small_networks,
)
from tools import export_onnx

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("default"),  # PyTorch warns of what it does on a GPU, each version of other things
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
GOLDEN = Path(__file__).parents[1] / "golden"
# Of the largest magnitude of the released code's outputs, and of figures.
TOLERANCE = {"float32": 1e-4, "tf32": 2e-2, "float16": 2e-2, "bfloat16": 1.2e-1}
FIGURES = {"float32": 1e-3, "tf32": 2e-2}
DEVICE = ["--device", "cuda"]


@pytest.fixture(autouse=True)
def as_before():
    """Afterwards, TF32 is on or off as it was, all memory may be used, and waiting is no error."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [each.fp32_precision for each in settings]
    yield
    for each, value in zip(settings, before, strict=True):
        each.fp32_precision = value
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world") / "files")


# The released code's outputs

BUILD = {
    "ldn121_12": lambda: ladder_densenet121(12, False),
    "ldn121_hybrid_12": lambda: ladder_densenet121(12),
    "ldn121_hybrid_19": lambda: ladder_densenet121(19),
    "deeplabv3plus_19": lambda: deeplabv3plus(19, False),
    "deeplabv3plus_hybrid_19": lambda: deeplabv3plus(19),
    "segmenter_20": lambda: segmenter(20, False),
    "segmenter_hybrid_20": lambda: segmenter(20),
    "denseflow_25_6": denseflow_25_6,
}
GAIN = {"ldn121": 1.0, "deeplabv3plus": 0.6, "segmenter": 0.5, "denseflow": 0.3}


@functools.lru_cache(1)
def golden_network(layout):
    """With the golden weights, on the GPU; of several tests in a row the same one"""
    with NoInitialWeights():
        network = BUILD[layout]().eval()
    network.load_state_dict(golden_state_dict(network.state_dict(), GAIN[layout.split("_")[0]]))
    return network.to("cuda")


def sizes_of(layout):
    return sorted(path.stem.removeprefix(f"{layout}_") for path in GOLDEN.glob(f"{layout}_[0-9w]*.npz"))


OUTPUTS = [(layout, size) for layout in BUILD if layout != "denseflow_25_6" for size in sizes_of(layout)]


@pytest.mark.parametrize("copied", [False, True], ids=["network", "fast"])
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize(("layout", "size"), OUTPUTS, ids=lambda part: part)
def test_outputs_are_those_of_the_released_code(layout, size, precision, copied):
    network, device = golden_network(layout), start_process("cuda")
    chosen = choose_precision(precision, device)
    if copied:
        network = fast_inference(network, chosen.dtype, chosen.memory_format)
    else:
        network.to(memory_format=chosen.memory_format)
    height, width = map(int, size.removeprefix("windows_").removesuffix("_batch1").split("x"))
    images = golden_image(height, width, batch=1 if "windows" in size or "batch1" in size else 2).to(device)
    if "windows" in size:
        network = SlidingWindows(network, 512, 320, at_a_time=4, enlarge=True)
    with torch.inference_mode(), chosen.autocast(device):
        outputs = network(images.contiguous(memory_format=chosen.memory_format))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    golden = np.load(GOLDEN / f"{layout}_{size}.npz")
    assert len(outputs) == 1 + ("logits_ood" in golden)
    for key, output in zip(("logits", "logits_ood"), outputs, strict=False):
        assert_as_released(output[:, :, ::8, ::8], golden[key], TOLERANCE[precision])


def assert_as_released(ours, golden, tolerance):
    assert ours.is_cuda and ours.shape == golden.shape
    assert np.abs(ours.float().cpu().numpy() - golden).max() <= tolerance * np.abs(golden).max()


@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize("size", sizes_of("denseflow_25_6"))
def test_the_flow_is_that_of_the_released_code(size, precision, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *size, **kind: torch.full(*size, 0.5, **kind))
    monkeypatch.setattr(torch, "randn", lambda *size, **kind: torch.zeros(*size, **kind))
    flow, device = golden_network("denseflow_25_6"), start_process("cuda")
    choose_precision(precision, device)
    golden = np.load(GOLDEN / f"denseflow_25_6_{size}.npz")
    images = (golden_image(*map(int, size.split("x"))) * 255).long().to(device)
    with torch.no_grad():
        latent, log_likelihood, _ = flow.encode(images)
        log_prob = log_likelihood + flow.base_dist.log_prob(latent)
        sample = flow.sample(len(golden["sample"]), *golden["sample"].shape[2:])
    for key, ours in (("z", latent), ("log_prob", log_prob), ("sample", sample)):
        assert_as_released(ours, golden[key], TOLERANCE[precision])


# The scripts


@contextlib.contextmanager
def waiting_is_an_error():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("script", TRAININGS)
def test_a_training_runs_to_its_end_and_from_its_second_epoch_on_its_steps_wait_for_nothing(script, world, in_tmp):
    epochs = iter([contextlib.nullcontext(), waiting_is_an_error()])  # in the first a flow is set, and kernels chosen
    with each_epoch_within(lambda: next(epochs)):
        world.run(script, *DEVICE, "--epochs", "2")
    lines = log_of(script)
    assert [line["epoch"] for line in lines if "validation" in line] == [1, 2]
    assert all(line["peak_memory_mib"] > 1 for line in lines if "validation" in line)
    weights = torch.load(f"logs/{script}/final.pth", map_location="cpu", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize(
    ("script", "precision"),
    [
        ("ldn_streethazards_finetune", "float32"),
        ("ldn_streethazards_finetune", "bfloat16"),
        ("dlv3_cityscapes_finetune_flow", "bfloat16"),
        ("segmenter_coco20_finetune_flow", "float16"),
        ("train_denseflow", "float16"),
    ],
)
def test_a_training_runs_in_any_precision(script, precision, world, in_tmp):
    world.run(script, *DEVICE, "--precision", precision)
    assert Path("logs", script, "final.pth").exists()


@pytest.mark.parametrize("script", ["dlv3_cityscapes_finetune", "segmenter_coco20"])
def test_replayed_steps_have_the_losses_of_those_that_are_not(script, world, in_tmp, monkeypatch):
    found, recorded, record = [], [], Replay.record

    def noted(replay, *inputs):
        record(replay, *inputs)
        recorded.append(replay.graph is not None)

    monkeypatch.setattr(Replay, "record", noted)
    for flags in ([], ["--no_graphs"]):
        world.run(script, *DEVICE, "--precision", "float32", "--epochs", "3", "--validate_every", "3", *flags)
        found.append([line["class"] for line in log_of(script) if "class" in line])
        Path("logs").rename("".join(["before", *flags]))
    assert recorded == [True] and len(found[0]) >= 12
    assert found[0] == pytest.approx(found[1], rel=0.02)  # so small a network makes much of a rounding


@pytest.mark.parametrize("script", ["ldn_streethazards_finetune"])
def test_a_training_begins_with_the_losses_of_the_cpu(script, world, in_tmp):
    firsts = []
    for flags in (["--device", "cpu"], [*DEVICE, "--precision", "float32"]):
        world.run(script, *flags)
        firsts.append([log_of(script)[0][term] for term in ("class", "likelihood", "dataset")])
        Path("logs").rename(flags[1])
    assert firsts[1] == pytest.approx(firsts[0], rel=0.02)


@pytest.mark.parametrize("precision", FIGURES)
@pytest.mark.parametrize("script", EVALUATIONS)
def test_an_evaluation_has_the_figures_of_the_cpu(script, precision, world, in_tmp):
    expected = figures_of(world.run(script, "--device", "cpu"))
    found = figures_of(world.run(script, *DEVICE, "--precision", precision))
    assert_close(found, expected, FIGURES[precision])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("script", ["evaluate_ood lf", "evaluate_osr_coco"])
def test_an_evaluation_runs_in_half_precision(script, precision, world, in_tmp):
    assert world.run(script, *DEVICE, "--precision", precision)["record"]["precision"] == precision


@pytest.mark.parametrize("tool", script_runs.TOOLS)
def test_a_tool_writes_the_scores_of_the_cpu(tool, world, in_tmp):
    world.run(tool, "--device", "cpu")
    Path(tool).rename("expected")
    world.run(tool, *DEVICE, "--precision", "float32")
    paths = sorted(Path(tool).rglob("*.npy"))
    assert len(paths) == 2
    for path in paths:
        ours, theirs = np.load(path), np.load(Path("expected", path.relative_to(tool)))
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_network_is_exported(world, in_tmp):
    flags = ["--params", str(world.files["deeplab_hybrid"]), "--network", "deeplabv3plus"]
    with small_networks():
        export_onnx.main([*flags, "--output", "network.onnx"])
    assert Path("network.onnx").exists()


# A process of its own


def run_apart(world, kind, script, *flags, launcher=()):
    """Its exit code, and what it printed"""
    root = world.files["ade"].parent
    command = [sys.executable, *launcher, script_runs.__file__, str(root), kind, script, *flags]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.processes
def test_a_killed_training_goes_on(world, in_tmp):
    script, flags = "segmenter_coco20_finetune_flow", [*DEVICE, "--epochs", "2"]
    code, printed = run_apart(world, "killed", script, *flags)
    assert code == -9, printed
    assert torch.load(f"logs/{script}/last.pt", weights_only=True)["progress"]["epoch"] == 1
    world.run(script, *flags, "--resume")
    epochs = [line["epoch"] for line in log_of(script)]
    assert epochs == sorted(epochs) and epochs.count(1) == epochs.count(2) == 5
    resumed = [line["class"] for line in log_of(script) if "class" in line]
    Path("logs").rename("before")
    world.run(script, *flags)
    assert resumed == pytest.approx([line["class"] for line in log_of(script) if "class" in line], rel=0.05)


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["whole", "nccl"])
def test_a_training_is_started_by_torchrun(kind, world, in_tmp):
    script = "ldn_streethazards_finetune"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
    code, printed = run_apart(world, kind, script, *DEVICE, "--no_graphs", launcher=launcher)
    assert code == 0, printed
    assert len(log_of(script)) == 6


# Memory, numbers, the compiler


def test_a_gpu_that_is_full_gets_advice_in_training(world, in_tmp):
    @contextlib.contextmanager
    def no_memory():
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-9)
        yield

    told = r"cuda:0 has not enough memory for 2 crops of 32 pixels at once .*--accumulation 2"
    with each_epoch_within(no_memory), pytest.raises(MemoryError, match=told):
        world.run("ldn_streethazards", *DEVICE)


def test_a_gpu_that_is_full_gets_advice_in_evaluation(world, in_tmp, monkeypatch):
    def full(model, *inputs):
        torch.cuda.set_per_process_memory_fraction(1e-9)
        return torch.empty(2**26, device="cuda")

    monkeypatch.setattr("engine.evaluate.Forward.forward", full)
    with pytest.raises(
        MemoryError, match=r"cuda:0 has not enough memory for .*, 64 x 40 pixels .*--precision bfloat16"
    ):
        world.run("evaluate_ood lf", *DEVICE)


def test_steps_whose_float16_gradients_overflow_are_left_out():
    device = start_process("cuda")
    model = nn.Linear(1, 1, bias=False).to(device)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    step = Step(lambda model, images: {"four times": 4 * model(images).mean()})
    update = Update(step, model, [model], optimizer, 1, device, choose_precision("float16", device))
    weights, noted = [], []
    for _ in range(4):
        update.gradients([torch.ones(2, 1, device=device)])
        noted.append({name: number.item() for name, number in update.apply().items()})
        weights.append(model.weight.item())
    # The gradient is 4; scaled by 2**16, 2**15 and 2**14 it is beyond float16's 65504.
    assert weights == [1, 1, 1, 0]
    assert [each["taken"] for each in noted] == [0, 0, 0, 1]
    assert [each["scale"] for each in noted] == [2**15, 2**14, 2**13, 2**13]


def test_a_compiled_network_has_the_losses_of_one_that_is_not(world, in_tmp):
    losses = []
    for flags in ([], ["--compile"]):
        world.run("segmenter_coco20", *DEVICE, "--precision", "float32", *flags)
        losses.append([line["class"] for line in log_of("segmenter_coco20") if "class" in line])
        Path("logs").rename("".join(["before", *flags]))
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.02)


def test_a_gpu_has_its_index_and_is_the_current_one():
    device = start_process("cuda")
    assert device == torch.device("cuda", torch.cuda.current_device())
    last = torch.cuda.device_count() - 1
    assert start_process(f"cuda:{last}").index == torch.cuda.current_device() == last
    start_process("cuda:0")
