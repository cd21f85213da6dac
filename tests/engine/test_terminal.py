"""Terminals, pipes, notebooks and systems that are not the usual ones: no work is lost to them."""

import ast
import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate_ood
import evaluate_osr_sh
from data import COCO20
from data.coco import KNOWN_IDS
from engine import curves, flags, run_script
from engine.device import peak_memory
from engine.pictures import save_grid
from tests.support.parsers import SCRIPTS, script_module
from tools.predict.__main__ import main as predict

PROJECT = Path(__file__).resolve().parents[2]
ROOMS = ("data", "engine", "losses", "methods", "metrics", "models", "tools", "demo")
FILES = [*PROJECT.glob("*.py"), *(path for room in ROOMS for path in PROJECT.glob(f"{room}/**/*.py"))]
ODD = os.fsdecode(b"stra\xdfe")  # a name in Latin-1, where names are UTF-8
NAMES = (ODD, "Straße 字", "line\nbreak")


@contextlib.contextmanager
def latin_1():
    """A terminal that shows Latin-1 alone; what it was shown"""
    shown = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(shown, encoding="latin-1", write_through=True)):
        yield shown


# Names


@pytest.fixture
def odd_world(street_hazards, tmp_path):
    """A copy of the street world in which each town's first frame has an odd name"""
    root = tmp_path / "world"
    shutil.copytree(street_hazards, root)
    for town in ("t5", "t6"):
        first = sorted((root / "test/images/test" / town).iterdir())[0].name
        for part in ("images", "annotations"):
            folder = root / "test" / part / "test" / town
            (folder / first).rename(folder / f"{NAMES[town == 't6']}.png")
    return root


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("script", [evaluate_ood, evaluate_osr_sh])
def test_frames_of_odd_names_are_evaluated_to_the_last_page(script, odd_world, random_weights, in_tmp):
    words = ["--dataroot", odd_world, "--folder", "out", "--pictures", 9, "--device", "cpu", "--workers", 1]
    own = ["--dataset", "street-hazards", "--pooled", "--params"] if script is evaluate_ood else ["--model"]
    with latin_1() as shown:
        run_script(lambda: script.main([*map(str, [*words, *own, random_weights["hybrid"]])]))
        assert b"page: out/index.html" in shown.getvalue()
    page = Path("out/index.html").read_text(encoding="utf-8")
    assert r"stra\udcdfe.png" in page and "Straße 字.png" in page


@pytest.mark.slow
@pytest.mark.processes
def test_pictures_of_odd_names_are_predicted_and_told(in_tmp, random_weights):
    Path("in").mkdir()
    for name in NAMES:
        Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(f"in/{name}.png")
        Path(f"in/{name}.jpg").write_bytes(b"no picture")
    words = ["--params", random_weights["hybrid"], "--network", "ldn121", "--input", "in", "--folder", "out"]
    with latin_1() as shown:
        with pytest.raises(SystemExit, match="3 inputs failed") as ended:
            run_script(lambda: predict([*map(str, words), "--device", "cpu", "--workers", "1"]))
        assert b"3 of 6 inputs done now" in shown.getvalue()
    told = str(ended.value.code)
    assert r"stra\udcdfe.jpg" in told and r"line\nbreak.jpg" in told
    assert all(Path(f"out/closed/{name}.png.png").is_file() for name in NAMES)


def test_a_terminal_shows_what_it_can_and_the_rest_escaped():
    with latin_1() as shown:
        run_script(lambda: print(*NAMES))
        assert shown.getvalue() == b"stra\\udcdfe Stra\xdfe \\u5b57 line\nbreak\n"


def test_a_caption_of_any_name_is_drawn(tmp_path):
    cell = np.zeros((8, 8, 3), np.uint8)
    save_grid(tmp_path / "grid.png", ["image"] * 4, [[cell] * 4] * 3, {"road": (1, 2, 3)}, captions=NAMES)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size[1] > 3 * 320


def test_a_list_of_photographs_keeps_odd_names(tmp_path, capsys):
    for part, suffix in (("images", "jpg"), ("labels", "png")):
        folder = tmp_path / part / "val2017"
        folder.mkdir(parents=True)
        for name in NAMES[:2]:
            picture = Image.fromarray(np.zeros((4, 4, 3) if part == "images" else (4, 4), np.uint8))
            picture.save(folder / f"{name}.{suffix}")
    names = zip(KNOWN_IDS, COCO20.class_colours, strict=True)
    (tmp_path / "labels.txt").write_text("".join(f"{number}: {name}\n" for number, name in names))
    names = [COCO20(tmp_path, "validation")[index][2] for index in (0, 1)]
    again = COCO20(tmp_path, "validation")
    expected = sorted(f"images/val2017/{name}.jpg" for name in NAMES[:2])
    assert [again[index][2] for index in (0, 1)] == names == expected and "damaged" not in capsys.readouterr().out


def test_text_files_are_read_and_written_as_utf_8_whatever_the_locale():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            given = {keyword.arg for keyword in node.keywords}
            binary = any(isinstance(word, ast.Constant) and word.value in ("rb", "wb", "xb") for word in node.args)
            builtin = isinstance(node.func, ast.Name)
            if name in ("read_text", "write_text") or (name == "open" and builtin and not binary):
                assert "encoding" in given, f"{path.name}, line {node.lineno}"


# Pipes


class Closed:
    """Standard output into a pipe whose reader has left"""

    def __enter__(self):
        reader, writer = os.pipe()
        os.close(reader)
        self.before, sys.stdout = sys.stdout, os.fdopen(writer, "w")

    def __exit__(self, *error):
        sys.stdout.close()
        sys.stdout = self.before


def printing():
    print("a line\n" * 10000)


def failing():
    printing()
    raise SystemExit(1)


def wrapping():
    try:
        printing()
    except OSError as error:
        raise OSError("could not show it") from error


def interrupted():
    print("a line")
    raise KeyboardInterrupt


@pytest.mark.parametrize("main", [printing, failing, wrapping, interrupted, lambda: print("one line")])
def test_a_reader_that_leaves_ends_a_script_quietly(main):
    with Closed(), pytest.raises(SystemExit) as ended:
        run_script(main)
    assert ended.value.code == 141


def test_a_pipe_that_breaks_elsewhere_is_no_reader_that_leaves(capsys):
    def main():
        raise BrokenPipeError("of a process")

    with pytest.raises(BrokenPipeError):
        run_script(main)


def test_an_error_is_told_though_nobody_reads_the_output():
    def main():
        raise FileNotFoundError(2, "No such file or directory", "data")

    with Closed(), pytest.raises(SystemExit, match=r"^error: data: No such file"):
        run_script(main)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_ends_by_way_of_run_script(script):
    last = ast.parse(Path(script_module(script).__file__).read_text()).body[-1]
    assert ast.unparse(last) == "if __name__ == '__main__':\n    run_script(main)"


@pytest.mark.processes
@pytest.mark.slow
def test_head_ends_a_real_script_without_a_word(tmp_path):
    command = [sys.executable, "-m", "tools.check_data", "--dataset", "images", "--dataroot", tmp_path / "gone"]
    script = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=PROJECT)
    script.stdout.close()  # before it prints
    assert script.wait() == 141 and script.stderr.read() == b""


# Notebooks


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "pdf"])
def test_curves_are_drawn_whatever_backend_the_environment_names(backend):
    code = """
import os
from engine.curves import rendered_panel, panels_png
assert panels_png([rendered_panel(lambda axes: axes.plot([1, 2]), 1)]).startswith(b"\\x89PNG")
import matplotlib
print(os.environ["MPLBACKEND"], matplotlib.get_backend(auto_select=False))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True,
                          env=os.environ | {"MPLBACKEND": backend})  # fmt: skip
    assert done.returncode == 0, done.stderr
    named, chosen = done.stdout.split()
    assert named == backend and (backend != "pdf" or chosen == "pdf")  # as without us


def test_curves_leave_a_matplotlib_alone_that_was_there_before():
    assert "matplotlib" in sys.modules and curves.Figure.__module__ == "matplotlib.figure"


# Systems


@pytest.mark.slow
def test_nothing_is_imported_at_the_start_that_windows_lacks():
    lacking = {"resource", "fcntl", "pwd", "grp", "termios", "pty", "syslog"}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & lacking, path.name


def test_memory_and_files_go_unmeasured_where_there_is_no_resource_module(monkeypatch):
    assert peak_memory(torch.device("cpu")) > 0 and flags.open_files() != 0
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(torch.device("cpu")) == 0 and flags.open_files() is None
