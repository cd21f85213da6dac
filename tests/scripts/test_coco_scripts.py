"""The scripts for COCO20/80, real ones, on a few small photographs; Segmenter and flow have a few narrow layers."""

import json
import math
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import nn
from torch.utils.data import default_collate

import evaluate_osr_coco
import losses
import segmenter_coco20
import segmenter_coco20_finetune
import segmenter_coco20_finetune_flow
from data import ADE20K, COCO20
from engine import SlidingWindows
from engine.recipe import read_recipe
from engine.results import without_nan
from labels import IGNORE, OUTLIER
from losses import hybrid_score, pixel_counts
from metrics import ConfusionMatrix
from models import ladder_densenet121, load_weights
from models.vit import VisionTransformer
from tests.golden.fill import golden_state_dict
from tests.support.layouts import COCO_KNOWN, COCO_OTHERS, COCO_SCENES, SKY, coco_scenes, colour_of
from tests.support.networks import small_flow, small_segmenter
from tests.support.stand_ins import put_in_place
from tests.support.tiny import log_of, read_weights, same, steps_of, whole

K = 20
MEAN_COLOUR = (123, 116, 103)  # of ImageNet, what a crop is padded with
LABELS = {"person": 0, "car": 2, "dog": 11, "tv": 19}
VALIDATION = COCO_SCENES["validation"]

WINDOW, STRIDE = 32, 20
ROUNDING = 4e-6  # of a score
SMALL = ["--device", "cpu", "--workers", "0", "--crop_size", "32", "--batch_size", "2", "--epochs", "2",
         "--window", str(WINDOW), "--window_stride", str(STRIDE)]  # fmt: skip
SMALL_NEGATIVES = ["--negative_resize", "32", "--negative_size", "24"]
SMALL_FLOW = ["--patch_sides", "8", "16", "8", "--validation_patches", "3"]
SCRIPTS = {
    "closed": segmenter_coco20,
    "hybrid": segmenter_coco20_finetune,
    "flow": segmenter_coco20_finetune_flow,
    "osr": evaluate_osr_coco,
}
STEPS = 4  # of an epoch: eight photographs in batches of two

KNOWN_VALIDATION = ["known_0", "known_1"]


@pytest.fixture(scope="module", autouse=True)
def small():
    """The scripts build small_segmenter() and small_flow() instead of ViT-B and DenseFlow-25-6"""
    with pytest.MonkeyPatch.context() as patch:
        put_in_place(patch, {"models.segmenter": small_segmenter, "models.denseflow_25_6": small_flow})
        yield


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """COCO's folders: eight training photographs that fit, of six for validation two without unknown things"""
    return coco_scenes(tmp_path_factory.mktemp("world") / "coco")


@pytest.fixture
def own_coco(tmp_path):
    """COCO's folders that a test may spoil, with no list yet"""
    return coco_scenes(tmp_path / "own_coco")


@pytest.fixture(scope="module")
def flow_file(tmp_path_factory):
    """A flow with every weight filled, wrapped as the one released for COCO"""
    path = tmp_path_factory.mktemp("flow") / "flow.pt"
    filled = golden_state_dict(small_flow().state_dict(), gain=0.3)
    torch.save({"model": {f"flow.{key}": value for key, value in filled.items()}}, path)
    return path


class World:
    """The files that the scripts' flags name"""

    def __init__(self, coco, ade20k, flow_file, model=None):
        self.coco, self.ade20k, self.flow_file, self.model = coco, ade20k, flow_file, model

    def flags(self, kind, *flags, root=None, model=None, negatives=None):
        start = ["--dataroot", str(root or self.coco)]
        if kind == "osr":
            windows = ["--window", str(WINDOW), "--window_stride", str(STRIDE)]
            return [*start, "--model", str(model), "--device", "cpu", "--workers", "0", *windows, *flags]
        start += ["--exp_name", kind, *SMALL]
        if kind == "closed":
            return [*start, "--init", "none", *flags]
        start += ["--model", str(model or self.model)]
        if kind == "hybrid":
            negatives = ["--neg_dataroot", str(self.ade20k)] if negatives is None else negatives
            return [*start, *SMALL_NEGATIVES, *negatives, *flags]
        return [*start, *SMALL_FLOW, "--flow_state", str(self.flow_file), *flags]


@pytest.fixture(scope="module")
def runs(coco, ade20k, flow_file, tmp_path_factory):
    """{kind: logs/KIND} of a training of two epochs by each of the three training scripts"""
    world, folders = World(coco, ade20k, flow_file), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        for kind in ("closed", "hybrid", "flow"):
            SCRIPTS[kind].main(world.flags(kind))
            folders[kind] = Path("logs", kind).resolve()
            world.model = world.model or folders[kind] / "final.pth"
    return folders


@pytest.fixture
def world(coco, ade20k, flow_file, runs):
    """Fine-tuning starts from the closed-set run's weights"""
    return World(coco, ade20k, flow_file, runs["closed"] / "final.pth")


class Experiment:
    """What a script hands to fit"""

    def __init__(self, steps, state, dataset, recipe, run, validate, best, **rest):
        steps = steps if isinstance(steps, dict) else {"optimizer": steps}
        self.steps = {name: whole(step) for name, step in steps.items()}
        self.state, self.model, self.dataset, self.recipe = state, state["model"], dataset, recipe
        self.run, self.validate, self.best = run, validate, best


@pytest.fixture
def experiment(world, monkeypatch, in_tmp):
    """Sets a script up to the training and returns the Experiment"""
    put_in_place(monkeypatch, {"engine.fit": Experiment})
    return lambda kind, *flags, **files: SCRIPTS[kind].main(world.flags(kind, *flags, **files))


def stems(names):
    return [Path(name.split(" with ")[0]).stem for name in names]


def batch_of(dataset, count):
    """A batch as the loop hands it to a step: pixels as floats in 0..1, labels as integers"""
    *tensors, names = default_collate([dataset[index % len(dataset)] for index in range(count)])
    moved = [tensor.float() / 255 if tensor.dtype == torch.uint8 and tensor.dim() > 3 else tensor for tensor in tensors]
    return [tensor.long() if tensor.dtype == torch.uint8 else tensor for tensor in moved], names


def padding_of(images):
    """(B, H, W) True where a crop shows nothing of its photograph: exactly the mean colour, which noise never is"""
    colour = torch.tensor(MEAN_COLOUR, dtype=torch.float32)[:, None, None] / 255
    return (images == colour).all(1)


# Training


@pytest.mark.slow
def test_a_run_writes_its_folder(runs, coco):
    finals = {"closed": {"final.pth"}, "hybrid": {"final.pth"}, "flow": {"final.pth", "final_flow.pth"}}
    for kind, folder in runs.items():
        written = {path.name for path in folder.iterdir() if not path.name.startswith("events")}
        pictures = {"pictures"} if kind == "flow" else set()
        assert (
            written
            == {"recipe.yaml", "log.jsonl", "last.pt", "last.pt.1", "lock", "best.pth"} | finals[kind] | pictures
        )
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        assert recipe["command"].startswith(f"python {SCRIPTS[kind].__name__}.py --dataroot {coco} --exp_name {kind}")
        assert recipe["recipe"]["changed"]["window_stride"] == STRIDE
    assert sorted(path.name for path in (runs["flow"] / "pictures").iterdir()) == ["epoch_001.png", "epoch_002.png"]
    lists = {path.name: path.read_text().splitlines()[1:] for path in coco.glob("coco20_*.txt")}
    assert lists == {
        "coco20_training.txt": [f"known_{number}.png" for number in range(8)],
        "coco20_validation.txt": [f"{name}.png" for name in VALIDATION if name != "stuff"],
        "coco20_validation_known.txt": [f"{name}.png" for name in KNOWN_VALIDATION],
    }


@pytest.mark.slow
def test_every_step_logs_its_terms_and_every_epoch_its_figures(runs):
    hybrid = ["class", "likelihood", "dataset"]
    terms = {"closed": ["class"], "hybrid": hybrid, "flow": [*hybrid, "jensen_shannon", "bits_per_dimension"]}
    rates = {"closed": ["lr"], "hybrid": ["lr"], "flow": ["lr", "flow_optimizer/lr"]}
    for kind, folder in runs.items():
        steps = steps_of(folder)
        assert [line["epoch"] for line in steps] == [1] * STEPS + [2] * STEPS
        for line in steps:
            assert list(line) == ["epoch", "step", *rates[kind], *terms[kind]]
            assert all(math.isfinite(line[term]) for term in terms[kind])
        figures = [line["validation"] for line in log_of(folder) if "validation" in line]
        assert [set(each) for each in figures] == [{"mIoU"} if kind == "closed" else {"AP", "FPR95", "mIoU"}] * 2


@pytest.mark.slow
def test_learning_rates_follow_their_schedules_epoch_by_epoch(runs):
    poly = [1e-3] * STEPS + [1e-3 * 0.5**0.9] * STEPS  # of two epochs
    assert [line["lr"] for line in steps_of(runs["closed"])] == pytest.approx(poly)
    for kind in ("hybrid", "flow"):
        assert [line["lr"] for line in steps_of(runs[kind])] == [1e-6] * 2 * STEPS
    falling = [1e-5] * STEPS + [0.975e-5] * STEPS
    assert [line["flow_optimizer/lr"] for line in steps_of(runs["flow"])] == pytest.approx(falling)


@pytest.mark.slow
def test_the_logged_miou_is_that_of_the_final_weights_over_windows(runs, coco):
    windows = SlidingWindows(load_weights(small_segmenter(K, hybrid=False), runs["closed"] / "final.pth").eval(),
                             WINDOW, STRIDE, enlarge=True)  # fmt: skip
    pairs = Counter()
    for image, labels, _ in COCO20(coco, "validation"):
        with torch.no_grad():
            found = windows(image[None] / 255)[0].argmax(0)
        pairs.update(zip(labels.flatten().tolist(), found.flatten().tolist(), strict=True))
    slow = slow_iou({pair: count for pair, count in pairs.items() if pair[0] < K})[:K]
    assert log_of(runs["closed"])[-1]["validation"]["mIoU"] == pytest.approx(np.nanmean(slow), abs=1e-6)


@pytest.mark.slow
def test_fine_tuning_starts_from_closed_set_weights_with_a_new_decoder(runs):
    before = read_weights(runs["closed"] / "final.pth")
    for kind in ("hybrid", "flow"):
        after = read_weights(runs[kind] / "final.pth")
        small_segmenter(K).load_state_dict(after)
        assert {key for key in after if key not in before} == {
            key for key in after if key.startswith("model.decoder_th.")
        }
        assert before.keys() < after.keys()
        moved = max((before[key] - after[key]).abs().max() for key in before)
        assert 0 < moved < 1e-5  # eight steps at 1e-6


@pytest.mark.slow
def test_fine_tuning_goes_on_from_hybrid_weights_and_takes_a_linear_head(runs, experiment):
    for kind in ("hybrid", "flow"):
        tried = experiment(kind, model=runs["hybrid"] / "best.pth")
        assert same(dict(tried.model.state_dict()), read_weights(runs["hybrid"] / "best.pth"))
        tried = experiment(kind, "--dataset_head", "linear")
        assert {key.split(".")[1] for key in tried.model.state_dict() if "decoder" not in key} == {
            "encoder", "logits_ood",
        }  # fmt: skip
        with pytest.raises(ValueError, match=r"best\.pth does not fit Segmenter: .* unexpected: model\.decoder_th\."):
            experiment(kind, "--dataset_head", "linear", model=runs["hybrid"] / "best.pth")


BREAKS = {"closed": "closed_set_loss", "hybrid": "dense_hybrid_loss", "flow": "synthetic_negatives_loss"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BREAKS)
def test_an_interrupted_run_goes_on_to_the_same_bits(kind, runs, world, in_tmp, monkeypatch, capsys):
    script, calls, flags = SCRIPTS[kind], [], world.flags(kind)
    loss = getattr(losses, BREAKS[kind])

    def interrupted(*inputs, **options):
        calls.append(None)
        if len(calls) == STEPS + 2:  # in the second step of the second epoch; with a flow, between the optimisers
            raise KeyboardInterrupt
        return loss(*inputs, **options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        put_in_place(patch, {f"losses.{BREAKS[kind]}": interrupted})
        script.main(flags)
    assert "stopped after 1 of 2 epochs; go on with: python " in capsys.readouterr().out
    folder = in_tmp / "logs" / kind
    assert read_weights(folder / "last.pt")["progress"]["epoch"] == 1 and not (folder / "final.pth").exists()
    torch.manual_seed(99)  # what came between does not matter
    script.main([*flags, "--resume"])
    ours, theirs = read_weights(folder / "last.pt"), read_weights(runs[kind] / "last.pt")
    expected = {"model", "optimizer", "schedule"}
    expected |= {"flow", "flow_optimizer", "flow_schedule"} if kind == "flow" else set()
    assert ours.keys() == theirs.keys() >= expected
    for name in ours:
        assert same(ours[name], theirs[name]), name
    for path in runs[kind].glob("*.pth"):
        assert same(read_weights(folder / path.name), read_weights(path)), path.name
    assert steps_of(folder) == steps_of(runs[kind])


@pytest.mark.slow
def test_the_optimizers_are_those_of_the_release(experiment):
    (sgd,) = experiment("closed").state["optimizer"].param_groups
    assert isinstance(experiment("closed").state["optimizer"], torch.optim.SGD)
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"], sgd["nesterov"]) == (1e-3, 0, 0, False)
    for kind in ("hybrid", "flow"):
        tried = experiment(kind)
        (adam,) = tried.state["optimizer"].param_groups
        assert type(tried.state["optimizer"]) is torch.optim.Adam
        assert (adam["lr"], adam["betas"], adam["weight_decay"]) == (1e-6, (0.9, 0.999), 0)
        assert len(adam["params"]) == len(list(tried.model.parameters()))
    (adamax,) = tried.state["flow_optimizer"].param_groups
    assert type(tried.state["flow_optimizer"]) is torch.optim.Adamax
    assert (adamax["lr"], adamax["betas"], adamax["eps"]) == (1e-5, (0.9, 0.999), 1e-7)
    assert len(adamax["params"]) == len(list(tried.state["flow"].parameters()))


@pytest.mark.slow
def test_a_flow_starts_from_its_file_or_from_scratch(experiment, flow_file):
    filled = golden_state_dict(small_flow().state_dict(), gain=0.3)
    assert same(dict(experiment("flow").state["flow"].state_dict()), filled)
    scratch = experiment("flow", "--flow_state", "none")
    assert scratch.state["flow_optimizer"].param_groups[0]["lr"] == 1e-3
    assert not scratch.state["flow"].is_initialized()


ANY = {"batch_size": 16, "drop_last": True, "crop_size": 512, "heads": 16, "window": 512, "window_stride": 320}
TUNED = ANY | {"lr": 1e-6, "schedule": "constant", "epochs": 10, "beta": 0.15, "ignored_are_inliers": False,
               "dataset_head": "decoder"}  # fmt: skip
RELEASED = {
    "closed": ("SegmenterRecipe", ANY | {"lr": 1e-3, "schedule": "poly", "epochs": 80, "scale": (0.5, 2)}),
    "hybrid": ("SegmenterNegativesRecipe", TUNED | {"scale": (0.5, 2), "negative_resize": 256, "negative_size": 256,
               "negative_scale": (1, 1), "negatives_per_image": 3, "rare_below": 10000}),
    "flow": ("SegmenterFlowRecipe", TUNED | {"scale": (0.75, 2), "patch_sides": (16, 104, 8), "patches_per_image": 3,
             "flow_lr_pretrained": 1e-5, "flow_lr_scratch": 1e-3, "flow_lr_decay": 0.975, "flow_eps": 1e-7,
             "divergence_weight": 0.03, "bits_weight": 1}),
}  # fmt: skip


@pytest.mark.parametrize("kind", RELEASED)
def test_the_numbers_of_the_recipe_are_the_releases(kind):
    recipe_type, released = RELEASED[kind]
    recipe, sources = read_recipe(SCRIPTS[kind].__name__, getattr(SCRIPTS[kind], recipe_type), {})
    assert {key: getattr(recipe, key) for key in released} == released
    assert released.keys() == sources["release"].keys()
    assert (recipe.lr_min, recipe.statistics_batches) == (0, 0)
    if kind != "closed":
        assert (recipe.adam_eps, recipe.likelihood_margin) == (1e-8, None)  # Adam's own


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closed", "hybrid", "flow"])
def test_the_recipe_and_the_flags_reach_the_experiment(kind, experiment):
    tried = experiment(kind, "--crop_size", "24", "--scale", "1", "1", "--batch_size", "8")
    image, labels, *_, name = tried.dataset[2]
    assert image.shape == (3, 24, 24) and labels.shape == (24, 24) and "known_2" in name
    assert tried.best == ("mIoU" if kind == "closed" else "AP")
    assert tried.model.model.encoder.blocks[0].attn.heads == 16
    assert not Path("logs", kind).exists()


@pytest.mark.slow
def test_heads_travel_with_the_weights_and_another_number_is_refused(world, experiment, runs, in_tmp, capsys):
    torch.manual_seed(5)
    twelve = small_segmenter(K, hybrid=False, heads=12).state_dict()
    weights, wrapped, without = (in_tmp / name for name in ("final.pth", "last.pt", "without.pth"))
    torch.save(twelve, weights)
    torch.save({"model": twelve}, wrapped)
    torch.save(dict(twelve), without)  # a file that does not say has 16, as released
    refused = r"final\.pth was trained with 12 heads, and the network here has 16: give --heads 12"
    for kind in ("hybrid", "flow"):
        with pytest.raises(ValueError, match=refused):
            experiment(kind, "--model", str(weights))
        tried = experiment(kind, "--model", str(weights), "--heads", "12")
        assert tried.model.model.encoder.blocks[0].attn.heads == 12

    def figures(path, *flags):
        results = evaluate_osr_coco.main(world.flags("osr", "--folder", f"of_{path.name}", *flags, model=path))
        return {key: results["figures"][key] for key in ("AP", "AUROC", "threshold", "mIoU")}

    assert figures(weights) == figures(weights, "--heads", "12")
    assert "does not say" not in capsys.readouterr().out
    assert figures(weights) == figures(without, "--heads", "12") != figures(without)
    said = [line for line in capsys.readouterr().out.splitlines() if "does not say" in line]
    note = (
        "note: {} does not say how many heads model.encoder has: {} assumed (released files have 16); if that is "
        "wrong, so are all scores: give the right number as --heads"
    )
    assert said == [note.format(without, number) for number in (12, 16)]
    with pytest.raises(ValueError, match=refused):
        figures(weights, "--heads", "16")
    assert figures(wrapped) == figures(weights)
    for name in ("final.pth", "best.pth"):
        trained = torch.load(runs["closed"] / name, weights_only=True)
        assert trained._metadata["model.encoder"]["heads"] == 16
        assert trained.keys() == twelve.keys()


@pytest.mark.slow
def test_a_missing_imagenet_file_is_named_with_its_place(world, in_tmp):
    flags = [flag for flag in world.flags("closed") if flag not in ("--init", "none")]
    told = r"no weight file vit_base_p16_384\.pth; .*drive\.google\.com/file/d/1AlCpbDZhFiZ99teZKXu80OnskWagnvw4"
    with pytest.raises(FileNotFoundError, match=told):
        segmenter_coco20.main(flags)
    with pytest.raises(FileNotFoundError, match=r"no weight file nowhere\.pth; expected is vit_base_p16_384\.pth"):
        segmenter_coco20.main([*flags, "--init", "nowhere.pth"])
    assert not Path("logs").exists()


@pytest.mark.slow
def test_the_encoder_starts_from_the_imagenet_file_in_the_working_directory(world, experiment):
    torch.manual_seed(4)
    weights = VisionTransformer(patch=4, grid=24, width=48, depth=2, heads=12).state_dict()
    weights["pos_embed"][:, 1:] = torch.arange(48.0)  # the same everywhere, so that resizing keeps it
    torch.save(weights, "vit_base_p16_384.pth")
    flags = [flag for flag in world.flags("closed") if flag not in ("--init", "none")]
    tried = segmenter_coco20.main(flags)
    found = tried.model.model.encoder.state_dict()
    for key, value in weights.items():
        torch.testing.assert_close(found[key], value[:, : 1 + 8**2] if key == "pos_embed" else value)
    torch.save(weights, "named.pth")
    os.remove("vit_base_p16_384.pth")
    assert same(dict(experiment("closed", "--init", "named.pth").model.model.encoder.state_dict()), dict(found))
    goes_on = experiment("closed", "--init", str(world.model)).model.state_dict()
    assert same(dict(goes_on), torch.load(world.model, weights_only=True))  # of a whole Segmenter, all is taken


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closed", "hybrid", "flow"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--window_stride", "600"], r"windows of \d+ pixels every 600 pixels: the stride must be in"),
        (["--window", "0"], "window must be positive, not 0"),
    ],
)
def test_windows_that_cannot_be_are_refused_before_the_training(kind, flags, message, world, in_tmp):
    with pytest.raises(ValueError, match=message):
        SCRIPTS[kind].main([*world.flags(kind), *flags])
    assert not Path("logs").exists()


# Weights that do not fit


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hybrid", "flow", "osr"])
def test_wrong_weights_are_refused(kind, world, in_tmp):
    torch.manual_seed(0)
    torch.save(ladder_densenet121(12, hybrid=False).state_dict(), "ladder.pth")
    torch.save(small_segmenter(19, hybrid=False).state_dict(), "nineteen.pth")
    Path("text.pth").write_text("no weights")
    message = {"ladder.pth": r"ladder\.pth does not fit Segmenter: .* missing: model\..* unexpected: backbone",
               "nineteen.pth": r"nineteen\.pth does not fit Segmenter: .*\(1, 19, 24\) instead of \(1, 20, 24\)",
               "text.pth": r"text\.pth cannot be read as a weight file"}  # fmt: skip
    for path, told in message.items():
        with pytest.raises(ValueError, match=told):
            SCRIPTS[kind].main(world.flags(kind, model=path))
    with pytest.raises(FileNotFoundError, match=r"no weight file nowhere\.pth"):
        SCRIPTS[kind].main(world.flags(kind, model="nowhere.pth"))
    assert not Path("logs").exists() and not Path("results").exists()


@pytest.mark.slow
def test_a_flow_file_that_does_not_fit_is_refused(world, in_tmp):
    with pytest.raises(ValueError, match=r"final\.pth does not fit DenseFlow: .* unexpected: model\."):
        segmenter_coco20_finetune_flow.main(world.flags("flow", "--flow_state", str(world.model)))
    with pytest.raises(FileNotFoundError, match=r"no weight file nowhere\.pt"):
        segmenter_coco20_finetune_flow.main(world.flags("flow", "--flow_state", "nowhere.pt"))
    assert not Path("logs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_missing_data_folder_is_named_and_leaves_no_run(kind, world, in_tmp):
    with pytest.raises(FileNotFoundError, match=r"no folder nowhere/images/(train|val)2017; --dataroot is COCO's"):
        SCRIPTS[kind].main(world.flags(kind, root="nowhere", model=world.model))
    assert not Path("logs").exists() and not Path("results").exists()


# The negatives' folder


@pytest.mark.slow
def test_every_spelling_of_the_negatives_folder_reads_the_same(experiment, ade20k):
    Path("datasets").mkdir()
    Path("datasets/ADEChallengeData2016").symlink_to(ade20k)
    (folder,) = Path("datasets").iterdir()
    samples = []
    for negatives in (["--neg_dataset"], ["--neg_dataset", str(ade20k)], ["--neg_dataroot", str(ade20k)]):
        tried = experiment("hybrid", negatives=negatives)
        source = tried.dataset.negatives.dataset
        assert isinstance(source, ADE20K) and len(source) == 4
        assert source.root == (folder if len(negatives) == 1 else ade20k)
        torch.manual_seed(7)
        samples.append(tried.dataset[1])
    assert same(samples[0], samples[1]) and same(samples[1], samples[2])
    tried = experiment("hybrid", negatives=["--neg_dataset", "--seed", "3"])  # a flag is not its folder
    assert tried.run.seed == 3 and tried.dataset.negatives.dataset.root == folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("negatives", "told"),
    [
        ([], "one of the arguments --neg_dataroot --neg_images --neg_dataset is required"),
        (["--neg_dataset", "--neg_dataroot", "here"], "--neg_dataroot: not allowed with argument --neg_dataset"),
        (["--neg_dataroot", "here", "--neg_dataset"], "--neg_dataset: not allowed with argument --neg_dataroot"),
        (["--neg_dataset", "here", "--neg_dataroot", "here"], "not allowed with argument"),
        (["--neg_dataroot"], "--neg_dataroot: expected one argument"),
    ],
)
def test_one_spelling_of_the_negatives_folder_is_asked_for(negatives, told, experiment, capsys):
    with pytest.raises(SystemExit) as ending:
        experiment("hybrid", negatives=negatives)
    assert ending.value.code == 1 and told in capsys.readouterr().err


@pytest.mark.slow
def test_a_missing_folder_of_negatives_is_named_and_leaves_no_run(experiment):
    with pytest.raises(FileNotFoundError, match=r"no folder datasets/ADEChallengeData2016/images/training; --neg_data"):
        experiment("hybrid", negatives=["--neg_dataset"])
    for flag in ("--neg_dataset", "--neg_dataroot"):
        with pytest.raises(FileNotFoundError, match=r"no folder nowhere/images/training"):
            experiment("hybrid", negatives=[flag, "nowhere"])
    assert not Path("logs/hybrid").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "copies"), [("closed", 2), ("hybrid", 2 + 3 * 2), ("flow", 2)])
def test_decoded_copies_are_kept_where_the_training_is_told_to(kind, copies, experiment):
    samples = []
    for cache in ([], ["--cache", "copies"], ["--cache", "copies"]):
        torch.manual_seed(3)
        samples.append(experiment(kind, *cache).dataset[0])
    assert 2 + 2 * (kind == "hybrid") <= len([*Path("copies").iterdir()]) <= copies
    plain, first, later = samples
    assert all(
        torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(plain[:-1], first[:-1], later[:-1], strict=True)
    )


# Pasting


class Seen:
    """What the network and the loss are given in a step; the loss's other arguments as `options`"""

    def __init__(self, tried, monkeypatch):
        self.images = self.labels = self.options = None
        tried.model.train().register_forward_pre_hook(self.see_images)
        instead = {"losses.synthetic_negatives_loss": self.flow_loss, "losses.dense_hybrid_loss": self.loss}
        put_in_place(monkeypatch, instead)

    def see_images(self, module, inputs):
        (self.images,) = inputs

    def loss(self, class_logits, dataset_logits, labels, **options):
        self.labels, self.options = labels, options
        assert options.pop("counts") == pixel_counts(labels)
        assert class_logits.shape == (len(labels), K, *labels.shape[1:]) and dataset_logits.shape[1] == 2
        return {"class": class_logits.sum()}

    def flow_loss(self, class_logits, outlier, log_prob, patches, **weights):
        self.outlier = outlier
        return {"jensen_shannon": class_logits.sum(), "bits_per_dimension": log_prob.sum()}


@pytest.mark.slow
def test_three_real_negatives_are_pasted_into_each_image_and_never_into_padding(experiment, monkeypatch):
    tried = experiment("hybrid")
    seen = Seen(tried, monkeypatch)
    torch.manual_seed(11)
    (images, labels, patches, masks, corners), names = batch_of(tried.dataset, 48)
    assert patches.shape == (48, 3, 3, 24, 24) and masks.shape == (48, 3, 24, 24) and corners.shape == (48, 3, 2)
    assert all(len(name.split(" with ")[1].split(", ")) == 3 for name in names)
    tried.steps["optimizer"](tried.model, images, labels, patches, masks, corners)

    expected, expected_labels = images.clone(), labels.clone()
    for number in range(48):
        for patch, mask, (row, column) in zip(patches[number], masks[number], corners[number].tolist(), strict=True):
            for y, x in mask.nonzero().tolist():
                expected[number, :, row + y, column + x] = patch[:, y, x]
                expected_labels[number, row + y, column + x] = OUTLIER
    assert seen.images.equal(expected) and seen.labels.equal(expected_labels)
    assert seen.options == {"beta": 0.15, "ignored_are_inliers": False, "likelihood_margin": None}
    padding = padding_of(images)
    assert padding.flatten(1).any(1).sum() > 10 and (labels[padding] == IGNORE).all()
    assert (seen.labels[padding] == IGNORE).all()
    assert (seen.labels == OUTLIER).flatten(1).any(1).sum() > 40
    assert not (labels == OUTLIER).any()


@pytest.mark.slow
def test_rare_ids_alone_are_pasted(experiment):
    assert experiment("hybrid").dataset.negatives.rare_below == 10000
    negatives = experiment("hybrid", "--rare_below", "40").dataset.negatives
    ids = torch.zeros(48, 48, dtype=torch.uint8)
    ids[:20, 20:25], ids[30:, :] = 5, 7
    negatives.dataset = type("Drawn", (list,), {"mean_colour": (0, 0, 0)})([(torch.zeros(3, 48, 48).byte(), ids, "")])
    torch.manual_seed(3)
    masks = [negatives[0][1] for _ in range(60)]
    assert any(0 < mask.sum() < 40 for mask in masks)  # a rectangle has 256 at least


def coloured(n, height, width):
    """Patches in place of a flow's, each of one colour: red of 2 in the first, 4 in the next; no green or blue"""
    red = torch.arange(1.0, n + 1).mul(2)
    return torch.stack([red, 0 * red, 0 * red], dim=1)[:, :, None, None].expand(n, 3, height, width)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "per_image"), [("optimizer", 3), ("flow_optimizer", 1)])
def test_the_flows_patches_are_pasted_whole_but_never_into_padding(name, per_image, experiment, monkeypatch):
    tried = experiment("flow", "--scale", "0.3", "2")
    seen, drawn = Seen(tried, monkeypatch), []
    flow, grown = tried.state["flow"], []

    def sample(n, height, width, check):
        drawn.append((n, height, width))
        patches = coloured(n, height, width).clone().requires_grad_(torch.is_grad_enabled())
        grown.append(patches)
        return patches

    monkeypatch.setattr(flow, "sample", sample)
    torch.manual_seed(12)
    (images, labels, content), _ = batch_of(tried.dataset, 32)
    terms = tried.steps[name](tried.model, images, labels, content)
    ((count, height, width),) = drawn
    assert count == 32 * per_image and {height, width} <= {8, 16}

    padding = padding_of(images)
    assert padding.flatten(1).any(1).sum() > 5
    if name == "optimizer":
        assert seen.options == {"beta": 0.15, "ignored_are_inliers": False, "likelihood_margin": None}
        outlier = seen.labels == OUTLIER
        assert not grown[0].requires_grad and seen.labels[~outlier].equal(labels[~outlier])
    else:
        outlier = seen.outlier
        (gradient,) = torch.autograd.grad(sum(terms.values()), grown)  # through the network and the paste
        assert gradient.any() and list(terms) == ["jensen_shannon", "bits_per_dimension"]
    assert not (outlier & padding).any()
    assert seen.images.detach().permute(0, 2, 3, 1)[~outlier].equal(images.permute(0, 2, 3, 1)[~outlier])

    values = (seen.images.detach() * 255).round()
    for number in range(32):
        rows, columns = (~padding[number]).nonzero().amax(0) - (~padding[number]).nonzero().amin(0) + 1
        size = min(height, int(rows)), min(width, int(columns))  # a patch covers content that is smaller
        found = torch.zeros(32, 32, dtype=torch.bool)
        for place in reversed(range(per_image)):  # the last covers the others
            red = 2 * (number * per_image + place + 1)
            mine = (values[number] == torch.tensor([red, 0, 0])[:, None, None]).all(0)
            assert not (mine & found).any()
            if place == per_image - 1:
                box = mine.nonzero().amax(0) - mine.nonzero().amin(0) + 1
                assert tuple(box.tolist()) == size and mine.sum() == size[0] * size[1]
            found |= mine
        assert found.equal(outlier[number])


@pytest.mark.slow
def test_the_flows_step_leaves_the_network_alone(experiment):
    tried = experiment("flow")
    tried.model.train()
    torch.manual_seed(2)
    batch, _ = batch_of(tried.dataset, 4)
    before = {name: value.clone() for name, value in tried.model.state_dict().items()}
    terms = tried.steps["flow_optimizer"](tried.model, *batch)
    assert 0 < terms["jensen_shannon"] < 0.03 * math.log(2)
    sum(terms.values()).backward()
    assert same(dict(tried.model.state_dict()), before)
    assert all(parameter.grad is None for parameter in tried.model.parameters())
    assert all(parameter.grad is not None for parameter in tried.state["flow"].parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hybrid", "flow"])
def test_validation_pastes_into_photographs_of_known_things_always_the_same(kind, world, experiment, monkeypatch):
    asked = {}
    for name in ("anomaly_figures", "closed_set_figures"):
        note = {f"engine.{name}": lambda *inputs, name=name: asked.update({name: inputs}) or {name: len(inputs)}}
        put_in_place(monkeypatch, note)
    tried = experiment(kind)
    assert tried.validate(tried.model).keys() == asked.keys()
    windows, pasted, score, *_ = asked["anomaly_figures"]
    assert score is hybrid_score and windows.model is tried.model
    assert (windows.window, windows.stride, windows.enlarge) == (WINDOW, STRIDE, True)
    first, again = ([pasted[index] for index in range(len(pasted))] for _ in range(2))
    assert same(first, again) and stems(name for *_, name in first) == KNOWN_VALIDATION
    known = list(COCO20(world.coco, "validation_known"))
    for (image, labels, name), (source, clean, _) in zip(first, known, strict=True):
        assert len(name.split(" with ")[1].split(", ")) == 3
        outlier = labels == OUTLIER
        assert outlier.any() and labels[~outlier].equal(clean[~outlier])
        assert image[:, ~outlier].equal(source[:, ~outlier])
    windows, photographs, num_classes, *_ = asked["closed_set_figures"]
    assert num_classes == K and windows.model is tried.model
    assert stems(name for *_, name in (photographs[index] for index in range(len(photographs)))) == [
        name for name in VALIDATION if name != "stuff"
    ]


# Evaluation


class PixelWise(nn.Module):
    """A Segmenter whose logits are linear in each pixel's colour, whatever the window that shows it

    Class logits are largest for the class whose colour is nearest. `windows` are the shapes of what it was given.
    """

    def __init__(self, hybrid):
        super().__init__()
        self.model = nn.Module()
        self.model.decoder = nn.Conv2d(3, K, 1)
        self.hybrid, self.windows = hybrid, []
        colours = torch.stack([torch.tensor(colour_of(number)) / 255 for number in COCO_KNOWN.values()]).float()
        self.model.decoder.weight.data = 16 * colours[:, :, None, None]
        self.model.decoder.bias.data = -8 * colours.square().sum(1)
        if hybrid:
            self.model.decoder_th = nn.Conv2d(3, 2, 1)
            weight = torch.tensor([[1.234, -0.456, 0.871], [-0.913, 1.767, 0.345]])
            self.model.decoder_th.weight.data = weight[:, :, None, None]
            self.model.decoder_th.bias.data = torch.tensor([0.5, -1.0])

    def forward(self, images):
        self.windows.append(tuple(images.shape))
        class_logits = self.model.decoder(images)
        return (class_logits, self.model.decoder_th(images)) if self.hybrid else class_logits


@pytest.fixture
def pixel_wise(monkeypatch, in_tmp):
    """{"hybrid": file, "closed": file} of the network that the evaluation then builds; `built` are those it built"""
    files, built = {}, []
    for kind in ("hybrid", "closed"):
        files[kind] = in_tmp / f"{kind}.pth"
        torch.save(PixelWise(kind == "hybrid").state_dict(), files[kind])

    def build(num_classes, hybrid, heads, dataset_head):
        built.append(PixelWise(hybrid))
        built[-1].asked = num_classes, hybrid, heads, dataset_head
        for parameter in built[-1].parameters():
            parameter.data.zero_()  # the file is what counts
        return built[-1]

    not_copied = {"models.fast_inference": lambda network, *_: network}  # it is looked at
    put_in_place(monkeypatch, {"models.segmenter": build} | not_copied)
    return files | {"built": built}


def photographs_of(coco):
    """(image float (1, 3, H, W), labels (H, W) with K for unknown) of the validation, read without the data room"""
    labels_by_id = dict(zip(COCO_KNOWN.values(), range(K), strict=True)) | dict.fromkeys(COCO_OTHERS.values(), K)
    table = np.array([labels_by_id.get(value + 1, IGNORE) for value in range(256)])
    for name in VALIDATION:
        if name != "stuff":
            with Image.open(coco / f"images/val2017/{name}.jpg") as image:
                pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
            yield pixels, table[np.array(Image.open(coco / f"labels/val2017/{name}.png"))]


def logits_by_hand(image, network):
    """Linear in the pixel; a photograph smaller than the window is enlarged before, its logits made small after"""
    size, short = image.shape[2:], min(image.shape[2:])
    if short < WINDOW:
        enlarged = [WINDOW * side // short for side in size]
        image = F.interpolate(image, enlarged, mode="bilinear")
    both = []
    for layer in (network.model.decoder, network.model.decoder_th):
        logits = torch.einsum("kc,bchw->bkhw", layer.weight[:, :, 0, 0], image) + layer.bias[:, None, None]
        both.append(F.interpolate(logits, size, mode="bilinear") if short < WINDOW else logits)
    return [logits.detach().double() for logits in both]


def slow_iou(pairs):
    """IoU of each label 0..K from {(truth, prediction): pixels}; NaN where the union is empty"""
    ious = []
    for k in range(K + 1):
        union = sum(count for pair, count in pairs.items() if k in pair)
        ious.append(pairs.get((k, k), 0) / union if union else math.nan)
    return ious


def figures_by_hand(coco, kept, tpr, score, released=False):
    """Every figure of the evaluation, by scikit-learn and by counting pairs

    kept  the evaluation's own scores of each photograph: rounded to float32 pixels change places, so they are checked
          against float64 by themselves
    """
    truths, predictions, scores, ignored, images = [], [], [], 0, 0
    for (image, labels), rounded in zip(photographs_of(coco), kept, strict=True):
        class_logits, dataset_logits = logits_by_hand(image, PixelWise(hybrid=True))
        if released:
            class_logits, dataset_logits = class_logits.softmax(1), dataset_logits.softmax(1)
        values, counted = rounded[0].numpy(), labels != IGNORE
        np.testing.assert_allclose(values, score(class_logits, dataset_logits)[0].numpy(), rtol=1e-5, atol=2e-6)
        truths += labels[counted].tolist()
        predictions += class_logits[0].argmax(0).numpy()[counted].tolist()
        scores += values[counted].tolist()
        ignored, images = ignored + int((~counted).sum()), images + 1
    truth, scores = np.array(truths), np.array(scores)
    outlier = truth == K
    threshold = max(value for value in scores[outlier] if np.mean(scores[outlier] >= value) >= tpr)
    at_95 = max(value for value in scores[outlier] if np.mean(scores[outlier] >= value) >= 0.95)
    closed = slow_iou(Counter(pair for pair in zip(truths, predictions, strict=True) if pair[0] != K))[:K]
    opened = np.where(scores >= threshold, K, predictions).tolist()
    opened = slow_iou(Counter(zip(truths, opened, strict=True)))
    figures = {
        "mIoU": np.nanmean(closed), "open_mIoU": np.nanmean(opened[:K]), "mIoU_with_unknown": np.nanmean(opened),
        "gap": np.nanmean(closed) - np.nanmean(opened[:K]),
        "AP": sklearn.metrics.average_precision_score(outlier, scores),
        "AUROC": sklearn.metrics.roc_auc_score(outlier, scores),
        "FPR95": np.mean(scores[~outlier] >= at_95), "threshold": threshold, "threshold95": at_95,
    }  # fmt: skip
    counts = {
        "mIoU_classes": np.count_nonzero(~np.isnan(closed)), "images": images,
        "open_mIoU_classes": np.count_nonzero(~np.isnan(opened[:K])),
        "mIoU_with_unknown_classes": np.count_nonzero(~np.isnan(opened)),
        "inlier_pixels": np.sum(~outlier), "outlier_pixels": np.sum(outlier), "ignored_pixels": ignored,
    }  # fmt: skip
    return figures, counts, closed, opened


def hybrid_by_hand(class_logits, dataset_logits):
    posterior = dataset_logits.exp()[:, 1] / dataset_logits.exp().sum(1)
    return posterior.log() - class_logits.exp().sum(1).log()


SCORES = {
    "hybrid": hybrid_by_hand,
    "discriminative": lambda classes, dataset: dataset.softmax(1)[:, 1].log(),
    "generative": lambda classes, dataset: -classes.exp().sum(1).log(),
    "max_softmax": lambda classes, dataset: -classes.softmax(1).amax(1).log(),
    "max_logit": lambda classes, dataset: -classes.amax(1),
}


@pytest.fixture
def kept_scores(monkeypatch):
    """The scores of each photograph that is evaluated"""
    kept, scored = [], losses.anomaly_score

    def keep(*inputs):
        kept.append(scored(*inputs).clone())
        return kept[-1]

    put_in_place(monkeypatch, {"losses.anomaly_score": keep})
    return kept


def evaluated(world, files, *flags, kind="hybrid", root=None):
    """What the evaluation returns, which must be what it writes down"""
    results = evaluate_osr_coco.main(world.flags("osr", *flags, model=files[kind], root=root))
    folder = flags[flags.index("--folder") + 1] if "--folder" in flags else "results/evaluate_osr_coco"
    written = json.loads(Path(folder, "results.json").read_text())
    returned, read = (
        {key: value for key, value in (each | each["figures"]).items() if "iou" not in key and key != "figures"}
        for each in (results, written)
    )
    assert without_nan(returned) == read
    (calibration,) = written["calibration"].items()
    return written["figures"] | {"calibration": calibration, **{key: written[key] for key in ("dataset", "weights")}}


@pytest.mark.slow
@pytest.mark.parametrize("released", [False, True], ids=["logits", "released_scoring"])
@pytest.mark.parametrize("tpr", [0.95, 0.5])
@pytest.mark.parametrize("score", SCORES)
def test_every_figure_is_that_of_a_slow_count(score, tpr, released, world, pixel_wise, kept_scores):
    flags = (["--score", score] if score != "hybrid" else []) + (["--tpr", str(tpr)] if tpr != 0.95 else [])
    results = evaluated(world, pixel_wise, *flags, *(["--released_scoring"] if released else []), "--pictures", "0")
    figures, counts, closed, opened = figures_by_hand(world.coco, kept_scores, tpr, SCORES[score], released)
    assert {key: results[key] for key in figures} == pytest.approx(figures, abs=1e-6)
    assert {key: results[key] for key in counts} == counts
    for key, slow in (("closed_iou", closed), ("open_iou", opened)):
        assert [math.nan if iou is None else iou for iou in results[key]] == pytest.approx(slow, nan_ok=True)
    name, calibration = results["calibration"]
    scores_of = "probabilities" if released else "logits"
    assert (name, calibration["tpr"], calibration["scores_of"]) == (score, tpr, scores_of)
    assert calibration["threshold"] == results["threshold"]
    assert results["dataset"] == "coco20" and results["weights"] == str(pixel_wise["hybrid"])
    assert 0 < results["mIoU"] < 1 and results["open_mIoU"] != results["mIoU"] and 0 < results["FPR95"] < 1


@pytest.mark.slow
def test_probabilities_in_the_place_of_logits_are_another_score_of_the_same_predictions(world, pixel_wise):
    logits = evaluated(world, pixel_wise, "--pictures", "0")
    released = evaluated(world, pixel_wise, "--pictures", "0", "--released_scoring")
    assert released["mIoU"] == logits["mIoU"]
    assert abs(released["AP"] - logits["AP"]) > 1e-2 and abs(released["threshold"] - logits["threshold"]) > 0.1
    assert "hybrid score of probabilities" in Path("results/evaluate_osr_coco/table.md").read_text()


@pytest.mark.slow
def test_results_table_and_pictures_are_written(world, pixel_wise, capsys):
    results = evaluated(world, pixel_wise, "--folder", "out", "--pictures", "4", "--tpr", "0.9")
    table = Path("out/table.md").read_text()
    assert table in capsys.readouterr().out
    assert "hybrid score of logits; threshold at TPR 0.9 on the same photographs, at full resolution" in table
    rows = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:4]] for row in table.splitlines()
            if row.startswith("| ")}  # fmt: skip
    for title, key in (("closed mIoU %", "mIoU"), ("open-mIoU %", "open_mIoU"),
                       ("mIoU with unknown %", "mIoU_with_unknown")):  # fmt: skip
        assert rows[title] == [f"{100 * results[key]:.2f}", str(results[f"{key}_classes"])]
    assert rows["gap %, closed mIoU less open-mIoU"][0] == f"{100 * (results['mIoU'] - results['open_mIoU']):.2f}"
    for key in ("AP", "AUROC", "FPR95"):
        assert rows[f"{key} %"][0] == f"{100 * results[key]:.2f}"
    assert rows["threshold"][0] == f"{results['threshold']:.4f}" and rows["images"][0] == "6"
    for kind in ("inlier", "outlier", "ignored"):
        assert rows[f"{kind} pixels"][0] == str(results[f"{kind}_pixels"])
    with Image.open("out/pictures.png") as sheet:
        assert sheet.size[0] > 4 * 320
    evaluated(world, pixel_wise, "--folder", "without", "--pictures", "0")
    assert sorted(path.name for path in Path("without").iterdir()) == ["results.json", "table.md"]


@pytest.mark.slow
def test_the_pictures_show_the_prediction_that_was_counted(world, pixel_wise, monkeypatch):
    shown = []

    def keep(path, pictures, *rest):
        if path.name == "pictures.png":  # the page has more
            shown.extend(pictures)

    put_in_place(monkeypatch, {"engine.pictures.save_pictures": keep})
    threshold = evaluated(world, pixel_wise, "--pictures", "9")["threshold"]
    frames = list(photographs_of(world.coco))
    assert len(shown) == len(frames) == 6
    for picture, (image, labels) in zip(shown, frames, strict=True):
        class_logits, dataset_logits = logits_by_hand(image, PixelWise(hybrid=True))
        expected = class_logits[0].argmax(0).numpy()
        unknown = hybrid_by_hand(class_logits, dataset_logits)[0].numpy() >= threshold - ROUNDING
        np.testing.assert_array_equal(picture.open_prediction, np.where(unknown, K, expected))
        np.testing.assert_array_equal(picture.labels == OUTLIER, labels == K)


@pytest.mark.slow
def test_windows_slide_over_every_photograph(world, pixel_wise, monkeypatch):
    evaluated(world, pixel_wise, "--pictures", "0")
    (network,) = pixel_wise["built"]
    assert network.asked == (K, True, 16, "decoder") and not network.training
    # 48x64, 20x30 enlarged to 32x48, 40x56, 41x37, 26x33 enlarged to 32x40, 56x40: windows down times across
    assert [shape[0] for shape in network.windows] == [2 * 3, 1 * 2, 2 * 3, 2 * 2, 1 * 2, 3 * 2]
    assert {shape[2:] for shape in network.windows} == {(WINDOW, WINDOW)}
    kept = []
    note = {"engine.SlidingWindows": lambda *sizes, **rest: kept.append((sizes[1:], rest)) or sizes[0]}
    put_in_place(monkeypatch, note)
    evaluate_osr_coco.main(["--dataroot", str(world.coco), "--model", str(pixel_wise["hybrid"]), "--device", "cpu",
                            "--workers", "0"])  # fmt: skip
    assert kept == [((512, 320), {"at_a_time": 8, "enlarge": True})]  # the release's


@pytest.mark.slow
def test_heads_and_dataset_head_are_those_of_the_flag_and_the_file(world, pixel_wise, tmp_path):
    evaluated(world, pixel_wise, "--heads", "12", "--pictures", "0", kind="closed")
    assert pixel_wise["built"][-1].asked == (K, False, 12, "decoder")
    torch.save({"model.logits_ood.weight": torch.ones(1)}, tmp_path / "linear.pth")
    with pytest.raises(ValueError, match=r"linear\.pth does not fit PixelWise"):
        evaluated(world, {"hybrid": tmp_path / "linear.pth"}, "--folder", "linear")
    assert pixel_wise["built"][-1].asked == (K, True, 16, "linear")


@pytest.mark.slow
def test_closed_set_weights_get_the_largest_logit_and_no_score_of_a_dataset_head(world, pixel_wise, kept_scores):
    results = evaluated(world, pixel_wise, kind="closed")
    figures, counts, *_ = figures_by_hand(world.coco, kept_scores, 0.95, SCORES["max_logit"])
    assert results["calibration"][0] == "max_logit"
    assert {key: results[key] for key in figures} == pytest.approx(figures, abs=1e-6)
    assert {key: results[key] for key in counts} == counts
    for score in ("hybrid", "discriminative"):
        with pytest.raises(ValueError, match=rf"--score {score}: .*closed\.pth has no dataset head; .*max_logit"):
            evaluated(world, pixel_wise, "--score", score, "--folder", "none", kind="closed")
    assert not Path("none").exists()


@pytest.mark.slow
def test_the_runs_own_weights_are_evaluated(runs, world, in_tmp):
    for kind, score in (("hybrid", "hybrid"), ("closed", "max_logit")):
        results = evaluate_osr_coco.main(world.flags("osr", "--folder", kind, model=runs[kind] / "final.pth"))
        assert list(results["calibration"]) == [score] and results["figures"]["images"] == 6
        assert results["figures"]["mIoU"] == pytest.approx(log_of(runs[kind])[-1]["validation"]["mIoU"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("tpr", ["0", "-0.5", "1.01", "nan", "95"])
def test_a_share_of_outliers_out_of_its_range_is_refused(tpr, world, pixel_wise, capsys):
    with pytest.raises(SystemExit) as ending:
        evaluated(world, pixel_wise, "--tpr", tpr)
    assert ending.value.code == 1 and "must be over 0 and at most 1" in capsys.readouterr().err
    assert not Path("results").exists()


@pytest.mark.slow
def test_all_outliers_may_be_asked_for(world, pixel_wise, kept_scores):
    results = evaluated(world, pixel_wise, "--tpr", "1", "--pictures", "0")
    figures, *_ = figures_by_hand(world.coco, kept_scores, 1, hybrid_by_hand)
    assert {key: results[key] for key in figures} == pytest.approx(figures, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [["--window_stride", "33"], ["--window", "8", "--window_stride", "9"]],
)
def test_windows_that_leave_gaps_are_refused(flags, world, pixel_wise):
    with pytest.raises(ValueError, match=r"windows of \d+ pixels every \d+ pixels: the stride must be in"):
        evaluated(world, pixel_wise, *flags)


@pytest.mark.slow
def test_photographs_without_unknown_things_leave_open_set_figures_empty(own_coco, world, pixel_wise, capsys):
    for path in (own_coco / "labels/val2017").iterdir():
        stored = np.array(Image.open(path))
        Image.fromarray(np.where(np.isin(stored + 1, list(COCO_OTHERS.values())), SKY - 1, stored)).save(path)
    results = evaluate_osr_coco.main(world.flags("osr", model=pixel_wise["hybrid"], root=own_coco))["figures"]
    said = capsys.readouterr().out
    assert re.search(r"note: no pixel of an unknown thing in .*own_coco, so that no threshold .* stay empty\n", said)
    undefined = ("AP", "AUROC", "FPR95", "threshold", "open_mIoU", "mIoU_with_unknown", "gap")
    stored = json.loads(Path("results/evaluate_osr_coco/results.json").read_text())
    assert stored["calibration"]["hybrid"]["threshold"] is None
    stored = stored["figures"]
    assert [stored[key] for key in undefined] == [None] * 7 and results["outlier_pixels"] == 0
    counts = ConfusionMatrix(K)
    for image, labels in photographs_of(own_coco):
        counts.update(logits_by_hand(image, PixelWise(hybrid=True))[0][0].argmax(0).numpy(), labels)
    assert stored["mIoU"] == pytest.approx(counts.miou(), abs=1e-9) and stored["images"] == results["images"] > 0
    table = Path("results/evaluate_osr_coco/table.md").read_text()
    assert re.search(r"\| threshold +\| +\| +\|", table) and "nan" not in table
    page = Path("results/evaluate_osr_coco/index.html").read_text()
    assert "no curve to draw" in page and Path("results/evaluate_osr_coco/pictures.png").exists()


# Lists beside data that cannot be written


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCRIPTS)
def test_the_lists_of_a_read_only_data_folder_are_kept_with_the_results(kind, own_coco, world, monkeypatch, in_tmp):
    write = Path.write_text

    def write_elsewhere(path, *args, **options):
        if path.parent == own_coco:
            raise OSError(30, "Read-only file system", str(path))
        return write(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", write_elsewhere)
    SCRIPTS[kind].main(world.flags(kind, root=own_coco, model=world.model))
    folder = Path("results/evaluate_osr_coco" if kind == "osr" else "logs")
    splits = {"closed": ["training", "validation"], "osr": ["validation"]}.get(
        kind, ["training", "validation", "validation_known"]
    )
    assert sorted(path.name for path in folder.glob("coco20_*")) == [f"coco20_{split}.txt" for split in splits]
    assert not list(own_coco.glob("coco20*"))


# Real photographs


@pytest.mark.slow
@pytest.mark.skipif("DENSEHYBRID_DATA" not in os.environ, reason="DENSEHYBRID_DATA names no folder of real pictures")
def test_real_photographs_train_fine_tune_and_evaluate(flow_file, in_tmp):
    whole, part = Path(os.environ["DENSEHYBRID_DATA"]).resolve(), in_tmp / "coco20"
    for split, kept in (("train2017", 100), ("val2017", 10)):
        for kind in ("images", "labels"):
            (part / kind / split).mkdir(parents=True)
            for path in sorted((whole / "coco20" / kind / split).iterdir())[:kept]:
                (part / kind / split / path.name).symlink_to(path)
    (part / "labels.txt").symlink_to(whole / "coco20/labels.txt")
    world = World(part, whole / "ade20k", flow_file, Path("logs/closed/final.pth"))
    sizes = ["--window", "64", "--window_stride", "64"]
    for kind in ("closed", "hybrid", "flow"):
        more = ["--negative_resize", "48", "--negative_size", "32"] if kind == "hybrid" else []
        figures = SCRIPTS[kind].main(world.flags(kind, *sizes, *more, "--epochs", "1", "--crop_size", "64"))
        assert all(0 <= figure <= 1 for figure in figures.values())
        assert len(steps_of(Path("logs", kind))) == 7  # fourteen photographs
    results = evaluate_osr_coco.main(world.flags("osr", *sizes, model="logs/flow/final.pth"))
    assert list(results["calibration"]) == ["hybrid"]
    results = results["figures"]
    assert results["images"] == 10
    stored = [np.array(Image.open(path)).astype(int) for path in sorted((part / "labels/val2017").iterdir())]
    known = [np.isin(labels, [number - 1 for number in COCO_KNOWN.values()]) for labels in stored]
    assert results["inlier_pixels"] == sum(int(labels.sum()) for labels in known)
    assert results["outlier_pixels"] == sum(
        int((labels < 91).sum() - inlier.sum()) for labels, inlier in zip(stored, known, strict=True)
    )
    assert 0 < results["FPR95"] <= 1 and Path("results/evaluate_osr_coco/pictures.png").exists()
