"""Every flag that names a place, with every kind of place: one line, before any work where it is written to."""

import errno
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import files, report, run_script
from errors import message_of
from methods.flow_negatives import FLOW_SOURCE
from models import load_imagenet_densenet121, load_weights, open_network
from models.weights import read_state_dict
from tests.support.parsers import EVALUATIONS, TRAININGS, Network, parser_of, script_module, spare_networks, words_for
from tests.support.stand_ins import put_in_place
from tools.check_data.__main__ import main as check_data
from tools.predict.calibration import read_calibration

LONG = "n" * 300


@pytest.fixture
def ended(in_tmp, capsys, monkeypatch):
    """The one line of a script that ends with an error"""

    def line(script, *words):
        with pytest.raises(SystemExit) as stop:
            run_script(lambda: script_module(script).main([*map(str, words)]))
        said = capsys.readouterr().err if stop.value.code == 1 else stop.value.code
        assert isinstance(said, str) and said.startswith("error: ") and "\n" not in said.rstrip("\n"), said
        return said

    return line


@pytest.fixture
def places(in_tmp, rights_count):
    """{kind: place} of places that cannot be used, however they are used"""
    Path("file").write_text("no folder")
    Path("dangling").symlink_to("gone")
    Path("loop").symlink_to("loop")
    Path("locked").mkdir()
    Path("locked").chmod(0)
    yield {"dangling": "dangling", "loop": "loop/x", "long": LONG, "below a file": "file/x", "locked": "locked/x"}
    Path("locked").chmod(0o755)


# Where results go

OUTPUTS = [(script, "--folder") for script in (*EVALUATIONS, "predict", "reproduce_tables", "demo", "check_data")]
OUTPUTS += [("export_scores", "--folder"), *((script, "--cache") for script in TRAININGS)]
REASONS = {
    "file": "file: File exists",
    "dangling": "(a link that leads nowhere): File exists",
    "loop": "loop (a link that leads nowhere): File exists",
    "long": "File name too long; choose a shorter name",
    "below a file": "file: File exists",
    "locked": "Permission denied; change its rights",
}


def training_words(script):
    words = words_for(parser_of(script))
    words[words.index("--exp_name") + 1] = "run"
    return words


@pytest.mark.parametrize(("script", "flag"), OUTPUTS)
def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(script, flag, places, ended):
    before = sorted(os.listdir())
    for kind, place in (places | {"file": "file"}).items():
        words = training_words(script) if script in TRAININGS else words_for(parser_of(script))
        more = ["--params", "x"] if script == "export_scores" else []
        line = ended(script, *words, *more, flag, place)
        assert line.startswith(f"error: {flag}: {place} cannot be written, ") and REASONS[kind] in line, line
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("script", TRAININGS)
def test_a_run_that_cannot_be_written_is_told_before_anything_is_read(script, in_tmp, ended, rights_count):
    words = training_words(script)
    assert "File name too long" in ended(script, *words, "--exp_name", LONG)
    Path("logs").write_text("no folder")
    assert ended(script, *words).startswith("error: --exp_name: logs/run cannot be written, logs: File exists")
    Path("logs").unlink()
    Path("logs").mkdir(mode=0o555)
    assert ended(script, *words).startswith(
        "error: --exp_name: logs/run cannot be written, logs/run: Permission denied"
    )
    assert not os.listdir("logs")


def test_a_file_system_that_is_read_only_is_told(ended, monkeypatch):
    def read_only(**where):
        raise OSError(errno.EROFS, "Read-only file system", str(where["dir"]))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", read_only)
    line = ended("evaluate_ood", *words_for(parser_of("evaluate_ood")), "--folder", "a/b")
    assert line.endswith("a/b cannot be written, a/b: Read-only file system; choose a place that can be written")
    assert not os.listdir()


def test_a_place_that_can_be_written_is_left_as_it_was(in_tmp):
    files.require_writable("a/b/c", "--folder")
    assert not os.listdir()
    Path("a").mkdir()
    Path("a/file").write_text("of an earlier run")
    files.require_writable("a/b", "--folder")
    files.require_writable(Path("a"), "--folder")
    assert os.listdir("a") == ["file"]


def test_an_export_says_before_the_minute_it_takes_that_its_file_cannot_be_written(ended, places):
    words = ["--network", "ldn121", "--params", "x", "--output"]
    assert "no folder missing to write model.onnx to" in ended("export_onnx", *words, "missing/model.onnx")
    assert "--output . is a folder; give the file to write" in ended("export_onnx", *words, ".")
    Path("closed").mkdir(mode=0o555)
    assert ended("export_onnx", *words, "closed/model.onnx").startswith("error: --output: closed cannot be written, ")
    for place in places.values():
        ended("export_onnx", *words, place + "/model.onnx")


# A disk that fills after the figures


@pytest.mark.slow
@pytest.mark.parametrize(("script", "name"), [("evaluate_ood", "pictures.png"), ("evaluate_osr_sh", "index.html")])
def test_a_disk_that_fills_at_a_picture_leaves_the_figures(script, name, finished, monkeypatch):
    replace = os.replace

    def full(part, path):
        if Path(path).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(part, path)

    monkeypatch.setattr(os, "replace", full)
    line = finished(script)
    assert line.startswith(
        f"error: could not write out/{name} (No space left on device); nothing was written. Make room"
    )
    assert line.endswith("The figures are in out/results.json and table.md; a picture or the page is missing")
    assert Path("out/results.json").stat().st_size > 1000 and Path("out/table.md").stat().st_size > 100
    assert not list(Path("out").glob("*.part"))


@pytest.fixture
def finished(ended, street_hazards, random_weights):
    def line(script):
        flags = ["--dataroot", street_hazards, "--folder", "out", "--device", "cpu", "--workers", 0, "--pictures", 2]
        ood = ["--dataset", "street-hazards", "--pooled", "--params"] if script == "evaluate_ood" else ["--model"]
        return ended(script, *flags, *ood, random_weights["hybrid"])

    return line


@pytest.mark.slow
def test_figures_that_cannot_be_written_are_shown(finished, monkeypatch, capsys):
    def full(part, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert "could not write out/results.json" in finished("evaluate_osr_sh")
    assert "open-mIoU %" in capsys.readouterr().out


@pytest.mark.parametrize("script", EVALUATIONS)
def test_no_picture_or_page_is_made_outside_of_what_keeps_the_figures(script):
    source = Path(script_module(script).__file__).read_text()
    assert not re.search(r"\b(save_pictures|write_page|write_curves)\(", source)
    (body,) = re.findall(r"^def write_evaluation\(.*?^@", Path(report.__file__).read_text(), re.DOTALL | re.MULTILINE)
    for call in ("save_pictures(", "write_page("):
        assert "with figures_are_written(folder):" in body.split(call)[0]


# What is read

ROOTS = [(script, "--dataroot") for script in ("check_data", *EVALUATIONS, "export_scores")]
ROOTS += [(script, "--dataroot" if script != "train_denseflow" else "--images") for script in TRAININGS]
ROOTS += [("predict", "--input"), ("reproduce_tables", "--config")]


def words_of(script):
    words = training_words(script) if script in TRAININGS else words_for(parser_of(script))
    more = {
        "predict": ["--folder", "out"],
        "export_scores": ["--check", "out"],
        "reproduce_tables": ["--folder", "out"],
    }
    more |= {script: ["--folder", "out"] for script in EVALUATIONS}
    return [*words, *more.get(script, [])]


@pytest.fixture
def without_networks(monkeypatch):
    spare_networks(monkeypatch)


@pytest.mark.parametrize(("script", "flag"), ROOTS)
def test_data_that_cannot_be_read_are_one_line_that_names_them(script, flag, places, ended, without_networks, capsys):
    for kind, place in (places | {"a locked folder": "locked", "gone": "gone"}).items():
        words = [*words_of(script), flag, place]
        if script == "check_data":  # lists all that is wrong, and ends with its status
            with pytest.raises(SystemExit) as stop:
                run_script(lambda words=words: check_data(words))
            assert place in capsys.readouterr().out + str(stop.value.code), kind
        else:
            assert place in ended(script, *words), kind
    assert not Path("out").exists() and not Path("logs").exists()


NEGATIVES = [script for script in TRAININGS if "--neg_images" in parser_of(script)._option_string_actions]


@pytest.mark.slow
@pytest.mark.parametrize("script", NEGATIVES)
def test_negatives_that_cannot_be_read_are_one_line_that_names_them(script, places, ended, without_networks, ade20k):
    class Known(list):
        num_classes, mean_colour = 12, (0, 0, 0)

        def __init__(self, *arguments, **choices):
            super().__init__("abcd")

    with pytest.MonkeyPatch.context() as patch:
        put_in_place(patch, dict.fromkeys(["data.StreetHazards", "data.Cityscapes", "data.COCO20"], Known))
        words = words_of(script)
        at = words.index("--neg_dataroot")
        words = [*words[:at], *words[at + 2 :]]
        for kind, place in (places | {"gone": "gone"}).items():
            for flags in (["--neg_dataroot", place], ["--neg_images", place],
                          ["--neg_images", ade20k / "images", "--neg_masks", place]):  # fmt: skip
                assert place in ended(script, *words, *flags), (kind, flags)


# Weights and other files

READERS = {
    "weights": lambda place: read_state_dict(place),
    "a network": lambda place: open_network(place, "ldn121"),
    "ImageNet's DenseNet": lambda place: load_imagenet_densenet121(SimpleNamespace(backbone=Network()), place),
    "a calibration": lambda place: read_calibration(Path(place), "hybrid", "x"),
    "a flow": lambda place: load_weights(Network(), place, source=FLOW_SOURCE),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_cannot_be_read_is_one_line_that_names_it(reader, places, rights_count):
    os.mkfifo("fifo")
    Path("secret").write_bytes(b"weights")
    Path("secret").chmod(0)
    kinds = {"gone": "gone", "folder": "."} | ({"fifo": "fifo"} if reader != "a calibration" else {})
    for kind, place in (places | kinds | {"without rights": "secret"}).items():
        with pytest.raises(Exception) as raised:
            READERS[reader](place)
        told = message_of(raised.value)
        assert told is not None and place in told and "weights_only" not in told, (kind, raised.value)
