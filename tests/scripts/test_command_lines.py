"""The original's command lines, word for word: what they ask for is understood, and looked for where they say."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from engine import start_run
from engine.recipe import Recipe
from tests.support.parsers import spare_networks
from tests.support.stand_ins import put_in_place

PROJECT = Path(__file__).resolve().parents[2]
# Each command, and what it misses first of what it names.
CITY, SH, COCO = "no folder CITY_DATAROOT/", "no folder SH_DATAROOT/", "no folder COCO_DATAROOT/"
COMMANDS = {
    "python evaluate_ood.py --dataroot LF_DATAROOT --dataset lf --folder OUTPUT_DIR --params WEIGHTS_FILE":
        "no folder LF_DATAROOT/",
    "python evaluate_ood.py --dataroot LF_DATAROOT --dataset static --folder OUTPUT_DIR --params WEIGHTS_FILE":
        "no folder LF_DATAROOT",
    "python evaluate_ood.py --dataroot SH_DATAROOT --dataset street-hazards --folder OUTPUT_DIR --params WEIGHTS_FILE":
        SH,
    "python evaluate_osr_sh.py --dataroot SH_DATAROOT --model WEIGHTS_FILE": SH,
    "python evaluate_osr_coco.py --dataroot COCO_DATAROOT --model WEIGHTS_FILE": COCO,
    "python dlv3_cityscapes_finetune.py --dataroot CITY_DATAROOT --neg_dataroot ADE_DATAROOT --exp_name EXP_NAME": CITY,
    "python dlv3_cityscapes_finetune_flow.py --dataroot CITY_DATAROOT --flow_state FLOW_CHECKPOINT --exp_name EXP_NAME":
        CITY,
    "python ldn_streethazards.py --dataroot SH_DATAROOT --exp_name EXP_NAME": SH,
    "python ldn_streethazards_finetune.py --dataroot SH_DATAROOT --neg_dataroot ADE_DATAROOT --exp_name EXP_NAME "
    "--model MODEL_INIT": SH,
    "python segmenter_coco20.py --dataroot COCO_DATAROOT --exp_name EXP_NAME": COCO,
    "python segmenter_coco20_finetune.py --dataroot COCO_DATAROOT --model TRAINED_MODEL --neg_dataset ADE_DATAROOT "
    "--exp_name EXP_NAME": COCO,
    "python segmenter_coco20_finetune.py --dataroot COCO_DATAROOT --model TRAINED_MODEL --neg_dataset "
    "--exp_name EXP_NAME": COCO,
    "python segmenter_coco20_finetune_flow.py --dataroot COCO_DATAROOT --model TRAINED_MODEL --flow_state TRAINED_FLOW "
    "--exp_name EXP_NAME": COCO,
}  # fmt: skip
TRAINING = [command for command in COMMANDS if "--exp_name" in command]
HYBRID = [command for command in TRAINING if "finetune" in command]
OWN = {"ldn": ("12", "street-hazards"), "dlv3": ("19", "cityscapes"), "segmenter": ("20", "coco20")}
COSINE = [command for command in TRAINING if "ldn_" in command]


def script_and_flags(command):
    python, file, *flags = shlex.split(command)
    assert python == "python"
    return importlib.import_module(Path(file).stem), flags


def own(command):
    """Number of classes and data set of a training script"""
    return OWN[command.split()[1].split("_")[0]]


def short(command):
    words = command.split()
    bare = " bare" if "--neg_dataset --exp_name" in command else ""
    return words[1] + (f" {words[words.index('--dataset') + 1]}" if "--dataset" in words else "") + bare


@pytest.fixture
def weights_are_there(monkeypatch, in_tmp):
    spare_networks(monkeypatch)


@pytest.mark.parametrize("command", COMMANDS, ids=short)
def test_a_command_is_understood_and_comes_to_its_data(command, weights_are_there, in_tmp):
    script, flags = script_and_flags(command)
    with pytest.raises(FileNotFoundError) as missing:
        script.main(flags)
    assert str(missing.value).startswith(COMMANDS[command]) and "--dataroot" in str(missing.value)
    assert not list(in_tmp.iterdir())


@pytest.mark.parametrize("command", TRAINING, ids=short)
def test_the_originals_numbers_are_flags(command, monkeypatch, in_tmp):
    numbers = {"batch_size": 3, "epochs": 4, "lr": 2e-5}
    if command in COSINE:
        numbers["lr_min"] = 1e-6
    if command in HYBRID:
        numbers["beta"] = 0.7
    script, flags = script_and_flags(command)
    started = []

    def stop(*inputs):
        started.append(start_run(*inputs))
        raise KeyboardInterrupt

    put_in_place(monkeypatch, {"engine.start_run": stop})
    classes, dataset = own(command)
    more = [word for key, number in numbers.items() for word in (f"--{key}", str(number))]
    more += ["--num_classes", classes, "--dataset", dataset, "--resume"]
    with pytest.raises(KeyboardInterrupt):
        script.main([*flags, *more])
    ((args, recipe, run),) = started
    assert isinstance(recipe, Recipe) and run.resume and run.folder == Path("logs/EXP_NAME")
    assert {key: getattr(recipe, key) for key in numbers} == numbers
    assert args.dataroot.endswith("_DATAROOT")
    if "--neg_data" in command:
        bare = "--neg_dataset --exp_name" in command
        assert args.neg_dataroot == ("datasets/ADEChallengeData2016" if bare else "ADE_DATAROOT")
    if "--model" in command:
        assert args.model in ("MODEL_INIT", "TRAINED_MODEL")
    if "--flow_state" in command:
        assert args.flow_state in ("FLOW_CHECKPOINT", "TRAINED_FLOW")


@pytest.mark.parametrize("command", [command for command in TRAINING if command not in COSINE], ids=short)
def test_an_end_of_the_learning_rate_without_a_schedule_that_has_one_is_refused(command, in_tmp):
    script, flags = script_and_flags(command)
    with pytest.raises(ValueError, match=r"lr_min 1e-07 is the end of a cosine schedule; with schedule \w+ it must be"):
        script.main([*flags, "--lr_min", "1e-7"])


@pytest.mark.parametrize("flag", ["--num_classes", "--dataset"])
@pytest.mark.parametrize("command", TRAINING, ids=short)
def test_another_data_set_or_number_of_classes_is_refused(command, flag, in_tmp, capsys):
    script, flags = script_and_flags(command)
    for classes, dataset in set(OWN.values()) - {own(command)}:
        value = classes if flag == "--num_classes" else dataset
        with pytest.raises(SystemExit) as ending:
            script.main([*flags, flag, value])
        assert ending.value.code == 1 and f"{flag}: invalid choice: " in capsys.readouterr().err
    assert not Path("logs").exists()


@pytest.mark.parametrize("command", [command for command in COMMANDS if "evaluate_osr" in command], ids=short)
def test_the_share_of_outliers_to_find_is_a_flag(command, weights_are_there, in_tmp, capsys):
    script, flags = script_and_flags(command)
    with pytest.raises(FileNotFoundError, match=COMMANDS[command]):
        script.main([*flags, "--tpr", "0.9"])
    with pytest.raises(SystemExit):
        script.main([*flags, "--tpr", "0"])
    assert "--tpr: 0 must be over 0 and at most 1" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--momentum", "--decay"])
def test_flags_that_do_nothing_in_the_original_are_left_out(flag, in_tmp, capsys):
    script, flags = script_and_flags(TRAINING[0])
    with pytest.raises(SystemExit):
        script.main([*flags, flag, "0.9"])
    assert f"unrecognized arguments: {flag} 0.9" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS, ids=short)
def test_a_scripts_own_help_says_the_command(command):
    module = ast.parse((PROJECT / command.split()[1]).read_text())
    told = re.sub(r"[\\\s]+", " ", ast.get_docstring(module)).replace("[", "").replace("]", "")
    flags = re.findall(r"--\w+", command)
    (line,) = re.findall(rf"python {command.split()[1]} (?:--\w+(?: [A-Z_]+)? ?)+", told)
    assert sorted(re.findall(r"--\w+", line)) == sorted(flags)


@pytest.mark.processes
@pytest.mark.slow
def test_a_command_runs_as_a_process_and_an_error_of_the_user_is_one_line(in_tmp):
    (command,) = (command for command in COMMANDS if "evaluate_osr_coco" in command)
    words = [sys.executable, PROJECT / "evaluate_osr_coco.py", *shlex.split(command)[2:]]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("error: no weight file WEIGHTS_FILE; ")
    assert not list(in_tmp.iterdir())
