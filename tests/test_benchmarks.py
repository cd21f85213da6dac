"""The benchmarks: the harness, that both sides of a comparison do the same work, and what becomes of one that fails."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch

import evaluate_ood
from benchmarks import evaluation, gpu, gpu_rows, run_all, sides
from data import LostAndFound, paste
from labels import IGNORE, OUTLIER
from losses import dense_hybrid_loss


def run(monkeypatch, module, *flags):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, flags)])
    module.main()


# The harness


def test_sides_take_turns_and_which_is_first_alternates():
    called = []
    functions = {name: lambda name=name: called.append(name) for name in "ab"}
    times = sides.in_turns(functions, rounds=2, passes=3, before=lambda name: called.append(name.upper()))
    assert "".join(called) == "AaaaBbbb" + "BbbbAaaa"
    assert {name: len(runs) for name, runs in times.items()} == {"a": 6, "b": 6}


def test_a_pass_takes_what_it_takes_and_what_goes_before_is_not_counted():
    times = sides.in_turns({"slow": lambda: time.sleep(0.03)}, rounds=2, before=lambda name: time.sleep(0.2))
    assert all(0.03 <= seconds < 0.15 for seconds in times["slow"])


def test_a_gpus_passes_are_timed_by_its_events_and_waited_for_once(monkeypatch):
    clock, calls = [0.0], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.moment = clock[0]

        def elapsed_time(self, end):
            return 1000 * (end.moment - self.moment)

    def side():
        calls.append("pass")
        clock[0] += len(calls)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("wait"))
    assert sides.seconds(side, torch.device("cuda"), passes=2) == [2, 3]
    assert calls == ["wait", "pass", "pass", "wait"]


def test_the_ratio_is_the_median_over_passes_of_the_others_seconds_through_ours():
    row = sides.compared("what", {"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 20.0]}, "a", "b", extra=7)
    assert (row["ours_seconds"], row["other_seconds"]) == (2, 2)
    assert (row["smallest_ratio"], row["ratio"], row["largest_ratio"]) == (1, 2, 5)  # not that of the medians, 1
    assert row["extra"] == 7


def test_a_table_of_columns_has_empty_cells_and_the_ratio_of_the_two_that_count():
    cells = {"plain": {"ms": 30.0, "text": "30 (5)"}, "tf32": {"ms": 20.0, "text": "20 (4)"}}
    rows = [{"what": "one", "cells": cells}, {"what": "other", "cells": {"plain": {"text": "failed"}}}]
    assert sides.column_table(rows, ["plain", "tf32", "bfloat16"], "plain", "tf32")[2:] == [
        "| one | 30 (5) | 20 (4) |  | 1.50 |",
        "| other | failed |  |  |  |",
    ]


# Both sides do the same


@pytest.mark.parametrize("count", [1, 3])
def test_plain_pasting_is_pasting(count):
    recipe = gpu.ROWS["segmenter_step"].recipe(gpu.Sizes(shrink=16, batch=2))
    batch = gpu_rows.made_batch(recipe, 20)
    assert batch[2].shape == (2, 3, 3, 16, 16)
    images, labels, patches, masks, corners = batch
    if count == 1:
        patches, masks, corners = patches[:, 0], masks[:, 0], corners[:, 0]
    given = images.float(), labels.long(), patches.float(), masks, corners
    before = [tensor.clone() for tensor in given]
    found, expected = gpu_rows.plain_paste(*given), paste(*given)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))
    assert (found[1] == OUTLIER).any() and (found[1] == IGNORE).any()


def test_the_plain_loss_is_the_loss():
    torch.manual_seed(0)
    labels = torch.randint(5, (2, 8, 8))
    labels[:, :3], labels[:, -1] = OUTLIER, IGNORE
    logits = torch.randn(2, 5, 8, 8), torch.randn(2, 2, 8, 8)
    found, expected = gpu_rows.plain_loss(*logits, labels, beta=0.03), dense_hybrid_loss(*logits, labels, beta=0.03)
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_a_training_step_moves_both_sides_to_the_same_loss():
    row, sizes, device = gpu.ROWS["ldn_step"], gpu.Sizes(shrink=16, batch=2), torch.device("cpu")
    plain, ours = (row.make(column, sizes, device) for column in ("plain", "float32"))
    steps = [[{name: float(term) for name, term in side().items()} for _ in range(2)] for side in (plain, ours)]
    for expected, found in zip(*steps, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    assert steps[0][0] != pytest.approx(steps[0][1], rel=1e-4)


def test_the_plain_side_is_pytorch_as_it_comes():
    defaults = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    try:
        gpu_rows.choose_precision("bfloat16", torch.device("cuda", 0))
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert gpu.use_precision("plain", torch.device("cuda", 0)) is None
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
        assert gpu.use_precision("compiled", torch.device("cuda", 0)).name == "bfloat16"
    finally:
        torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = defaults


# What fails


class Row:
    """Three sides, of which the second fails when it is made."""

    columns = gpu.COLUMNS

    def what(self, sizes):
        return "a row"

    def make(self, column, sizes, device):
        if column == "float32":
            raise torch.OutOfMemoryError("CUDA out of memory")
        output = (torch.tensor([2.0, 4.0]) + (column == "bfloat16"),)
        return lambda: output


@pytest.mark.slow
def test_a_side_that_fails_is_reported_and_the_others_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "ROWS", {"row": Row()})
    columns = ["plain", "float32", "bfloat16"]
    flags = ["--device", "cpu", "--rows", "row", "--columns", *columns, "--json", tmp_path / "table.json"]
    with pytest.raises(SystemExit, match="not all sides ran"):
        run(monkeypatch, gpu, *flags)
    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert list(row["cells"]) == columns
    assert row["cells"]["float32"]["failed"] == "OutOfMemoryError: CUDA out of memory"
    assert row["cells"]["bfloat16"]["difference"] == pytest.approx(1 / 4)
    assert row["cells"]["plain"]["ms"] > 0 and "difference" not in row["cells"]["plain"]
    assert "| a row |" in capsys.readouterr().out


WRITES = """
import json, sys, time
name, *flags = sys.argv[1:]
print("flags:", *flags)
row = {"what": "x", "cells": {name: {"text": name}}}
open(sys.argv[sys.argv.index("--json") + 1], "w").write(json.dumps({"benchmark": name, "rows": [row]}))
"""


@pytest.fixture
def made_benchmarks(tmp_path, monkeypatch):
    """Three in the places of the GPU's: one that ends, one that fails after it wrote, one that never ends"""
    ends = {"plain": "", "tf32": "sys.exit(3)", "bfloat16": "time.sleep(600)"}
    for name, end in ends.items():
        (tmp_path / f"{name}.py").write_text(WRITES + end)
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    monkeypatch.setattr(run_all, "ON_GPU", {name: (name, [name]) for name in ends})
    return tmp_path


@pytest.mark.slow
def test_what_fails_or_lasts_too_long_is_reported_and_what_it_measured_is_kept(made_benchmarks, monkeypatch, capsys):
    names = ["tf32", "plain", "bfloat16"]
    with pytest.raises(SystemExit, match="tf32, bfloat16 did not come to the end"):
        run(monkeypatch, run_all, "--only", *names, "--seconds", 4, "--folder", made_benchmarks / "out")
    printed = capsys.readouterr().out
    assert re.search(r"^tf32 \.\.\. \d+ s, failed, see .*\nplain \.\.\. \d+ s\nbfloat16 \.\.\. \d+ s, stopped", printed)
    table = (made_benchmarks / "out" / "table.md").read_text()
    assert "| x | plain |  | tf32 | bfloat16 |" in table  # one row of what three benchmarks measured
    assert (made_benchmarks / "out" / "plain.txt").read_text().startswith("flags: --device cpu --json")


def test_the_names_of_columns_are_the_same_in_both_files():
    assert run_all.COLUMNS == gpu.COLUMNS


# The evaluation from start to end


@pytest.mark.slow
def test_an_evaluation_is_watched_from_its_start_to_its_end(monkeypatch, tmp_path):
    frames_of = evaluate_ood.evaluated_frames

    def slow_frames(*args, **kwargs):
        time.sleep(0.5)
        for frame in frames_of(*args, **kwargs):
            yield frame
            time.sleep(0.2)

    def in_this_process(command, **kwargs):
        assert command[2] == evaluation.WATCHED
        evaluation.watched(command[3], command[4:])
        time.sleep(0.3)

    monkeypatch.setattr(evaluate_ood, "evaluated_frames", slow_frames)
    monkeypatch.setattr(evaluation, "subprocess", mock.Mock(wraps=subprocess, run=in_this_process))
    flags = "--device cpu --network ldn121 --frames 3 --height 64 --width 128 --workers 0"
    run(monkeypatch, evaluation, *flags.split(), "--json", tmp_path / "table.json")
    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    cell = row["cells"]["float32"]
    assert cell["before_seconds"] >= 0.5 and cell["during_seconds"] >= 3 * 0.2 and cell["after_seconds"] >= 0.3
    assert cell["busy_percent"] is None
    assert row["what"].startswith("evaluate_ood.py lf, 3 frames of 128x64")


@pytest.mark.slow
def test_the_gpus_use_is_that_of_the_frames_alone(monkeypatch, tmp_path):
    use = [7]

    def evaluate(command, **kwargs):
        time.sleep(0.25)
        use[0], first = 90, time.time()
        time.sleep(0.4)
        Path(command[3]).write_text(json.dumps([first, time.time()]))
        time.sleep(0.1)
        use[0] = 7
        time.sleep(0.25)
        results = Path(command[5])
        results.mkdir()
        (results / "results.json").write_text(json.dumps({"record": {"peak_memory_bytes": 3 * 2**20}}))

    monkeypatch.setattr(torch.cuda, "utilization", lambda device: use[0])
    monkeypatch.setattr(evaluation, "subprocess", mock.Mock(wraps=subprocess, run=evaluate))
    cell = evaluation.evaluated([], tmp_path, torch.device("cuda"))
    assert cell["busy_percent"] == 90
    assert cell["text"].endswith("s (3)") and " at 90 % + " in cell["text"]


def test_the_made_frames_are_lost_and_found_as_fishyscapes_lays_it_out(tmp_path):
    evaluation.write_frames(tmp_path, frames=6, height=64, width=128)
    samples = LostAndFound(tmp_path)
    assert len(samples) == 6
    images, labels, _ = zip(*samples, strict=True)
    assert torch.equal(images[0], images[4]) and not torch.equal(images[0], images[1])
    assert all(set(label.unique().tolist()) == {0, OUTLIER, IGNORE} for label in labels)
