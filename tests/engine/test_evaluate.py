import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from engine import pictures, run_script
from engine.evaluate import (
    anomaly_figures,
    closed_set_figures,
    evaluated_frames,
    one_ahead,
)
from engine.log import RunLog
from engine.precision import choose_precision
from engine.results import markdown_table, write_results
from engine.run import Run
from errors import WrongInput
from labels import IGNORE, OUTLIER
from metrics import BoundedAnomalyMetrics
from tests.support.tiny import CPU

PROJECT = Path(__file__).resolve().parents[2]

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


@pytest.mark.processes
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
    assert closed_set_figures(model, dataset, 3, Run(Path(), CPU, {}))["mIoU"] == pytest.approx(slow)


def test_anomaly_figures_are_those_of_all_pixels_together_but_for_the_stated_error():
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
    figures = anomaly_figures(TwoHeads(), dataset, score, Run(Path(), CPU, {}))
    stated = BoundedAnomalyMetrics().update(scores, labels).compute()
    for name, exact in {"AP": ap, "FPR95": false[true >= 0.95][0]}.items():
        assert figures[name] == stated[name] and abs(figures[name] - exact) <= stated[f"{name}_error"] < 0.001


# One frame ahead


def threads_of_the_network():
    return [thread for thread in threading.enumerate() if thread.name.startswith("network")]


def test_what_comes_next_is_worked_on_while_the_caller_is_busy_and_no_more_than_that():
    begun, inputs = [], iter(range(5))

    def double(number):
        begun.append(number)
        return 2 * number

    results = one_ahead(double, inputs)
    for number in range(4):
        assert next(results) == 2 * number
        waited = time.monotonic()
        while len(begun) < number + 2 and time.monotonic() < waited + 10:
            time.sleep(0.001)  # the caller's work
        time.sleep(0.01)
        assert begun == list(range(number + 2))
    assert list(results) == [8] and list(one_ahead(double, [])) == [] and not threads_of_the_network()


@pytest.mark.parametrize("broken", ["input", "function"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_error_comes_as_it_is_in_its_turn(at, broken):
    error = ValueError("the very one")

    def inputs():
        for number in range(3):
            if broken == "input" and number == at:
                raise error
            yield number

    def function(number):
        if broken == "function" and number == at:
            raise error
        return number

    results = one_ahead(function, inputs())
    assert [next(results) for _ in range(at)] == list(range(at))
    with pytest.raises(ValueError) as raised:
        next(results)
    assert raised.value is error and not threads_of_the_network()


def test_whoever_stops_early_leaves_no_thread_behind():
    results = one_ahead(lambda number: number, range(9))
    assert next(results) == 0 and len(threads_of_the_network()) == 1
    del results
    assert not threads_of_the_network()
    with pytest.raises(ZeroDivisionError):
        for _ in one_ahead(lambda number: number, range(9)):
            raise ZeroDivisionError
    assert not threads_of_the_network()


def test_a_frame_that_is_broken_or_too_much_for_the_memory_is_one_line():
    class Full(nn.Module):
        def forward(self, images):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nAnd more")

    class Broken(Pairs):
        def __getitem__(self, index):
            if index == 2:
                raise WrongInput("frame_2.png is broken")
            return super().__getitem__(index)

    endings = []
    for model, dataset in ((Full(), Pairs()), (nn.Conv2d(3, 4, 1), Broken())):
        with pytest.raises(SystemExit) as ending:
            run_script(lambda model=model, dataset=dataset: list(evaluated_frames(model, dataset, CPU)))
        endings.append(ending.value.code)
    assert endings[0].startswith("error: cpu has not enough memory for frame_0.png, 8 x 6 pixels (CUDA out of memory.")
    assert (
        "3 GiB.): evaluate with --precision bfloat16" in endings[0]
        and "--tile" in endings[0]
        and "\n" not in endings[0]
    )
    assert endings[1] == "error: frame_2.png is broken"


ENDINGS = """
import sys, time
sys.path[:0] = {folders!r}
import torch
from tests.support.tiny import CPU, Specks
from engine import evaluated_frames, run_script

class Slow(torch.nn.Module):
    def forward(self, images):
        time.sleep(0.2)
        return images

def main():
    frames = evaluated_frames(Slow(), Specks(), CPU, workers=1)
    print(next(frames).name, flush=True)
    if {how!r} == "exit":
        globals()["kept"] = frames
        sys.exit(3)
    time.sleep(60)

run_script(main)
"""


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("exit", 3), ("ctrl-c", 130)])
def test_a_script_that_ends_in_the_middle_of_an_evaluation_ends_at_once(how, code, tmp_path):
    folders = [str(PROJECT), str(PROJECT / "tests")]
    (tmp_path / "script.py").write_text(ENDINGS.format(folders=folders, how=how))
    words = [sys.executable, "-W", "error::ResourceWarning", tmp_path / "script.py"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)  # fmt: skip
    assert process.stdout.readline() == "speck_0.png\n"
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader process too
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == code and "Traceback" not in printed and "Error" not in printed, printed


def test_bfloat16_rounds_the_networks_products_and_float32_does_not():
    torch.manual_seed(0)
    model, dataset = nn.Conv2d(3, 4, 3, padding=1), Pairs()
    rounded, exact = (
        [frame.class_logits for frame in evaluated_frames(model, dataset, CPU, precision=precision)]
        for precision in (choose_precision("bfloat16", CPU), choose_precision(None, CPU))
    )
    for (image, *_), few, many in zip(dataset.frames, rounded, exact, strict=True):
        image = image[None].float().contiguous(memory_format=torch.channels_last) / 255
        with torch.inference_mode():
            assert torch.equal(many, model(image))
        assert few.dtype == many.dtype == torch.float32 and not torch.equal(few, many)
        assert torch.equal(few, few.bfloat16().float())
        torch.testing.assert_close(few, many, rtol=0.02, atol=0.02)


@pytest.mark.processes
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_frames_on_a_gpu_stay_whole_while_the_caller_lags_behind():
    class Large(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            image = torch.full((3, 1024, 1024), index, dtype=torch.uint8)
            return image, image[0], f"frame {index}"

    device, totals, weight = torch.device("cuda"), [], torch.rand(2048, 2048, device="cuda")
    for frame in evaluated_frames(nn.Identity(), Large(), device, workers=2):
        for _ in range(50):
            weight = (weight @ weight).clamp(0, 1)  # the GPU has its hands full when the caller is done with the frame
        totals.append((frame.class_logits.double().mean() + 0 * weight.sum(), frame.labels.double().mean()))
    for number, (pixels, labels) in enumerate(totals):
        assert pixels.item() == pytest.approx(number / 255, rel=1e-6) and labels.item() == number


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
    assert shown[0, 2].tolist() == [188, 55, 84]  # the middle of inferno
    lightness = pictures.heat_picture(np.linspace(0, 1, 50)[None], 0, 1)[0].astype(int).sum(1)
    assert (np.diff(lightness) >= 0).all()


def test_scores_that_are_all_equal_have_a_picture_too():
    assert pictures.heat_picture(np.full((2, 2), 7.0), 7.0, 7.0).shape == (2, 2, 3)


def test_a_grid_shows_every_row_and_column_in_its_place(tmp_path):
    cells = [[np.full((6, 12, 3), 20 + 60 * row + 15 * column, np.uint8) for column in range(3)] for row in range(2)]
    path = tmp_path / "new" / "grid.png"
    pictures.save_grid(path, ("a", "b", "c"), cells, COLOURS, "a note")
    with Image.open(path) as image:
        sheet = np.array(image)
    width, height = pictures.CELL_WIDTH, pictures.CELL_WIDTH // 2  # cells are twice as wide as high
    assert sheet.shape[1] == 3 * (width + pictures.GAP) + pictures.GAP
    for row in range(2):
        y = pictures.HEADER + row * (height + pictures.GAP) + height // 2
        for column in range(3):
            x = pictures.GAP + column * (width + pictures.GAP) + width // 2
            assert sheet[y, x].tolist() == [20 + 60 * row + 15 * column] * 3
    legend = sheet[pictures.HEADER + 2 * (height + pictures.GAP) :].reshape(-1, 3)
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
    log = RunLog(Run(tmp_path, CPU, seed=0, workers=0, resume=False, compile=False, record={}), steps_done=0)
    log.file.close()
    log.file = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    with pytest.raises(OSError, match=r"could not write .*No space left.*--resume"):
        log.step(0, 1, {"lr": 1e-3}, {"class": 1.0})
    log.close()
