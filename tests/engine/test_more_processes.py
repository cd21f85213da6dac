"""What the processes of a run tell each other, piece by piece; and what is refused where there are several."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from engine import Recipe
from engine.device import start_process
from engine.flags import script_parser
from engine.processes import error_line, join_processes, lost_neighbour_explained, rank, world_size
from engine.script import run_script
from engine.step import smallest_part
from tests.support import shared_pieces
from tests.support.several import torchrun
from tests.support.tiny import read_weights, steps_of


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each of two processes tells, and their folder"""
    folder = tmp_path_factory.mktemp("pieces")
    printed, code = torchrun(Path(shared_pieces.__file__), folder)
    assert code == 0, printed
    return [json.loads((folder / f"told_{process}.json").read_text()) for process in (0, 1)], folder


@pytest.mark.processes
@pytest.mark.slow
def test_process_0_is_first(told):
    (first, second), _ = told
    assert not first["found"] and second["found"]


@pytest.mark.slow
@pytest.mark.processes
def test_a_norm_is_set_from_the_images_of_all_processes(told):
    features = shared_pieces.features().double().numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    for process in told[0]:
        np.testing.assert_allclose(process["shift"], features.mean(1), rtol=1e-5)
        np.testing.assert_allclose(process["log_scale"], np.log(features.std(1, ddof=1)), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.processes
def test_two_networks_are_trained_over_processes_as_by_one(told, tmp_path):
    _, folder = told
    shared_pieces.two_networks_are_trained(tmp_path, torch.device("cpu"))
    lines = steps_of(tmp_path / "run_0")
    assert len(lines) == 2 * 2 and lines[0]["square"] > 0 and lines[0]["distance"] > 0
    for ours, theirs in zip(steps_of(folder / "run_0"), lines, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for name in ("final.pth", "final_helper.pth"):
        ours, theirs = (read_weights(root / "run_0" / name) for root in (folder, tmp_path))
        torch.testing.assert_close(ours["weights.weight"], theirs["weights.weight"])
        assert (ours["weights.weight"] != 0.5).all()


@pytest.mark.slow
@pytest.mark.processes
def test_every_process_draws_its_own_numbers(told):
    (first, second), _ = told
    numbers = [*first["drawn"], *second["drawn"]]
    assert len(numbers) == len({*numbers}) == 2 * 4


@pytest.mark.slow
@pytest.mark.processes
def test_every_process_has_the_statistics_and_the_figures_of_process_0(told):
    (first, second), _ = told
    assert first["buffers"] == second["buffers"] and first["buffers"]["model"] != [0, 0, 0]
    assert first["figures"] == second["figures"] == {"AP": 0.5}


@pytest.mark.slow
@pytest.mark.processes
def test_process_0_alone_writes_and_draws(told):
    (first, second), folder = told
    assert first["pictures"] == ["epoch_001.png", "epoch_002.png"] and not second["pictures"]
    assert {path.name for path in folder.iterdir()} == {"written", "told_0.json", "told_1.json", "run_0"}


# Of several, as a process alone can see it

TWO = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}


@pytest.fixture
def two(monkeypatch):
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("two")
def test_fewer_images_in_the_last_batch_than_processes_are_refused():
    recipe = Recipe(**shared_pieces.NUMBERS | {"drop_last": False})
    with pytest.raises(ValueError, match=r"9 images leave 1 for the last batch, fewer than the 2 processes"):
        smallest_part(9, recipe, 1)
    assert [smallest_part(images, recipe, 1) for images in (8, 10)] == [2, 1]


@pytest.mark.usefixtures("two")
def test_a_script_for_one_process_refuses_several():
    with pytest.raises(ValueError, match="was started as 2 processes and runs as one: start it with python"):
        start_process("cpu")


@pytest.mark.usefixtures("two")
def test_a_gpu_for_all_processes_and_a_gpu_that_is_not_there_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"--device cuda:1 names one GPU for 2 processes; --device cuda gives each"):
        join_processes(torch.device("cuda:1"))
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(ValueError, match=r"process 99 of this machine has no GPU: there are \d+; start as many"):
        join_processes(torch.device("cuda"))


@pytest.mark.usefixtures("two")
def test_each_process_takes_the_gpu_of_its_number_on_the_machine(monkeypatch):
    taken = []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(dist, "init_process_group", lambda *choices, **more: None)
    monkeypatch.setattr(signal, "signal", lambda *choices: None)
    assert join_processes(torch.device("cuda")) == torch.device("cuda:3") and taken == [torch.device("cuda:3")]


def test_a_lost_neighbour_is_told_and_other_errors_stay(monkeypatch):
    lost, mistake = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer", "shapes cannot be multiplied"
    for processes, text, told in (
        ("2", lost, "another process of this run has died"),
        ("2", mistake, mistake),
        ("1", lost, "Connection closed by peer"),
    ):
        monkeypatch.setenv("WORLD_SIZE", processes)
        with pytest.raises((ChildProcessError, RuntimeError), match=told), lost_neighbour_explained():
            raise RuntimeError(text)


def test_an_error_says_whose_it_is_where_there_are_several(monkeypatch):
    assert error_line("no data") == "error: no data"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert error_line("no data") == "error (process 2 of 4): no data"


# Leftovers of a cluster


LEFT = [
    {"WORLD_SIZE": "2"},
    {name: TWO[name] for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")},
    TWO | {"MASTER_PORT": ""},
    TWO | {"RANK": "2"},
]


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("several", [True, False])
def test_processes_that_no_launcher_started_are_refused_in_one_line(left, several, monkeypatch):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        SystemExit, match=r"^error.*: WORLD_SIZE=2 is set in the environment .*: unset WORLD_SIZE to run"
    ):
        run_script(lambda: start_process("cpu", several_processes=several))


@pytest.mark.slow
@pytest.mark.parametrize("empty", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_an_empty_variable_of_a_launcher_is_none(empty, monkeypatch):
    monkeypatch.setenv(empty, "")
    assert start_process("cpu", several_processes=True) == torch.device("cpu")
    assert script_parser("").parse_args([]).workers >= 1 and (rank(), world_size()) == (0, 1)


@pytest.mark.parametrize("word", ["two", "-1", "0", "1.0"])
@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_WORLD_SIZE"])
def test_a_variable_of_a_launcher_that_is_no_number_is_one_line(name, word, monkeypatch):
    def main():
        script_parser("").parse_args([])
        start_process("cpu", several_processes=True)

    monkeypatch.setenv(name, word)
    with pytest.raises(SystemExit, match=f"^error: {name}={re.escape(word)} in the environment is no number"):
        run_script(main)


def test_processes_that_do_not_find_each_other_are_one_line(monkeypatch):
    def refused(*choices, **more):
        raise dist.DistNetworkError("The client socket has failed to connect to node7:29500\n more lines")

    for name, value in (TWO | {"MASTER_ADDR": "node7", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", refused)
    with pytest.raises(SystemExit, match=r"error .*: the 2 processes do not find each other at node7:29500 \(The"):
        run_script(lambda: start_process("cpu", several_processes=True))
