"""What is shown as one line and what as a traceback, wherever the code lies and however an error travels."""

import ast
import builtins
import errno
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import errors
from engine import run_script
from errors import FileInTheWay, LostProcess, MissingFile, NotFinite, OutOfMemory, UnusableFile, WrongInput, message_of
from tests.support.tiny import Specks, loaded

PROJECT = Path(__file__).resolve().parent.parent
KINDS = {
    WrongInput: ValueError,
    MissingFile: FileNotFoundError,
    FileInTheWay: FileExistsError,
    UnusableFile: OSError,
    NotFinite: FloatingPointError,
    OutOfMemory: MemoryError,
    LostProcess: ChildProcessError,
}


def ended(error):
    """What a script says whose main raises it"""

    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    return stop.value.code


@pytest.mark.parametrize(("kind", "builtin"), KINDS.items())
def test_an_error_of_the_users_is_one_line_and_the_builtin_error_of_its_kind(kind, builtin):
    assert ended(kind("--tile 0 is too small; give 1")) == "error: --tile 0 is too small; give 1"
    with pytest.raises(builtin, match=r"^no such file$"):
        raise kind("no such file")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_through_a_pipe_as_it_is(kind):
    copy = pickle.loads(pickle.dumps(kind("image.png is gone")))
    assert type(copy) is kind and message_of(copy) == "image.png is gone"
    numbered = pickle.loads(pickle.dumps(UnusableFile(errno.ENOSPC, "could not write last.pt")))
    assert numbered.errno == errno.ENOSPC and message_of(numbered) == "could not write last.pt"


@pytest.mark.parametrize("mistake", [ValueError("int()"), KeyError("key"), MemoryError(), OSError("handle is closed"),
                                     FloatingPointError("x"), RuntimeError("size mismatch")])  # fmt: skip
def test_a_mistake_in_the_code_or_a_library_keeps_its_traceback(mistake):
    def main():
        raise mistake

    with pytest.raises(type(mistake)):
        run_script(main)


def test_what_the_system_says_of_a_file_is_one_line_with_the_file_and_the_way_out(in_tmp):
    Path("file").write_text("")
    Path("loop").symlink_to("loop")
    for action, message in [
        (lambda: Path("gone").read_text(), "gone: No such file or directory; give one that is there"),
        (lambda: Path("file/below").read_text(), "file/below: Not a directory; it lies below a file"),
        (lambda: Path(".").read_text(), ".: Is a directory; it is a folder; give a file"),
        (lambda: Path("loop").read_text(), "loop: Too many levels of symbolic links; its links lead in a circle"),
        (lambda: Path("n" * 300).read_text(), f"{'n' * 300}: File name too long; choose a shorter name"),
        (lambda: os.mkdir("file"), "file: File exists; choose another"),
    ]:
        with pytest.raises(OSError) as raised:
            action()
        assert ended(raised.value).startswith(f"error: {message}")
    assert ended(OSError(errno.ENOSPC, "No space left on device")) == (
        "error: No space left on device; make room, or choose another place"
    )
    assert message_of(OSError(errno.EBADF, "Bad file descriptor")) is None


def test_names_that_cannot_be_shown_are_escaped_and_line_breaks_are_none():
    name = os.fsdecode(b"stra\xdfe")  # in Latin-1, on a system of UTF-8
    told = ended(WrongInput(f"{name}\n  is\x1b[31m Straße"))
    assert told == r"error: stra\udcdfe is\x1b[31m Straße"


class Forbidden(Specks):
    def __getitem__(self, index):
        raise PermissionError(errno.EACCES, "Permission denied", "speck.png")


@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_system_says_of_a_samples_file_arrives_as_it_is(workers):
    with pytest.raises(PermissionError) as raised:
        loaded(Forbidden(), workers=workers)
    assert message_of(raised.value).startswith("speck.png: Permission denied; ")


@pytest.mark.processes
@pytest.mark.slow
def test_a_copy_inside_an_environments_folder_shows_one_line_too(tmp_path):
    copy = tmp_path / ".venv" / "site-packages" / "densehybrid"
    for room in ("data", "engine", "losses", "methods", "metrics", "models"):
        shutil.copytree(PROJECT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*PROJECT.glob("*.py"), *PROJECT.glob("*.yaml")]:
        shutil.copy(path, copy)
    command = [sys.executable, copy / "evaluate_osr_sh.py", "--dataroot", "gone", "--model", "x.pth"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: no weight file x.pth"), done.stderr
    assert done.stderr.count("\n") == 1


def raised_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and node.exc is not None:
            call = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            place = f"{path.relative_to(PROJECT)}, line {node.lineno}"
            assert not isinstance(call, ast.Call), f"{place} raises what it computes"  # as in type(error)("...")
            if isinstance(call, ast.Name):
                yield call.id, place
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                if isinstance(base, ast.Name) and base.id.endswith(("Error", "Exception")):
                    yield base.id, f"{path.relative_to(PROJECT)}, class {node.name}"


@pytest.mark.slow
def test_no_code_raises_a_builtin_error_where_a_user_is_to_be_told():
    rooms = ("data", "engine", "losses", "methods", "metrics", "models", "tools", "demo")
    files = [path for room in rooms for path in PROJECT.glob(f"{room}/**/*.py")]
    found, allowed = set(), {"SystemExit", "KeyboardInterrupt", "NotImplementedError", "StopIteration", "TypeError"}
    for path in {*files, *PROJECT.glob("*.py")} - {PROJECT / "errors.py"}:
        for name, place in raised_names(path):
            builtin = getattr(builtins, name, None)
            assert builtin is None or name in allowed, f"{place}: {name}; errors.py has one for users"
            found.add(name)
    assert {kind.__name__ for kind in KINDS} <= found
    assert {name for name in vars(errors) if isinstance(getattr(errors, name), type)} == {
        "UserError", *(kind.__name__ for kind in KINDS)
    }  # fmt: skip
