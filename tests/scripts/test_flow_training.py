"""A flow trained along with the network, and alone: the scripts are the real ones, the flow has a few narrow layers."""

import copy
import math
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import dlv3_cityscapes_finetune_flow
import ldn_streethazards_finetune_flow
import train_denseflow
from benchmarks import plain_denseflow
from engine import Recipe, Run, fit, same_noise
from engine.recipe import read_recipe
from labels import IGNORE, OUTLIER
from ldn_streethazards_finetune_flow import LadderFlowRecipe
from models import load_weights
from models.denseflow import DenseFlow
from tests.golden.fill import golden_state_dict
from tests.support.layouts import cityscapes
from tests.support.networks import small_flow, thin_trunk
from tests.support.stand_ins import put_in_place
from tests.support.tiny import log_of, read_weights, same, steps_of, whole

SMALL = ["--device", "cpu", "--workers", "0", "--crop_size", "48", "--patch_sides", "16", "24", "8",
         "--validation_patches", "2"]  # fmt: skip
BETA, DIVERGENCE = 0.03, 0.03


@pytest.fixture
def narrow():
    with thin_trunk():
        yield


@pytest.fixture(scope="module", autouse=True)
def small():
    """The scripts build small_flow() instead of DenseFlow-25-6"""
    with pytest.MonkeyPatch.context() as patch:
        put_in_place(patch, {"models.denseflow_25_6": small_flow})
        yield


@pytest.fixture(scope="module")
def flow_file(tmp_path_factory):
    """A flow with every weight filled, wrapped as the released one for streets"""
    path = tmp_path_factory.mktemp("flow") / "flow.pt"
    torch.save({"model": golden_state_dict(small_flow().state_dict(), gain=0.3)}, path)
    return path


def flow_flags(street_hazards, weights, flow_file, *flags):
    return ["--dataroot", str(street_hazards), "--model", str(weights), "--flow_state", str(flow_file),
            "--exp_name", "flow", *SMALL, "--batch_size", "5", "--epochs", "2", *flags]  # fmt: skip


@pytest.fixture(scope="module")
def trained(street_hazards, random_weights, flow_file, tmp_path_factory):
    """logs/flow of a fine-tuning of two epochs of two steps"""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        ldn_streethazards_finetune_flow.main(flow_flags(street_hazards, random_weights["closed"], flow_file))
        return Path("logs/flow").resolve()


class Experiment:
    """What a script hands to fit"""

    def __init__(self, steps, state, dataset, recipe, run, validate, **rest):
        self.model, self.flow, self.state = state["model"], state.get("flow"), state
        self.steps = {name: whole(step) for name, step in steps.items()}
        self.recipe, self.rest = recipe, rest


@pytest.fixture
def experiment(street_hazards, random_weights, flow_file, monkeypatch, in_tmp):
    """Sets the script up to the training and returns the Experiment"""
    put_in_place(monkeypatch, {"engine.fit": Experiment})

    def set_up(*flags, flow_state=flow_file):
        flags = flow_flags(street_hazards, random_weights["closed"], flow_state, *flags)
        return ldn_streethazards_finetune_flow.main(flags)

    return set_up


def copied(state_dict):
    return {key: value.clone() for key, value in state_dict.items()}


def a_batch(count=3):
    """Images whose values are stored ones, and labels with some ignored pixels"""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 48, 48), generator=generator).double() / 255
    labels = torch.randint(12, (count, 48, 48), generator=generator)
    return images, labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.1, IGNORE)


class Watched(nn.Module):
    """Keeps what goes into the network, in float64"""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model.double().train(), []

    def forward(self, images):
        self.seen.append(images)
        return self.model(images)


def watch(module, name, monkeypatch):
    """Keeps the arguments of a method's calls, with the random state before each"""
    method, calls = getattr(module, name), []

    def watched(*inputs, **choices):
        calls.append((torch.get_rng_state(), inputs))
        return method(*inputs, **choices)

    monkeypatch.setattr(module, name, watched)
    return calls


def rectangles(images, pasted):
    """(top, left, height, width) of what was pasted into each image"""
    found = []
    for changed in (images != pasted).any(1):
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        top, left = int(rows[0]), int(columns[0])
        found.append((top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left))
    return found


# The joint step


@pytest.mark.slow
def test_the_networks_step_is_the_hybrid_loss_on_patches_drawn_from_the_flow(experiment, monkeypatch):
    tried = experiment()
    model, flow = Watched(tried.model), tried.flow.double()
    images, labels = a_batch()
    drawn = watch(flow, "sample", monkeypatch)
    before, twin = copied(flow.state_dict()), copy.deepcopy(model.model)
    torch.manual_seed(5)
    terms = tried.steps["optimizer"](model, images, labels)
    sum(terms.values()).backward()

    (random, (count, height, width)), (pasted,) = drawn[0], model.seen
    assert len(drawn) == 1 and count == len(images) and {height, width} <= {16, 24}
    torch.set_rng_state(random)
    patches = plain_denseflow.sample(before, count, height, width) / 255
    expected, expected_labels = images.clone(), labels.clone()
    for number, (top, left, *size) in enumerate(rectangles(images, pasted)):
        assert size == [height, width]
        expected[number, :, top : top + height, left : left + width] = patches[number]
        expected_labels[number, top : top + height, left : left + width] = OUTLIER
    torch.testing.assert_close(pasted, expected, rtol=1e-6, atol=1e-6)

    class_logits, dataset_logits = twin(pasted)
    out, known = expected_labels == OUTLIER, expected_labels < 12
    by_pixel = class_logits.permute(0, 2, 3, 1)
    likelihood = BETA * by_pixel[out].exp().sum(1).log().mean()
    classes = F.cross_entropy(by_pixel[known], expected_labels[known])
    membership = F.cross_entropy(dataset_logits.permute(0, 2, 3, 1)[out | known], out[out | known].long())
    assert list(terms) == ["class", "likelihood", "dataset"]
    for name, value in (("class", classes), ("likelihood", likelihood), ("dataset", 10 * BETA * membership)):
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5), name

    # The flow is left as it was.
    assert same(flow.state_dict(), before) and all(parameter.grad is None for parameter in flow.parameters())


@pytest.mark.slow
def test_the_flows_step_is_the_divergence_and_the_likelihood_of_what_its_patches_cover(experiment, monkeypatch):
    tried = experiment()
    model, flow = Watched(tried.model), tried.flow.double()
    images, labels = a_batch()
    weights = dict(flow.named_parameters())
    drawn, scored = watch(flow, "sample", monkeypatch), watch(flow, "log_prob", monkeypatch)
    twin = copy.deepcopy(model.model)
    torch.manual_seed(6)
    terms = tried.steps["flow_optimizer"](model, images, labels)
    assert list(terms) == ["jensen_shannon", "bits_per_dimension"]
    (random, (count, height, width)), (pasted,) = drawn[0], model.seen
    assert len(drawn) == len(scored) == 1 and count == len(images)

    # The divergence, and its gradient back through the network and the paste to the flow's weights.
    torch.set_rng_state(random)
    patches = plain_denseflow.sample(weights, count, height, width) / 255
    expected, places = images.clone(), rectangles(images, pasted)
    for number, (top, left, *size) in enumerate(places):
        assert size == [height, width]
        expected[number, :, top : top + height, left : left + width] = patches[number]
    posterior = twin(expected)[0].softmax(1)
    mean = (posterior + 1 / 12) / 2
    by_pixel = (posterior * (posterior / mean).log() - (12 * mean).log() / 12).sum(1) / 2
    divergence = sum(by_pixel[n, t : t + height, x : x + width].sum() for n, (t, x, *_) in enumerate(places))
    divergence = DIVERGENCE * divergence / (count * height * width)
    assert terms["jensen_shannon"].item() == pytest.approx(divergence.item(), rel=1e-5)
    drawing = [parameter for name, parameter in weights.items() if "noise_params" not in name]
    ours = torch.autograd.grad(terms["jensen_shannon"], drawing, retain_graph=True)
    theirs = torch.autograd.grad(divergence, drawing)
    assert any(gradient.any() for gradient in theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())

    # The likelihood of the image where the patches went, as whole numbers.
    random, (covered,) = scored[0]
    for number, (top, left, *_) in enumerate(places):
        whole = (255 * images[number, :, top : top + height, left : left + width]).round()
        assert covered[number].equal(whole)
    torch.set_rng_state(random)
    log_prob = plain_denseflow.log_prob(weights, covered)
    bits = -log_prob.mean() / (math.log(2) * 3 * height * width)
    assert terms["bits_per_dimension"].item() == pytest.approx(bits.item(), rel=1e-6)


@pytest.mark.slow
def test_the_flows_step_leaves_the_network_alone_and_moves_the_flow(experiment):
    tried = experiment()
    model, flow, (images, labels) = tried.model.train(), tried.flow, a_batch()
    images = images.float()
    sum(tried.steps["optimizer"](model, images, labels).values()).backward()
    before, flow_before = copied(model.state_dict()), copied(flow.state_dict())
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if "aux" not in name}
    sum(tried.steps["flow_optimizer"](model, images, labels).values()).backward()
    tried.state["flow_optimizer"].step()
    assert same(model.state_dict(), before)  # weights, running statistics and their counters
    assert all(dict(model.named_parameters())[name].grad.equal(value) for name, value in gradients.items())
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    after = flow.state_dict()
    for name, parameter in flow.named_parameters():
        assert parameter.grad.isfinite().all() and not parameter.equal(flow_before[name]), name
    assert after["base_dist.loc"].sub(flow_before["base_dist.loc"]).abs().max() <= 1.01e-5  # Adamax's first step is lr


@pytest.mark.slow
def test_a_weight_of_nothing_leaves_a_term_out(experiment):
    (images, labels), terms = a_batch(), {}
    for weight in (0.5, 1.0):
        tried = experiment("--divergence_weight", "0", "--bits_weight", str(weight))
        torch.manual_seed(2)
        terms[weight] = tried.steps["flow_optimizer"](tried.model.train(), images.float(), labels)
        assert terms[weight]["jensen_shannon"] == 0
    assert terms[0.5]["bits_per_dimension"].item() == pytest.approx(terms[1.0]["bits_per_dimension"].item() / 2)


@pytest.mark.slow
def test_a_flow_from_scratch_learns_faster_than_one_from_a_file(experiment, flow_file):
    for flow_state, lr in ((flow_file, 1e-5), ("none", 1e-3)):
        tried = experiment(flow_state=flow_state)
        (group,) = tried.state["flow_optimizer"].param_groups
        assert isinstance(tried.state["flow_optimizer"], torch.optim.Adamax)
        assert (group["lr"], group["betas"], group["eps"]) == (lr, (0.9, 0.999), 1e-7)
        assert tried.flow.is_initialized() == (flow_state != "none")
    filled = golden_state_dict(small_flow().state_dict(), gain=0.3)
    assert same(experiment().flow.state_dict(), filled)


@pytest.mark.slow
def test_a_flow_from_scratch_is_set_by_its_first_step(experiment):
    tried = experiment(flow_state="none")
    images, labels = a_batch()
    sum(tried.steps["flow_optimizer"](tried.model.train(), images.float(), labels).values()).backward()
    assert tried.flow.is_initialized()
    tried.state["flow_optimizer"].step()
    assert all(value.isfinite().all() for value in tried.flow.state_dict().values())


# The run


@pytest.mark.slow
def test_every_term_of_both_steps_is_logged(trained):
    steps = steps_of(trained)
    assert len(steps) == 4
    terms = ["class", "likelihood", "dataset", "jensen_shannon", "bits_per_dimension"]
    for line in steps:
        assert list(line) == ["epoch", "step", "lr", "flow_optimizer/lr", *terms]
        assert all(math.isfinite(line[term]) for term in terms)
        assert 0 < line["jensen_shannon"] < DIVERGENCE * math.log(2) and line["bits_per_dimension"] > 0
    assert [line["validation"].keys() for line in log_of(trained)[2::3]] == [{"AP", "FPR95", "mIoU"}] * 2


@pytest.mark.slow
def test_the_flows_learning_rate_falls_after_each_epoch(trained):
    rates = [line["flow_optimizer/lr"] for line in steps_of(trained)]
    assert rates == pytest.approx([1e-5, 1e-5, 0.99e-5, 0.99e-5])
    (group,) = read_weights(trained / "last.pt")["flow_optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(0.99**2 * 1e-5)
    cosine = 1e-7 + (1e-5 - 1e-7) / 2
    assert [line["lr"] for line in steps_of(trained)] == pytest.approx([1e-5, 1e-5, cosine, cosine])


@pytest.mark.slow
def test_the_flow_is_written_down_and_can_be_gone_on_from(trained, flow_file, experiment):
    flow = load_weights(small_flow(), trained / "final_flow.pth")
    before, after = read_weights(flow_file)["model"], flow.state_dict()
    moved = (before["base_dist.loc"] - after["base_dist.loc"]).abs().max()
    assert 0 < moved < 4.1e-5  # four steps at 1e-5
    assert same(read_weights(trained / "last.pt")["flow"], copied(after))
    assert same(experiment(flow_state=trained / "final_flow.pth").flow.state_dict(), copied(after))
    for epoch in (1, 2):
        with Image.open(trained / "pictures" / f"epoch_00{epoch}.png") as picture:
            assert picture.size[0] >= 4 * 24 and picture.size[1] >= 2 * 24


def train_apart(folder, flags, deadly):
    """What the killed process runs: the fine-tuning, killed in the flow's likelihood when it is computed so often"""
    os.chdir(folder)
    calls, log_prob = [], DenseFlow.log_prob

    def deadly_log_prob(flow, images):
        calls.append(None)
        if len(calls) == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return log_prob(flow, images)

    DenseFlow.log_prob = deadly_log_prob
    put_in_place(pytest.MonkeyPatch(), {"models.denseflow_25_6": small_flow})  # for good: the process is its own
    ldn_streethazards_finetune_flow.main(flags)


@pytest.mark.processes
@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_network_flow_and_optimizers(
    trained, street_hazards, random_weights, flow_file, in_tmp
):
    context = multiprocessing.get_context("forkserver")
    flags = flow_flags(street_hazards, random_weights["closed"], flow_file)
    process = context.Process(target=train_apart, args=(in_tmp, flags, 4))  # in the second step of the second epoch
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    folder = in_tmp / "logs" / "flow"
    assert read_weights(folder / "last.pt")["progress"]["epoch"] == 1 and not (folder / "final.pth").exists()
    ldn_streethazards_finetune_flow.main([*flags, "--resume"])
    ours, theirs = read_weights(folder / "last.pt"), read_weights(trained / "last.pt")
    assert ours.keys() == theirs.keys() >= {"model", "optimizer", "schedule", "flow", "flow_optimizer", "flow_schedule"}
    for name in ours:
        assert same(ours[name], theirs[name]), name
    for name in ("final.pth", "final_flow.pth", "best.pth"):
        assert same(read_weights(folder / name), read_weights(trained / name)), name
    assert steps_of(folder) == steps_of(trained)
    for epoch in ("epoch_001.png", "epoch_002.png"):
        assert (folder / "pictures" / epoch).read_bytes() == (trained / "pictures" / epoch).read_bytes()


@pytest.mark.slow
def test_pictures_and_validation_take_nothing_from_the_random_numbers_of_training(experiment, tmp_path):
    tried = experiment()
    before, pictures = torch.get_rng_state(), [tmp_path / name for name in ("one.png", "other.png")]
    tried.rest["save_picture"](tried.model, pictures[0])
    assert torch.get_rng_state().equal(before)
    torch.rand(1)
    tried.rest["save_picture"](tried.model, pictures[1])
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_the_same_noise_is_drawn_at_every_visit_and_the_outer_noise_goes_on():
    drawn = []
    torch.manual_seed(3)
    for _ in range(2):
        with same_noise(torch.device("cpu")):
            drawn.append(torch.randn(3))
    assert drawn[0].equal(drawn[1])
    outer = torch.randn(3)
    torch.manual_seed(3)
    assert outer.equal(torch.randn(3)) and not outer.equal(drawn[0])


# What goes wrong


@pytest.mark.slow
def test_a_flow_that_diverges_stops_the_run_with_its_terms(
    street_hazards, random_weights, flow_file, in_tmp, monkeypatch
):
    log_prob = DenseFlow.log_prob
    monkeypatch.setattr(DenseFlow, "log_prob", lambda flow, images: math.nan * log_prob(flow, images))
    with pytest.raises(FloatingPointError) as stop:
        ldn_streethazards_finetune_flow.main(flow_flags(street_hazards, random_weights["closed"], flow_file))
    message = str(stop.value)
    assert "not finite in step 1" in message and "'bits_per_dimension': nan" in message
    assert all(f"'{term}': " in message for term in ("class", "likelihood", "dataset", "jensen_shannon"))
    assert steps_of(Path("logs/flow"))[0]["bits_per_dimension"] is None  # JSON has no NaN


@pytest.mark.slow
def test_a_flow_file_that_has_diverged_is_refused_before_any_work(street_hazards, random_weights, flow_file, in_tmp):
    state = read_weights(flow_file)
    state["model"]["base_dist.loc"][:] = math.inf
    torch.save(state, "diverged.pt")
    with pytest.raises(ValueError, match=r"diverged\.pt holds \d+ values of base_dist\.loc that are"):
        ldn_streethazards_finetune_flow.main(flow_flags(street_hazards, random_weights["closed"], "diverged.pt"))
    assert not Path("logs").exists()


@pytest.mark.slow
def test_a_flow_file_that_is_not_there_or_does_not_fit_is_refused_before_any_work(
    street_hazards, random_weights, in_tmp
):
    flags = flow_flags(street_hazards, random_weights["closed"], random_weights["closed"])
    with pytest.raises(ValueError, match=r"closed\.pth does not fit DenseFlow: .* missing: .* unexpected: backbone"):
        ldn_streethazards_finetune_flow.main(flags)
    with pytest.raises(FileNotFoundError, match=r"no weight file nowhere\.pt"):
        ldn_streethazards_finetune_flow.main(flow_flags(street_hazards, random_weights["closed"], "nowhere.pt"))
    assert not Path("logs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_sides": [16, 776, 8]}, r"patch_sides up to 776 are larger than crop_size 768"),
        ({"patch_sides": [16, 32, 8], "crop_size": 24}, r"patch_sides up to 32 are larger than crop_size 24"),
        ({"patch_sides": [12, 32, 8]}, r"patch_sides \[12, 32, 8\] must be .* all multiples of 8"),
        ({"patch_sides": [16, 30, 8]}, r"patch_sides \[16, 30, 8\] must be"),
        ({"patch_sides": [16, 32, 4]}, r"patch_sides \[16, 32, 4\] must be"),
        ({"patch_sides": [16, 32, 0]}, r"patch_sides \[16, 32, 0\] must be"),
        ({"patch_sides": [0, 32, 8]}, r"patch_sides \[0, 32, 8\] must be"),
        ({"patch_sides": [32, 16, 8]}, r"patch_sides \[32, 16, 8\] must be smallest, largest and step"),
        ({"patch_sides": [16, 32]}, r"patch_sides: \[16, 32\] is not 3 numbers"),
        ({"flow_lr_pretrained": 0}, r"flow_lr_pretrained must be positive, not 0"),
        ({"flow_lr_scratch": -1}, r"flow_lr_scratch must be positive, not -1"),
        ({"flow_eps": 0}, r"flow_eps must be positive"),
        ({"validation_patches": 0}, r"validation_patches must be positive"),
        ({"flow_lr_decay": 1.1}, r"flow_lr_decay 1\.1 must lie over 0"),
        ({"flow_lr_decay": 0}, r"flow_lr_decay 0\.0 must lie over 0"),
        ({"divergence_weight": -0.1}, r"divergence_weight must not be negative: -0\.1"),
        ({"bits_weight": -1}, r"bits_weight must not be negative"),
    ],
)  # fmt: skip
def test_a_number_of_the_flow_out_of_its_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        read_recipe("ldn_streethazards_finetune_flow", LadderFlowRecipe, changes)


def test_patches_as_large_as_the_crop_are_allowed():
    recipe, _ = read_recipe("ldn_streethazards_finetune_flow", LadderFlowRecipe, {"patch_sides": "16 768 8"})
    assert recipe.patch_sides == (16, 768, 8)


def test_the_numbers_of_the_cityscapes_recipe_are_the_releases():
    recipe, sources = read_recipe("dlv3_cityscapes_finetune_flow", dlv3_cityscapes_finetune_flow.FlowRecipe, {})
    assert (recipe.lr, recipe.schedule, recipe.epochs, recipe.batch_size) == (1e-6, "constant", 10, 16)
    assert (recipe.crop_size, recipe.scale, recipe.drop_last, recipe.beta) == (512, (0.5, 2), False, 0.01)
    assert (recipe.patch_sides, recipe.flow_lr_pretrained, recipe.flow_lr_scratch) == ((16, 216, 8), 1e-5, 1e-3)
    assert (recipe.flow_lr_decay, recipe.flow_eps) == (0.99, 1e-7)
    assert (recipe.divergence_weight, recipe.bits_weight) == (0.03, 1)
    assert {"patch_sides", "flow_lr_decay", "divergence_weight"} <= sources["release"].keys()


# DeepLabV3+


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("flow_state", ["file", "none"])
def test_deeplab_is_fine_tuned_with_a_flow(flow_state, flow_file, in_tmp):
    root = cityscapes(in_tmp / "city", 4, (40, 64))
    command = f"--dataroot {root} --exp_name city --init none --epochs 1 --batch_size 2 --flow_checkpointing true"
    flow_state = flow_file if flow_state == "file" else "none"
    figures = dlv3_cityscapes_finetune_flow.main([*command.split(), "--flow_state", str(flow_state), *SMALL])
    assert set(figures) == {"AP", "FPR95", "mIoU"} and 0 < figures["AP"] < 1
    steps = steps_of(Path("logs/city"))
    assert len(steps) == 2 and all(math.isfinite(value) for line in steps for value in line.values())
    assert steps[0]["flow_optimizer/lr"] == (1e-5 if flow_state != "none" else 1e-3)
    load_weights(small_flow(), "logs/city/final_flow.pth")
    assert Path("logs/city/pictures/epoch_001.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
def test_deeplabs_last_batch_of_one_image_is_refused_before_the_training(flow_file, in_tmp):
    root = cityscapes(in_tmp / "city", 3, (40, 64))
    command = f"--dataroot {root} --exp_name city --init none --batch_size 2 --flow_state {flow_file}"
    with pytest.raises(ValueError, match="--drop_last true"):
        dlv3_cityscapes_finetune_flow.main([*command.split(), *SMALL])
    assert not Path("logs").exists()


# The flow alone


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of 25 smooth pictures of several sizes"""
    root, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(25):
        coarse = random.integers(60, 120, (3, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((30 + number, 50 - number), Image.Resampling.BICUBIC)
        picture.save(root / f"{number:02d}.png")
    return root


def alone_flags(*flags):
    return ["--exp_name", "alone", "--device", "cpu", "--workers", "0", "--crop_size", "16", "--batch_size", "8",
            "--epochs", "4", "--lr", "0.02", "--warmup_steps", "4", "--sampled_images", "4", *flags]  # fmt: skip


@pytest.fixture(scope="module")
def alone(photographs, tmp_path_factory):
    """logs/alone of a flow's training on a folder of photographs"""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("alone"))
        train_denseflow.main(alone_flags("--images", str(photographs)))
        return Path("logs/alone").resolve()


@pytest.mark.slow
def test_training_the_flow_lowers_the_bits_per_dimension(alone):
    figures = [line["validation"]["bits_per_dimension"] for line in log_of(alone) if "validation" in line]
    bits = [line["bits_per_dimension"] for line in steps_of(alone)]
    assert len(figures) == 4 and len(bits) == 4 * (23 // 8)  # two of 25 pictures are held out
    assert figures[-1] < figures[0] - 0.3 and bits[-1] < bits[0] - 0.3
    lowest = min(range(4), key=figures.__getitem__)
    assert read_weights(alone / "last.pt")["progress"]["best"] == -figures[lowest]
    assert same(read_weights(alone / "best.pth"), read_weights(alone / "final.pth")) == (lowest == 3)
    for epoch in range(1, 5):
        with Image.open(alone / "pictures" / f"epoch_00{epoch}.png") as picture:
            assert picture.size[0] == picture.size[1] >= 2 * 16


def test_each_process_validates_the_flow_on_its_share_of_the_images(photographs, in_tmp, monkeypatch):
    class Looking(torch.nn.Module):
        def forward(self, crops):
            seen.extend(crops.flatten(1).sum(1).tolist())
            return crops.new_zeros(len(crops))

    flags, seen, validations = alone_flags("--images", str(photographs)), [], []
    monkeypatch.setattr(train_denseflow, "HELD_OUT", 5)
    put_in_place(monkeypatch, {"engine.fit": lambda *rest, **figures: validations.append(rest[5])})
    train_denseflow.main(flags)
    shares = []
    for process, processes in ((0, 1), (0, 2), (1, 2)):
        monkeypatch.setenv("RANK", str(process))
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        seen.clear()
        validations[0](Looking())
        shares.append([*seen])
    whole, first, second = shares
    assert len(whole) == 5 and len(first) == 3 and sorted(first + second) == sorted(whole)
    everywhere = {"bits": 12.0, "images": 5}
    put_in_place(monkeypatch, {"engine.processes.all_reduce_sum": lambda numbers, device: numbers | everywhere})
    assert validations[0](Looking()) == {"bits_per_dimension": 12 / 5}  # of all processes


@pytest.mark.slow
def test_the_trained_flow_is_a_flow_state(alone, experiment):
    assert same(experiment(flow_state=alone / "final.pth").flow.state_dict(), read_weights(alone / "final.pth"))


def test_the_learning_rate_rises_step_by_step_and_falls_epoch_by_epoch(alone):
    expected = [
        0.02 * min(1, (2 * epoch + step) / 5) * (1 + math.cos(math.pi * epoch / 4)) / 2  # 4 of 5 parts by warming up
        for epoch in range(4)
        for step in (1, 2)
    ]
    assert [line["lr"] for line in steps_of(alone)] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_an_interrupted_training_of_the_flow_ends_with_the_same_weights(
    alone, photographs, in_tmp, monkeypatch, capsys
):
    calls, log_prob = [], DenseFlow.log_prob

    def interrupted(flow, images):
        calls.append(flow.training)
        if sum(calls) == 4:
            raise KeyboardInterrupt
        return log_prob(flow, images)

    flags = alone_flags("--images", str(photographs))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(DenseFlow, "log_prob", interrupted)
        train_denseflow.main(flags)
    assert "stopped after 1 of 4 epochs" in capsys.readouterr().out
    train_denseflow.main([*flags, "--resume"])
    ours, theirs = read_weights("logs/alone/last.pt"), read_weights(alone / "last.pt")
    assert "warmup" in ours
    for name in ours:
        assert same(ours[name], theirs[name]), name
    assert same(read_weights("logs/alone/best.pth"), read_weights(alone / "best.pth"))
    assert steps_of(Path("logs/alone")) == steps_of(alone)


@pytest.mark.slow
def test_the_flow_learns_from_the_training_images_of_a_data_set(street_hazards, in_tmp):
    flags = alone_flags("--dataset", "street-hazards", "--dataroot", str(street_hazards), "--epochs", "3")
    train_denseflow.main([*flags, "--batch_size", "3", "--warmup_steps", "0", "--checkpointing", "true"])
    figures = [line["validation"]["bits_per_dimension"] for line in log_of(Path("logs/alone")) if "validation" in line]
    assert len(steps_of(Path("logs/alone"))) == 9 and figures[-1] < figures[0]  # of ten pictures one is held out
    assert [line["lr"] for line in steps_of(Path("logs/alone"))[:4]] == pytest.approx([0.02] * 3 + [0.015])
    assert "warmup" not in read_weights("logs/alone/last.pt")


def test_training_of_the_flow_goes_on_from_a_file(alone, photographs, in_tmp, capsys):
    flags = ["--images", str(photographs), "--epochs", "1", "--lr", "1e-6", "--warmup_steps", "0"]
    flags += ["--flow_state", str(alone / "final.pth")]
    train_denseflow.main(alone_flags(*flags))
    final = [line["validation"]["bits_per_dimension"] for line in log_of(alone) if "validation" in line][-1]
    assert f"before training: {final:.3f} bits per dimension" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--crop_size", "20"], ValueError, r"crop_size 20 must be a multiple of 8 for a flow"),
        (["--warmup_steps", "-1"], ValueError, r"warmup_steps must not be negative: -1"),
        (["--adamax_eps", "0"], ValueError, r"adamax_eps must be positive, not 0"),
        (["--sampled_images", "0"], ValueError, r"sampled_images must be positive, not 0"),
        (["--batch_size", "24"], ValueError, r"25 images, of which 2 are kept .* leave 23, fewer than batch_size 24"),
        (["--images", "nowhere"], FileNotFoundError, r"no folder nowhere"),
        (["--images", "empty"], FileNotFoundError, r"no image .* below empty"),
        (["--flow_state", "nowhere.pt"], FileNotFoundError, r"no weight file nowhere\.pt"),
    ],
)
def test_a_wrong_command_line_for_the_flow_leaves_no_folder(flags, error, message, photographs, in_tmp):
    Path("empty").mkdir()
    with pytest.raises(error, match=message):
        train_denseflow.main(alone_flags("--images", str(photographs), *flags))
    assert not Path("logs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "one of the arguments --images --dataset is required"),
        (["--images", "a", "--dataset", "cityscapes"], "not allowed with argument"),
        (["--dataset", "cityscapes"], "--dataset and --dataroot go together"),
        (["--images", "a", "--dataroot", "b"], "--dataset and --dataroot go together"),
        (["--dataset", "moon", "--dataroot", "b"], "invalid choice: 'moon'"),
    ],
)
def test_either_a_folder_or_a_data_set_is_asked_for(flags, message, in_tmp, capsys):
    with pytest.raises(SystemExit):
        train_denseflow.main(alone_flags(*flags))
    assert message in capsys.readouterr().err and not Path("logs").exists()


# The training loop with several steps


class Greys(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return (
            torch.full((3, 4, 4), 60 * index, dtype=torch.uint8),
            torch.zeros(4, 4, dtype=torch.uint8),
            f"{index}.png",
        )


def fit_two(folder, steps, validate=lambda model: {"AP": 0.5}, epochs=3, **rest):
    """A network and a helper of one weight each; returns them"""
    recipe = Recipe(lr=0.1, lr_min=0, schedule="constant", epochs=epochs, batch_size=2, drop_last=True, crop_size=4,
                    scale=(1, 1), statistics_batches=0)  # fmt: skip
    record = {"script": "two", "command": "python two.py", "seed": 0, "recipe": {"release": {}}}
    run = Run(folder, torch.device("cpu"), seed=0, workers=0, resume=False, compile=False, record=record)
    parts = {"model": nn.Conv2d(3, 1, 1, bias=False), "helper": nn.Conv2d(3, 1, 1, bias=False)}
    for part in parts.values():
        nn.init.ones_(part.weight)
    optimizers = {
        "optimizer": torch.optim.SGD(parts["model"].parameters(), lr=0.1),
        "helper_optimizer": torch.optim.SGD(parts["helper"].parameters(), lr=0.01),
    }
    fit(steps(**parts), parts | optimizers, Greys(), recipe, run, validate, **{"best": "AP"} | rest)
    return parts


def test_steps_are_taken_in_their_order_each_by_its_own_optimizer(tmp_path):
    order = []

    def steps(model, helper):
        def first(network, images, labels):
            order.append(("first", network.weight[0, 0].item(), helper.weight[0, 0].item()))
            return {"up": -network.weight.sum() + 0 * helper.weight.sum()}

        def second(network, images, labels):
            assert network is model
            order.append(("second", network.weight[0, 0].item(), helper.weight[0, 0].item()))
            return {"down": helper.weight.sum(), "both": 0 * network.weight.sum()}

        return {"optimizer": first, "helper_optimizer": second}

    parts = fit_two(tmp_path / "run", steps, epochs=1)
    assert [name for name, *_ in order] == ["first", "second"] * 2
    seen = [value for _, *values in order for value in values]
    assert seen == pytest.approx([1, 1, 1.1, 1, 1.1, 0.99, 1.2, 0.99])  # the second step sees what the first has done
    assert parts["model"].weight.flatten().tolist() == pytest.approx([1.2] * 3)
    assert parts["helper"].weight.flatten().tolist() == pytest.approx([0.98] * 3)
    line = steps_of(tmp_path / "run")[0]
    assert list(line) == ["epoch", "step", "lr", "helper_optimizer/lr", "up", "down", "both"]
    assert (line["lr"], line["helper_optimizer/lr"]) == (0.1, 0.01)
    assert same(read_weights(tmp_path / "run" / "final_helper.pth"), copied(parts["helper"].state_dict()))


def only_the_first(model, helper):
    return lambda network, images, labels: {"up": -network.weight.sum()}


@pytest.mark.parametrize("fractions", [True, False])
@pytest.mark.parametrize(("lower_is_better", "best_epoch"), [(False, 1), (True, 2)])
def test_best_is_the_lowest_figure_where_lower_is_better(lower_is_better, best_epoch, fractions, tmp_path, capsys):
    figures, weights = iter([0.4, 0.9, 0.2]), []

    def validate(model):
        weights.append(copied(model.state_dict()))
        return {"AP": next(figures), "mIoU": 0.25}

    choices = {"lower_is_better": lower_is_better, "fractions": fractions}
    fit_two(tmp_path / "run", only_the_first, validate, **choices)
    assert same(read_weights(tmp_path / "run" / "best.pth"), weights[best_epoch])
    printed = capsys.readouterr().out
    assert f"best.pth with AP {(0.4, 0.9, 0.2)[best_epoch]:.4f}" in printed
    assert ("AP 90.0 %" if fractions else "AP 0.900 ") in printed


def test_a_picture_is_drawn_after_every_epoch_by_the_network_in_eval_mode(tmp_path):
    drawn = []
    fit_two(tmp_path / "run", only_the_first, save_picture=lambda model, path: drawn.append((model.training, path)))
    assert drawn == [(False, tmp_path / "run" / "pictures" / f"epoch_00{epoch}.png") for epoch in (1, 2, 3)]


@pytest.mark.slow
def test_a_flow_that_diverges_when_it_draws_stops_the_run_with_the_terms_so_far(
    street_hazards, random_weights, flow_file, in_tmp, monkeypatch
):
    sample, calls = DenseFlow.sample, []

    def diverging(flow, n, height, width, check=True):
        calls.append(n)
        if len(calls) > 20 and n > 1:
            flow.base_dist.loc.data.fill_(math.nan)
        return sample(flow, n, height, width, check)

    monkeypatch.setattr(DenseFlow, "sample", diverging)
    with pytest.raises(FloatingPointError, match=r"not finite.*terms of.*'bits_per_dimension': \d"):
        ldn_streethazards_finetune_flow.main(
            flow_flags(street_hazards, random_weights["closed"], flow_file, "--epochs", "20")
        )


@pytest.mark.slow
def test_a_run_is_not_gone_on_with_another_flow_file(street_hazards, random_weights, flow_file, in_tmp):
    flags = flow_flags(street_hazards, random_weights["closed"], flow_file)
    ldn_streethazards_finetune_flow.main(flags)
    torch.save(read_weights(flow_file) | {"other": 1}, "other.pt")
    flags = flow_flags(street_hazards, random_weights["closed"], "other.pt", "--resume")
    with pytest.raises(ValueError, match=r"flow_state was '.*' and is '"):
        ldn_streethazards_finetune_flow.main(flags)


def test_a_warm_up_longer_than_the_training_is_refused(photographs, in_tmp):
    with pytest.raises(ValueError, match=r"warmup_steps 1000 are not over when the training is, after \d+ steps"):
        train_denseflow.main(["--images", str(photographs), *alone_flags("--warmup_steps", "1000")])
