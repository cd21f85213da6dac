"""One training as several processes, and a batch in parts: the same as one process with the whole batch."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.processes import launch_command
from engine.step import smallest_part
from methods import RealNegativesRecipe
from tests.support.several import torchrun
from tests.support.shared_experiment import NUMBERS, train
from tests.support.tiny import log_of, read_weights, steps_of

SCRIPT = Path(__file__).parents[1] / "support" / "shared_experiment.py"


@pytest.fixture(scope="module")
def shared(tmp_path_factory, street_hazards, ade20k):
    """Folders of the same training: whole, in parts, by two processes, by two in parts; and what the two printed"""
    root = tmp_path_factory.mktemp("shared")
    train(street_hazards, ade20k, root / "whole")
    train(street_hazards, ade20k, root / "parts", accumulation=2)
    experiments = [
        {"folder": str(root / "processes")},
        {"folder": str(root / "both"), "accumulation": 2},
    ]
    printed, code = torchrun(SCRIPT, street_hazards, ade20k, json.dumps(experiments))
    assert code == 0, printed
    return root, printed


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("split", ["parts", "processes", "both"])
def test_a_batch_is_the_same_whole_in_parts_and_over_processes(split, shared):
    root, _ = shared
    whole, split = root / "whole", root / split
    lines = steps_of(whole)
    assert len(lines) == 2 * 3  # ten images in batches of four, the last of two
    for ours, theirs in zip(steps_of(split), lines, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4), ours
    before, after = read_weights(split / "final.pth"), read_weights(whole / "final.pth")
    for name, weight in after.items():
        torch.testing.assert_close(before[name], weight, rtol=1e-4, atol=1e-5)
    figures = [line["validation"]["mIoU"] for line in log_of(split) if "validation" in line]
    assert figures == pytest.approx([line["validation"]["mIoU"] for line in log_of(whole) if "validation" in line])


@pytest.mark.slow
@pytest.mark.processes
def test_one_process_writes_and_talks(shared):
    root, printed = shared
    assert printed.count("epoch 1/2") == 2 and printed.count("finished: ") == 2
    files = {path.name for path in (root / "processes").iterdir() if not path.name.startswith("events")}
    assert files == {"recipe.yaml", "log.jsonl", "last.pt", "last.pt.1", "lock", "best.pth", "final.pth"}
    assert len([*(root / "processes").glob("events*")]) == 1


@pytest.mark.processes
@pytest.mark.slow
def test_statistics_of_batchnorm_are_the_mean_over_the_processes(street_hazards, ade20k, tmp_path):
    train(street_hazards, ade20k, tmp_path / "run", norm=nn.BatchNorm2d, statistics_batches=1, lr=1e-9)
    printed, code = torchrun(
        SCRIPT, street_hazards, ade20k,
        json.dumps([{"folder": str(tmp_path / "two"), "moving_norm": True, "statistics_batches": 1, "lr": 1e-9}]),
    )  # fmt: skip
    assert code == 0, printed
    one, two = (read_weights(tmp_path / name / "final.pth") for name in ("run", "two"))
    torch.testing.assert_close(two["trunk.1.running_mean"], one["trunk.1.running_mean"], rtol=1e-4, atol=1e-5)


@pytest.mark.processes
@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_any_number_goes_on(shared, street_hazards, ade20k, tmp_path):
    root, _ = shared
    folder = tmp_path / "killed"
    experiment = [{"folder": str(folder), "dies_at": 5}]  # in the second epoch
    printed, code = torchrun(SCRIPT, street_hazards, ade20k, json.dumps(experiment))
    assert code and ("another process of this run has died" in printed or "stopped by SIGTERM" in printed), printed
    assert (
        "error (process 0 of 2): " in printed
        and 'Traceback (most recent call last):\n  File "' + str(SCRIPT) not in printed
    )
    assert read_weights(folder / "last.pt")["progress"]["epoch"] == 1 and not (folder / "final.pth").exists()
    train(street_hazards, ade20k, folder, resume=True, accumulation=4)
    before, after = read_weights(folder / "final.pth"), read_weights(root / "whole" / "final.pth")
    for name, weight in after.items():
        torch.testing.assert_close(before[name], weight, rtol=1e-4, atol=1e-5)
    assert steps_of(folder)[-1] == pytest.approx(steps_of(root / "whole")[-1], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "accumulation", "message"),
    [
        (
            {"batch_size": 3, "drop_last": True},
            1,
            r"batch_size 3 cannot be dealt out to 2 processes with accumulation 1",
        ),
        ({"batch_size": 4}, 4, r"batch_size 4 cannot be dealt out to 2 processes with accumulation 4"),
        ({"batch_size": 6, "epochs": 1}, 3, None),
    ],
)
def test_a_batch_that_cannot_be_dealt_out_is_refused(
    changes, accumulation, message, monkeypatch, street_hazards, ade20k
):

    monkeypatch.setenv("WORLD_SIZE", "2")
    numbers = {key: tuple(value) if isinstance(value, list) else value for key, value in (NUMBERS | changes).items()}
    recipe = RealNegativesRecipe(**numbers)
    if message is None:
        assert smallest_part(10, recipe, accumulation) == 1
        return
    with pytest.raises(ValueError, match=message):
        smallest_part(10, recipe, accumulation)


@pytest.mark.parametrize(
    ("launched", "command"),
    [
        ({}, "python a.py --x 1"),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "1"},
         "torchrun --nproc_per_node 1 a.py --x 1"),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2"},
         "torchrun --nnodes 2 --nproc_per_node 4 a.py --x 1"),
    ],
)  # fmt: skip
def test_a_command_is_recorded_with_what_started_it(launched, command, monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert launch_command("some/where/a.py", ["--x", "1"]) == command
