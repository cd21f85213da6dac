import dataclasses
import json
import math
import re
import typing
from pathlib import Path

import pytest
import torch
import yaml

from engine.flags import argument_parser
from engine.recipe import RECIPES, read_recipe
from engine.script import run_script
from engine.start import start_run
from ldn_streethazards_finetune import LadderNegativesRecipe
from methods import LadderRecipe
from tests.support.parsers import parser_of, recipe_type_of
from tests.support.tiny import CPU

PROJECT = Path(__file__).resolve().parents[2]
BLOCKS = list(yaml.safe_load(RECIPES.read_text()))


# Recipes


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
    files = [f"{block}.py", "engine/train.py", "engine/step.py", "engine/start.py"]
    if "finetune" in block:
        files += ["methods/dense_hybrid.py", f"methods/{'flow' if 'flow' in block else 'real'}_negatives.py"]
    text = "".join((PROJECT / file).read_text() for file in files)
    for field in dataclasses.fields(recipe_type_of(block)):
        assert re.search(rf"\brecipe\.{field.name}\b", text), field.name


def test_the_numbers_of_the_streethazards_recipes_are_the_releases():
    closed, _ = read_recipe("ldn_streethazards", LadderRecipe, {})
    assert (closed.lr, closed.lr_min, closed.epochs, closed.batch_size) == (4e-4, 1e-7, 120, 16)
    assert (closed.crop_size, closed.scale, closed.backbone_lr_factor, closed.adam_eps) == (768, (0.5, 2), 0.25, 1e-7)
    hybrid, _ = read_recipe("ldn_streethazards_finetune", LadderNegativesRecipe, {})
    assert (hybrid.lr, hybrid.lr_min, hybrid.epochs, hybrid.batch_size) == (1e-5, 1e-7, 40, 12)
    assert (hybrid.beta, hybrid.negative_resize, hybrid.negative_size) == (0.03, 384, 384)
    assert closed.schedule == hybrid.schedule == "cosine"
    assert (hybrid.ignored_are_inliers, hybrid.likelihood_margin) == (False, None)


def test_an_unknown_key_in_the_file_is_refused_by_name(tmp_path):
    path = changed_block(tmp_path, momentum=0.9)
    with pytest.raises(ValueError, match=r"momentum is not a recipe key of ldn_streethazards_finetune.*lr_min"):
        read_recipe("ldn_streethazards_finetune", LadderNegativesRecipe, {}, path)


def test_a_missing_key_is_named(tmp_path):
    path = changed_block(tmp_path, beta=None, crop_size=None)
    with pytest.raises(ValueError, match=r"recipes.yaml, block ldn_streethazards_finetune: crop_size, beta missing"):
        read_recipe("ldn_streethazards_finetune", LadderNegativesRecipe, {}, path)


def test_a_missing_block_and_an_unknown_source_are_named(tmp_path):
    path = yaml_file(tmp_path, "ldn_streethazards:\n  theirs: {lr: 1}\n")
    with pytest.raises(ValueError, match=r"has no block walk; it has ldn_streethazards"):
        read_recipe("walk", LadderRecipe, {}, path)
    with pytest.raises(ValueError, match=r"'theirs' is neither 'release' nor 'ours'"):
        read_recipe("ldn_streethazards", LadderRecipe, {}, path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", True), ("epochs", 1.5), ("epochs", "many"), ("epochs", [1]), ("lr", True), ("lr", math.nan),
        ("lr", math.inf), ("lr", "fast"), ("scale", 1.0), ("scale", [1.0]), ("scale", [1.0, "wide"]),
        ("scale", [0.5, 1.0, 2.0]), ("schedule", 3),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_in_the_file_is_refused(tmp_path, key, value):
    with pytest.raises(ValueError, match=rf"^{key}: .* is not "):
        read_recipe("ldn_streethazards_finetune", LadderNegativesRecipe, {}, changed_block(tmp_path, **{key: value}))


def test_yaml_that_writes_a_number_as_a_word_is_understood(tmp_path):
    path = yaml_file(tmp_path, RECIPES.read_text().replace("4.0e-4", "4e-4"))  # without its point, a string in YAML
    assert read_recipe("ldn_streethazards", LadderRecipe, {}, path)[0].lr == 4e-4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0), ("lr", -1e-3), ("lr_min", -1e-9), ("lr_min", 1), ("epochs", 0), ("batch_size", 0), ("crop_size", 0),
        ("adam_eps", 0), ("scale", "0 1"), ("scale", "2 1"), ("negative_scale", "0 1"),
        ("statistics_batches", -1), ("schedule", "linear"), ("beta", -0.1),
        ("negative_size", 769),
    ],
)  # fmt: skip
def test_a_number_out_of_its_range_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"^{key} "):
        read_recipe("ldn_streethazards_finetune", LadderNegativesRecipe, {key: value})


def test_a_negative_as_large_as_the_crop_is_allowed():
    recipe, _ = read_recipe("ldn_streethazards_finetune", LadderNegativesRecipe, {"negative_size": "768"})
    assert recipe.negative_size == 768


# The start of a run


def started(*argv, recipe_type=LadderNegativesRecipe, script="ldn_streethazards_finetune"):
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
        (["--accumulation", "5"], "accumulation 5 must divide batch_size 12"),
        (["--set", "accumulation=5"], "accumulation 5 must divide batch_size 12"),
        (["--sync_batchnorm", "true", "--device", "cpu"], "sync_batchnorm true needs GPUs, and this run is on cpu"),
        (["--exp_name", "a/b"], "'a/b' must be a plain folder name"),
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


@pytest.mark.parametrize(
    "words",
    [
        ["--accumulation", "2", "--checkpointing", "true", "--validate_every", "3"],
        ["--set", "accumulation=2", "--set", "checkpointing=true", "--set", "validate_every=3"],
    ],
)
def test_how_a_run_goes_is_recorded_with_it_apart_from_the_recipe(in_tmp, words):
    _, recipe, run = started(*words, "--workers", "1")
    assert (run.accumulation, run.checkpointing, run.validate_every) == (2, True, 3)
    told = {"accumulation": 2, "checkpointing": True, "sync_batchnorm": False, "validate_every": 3, "workers": 1}
    assert run.record["run"] == told | {"cache": None, "compile": False, "no_graphs": False, "max_pixels": None}
    assert not run.record["recipe"]["changed"] and not hasattr(recipe, "accumulation")
    settings = ["compile=true", "precision=bfloat16", "max_pixels=9", "device=cpu"]
    _, _, every_kind = started(*(word for setting in settings for word in ("--set", setting)))
    assert every_kind.compile and every_kind.precision.name == "bfloat16"
    assert every_kind.record["run"]["max_pixels"] == 9
    _, _, usual = started()
    assert (usual.accumulation, usual.checkpointing, usual.sync_batchnorm) == (1, False, False)


def test_how_a_run_goes_may_change_when_it_goes_on(in_tmp):
    _, _, run = started("--accumulation", "3")
    run.folder.mkdir(parents=True)
    (run.folder / "recipe.yaml").write_text(yaml.safe_dump(run.record))
    assert started("--resume", "--accumulation", "4", "--checkpointing", "true")[2].accumulation == 4
    older = run.record | {"recipe": {"ours": run.record["recipe"]["ours"] | {"accumulation": 3, "checkpointing": True}}}
    older["inputs"] = run.record["inputs"] | {"max_pixels": 9}
    (run.folder / "recipe.yaml").write_text(
        yaml.safe_dump(older)
    )  # as it was when these were recipe numbers and an input
    for words in ([], ["--max_pixels", "9"]):
        assert not started("--resume", *words)[2].checkpointing


@pytest.mark.parametrize("setting", ["accumulation=0", "checkpointing=maybe", "sync_batchnorm=1", "precision=half"])
def test_a_wrong_setting_of_how_a_run_goes_is_one_line(in_tmp, capsys, setting):
    key, _, value = setting.partition("=")
    for words in (["--set", setting], [f"--{key}", value]):
        with pytest.raises(SystemExit):
            started(*words)
        line = capsys.readouterr().err
        assert line.startswith(f"error: --{key}: ") and line.count("\n") == 1 and value in line


@pytest.mark.parametrize("block", BLOCKS)
def test_every_number_has_a_meaning_and_help_shows_it_with_its_default(block):
    parser, kind = parser_of(block), recipe_type_of(block)
    shown = {action.dest: parser._get_formatter()._expand_help(action) for action in parser._actions if action.help}
    hints, defaults = typing.get_type_hints(kind, include_extras=True), {}
    for field in dataclasses.fields(kind):
        assert typing.get_origin(hints[field.name]) is typing.Annotated, field.name
        (meaning,) = hints[field.name].__metadata__
        assert meaning and shown[field.name].startswith(f"{meaning} ("), field.name
        defaults[field.name] = re.search(r", default (.+)\)$", shown[field.name])[1]
    assert read_recipe(block, kind, defaults)[0] == read_recipe(block, kind, {})[0]


@pytest.mark.parametrize("word", ["null", "none", "None"])
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
        started("--resume", "--lr", "0.002", recipe_type=LadderRecipe, script="ldn_streethazards")


def test_our_own_errors_end_a_script_with_one_line(in_tmp):
    with pytest.raises(SystemExit) as ending:
        run_script(lambda: started("--lr", "quick"))
    assert ending.value.code == "error: lr: 'quick' is not a number"


@pytest.mark.parametrize("mistake", [lambda: json.loads("{"), lambda: [][0], lambda: torch.ones(2) @ torch.ones(3)])
def test_other_errors_keep_their_traceback(mistake):
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        run_script(mistake)
