import dataclasses
import errno
import importlib
import json
import math
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
import yaml
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

from engine import checkpoint, pictures
from engine.evaluate import anomaly_figures, closed_set_figures, evaluated_frames, markdown_table, write_results
from engine.loader import (
    EpochSampler,
    SeededSamples,
    batches,
    evaluation_loader,
    raised_on_purpose,
    to_device,
    training_loader,
)
from engine.recipe import RECIPES, Recipe, read_recipe
from engine.run import Run, argument_parser, run_script, start_run
from engine.train import RunLog, estimate_statistics, fit, make_schedule
from labels import IGNORE, OUTLIER
from ldn_streethazards import ClosedSetRecipe
from ldn_streethazards_finetune import LadderRecipe

PROJECT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
BLOCKS = list(yaml.safe_load(RECIPES.read_text()))


# A tiny experiment: everything that resuming could lose is in it.


class Specks(Dataset):
    """Twelve pixels square, cropped to eight at a random place; a pixel's class is a quarter of its red range."""

    def __init__(self, count=10):
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randint(0, 256, (count, 3, 12, 12), generator=generator, dtype=torch.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        top, left = torch.randint(0, 5, (2,)).tolist()
        image = self.images[index, :, top : top + 8, left : left + 8]
        return image, image[0] // 64, f"speck_{index}.png"


TINY = Recipe(
    lr=1e-2, lr_min=1e-4, schedule="cosine", epochs=3, batch_size=3, drop_last=True, crop_size=8,
    scale=(1.0, 1.0), precision="float32", statistics_batches=1,
)  # fmt: skip
STEPS = 3  # an epoch has, of ten images in whole batches of three


def tiny_model():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(8, 4, 1)
    )  # fmt: skip


def tiny_step(model, images, labels):
    class_logits = model(images)
    return {"class": F.cross_entropy(class_logits, labels), "size": 1e-3 * class_logits.square().mean()}


def red_share(model):
    """Share of the specks' pixels whose quarter of red is found"""
    images = Specks().images
    with torch.no_grad():
        found = model(images / 255).argmax(1) == images[:, 0] // 64
    return {"mIoU": found.float().mean().item()}


def train(folder, workers=0, resume=False, step=tiny_step, dataset=None, validate=red_share, **changes):
    recipe = dataclasses.replace(TINY, **changes)
    numbers = dataclasses.asdict(recipe) | {"scale": list(recipe.scale)}
    command = "python tiny.py --exp_name tiny" + " --resume" * resume
    record = {"script": "tiny", "command": command, "seed": 5, "recipe": {"release": numbers}}
    run = Run(folder, CPU, seed=5, workers=workers, resume=resume, record=record)
    torch.manual_seed(run.seed)
    model = tiny_model()
    groups = [
        {"params": model[:2].parameters(), "lr": recipe.lr / 2},
        {"params": model[2:].parameters(), "lr": recipe.lr},
    ]
    state = {"model": model, "optimizer": torch.optim.Adam(groups)}
    return fit(step, state, dataset or Specks(), recipe, run, validate, best="mIoU")


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def steps_of(folder):
    return [line for line in log_of(folder) if "validation" not in line]


def read_weights(path):
    return torch.load(path, weights_only=True)


def assert_same_weights(one, other):
    one, other = (value if isinstance(value, dict) else read_weights(value) for value in (one, other))
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A finished run's folder"""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(folder)
    return folder


# Recipes


def recipe_type_of(script):
    """The dataclass that a training script reads its block into"""
    name = re.search(r"start_run\(parser, (\w+),", (PROJECT / f"{script}.py").read_text())[1]
    return getattr(importlib.import_module(script), name)


def yaml_file(tmp_path, text):
    path = tmp_path / "recipes.yaml"
    path.write_text(text)
    return path


def changed_block(tmp_path, **changes):
    """recipes.yaml with other values in the release numbers of ldn_streethazards_finetune; None takes a key out"""
    blocks = yaml.safe_load(RECIPES.read_text())
    numbers = blocks["ldn_streethazards_finetune"]["release"]
    numbers |= changes
    blocks["ldn_streethazards_finetune"]["release"] = {key: v for key, v in numbers.items() if v is not None}
    return yaml_file(tmp_path, yaml.safe_dump(blocks))


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_reads_into_the_recipe_of_its_script(block):
    recipe, sources = read_recipe(block, recipe_type_of(block), {})
    written = yaml.safe_load(RECIPES.read_text())[block]
    for key, value in (written["release"] | written["ours"]).items():
        assert getattr(recipe, key) == (tuple(value) if isinstance(value, list) else value)
    assert sources == written | {"changed": {}}


@pytest.mark.parametrize("block", BLOCKS)
def test_every_recipe_key_is_used_by_its_script_or_by_the_training_loop(block):
    text = (PROJECT / f"{block}.py").read_text() + (PROJECT / "engine" / "train.py").read_text()
    for field in dataclasses.fields(recipe_type_of(block)):
        assert re.search(rf"\brecipe\.{field.name}\b", text), field.name


def test_the_numbers_of_the_streethazards_recipes_are_the_releases():
    closed, _ = read_recipe("ldn_streethazards", ClosedSetRecipe, {})
    assert (closed.lr, closed.lr_min, closed.epochs, closed.batch_size) == (4e-4, 1e-7, 120, 16)
    assert (closed.crop_size, closed.scale, closed.backbone_lr_factor, closed.adam_eps) == (768, (0.5, 2), 0.25, 1e-7)
    hybrid, _ = read_recipe("ldn_streethazards_finetune", LadderRecipe, {})
    assert (hybrid.lr, hybrid.lr_min, hybrid.epochs, hybrid.batch_size) == (1e-5, 1e-7, 40, 12)
    assert (hybrid.beta, hybrid.negative_resize, hybrid.negative_size) == (0.03, 384, 384)
    assert closed.schedule == hybrid.schedule == "cosine"
    assert (hybrid.ignored_are_inliers, hybrid.likelihood_margin) == (False, None)


def test_an_unknown_key_in_the_file_is_refused_by_name(tmp_path):
    path = changed_block(tmp_path, momentum=0.9)
    with pytest.raises(ValueError, match=r"momentum is not a recipe key of ldn_streethazards_finetune.*lr_min"):
        read_recipe("ldn_streethazards_finetune", LadderRecipe, {}, path)


def test_a_missing_key_is_named(tmp_path):
    path = changed_block(tmp_path, beta=None, crop_size=None)
    with pytest.raises(ValueError, match=r"recipes.yaml, block ldn_streethazards_finetune: crop_size, beta missing"):
        read_recipe("ldn_streethazards_finetune", LadderRecipe, {}, path)


def test_a_missing_block_and_an_unknown_source_are_named(tmp_path):
    path = yaml_file(tmp_path, "ldn_streethazards:\n  theirs: {lr: 1}\n")
    with pytest.raises(ValueError, match=r"has no block walk; it has ldn_streethazards"):
        read_recipe("walk", ClosedSetRecipe, {}, path)
    with pytest.raises(ValueError, match=r"'theirs' is neither 'release' nor 'ours'"):
        read_recipe("ldn_streethazards", ClosedSetRecipe, {}, path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", True), ("epochs", 1.5), ("epochs", "many"), ("epochs", [1]), ("lr", True), ("lr", math.nan),
        ("lr", math.inf), ("lr", "fast"), ("scale", 1.0), ("scale", [1.0]), ("scale", [1.0, "wide"]),
        ("scale", [0.5, 1.0, 2.0]), ("schedule", 3), ("precision", False),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_in_the_file_is_refused(tmp_path, key, value):
    with pytest.raises(ValueError, match=rf"^{key}: .* is not "):
        read_recipe("ldn_streethazards_finetune", LadderRecipe, {}, changed_block(tmp_path, **{key: value}))


def test_yaml_that_writes_a_number_as_a_word_is_understood(tmp_path):
    path = yaml_file(tmp_path, RECIPES.read_text().replace("4.0e-4", "4e-4"))  # without its point, a string in YAML
    assert read_recipe("ldn_streethazards", ClosedSetRecipe, {}, path)[0].lr == 4e-4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0), ("lr", -1e-3), ("lr_min", -1e-9), ("lr_min", 1), ("epochs", 0), ("batch_size", 0), ("crop_size", 0),
        ("adam_eps", 0), ("scale", "0 1"), ("scale", "2 1"), ("negative_scale", "0 1"),
        ("statistics_batches", -1), ("schedule", "linear"), ("precision", "float16"), ("beta", -0.1),
        ("negative_size", 769),
    ],
)  # fmt: skip
def test_a_number_out_of_its_range_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"^{key} "):
        read_recipe("ldn_streethazards_finetune", LadderRecipe, {key: value})


def test_a_negative_as_large_as_the_crop_is_allowed():
    assert read_recipe("ldn_streethazards_finetune", LadderRecipe, {"negative_size": "768"})[0].negative_size == 768


# The start of a run


def started(*argv, recipe_type=LadderRecipe, script="ldn_streethazards_finetune"):
    return start_run(argument_parser("A test."), recipe_type, f"{script}.py", ["--exp_name", "tried", *argv])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--set", "momentum=0.9"], "momentum is not a recipe key"),
        (["--set", "lr"], "--set lr: write it as KEY=VALUE"),
        (["--set", "lr=quick"], "lr: 'quick' is not a number"),
        (["--lr", "quick"], "lr: 'quick' is not a number"),
        (["--lr", "nan"], "lr: 'nan' is not a number"),
        (["--lr", "1e400"], "lr: '1e400' is not a number"),
        (["--epochs", "1.5"], "epochs: '1.5' is not a whole number"),
        (["--epochs", "true"], "epochs: 'true' is not a whole number"),
        (["--set", "scale=1"], "scale: .* is not 2 numbers"),
        (["--ignored_are_inliers", "1"], "ignored_are_inliers: '1' is not true or false"),
        (["--likelihood_margin", "deep"], "likelihood_margin: 'deep' is not a number"),
        (["--negative_size", "512", "--crop_size", "160"], "negative_size 512 is larger than crop_size 160"),
        (["--device", "toaster"], "--device toaster cannot be used here"),
        (["--exp_name", "a/b"], "'a/b' must be a plain folder name"),
        (["--exp_name", ""], "'' must be a plain folder name"),
        (["--exp_name", "."], r"'\.' must be a plain folder name"),
        (["--exp_name", "..", "--resume"], r"'\.\.' must be a plain folder name"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_refused_and_leaves_no_folder(in_tmp, argv, message):
    with pytest.raises(ValueError, match=message):
        started(*argv)
    assert not list(in_tmp.iterdir())


def test_flags_and_set_override_alike_and_are_told_apart_as_changed(in_tmp, capsys):
    flags = started("--lr", "0.001", "--scale", "0.5", "1.5", "--likelihood_margin", "-3.5")
    sets = started("--set", "lr=1e-3", "--set", "scale=0.5,1.5", "--set", "likelihood_margin=-3.5")
    assert flags[1] == sets[1]
    assert (flags[1].lr, flags[1].scale, flags[1].likelihood_margin) == (0.001, (0.5, 1.5), -3.5)
    for _, _, run in (flags, sets):
        assert run.record["recipe"]["changed"] == {"lr": 0.001, "scale": [0.5, 1.5], "likelihood_margin": -3.5}
        assert not {"lr", "scale"} & run.record["recipe"]["release"].keys()
        assert "likelihood_margin" not in run.record["recipe"]["ours"]
    printed = list(yaml.safe_load_all("---\nscript: ".join(capsys.readouterr().out.split("script: "))))
    assert [record for record in printed if record] == [flags[2].record, sets[2].record]


@pytest.mark.parametrize("word", ["null", "none", "None", ""])
def test_a_likelihood_margin_can_be_taken_away(in_tmp, word):
    assert started("--likelihood_margin", word)[1].likelihood_margin is None
    assert started("--set", f"likelihood_margin={word}")[1].likelihood_margin is None


def test_the_record_says_command_seed_and_versions(in_tmp):
    args, _, run = started("--seed", "7", "--workers", "3", "--device", "cpu")
    assert run.folder == Path("logs", "tried") and (run.seed, run.workers, run.resume) == (7, 3, False)
    assert run.device == CPU and args.exp_name == "tried"
    expected = "python ldn_streethazards_finetune.py --exp_name tried --seed 7 --workers 3 --device cpu"
    assert run.record["command"] == expected
    assert run.record["versions"]["torch"] == torch.__version__
    assert torch.initial_seed() == 7


def test_an_existing_folder_is_refused_without_resume(in_tmp):
    Path("logs/tried").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"logs/tried exists; add --resume"):
        started()


def test_resume_with_nothing_there_starts_from_the_beginning(in_tmp, capsys):
    assert started("--resume")[2].resume
    assert "nothing to resume in logs/tried: starting from the beginning" in capsys.readouterr().out


def test_resume_with_another_recipe_or_seed_names_the_key_and_both_values(in_tmp):
    _, _, run = started("--lr", "0.002")
    run.folder.mkdir(parents=True)
    (run.folder / "recipe.yaml").write_text(yaml.safe_dump(run.record))
    assert started("--lr", "0.002", "--workers", "1", "--resume")[2].resume
    with pytest.raises(ValueError, match=r"logs/tried was started with another recipe: lr was 0.002 and is 1e-05;"):
        started("--resume")
    with pytest.raises(ValueError, match=r"epochs was 40 and is 3; seed was 0 and is 4;"):
        started("--resume", "--lr", "0.002", "--epochs", "3", "--seed", "4")
    with pytest.raises(ValueError, match=r"script was 'ldn_streethazards_finetune' and is 'ldn_streethazards';"):
        started("--resume", "--lr", "0.002", recipe_type=ClosedSetRecipe, script="ldn_streethazards")


def test_our_own_errors_end_a_script_with_one_line(in_tmp):
    with pytest.raises(SystemExit) as ending:
        run_script(lambda: started("--lr", "quick"))
    assert ending.value.code == "error: lr: 'quick' is not a number"


@pytest.mark.parametrize("mistake", [lambda: json.loads("{"), lambda: [][0], lambda: torch.ones(2) @ torch.ones(3)])
def test_other_errors_keep_their_traceback(mistake):
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        run_script(mistake)


# Feeding samples


def loaded(dataset=None, epoch=0, workers=0, seed=3, batch_size=2, process=0, processes=1):
    """{name: tensors} of an epoch, in its order"""
    loader = training_loader(dataset or Specks(), seed, batch_size, True, workers, CPU, process, processes)
    loader.sampler.epoch = epoch
    return samples_of(loader)


def samples_of(loader):
    return {
        name: [tensor[number] for tensor in tensors]
        for tensors, names in batches(loader)
        for number, name in enumerate(names)
    }


def assert_same_samples(one, other):
    assert list(one) == list(other)
    for name in one:
        assert all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True))


def test_a_sample_is_a_function_of_seed_epoch_and_index_alone():
    def crops(seed, epoch, indices=range(10)):
        samples = SeededSamples(Specks(), seed)
        return {index: samples[epoch, index][0].tolist() for index in indices}

    assert crops(3, 1) == crops(3, 1, reversed(range(10)))
    assert crops(3, 1) != crops(3, 2) and crops(3, 1) != crops(4, 1) and crops(3, 1) != crops(1, 3)


def test_samples_do_not_depend_on_the_number_of_workers():
    alone = [loaded(epoch=epoch) for epoch in (0, 1)]
    for workers in (1, 2):
        loader = training_loader(Specks(), 3, 2, True, workers, CPU, 0, 1)
        for epoch in (0, 1):  # of one loader, whose workers stay
            loader.sampler.epoch = epoch
            assert_same_samples(samples_of(loader), alone[epoch])


def test_a_crop_does_not_depend_on_who_came_before_it():
    epoch = loaded(epoch=2)
    for name, (image, _) in epoch.items():
        index = int(name.removeprefix("speck_").removesuffix(".png"))
        assert torch.equal(image, SeededSamples(Specks(), 3)[2, index][0])


def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own():
    sampler = EpochSampler(50, seed=3)
    orders = []
    for epoch in range(3):
        sampler.epoch = epoch
        orders.append([index for _, index in sampler])
        assert sorted(orders[-1]) == list(range(50))
        assert list(sampler) == [(epoch, index) for index in orders[-1]]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders[0] != list(range(50))
    assert orders[0] != [index for _, index in EpochSampler(50, seed=4)]


@pytest.mark.parametrize("processes", [2, 3])
def test_shards_of_processes_are_disjoint_and_cover_the_epoch(processes):
    whole = [index for _, index in EpochSampler(11, 3)]
    shards = [list(EpochSampler(11, 3, process, processes)) for process in range(processes)]
    assert {len(shard) for shard in shards} == {11 // processes}
    together = [index for shard in shards for _, index in shard]
    assert sorted(together) == sorted(whole[: 11 // processes * processes])


@pytest.mark.parametrize(("drop_last", "expected"), [(True, [4, 4]), (False, [4, 4, 2])])
def test_the_last_incomplete_batch_is_dropped_or_kept(drop_last, expected):
    sizes = [len(names) for _, names in batches(training_loader(Specks(), 3, 4, drop_last, 0, CPU, 0, 1))]
    assert sizes == expected


def test_a_run_drops_or_keeps_the_last_incomplete_batch_as_its_recipe_says(tmp_path):
    train(tmp_path / "dropped", epochs=1, drop_last=True)
    train(tmp_path / "kept", epochs=1, drop_last=False)
    assert (len(steps_of(tmp_path / "dropped")), len(steps_of(tmp_path / "kept"))) == (3, 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_random_numbers_of_training_alone(workers):
    torch.manual_seed(9)
    before = torch.get_rng_state()
    loaded(workers=workers)
    list(batches(evaluation_loader(Specks(), workers, CPU)))
    assert torch.equal(torch.get_rng_state(), before)


class Broken(Specks):
    """One of its files is not there, and it says so as our data sets do"""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def __getitem__(self, index):
        if index == 7:
            raise self.error("speck_7.png is gone")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [FileNotFoundError, ValueError])
def test_a_file_error_in_a_worker_arrives_as_it_is(error, workers):
    with pytest.raises(error, match=r"^speck_7\.png is gone$"):
        loaded(Broken(error), workers=workers)


class Deadly(Specks):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_gives_a_clear_error():
    with pytest.raises(ChildProcessError, match=r"a loader process died .*lower --workers"):
        loaded(Deadly(), workers=1)


class DeadlyLater(Specks):
    """Its worker dies while the training is busy with an earlier batch"""

    def __init__(self, marker):
        super().__init__()
        self.marker = marker

    def __getitem__(self, index):
        if self.marker.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_killed_during_a_step_ends_a_script_with_the_same_line(tmp_path):
    marker = tmp_path / "now"

    def long_step(model, images, labels):
        marker.touch()
        time.sleep(0.5)
        return tiny_step(model, images, labels)

    def main():
        train(tmp_path / "run", workers=1, step=long_step, dataset=DeadlyLater(marker), batch_size=1)

    with pytest.raises(SystemExit, match=r"^error: a loader process died .*lower --workers$"):
        run_script(main)


class Interrupted(Specks):
    """Ctrl-C reaches the loader process, and the main process is gone before it fetches a batch"""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGINT)
        sys.excepthook(BrokenPipeError, BrokenPipeError("nobody reads"), None)
        sys.excepthook(KeyError, KeyError("a mistake"), None)
        return super().__getitem__(index)


def test_a_loader_process_keeps_quiet_when_ctrl_c_ends_the_main_process(capfd):
    assert_same_samples(loaded(Interrupted(), workers=1), loaded())
    printed = capfd.readouterr().err
    assert "nobody reads" not in printed and "KeyboardInterrupt" not in printed and "a mistake" in printed


def test_pixels_become_floats_and_labels_whole_numbers_on_the_device():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    labels = torch.tensor([[[0, 11, 255]]], dtype=torch.uint8)
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    moved = to_device([image, labels, mask], CPU)
    torch.testing.assert_close(moved[0].flatten(), torch.tensor([0, 0.2, 1]))
    assert moved[1].dtype == torch.int64 and moved[1].tolist() == [[[0, 11, 255]]]
    assert moved[2].dtype == torch.bool


class Mistaken(Specks):
    def __getitem__(self, index):
        return int("a slip in the code")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_the_code_keeps_its_traceback_from_a_worker_too(workers):
    loader = training_loader(Mistaken(), 3, 2, True, workers, CPU, 0, 1)
    with pytest.raises(ValueError) as mistake:
        list(batches(loader))
    assert "a slip in the code" in str(mistake.value)
    if workers:
        assert "Traceback" in str(mistake.value)
    assert not raised_on_purpose(mistake.value)


# Schedules and statistics


def learning_rates(schedule, epochs=7):
    """Each epoch's learning rates of two groups, at 0.01 and 0.04"""
    lr_min = 1e-3 if schedule == "cosine" else 0.0
    recipe = dataclasses.replace(TINY, lr=0.04, lr_min=lr_min, schedule=schedule, epochs=epochs)
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.01, 0.04)]
    optimizer = torch.optim.SGD(groups)
    stepped = make_schedule(optimizer, recipe)
    rates = []
    for _ in range(epochs + 1):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        stepped.step()
    return rates


def test_cosine_is_the_closed_formula_for_every_group():
    for epoch, rates in enumerate(learning_rates("cosine")):
        expected = [1e-3 + (lr - 1e-3) * (1 + math.cos(math.pi * epoch / 7)) / 2 for lr in (0.01, 0.04)]
        assert rates == pytest.approx(expected, rel=1e-9)


def test_poly_falls_to_nothing_with_the_power_of_nine_tenths():
    for epoch, rates in enumerate(learning_rates("poly")):
        assert rates == pytest.approx([lr * (1 - epoch / 7) ** 0.9 for lr in (0.01, 0.04)], rel=1e-9, abs=1e-12)


def test_constant_stays():
    assert learning_rates("constant") == [[0.01, 0.04]] * 8


def test_estimated_statistics_are_the_mean_over_the_first_batches():
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.01), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        model[0].running_mean.fill_(77)
        model[0].running_var.fill_(77)
        model[0].num_batches_tracked.fill_(1000)
    before = [parameter.clone() for parameter in model.parameters()]
    estimate_statistics(model, training_loader(Specks(), 3, 4, True, 0, CPU, 0, 1), 2, CPU)

    shown = list(loaded(batch_size=4).values())
    means, variances = [], []
    for batch in (shown[:4], shown[4:]):
        pixels = np.stack([image.numpy() for image, _ in batch]).transpose(1, 0, 2, 3).reshape(3, -1) / 255
        means.append(pixels.mean(1))
        variances.append(pixels.var(1, ddof=1))
    np.testing.assert_allclose(model[0].running_mean, np.mean(means, 0), rtol=1e-5)
    np.testing.assert_allclose(model[0].running_var, np.mean(variances, 0), rtol=1e-5)
    assert model[0].momentum == 0.01
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_estimated_statistics_stop_after_the_asked_number_of_batches():
    model = nn.Sequential(nn.BatchNorm2d(3))
    estimate_statistics(model, training_loader(Specks(), 3, 4, True, 0, CPU, 0, 1), 1, CPU)
    pixels = np.stack([image.numpy() for image, _ in list(loaded(batch_size=4).values())[:4]]) / 255
    np.testing.assert_allclose(model[0].running_mean, pixels.mean((0, 2, 3)), rtol=1e-5)


# The training loop


def test_every_step_logs_each_term_by_name_and_every_epoch_its_figures(tmp_path):
    returned = []

    def step(model, images, labels):
        terms = tiny_step(model, images, labels)
        returned.append({name: term.item() for name, term in terms.items()})
        return terms

    figures = train(tmp_path / "run", step=step)
    steps, epochs = steps_of(tmp_path / "run"), [line for line in log_of(tmp_path / "run") if "validation" in line]
    assert [line["step"] for line in steps] == list(range(1, 3 * STEPS + 1))
    assert [line["epoch"] for line in steps] == [1] * STEPS + [2] * STEPS + [3] * STEPS
    assert [{"class": line["class"], "size": line["size"]} for line in steps] == returned
    rates = [1e-4 + (1e-2 - 1e-4) * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]
    assert [line["lr"] for line in steps] == pytest.approx(np.repeat(rates, STEPS).tolist())
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert epochs[-1]["validation"] == figures
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_the_gradient_is_that_of_the_sum_of_the_terms(tmp_path):
    seen = []

    def step(model, images, labels):
        if seen:  # what the first step did to the last bias
            seen.append(model[4].bias.detach().clone())
            raise KeyboardInterrupt
        seen.append(model[4].bias.detach().clone())
        weight = torch.tensor([1.0, -1.0, 2.0, -2.0])
        return {"up": -(weight * model[4].bias).sum(), "down": 3 * (weight * model[4].bias).sum()}

    with pytest.raises(SystemExit):
        train(tmp_path / "run", step=step)
    moved = seen[1] - seen[0]  # Adam's first step is lr against the sign of the gradient, 2 * weight
    torch.testing.assert_close(moved, -1e-2 * torch.tensor([1.0, -1.0, 1.0, -1.0]), rtol=1e-4, atol=0)


def test_a_loss_that_is_not_finite_stops_with_terms_step_and_files(tmp_path):
    batches_seen = []

    def step(model, images, labels):
        batches_seen.append(images)
        terms = tiny_step(model, images, labels)
        return terms | {"size": terms["size"] * (math.nan if len(batches_seen) == 5 else 1)}

    with pytest.raises(FloatingPointError) as stop:
        train(tmp_path / "run", step=step)
    message = str(stop.value)
    assert "not finite in step 5" in message and "'size': nan" in message and "'class': " in message
    second_epoch = list(loaded(epoch=1, seed=5, batch_size=3))
    assert f"files of the batch: {', '.join(second_epoch[3:6])}." in message
    assert [line["step"] for line in steps_of(tmp_path / "run")] == [1, 2, 3, 4, 5]
    assert read_weights(tmp_path / "run" / "last.pt")["progress"]["epoch"] == 1


def test_fewer_images_than_a_batch_are_refused_and_leave_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"10 training images are fewer than batch_size 11; lower it"):
        train(tmp_path / "run", batch_size=11)
    assert not (tmp_path / "run").exists()


def test_two_processes_are_refused_and_one_from_torchrun_is_not(tmp_path, monkeypatch, uninterrupted):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="started as 2 processes; start it as one"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    train(tmp_path / "run")
    assert_same_weights(tmp_path / "run" / "final.pth", uninterrupted / "final.pth")


def test_best_is_the_best_epoch_and_final_the_last(tmp_path):
    figures, weights, modes = iter([0.2, 0.6, 0.4]), [], []

    def validate(model):
        modes.append(model.training)
        weights.append({key: value.clone() for key, value in model.state_dict().items()})
        return {"mIoU": next(figures), "other": 0.9}

    assert train(tmp_path / "run", validate=validate) == {"mIoU": 0.4, "other": 0.9}
    assert_same_weights(tmp_path / "run" / "best.pth", weights[1])
    assert_same_weights(tmp_path / "run" / "final.pth", weights[2])
    assert modes == [False] * 3


def test_a_resumed_run_remembers_which_epoch_was_best(tmp_path):
    weights, figures = [], iter([0.6, KeyboardInterrupt, 0.4, 0.5])

    def validate(model):
        figure = next(figures)
        if figure is KeyboardInterrupt:
            raise KeyboardInterrupt
        weights.append({key: value.clone() for key, value in model.state_dict().items()})
        return {"mIoU": figure}

    with pytest.raises(SystemExit):
        train(tmp_path / "run", validate=validate)
    train(tmp_path / "run", validate=validate, resume=True)
    assert_same_weights(tmp_path / "run" / "best.pth", weights[0])


def test_training_with_bfloat16_runs_the_model_under_autocast(tmp_path):
    types = []

    def step(model, images, labels):
        types.append(model(images).dtype)
        return tiny_step(model, images, labels)

    train(tmp_path / "half", step=step, precision="bfloat16", epochs=1)
    train(tmp_path / "full", step=step, precision="float32", epochs=1)
    assert types == [torch.bfloat16] * STEPS + [torch.float32] * STEPS


def test_a_checkpoint_holds_all_that_a_run_needs(uninterrupted):
    saved = read_weights(uninterrupted / "last.pt")  # weights_only=True: nothing in it runs code
    assert saved.keys() == {"model", "optimizer", "schedule", "random", "progress", "recipe", "samples"}
    assert_same_weights(saved["model"], uninterrupted / "final.pth")
    assert len(saved["optimizer"]["param_groups"]) == 2 and saved["optimizer"]["state"][0]["step"] == 3 * STEPS
    assert saved["schedule"]["last_epoch"] == 3
    assert saved["random"]["cpu"].dtype == torch.uint8
    assert saved["progress"]["epoch"] == 3 and saved["progress"]["step"] == 3 * STEPS
    best = max(line["validation"]["mIoU"] for line in log_of(uninterrupted) if "validation" in line)
    assert saved["progress"]["best"] == best
    assert saved["recipe"]["lr"] == 1e-2 and saved["recipe"]["seed"] == 5 and saved["recipe"]["script"] == "tiny"
    written = yaml.safe_load((uninterrupted / "recipe.yaml").read_text())
    assert written["recipe"]["release"] | {"script": "tiny", "seed": 5} == saved["recipe"]
    assert not list(uninterrupted.glob("*.part"))


def test_resuming_on_other_data_or_with_another_recipe_is_refused(tmp_path):
    train(tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match=r"trained on 10 images, there are 9 now"):
        train(tmp_path / "run", resume=True, epochs=1, dataset=Specks(9))
    with pytest.raises(ValueError, match=r"epochs was 1 and is 2"):
        train(tmp_path / "run", resume=True, epochs=2)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    figures = train(tmp_path / "run")
    weights, log = read_weights(tmp_path / "run" / "final.pth"), log_of(tmp_path / "run")
    assert train(tmp_path / "run", resume=True) == figures
    assert_same_weights(tmp_path / "run" / "final.pth", weights)
    assert log_of(tmp_path / "run") == log


def test_an_existing_folder_is_not_written_into_without_resume(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(FileExistsError):
        train(tmp_path / "run")


# Killed and resumed. The processes are forked from a server that has torch loaded, and killed for real.


def train_apart(folder, workers, resume, deadly):
    """What a killed process runs: its own group, output beside the run's folder"""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in a script started by hand, not as in a forked server
    output = os.open(f"{folder}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    step = tiny_step
    if deadly and deadly[0] == "step":
        step = die_in_step(deadly[1])
    elif deadly and deadly[0] == "slow":
        step = slow_step
    elif deadly:
        die_while_saving(folder, *deadly)
    train(folder, workers, resume, step)


def slow_step(model, images, labels):
    time.sleep(0.02)
    return tiny_step(model, images, labels)


def die_in_step(number):
    calls = []

    def step(model, images, labels):
        calls.append(None)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return tiny_step(model, images, labels)

    return step


def die_while_saving(folder, name, moment):
    """Die as soon as the file of this name is half written, wholly written, or put in place"""
    fsync, replace = os.fsync, os.replace

    def deadly_fsync(descriptor):
        part = folder / f"{name}.part"
        if moment == "half written" and part.exists() and os.path.samestat(os.fstat(descriptor), part.stat()):
            os.ftruncate(descriptor, part.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    def deadly_replace(source, target):
        if moment == "not in place" and Path(target) == folder / name:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if moment == "in place" and Path(target) == folder / name:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync, os.replace = deadly_fsync, deadly_replace


@pytest.fixture(scope="module")
def begin():
    """Starts train_apart and returns its process"""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "torch.utils.tensorboard", "sklearn.metrics", "pytest"])
    processes = []

    def begin(folder, workers=0, resume=True, deadly=None):
        process = context.Process(target=train_apart, args=(folder, workers, resume, deadly))
        process.start()
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.join()


def ended(process):
    process.join(60)
    return process.exitcode


def wait_for_lines(folder, count, process):
    """Until the log has so many lines, or the process has ended"""
    log = folder / "log.jsonl"
    while process.is_alive() and (not log.exists() or len(log.read_bytes().splitlines()) < count):
        time.sleep(0.002)


def assert_ended_as_if_never_stopped(folder, uninterrupted):
    assert_same_weights(folder / "final.pth", uninterrupted / "final.pth")
    assert_same_weights(folder / "best.pth", uninterrupted / "best.pth")
    assert steps_of(folder) == steps_of(uninterrupted)
    figures = [[line["validation"] for line in log_of(run) if "validation" in line] for run in (folder, uninterrupted)]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(tmp_path, begin, uninterrupted, workers):
    folder = tmp_path / "run"
    for kill in range(4):
        process = begin(folder, workers, resume=kill > 0, deadly=("slow",))
        wait_for_lines(folder, random.randint(1, 3 * STEPS), process)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        ended(process)
    assert ended(begin(folder, workers)) == 0, Path(f"{folder}.txt").read_text()
    assert_ended_as_if_never_stopped(folder, uninterrupted)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_in_the_middle_of_an_epoch_resumes_with_any_number_of_workers(
    tmp_path, begin, uninterrupted, workers
):
    folder = tmp_path / "run"
    assert ended(begin(folder, workers, resume=False, deadly=("step", 2 * STEPS + 2))) == -signal.SIGKILL
    assert read_weights(folder / "last.pt")["progress"]["epoch"] == 2
    assert ended(begin(folder, 2 - workers)) == 0
    assert_ended_as_if_never_stopped(folder, uninterrupted)


def test_a_run_killed_before_its_first_checkpoint_starts_from_the_beginning(tmp_path, begin, uninterrupted):
    folder = tmp_path / "run"
    assert ended(begin(folder, resume=False, deadly=("step", 2))) == -signal.SIGKILL
    assert (folder / "recipe.yaml").exists() and not (folder / "last.pt").exists()
    assert ended(begin(folder)) == 0
    assert_ended_as_if_never_stopped(folder, uninterrupted)


def test_a_run_killed_right_after_making_its_folder_starts_from_the_beginning(tmp_path, uninterrupted):
    (tmp_path / "run").mkdir()
    train(tmp_path / "run", resume=True)
    assert_ended_as_if_never_stopped(tmp_path / "run", uninterrupted)
    assert (tmp_path / "run" / "recipe.yaml").exists()


def test_a_run_killed_while_it_writes_any_of_its_files_ends_with_the_same_weights(tmp_path, begin, uninterrupted):
    folder = tmp_path / "run"
    for name in ("recipe.yaml", "best.pth", "last.pt", "log.jsonl", "final.pth"):
        for moment in ("half written", "not in place", "in place"):
            process = begin(folder, resume=folder.exists(), deadly=(name, moment))
            assert ended(process) == -signal.SIGKILL, f"{name} {moment}: {Path(f'{folder}.txt').read_text()}"
            for written in (*folder.glob("*.pt"), *folder.glob("*.pth")):
                read_weights(written)
    assert ended(begin(folder)) == 0
    assert_ended_as_if_never_stopped(folder, uninterrupted)


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_says_how_to_go_on_and_leaves_a_run_that_does(tmp_path, begin, uninterrupted, workers):
    folder = tmp_path / "run"
    process = begin(folder, workers, resume=False, deadly=("slow",))
    wait_for_lines(folder, STEPS + 3, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader processes too
    assert ended(process) == 130
    printed = Path(f"{folder}.txt").read_text()
    assert "Traceback" not in printed
    lines = [line for line in printed.splitlines() if "stopped" in line]
    assert lines == ["stopped after 1 of 3 epochs; go on with: python tiny.py --exp_name tiny --resume"]
    assert ended(begin(folder, workers)) == 0
    assert_ended_as_if_never_stopped(folder, uninterrupted)


def test_ctrl_c_in_a_resumed_run_does_not_ask_for_resume_twice(tmp_path, capsys):
    def step(model, images, labels):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ending:
        train(tmp_path / "run", resume=True, step=step)
    assert ending.value.code == 130
    assert capsys.readouterr().out.strip().endswith("go on with: python tiny.py --exp_name tiny --resume")


def test_ctrl_c_waits_until_tensorboards_queue_is_left_alone(tmp_path, monkeypatch):
    written, add_scalar = [], SummaryWriter.add_scalar

    def interrupted(events, name, *values):
        os.kill(os.getpid(), signal.SIGINT)
        add_scalar(events, name, *values)
        written.append(name)

    monkeypatch.setattr(SummaryWriter, "add_scalar", interrupted)
    with pytest.raises(SystemExit) as ending:
        train(tmp_path / "run")
    assert ending.value.code == 130
    assert written == ["loss/class", "loss/size", "lr"]  # all of the first step, and nothing after it


def test_a_line_that_a_killed_run_was_writing_is_dropped_from_the_log(tmp_path, uninterrupted):
    def step(model, images, labels):
        if len(steps_of(tmp_path / "run")) == STEPS + 1:
            raise KeyboardInterrupt
        return tiny_step(model, images, labels)

    with pytest.raises(SystemExit):
        train(tmp_path / "run", step=step)
    with open(tmp_path / "run" / "log.jsonl", "a") as log:
        log.write('{"epoch": 2, "st')
    train(tmp_path / "run", resume=True)
    assert_ended_as_if_never_stopped(tmp_path / "run", uninterrupted)


# Saving


def test_a_full_disk_keeps_the_older_checkpoint_and_names_the_file(tmp_path, monkeypatch, uninterrupted):
    folder, fsync = tmp_path / "run", os.fsync

    def full_disk(descriptor):
        part = folder / "last.pt.part"
        if (folder / "last.pt").exists() and part.exists() and os.path.samestat(os.fstat(descriptor), part.stat()):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(
        OSError, match=r"could not write .*run/last\.pt \(No space left on device\); the older one"
    ) as stop:
        train(folder)
    assert stop.value.errno == errno.ENOSPC and "--resume" in str(stop.value)
    assert read_weights(folder / "last.pt")["progress"]["epoch"] == 1
    assert not list(folder.glob("*.part"))
    monkeypatch.undo()
    train(folder, resume=True)
    assert_ended_as_if_never_stopped(folder, uninterrupted)


def test_a_disk_that_fills_while_a_file_is_written_leaves_the_older_one(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    checkpoint.save({"weight": torch.ones(3)}, path)

    class FullFile:
        def __init__(self, *arguments):
            self.file = open(*arguments)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "open", FullFile, raising=False)
    with pytest.raises(OSError, match=r"could not write .*weights\.pth .*; the older one is whole"):
        checkpoint.save({"weight": torch.zeros(3)}, path)
    assert torch.equal(read_weights(path)["weight"], torch.ones(3))
    assert os.listdir(tmp_path) == ["weights.pth"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "run").write_text("a file where a folder should be")
    with pytest.raises(OSError, match=r"could not write .*run/last\.pt \(.*\); nothing was written"):
        checkpoint.save({}, tmp_path / "run" / "last.pt")


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    def read_only(path, mode):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint, "open", read_only, raising=False)
    with pytest.raises(
        PermissionError, match=r"could not write .*final\.pth \(Permission denied\); nothing was written"
    ):
        checkpoint.save({}, tmp_path / "final.pth")


# Evaluation


class Pairs(Dataset):
    """Frames of unlike sizes whose labels are known classes, outliers and ignored pixels"""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.frames = []
        for number, size in enumerate([(6, 8), (5, 4), (8, 8)]):
            image = torch.from_numpy(rng.integers(0, 256, (3, *size), np.uint8))
            self.frames.append((image, torch.from_numpy(rng.choice([0, 1, 2, OUTLIER, IGNORE], size).astype(np.uint8)),
                                f"frame_{number}.png"))  # fmt: skip

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        return self.frames[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_frames_come_in_order_from_a_model_in_eval_mode(workers):
    model, dataset = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)), Pairs()
    frames = list(evaluated_frames(model.train(), dataset, CPU, workers))
    assert [frame.name for frame in frames] == ["frame_0.png", "frame_1.png", "frame_2.png"]
    for frame, (image, labels, _) in zip(frames, dataset.frames, strict=True):
        torch.testing.assert_close(frame.image[0], image / 255)
        assert torch.equal(frame.labels[0], labels.long()) and frame.dataset_logits is None
        with torch.no_grad():
            torch.testing.assert_close(frame.class_logits, model(frame.image))
        assert not frame.class_logits.requires_grad


def test_a_model_with_two_heads_gives_both():
    class TwoHeads(nn.Module):
        def forward(self, images):
            return images, 2 * images[:, :2]

    frame = next(evaluated_frames(TwoHeads(), Pairs(), CPU))
    assert torch.equal(frame.class_logits, frame.image) and torch.equal(frame.dataset_logits, 2 * frame.image[:, :2])


def test_closed_set_miou_is_that_of_a_slow_count():
    model, dataset = nn.Conv2d(3, 3, 1), Pairs()
    hits, unions = [0, 0, 0], [0, 0, 0]
    for image, labels, _ in dataset.frames:
        with torch.no_grad():
            prediction = model(image[None] / 255)[0].argmax(0)
        for predicted, truth in zip(prediction.flatten().tolist(), labels.flatten().tolist(), strict=True):
            if truth < 3:
                for k in range(3):
                    hits[k] += predicted == truth == k
                    unions[k] += k in (predicted, truth)
    slow = sum(hit / union for hit, union in zip(hits, unions, strict=True)) / 3
    assert closed_set_figures(model, dataset, 3, CPU)["mIoU"] == pytest.approx(slow)


def test_anomaly_figures_are_those_of_all_pixels_together():
    class TwoHeads(nn.Module):
        def forward(self, images):
            return images.flip(1), images[:, :2]

    def score(class_logits, dataset_logits):
        return dataset_logits[:, 1] - class_logits[:, 0]

    dataset = Pairs()
    images, labels = (np.concatenate([frame[part].numpy().reshape(-1, frame[1].numel()) for frame in dataset.frames], 1)
                      for part in (0, 1))  # fmt: skip
    images, labels = (images / 255).astype(np.float32), labels[0]
    scores, scored = images[1] - images[2], labels != IGNORE
    outlier = labels[scored] == OUTLIER
    false, true, _ = sklearn.metrics.roc_curve(outlier, scores[scored], drop_intermediate=False)
    ap = sklearn.metrics.average_precision_score(outlier, scores[scored])
    figures = anomaly_figures(TwoHeads(), dataset, score, CPU)
    assert figures == pytest.approx({"AP": ap, "FPR95": false[true >= 0.95][0]})


def test_tables_show_percent_and_leave_undefined_cells_empty():
    rows = [["town", "images", "AP %", "note"], ["t5", 3, 0.1236, ""], ["t6", 12, math.nan, "none"]]
    assert markdown_table(rows).splitlines() == [
        "| town | images | AP %  | note |",
        "|------|--------|-------|------|",
        "| t5   | 3      | 12.36 |      |",
        "| t6   | 12     |       | none |",
    ]


def test_results_are_written_as_json_without_nan_and_as_a_table(tmp_path, capsys):
    results = {"AP": 0.5, "undefined": math.nan, "images": [{"AP": math.nan, "pixels": 3}], "threshold": -math.inf}
    write_results(tmp_path / "new" / "folder", results, {"A title": [["score", "AP %"], ["hybrid", 0.5]]})
    text = (tmp_path / "new" / "folder" / "results.json").read_text()
    assert json.loads(text) == {
        "AP": 0.5, "undefined": None, "images": [{"AP": None, "pixels": 3}], "threshold": None
    }  # fmt: skip
    table = (tmp_path / "new" / "folder" / "table.md").read_text()
    assert table == "A title\n\n| score  | AP %  |\n|--------|-------|\n| hybrid | 50.00 |\n"
    assert table in capsys.readouterr().out


# Pictures


COLOURS = {"road": (10, 20, 30), "car": (40, 50, 60)}


def test_class_pictures_colour_known_unknown_and_ignored_pixels():
    shown = pictures.class_picture(np.array([[0, 1, 2], [OUTLIER, IGNORE, 0]], np.uint8), COLOURS)
    unknown, ignored = pictures.UNKNOWN_COLOUR, pictures.IGNORE_COLOUR
    assert shown.tolist() == [[[10, 20, 30], [40, 50, 60], [*unknown]], [[*unknown], [*ignored], [10, 20, 30]]]
    assert shown.dtype == np.uint8 and unknown != ignored


def test_heat_goes_from_black_at_the_low_end_to_pale_yellow_at_the_high_one():
    shown = pictures.heat_picture(np.array([[-5.0, 1.0, 2.0, 3.0, 99.0]]), 1.0, 3.0)
    black, pale_yellow = [0, 0, 4], [252, 255, 164]
    assert shown[0, [0, 1]].tolist() == [black] * 2 and shown[0, [3, 4]].tolist() == [pale_yellow] * 2
    assert shown[0, 2].tolist() == [185, 57, 82]  # halfway between the fourth and the fifth of eight points
    lightness = pictures.heat_picture(np.linspace(0, 1, 50)[None], 0, 1)[0].astype(int).sum(1)
    assert (np.diff(lightness) >= 0).all()


def test_scores_that_are_all_equal_have_a_picture_too():
    assert pictures.heat_picture(np.full((2, 2), 7.0), 7.0, 7.0).shape == (2, 2, 3)


def test_a_grid_shows_every_row_and_column_in_its_place(tmp_path):
    cells = [[np.full((6, 12, 3), 20 + 60 * row + 15 * column, np.uint8) for column in range(3)] for row in range(2)]
    path = tmp_path / "new" / "grid.png"
    pictures.save_grid(path, ("a", "b", "c"), cells, COLOURS, "a note", cell_width=40)
    with Image.open(path) as image:
        sheet = np.array(image)
    assert sheet.shape[1] == 3 * (40 + pictures.GAP) + pictures.GAP
    for row in range(2):
        y = pictures.HEADER + row * (20 + pictures.GAP) + 10  # cells are twice as wide as high
        for column in range(3):
            x = pictures.GAP + column * (40 + pictures.GAP) + 20
            assert sheet[y, x].tolist() == [20 + 60 * row + 15 * column] * 3
    legend = sheet[pictures.HEADER + 2 * (20 + pictures.GAP) :].reshape(-1, 3)
    for colour in (*COLOURS.values(), pictures.UNKNOWN_COLOUR, pictures.IGNORE_COLOUR):
        assert (legend == colour).all(1).any()


def test_the_sheet_of_evaluated_frames_shows_the_unknown_and_its_score(tmp_path, capsys):
    labels, prediction = np.array([[0, OUTLIER]], np.uint8), np.array([[0, 1]])
    image = np.full((3, 1, 2), 0.2, np.float32)
    shown = pictures.Picture(image, labels, prediction, np.array([[0.0, 9.0]]), np.array([[0, 2]]))
    pictures.save_pictures(tmp_path / "sheet.png", [shown, shown], COLOURS, "hybrid")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.array(sheet)
    assert pixels.shape[1] == 5 * (320 + pictures.GAP) + pictures.GAP
    unknown = list(pictures.UNKNOWN_COLOUR)
    expected = [[51] * 3, [51] * 3, [10, 20, 30], unknown, [10, 20, 30], [40, 50, 60], [0, 0, 4], [252, 255, 164],
                [10, 20, 30], unknown]  # fmt: skip
    for row in range(2):
        y = pictures.HEADER + row * (160 + pictures.GAP) + 80
        places = [pictures.GAP + column * (320 + pictures.GAP) + side for column in range(5) for side in (20, 300)]
        assert [pixels[y, x].tolist() for x in places] == expected


def test_the_pictured_frames_are_spread_from_the_first_to_the_last():
    assert pictures.evenly_spread(3, 11) == {0, 5, 10}
    assert pictures.evenly_spread(6, 2) == {0, 1} and pictures.evenly_spread(1, 5) == {0}
    assert pictures.evenly_spread(0, 5) == set()


def test_a_legend_breaks_where_the_sheet_ends():
    font = type("Font", (), {"getlength": lambda self, name: 10.0 * len(name)})()
    places, lines = pictures.lay_out(["road", "car", "unknown"], font, 200)
    gap = pictures.GAP  # an entry takes its name's 10 pixels a letter and 34 around it
    assert places == [(gap, 0), (gap + 74, 0), (gap, 1)] and lines == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no file here that is always full")
def test_a_disk_that_is_full_when_the_log_is_written_is_told_of_once(tmp_path):
    log = RunLog(Run(tmp_path, CPU, seed=0, workers=0, resume=False, record={}), steps_done=0)
    log.file.close()
    log.file = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    with pytest.raises(OSError, match=r"could not write .*No space left.*--resume"):
        log.step(0, 1, {"lr": 1e-3}, {"class": 1.0})
    log.close()
