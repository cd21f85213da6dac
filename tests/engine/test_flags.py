"""Every number and path of every command line: what is out of bounds ends in one line, before any work."""

import os
import re
import typing

import pytest
import torch

from engine import flags
from engine.flags import LARGEST_SEED
from engine.loader import EpochSampler
from engine.recipe import read_recipe
from tests.support.parsers import EVALUATIONS, SCRIPTS, TRAININGS, parser_of, recipe_type_of, script_module, words_for


@pytest.fixture
def refused(capsys, in_tmp):
    """The one line that a script ends in, before anything is written"""

    def line(script, *more):
        words = words_for(parser_of(script))
        with pytest.raises(SystemExit) as ending:
            script_module(script).main([*words, *more])
        printed = capsys.readouterr()
        assert ending.value.code == 1 and printed.out == "" and not os.listdir()
        assert printed.err.count("\n") == 1 and printed.err.startswith("error: "), printed.err
        return printed.err

    return line


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_number_of_a_command_line_is_without_bounds(script):
    for action in parser_of(script)._actions:
        assert action.type not in (int, float) or action.choices, action.option_strings


CASES = [
    *((script, "--workers", "-1", "must be at least 0") for script in
      [*TRAININGS, *EVALUATIONS, "predict", "check_data"]),
    *((script, "--workers", "100000", "100000 processes are too many for ") for script in SCRIPTS if script not in
      ("demo", "export_onnx", "reproduce_tables")),
    *((script, "--seed", "-1", "must be in 0..9223372036854775807") for script in [*TRAININGS, "demo"]),
    *((script, "--seed", str(2**63), "must be in 0..9223372036854775807") for script in [*TRAININGS, "demo"]),
    *((script, "--accumulation", "0", "must be at least 1") for script in TRAININGS),
    *((script, "--pictures", "-1", "must be at least 0") for script in EVALUATIONS if script != "evaluate_closed_set"),
    *((script, "--heads", "0", "must be at least 1") for script in
      ("predict", "export_onnx", "evaluate_closed_set", "evaluate_osr_coco")),
    *((script, flag, value, told) for script in ("predict", "evaluate_ood", "export_scores") for flag, value, told in
      [("--tile", "0", "must be at least 32"), ("--tile", "-5", "must be at least 32"),
       ("--tile_overlap", "-1", "must be at least 0"), ("--tile", "1.5", "is not a whole number")]),
    *((script, "--tpr", value, told) for script in ("evaluate_osr_sh", "evaluate_osr_coco") for value, told in
      [("0", "over 0 and at most 1"), ("1.01", "over 0 and at most 1"), ("nan", "over 0 and at most 1"),
       ("much", "is not a number")]),
    ("evaluate_osr_coco", "--window", "-5", "must be at least 1"),
    ("evaluate_osr_coco", "--window", str(10**30), "must be in 1..2147483647"),
    ("evaluate_osr_coco", "--window_stride", "0", "must be at least 1"),
    ("predict", "--threshold", "nan", "is not a finite number"),
    ("predict", "--threshold", "-inf", "is not a finite number"),
    ("predict", "--max_side", "31", "must be at least 32"),
    ("export_onnx", "--num_classes", "0", "must be in 1..254"),
    ("export_scores", "--num_classes", "255", "must be in 1..254"),
    ("export_scores", "--shift", "inf", "is not a finite number"),
    *((script, "--neg_leave_out", value, "must be in 0..255") for script in TRAININGS if script in
      ("ldn_streethazards_finetune", "dlv3_cityscapes_finetune", "segmenter_coco20_finetune")
      for value in ("-1", "256")),
]  # fmt: skip


@pytest.mark.parametrize(("script", "flag", "value", "told"), CASES)
def test_a_number_out_of_bounds_is_one_line_before_any_work(script, flag, value, told, refused):
    line = refused(script, f"{flag}={value}")
    assert flag in line and value in line and told in line


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_empty_value_is_refused_for_every_flag(script, capsys):
    parser = parser_of(script)
    flags_with_values = [action.option_strings[0] for action in parser._actions if action.nargs != 0]
    assert flags_with_values
    for flag in flags_with_values:
        for words in ([flag, ""], [f"{flag}="]):
            with pytest.raises(SystemExit):
                parser.parse_args([*words_for(parser), *words])
            told = f"error: {flag}: its value is empty; is a variable not set? (--help lists the flags)\n"
            assert capsys.readouterr().err == told


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_line_that_is_not_understood_ends_with_status_1_and_help_with_0(script, capsys):
    parser = parser_of(script)
    words = words_for(parser)
    wrong = [[*words, "--no_such_flag"], [*words, "--device"], [*words, "and one more"], *([[]] if words else [])]
    for line in wrong:
        with pytest.raises(SystemExit) as ending:
            parser.parse_args(line)
        printed = capsys.readouterr()
        assert ending.value.code == 1 and printed.out == "", line
        assert re.fullmatch(r"error: .* \(--help lists the flags\)\n", printed.err), printed.err
    with pytest.raises(SystemExit) as ending:
        parser.parse_args(["--help"])
    assert ending.value.code == 0


def test_workers_are_bounded_by_cores_and_by_the_files_that_may_be_open(monkeypatch):
    monkeypatch.setattr(flags, "available_cores", lambda: 10)
    monkeypatch.setattr(flags, "open_files", lambda: 256)
    assert flags.number_of_workers("16") == 16
    with pytest.raises(Exception, match=r"more than the 256 files .* give at most 16, or allow more files with ulimit"):
        flags.number_of_workers("17")
    monkeypatch.setattr(flags, "open_files", lambda: None)  # as on Windows
    assert flags.number_of_workers("40") == 40
    with pytest.raises(Exception, match="41 processes are too many for 10 cores; give at most 40"):
        flags.number_of_workers("41")


def test_the_largest_seed_seeds_everything():
    for seed in (0, LARGEST_SEED):
        torch.manual_seed(seed)
        assert sorted(index for _, index in EpochSampler(5, seed, 5)) == [0, 1, 2, 3, 4]


def numbers_of(block):
    """(key, how many of them it holds) of a recipe's numbers"""
    for key, kind in typing.get_type_hints(recipe_type_of(block)).items():
        parts = typing.get_args(kind) if typing.get_origin(kind) is tuple else (kind,)
        if set(parts) <= {int, float}:
            yield key, len(parts)


@pytest.mark.slow
@pytest.mark.parametrize("block", TRAININGS)
def test_every_number_of_a_recipe_is_bounded(block):
    may_be_zero = {"lr_min", "statistics_batches", "beta", "divergence_weight", "bits_weight", "warmup_steps"}
    keys = dict(numbers_of(block))
    assert {"lr", "epochs", "batch_size", "crop_size"} < keys.keys()
    for key, count in keys.items():
        for value in (-1, float("nan"), float("inf"), 1e400, *([0] if key not in may_be_zero else [])):
            changed = {key: value if count == 1 else [value] * count}
            with pytest.raises(ValueError, match=rf"\b{re.escape(key)}\b"):
                read_recipe(block, recipe_type_of(block), changed)
    with pytest.raises(ValueError, match="crop_size"):
        read_recipe(block, recipe_type_of(block), {"crop_size": 10**9})
    with pytest.raises(ValueError, match="epochs: '1e30' is not a whole number"):
        read_recipe(block, recipe_type_of(block), {"epochs": "1e30"})
