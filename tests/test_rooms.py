import ast
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
GROUND = {"labels", "errors"}
MAY_IMPORT = {  # each room: itself, and what lies below it
    "models": GROUND,
    "data": GROUND,
    "losses": GROUND,
    "metrics": GROUND,
    "engine": {"metrics", *GROUND},
    "methods": {"engine", "models", "data", "losses", *GROUND},
}
FILES = sorted(
    path for path in PROJECT.rglob("*.py") if not any(part.startswith(".") for part in path.relative_to(PROJECT).parts)
)
SCRIPTS = {path.stem for path in FILES if path.parent == PROJECT} - GROUND
OURS = {*MAY_IMPORT, *SCRIPTS, *GROUND, "tools", "demo", "tests", "benchmarks"}


def name(path):
    return str(path.relative_to(PROJECT))


def modules(path):
    """The modules that a file imports, wherever in it; of "from tools import a" tools.a"""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}, line {node.lineno}: write imports from the project's root"
            names |= {f"tools.{alias.name}" for alias in node.names} if node.module == "tools" else {node.module}
    return names


def imported(path):
    """The top-level names of all that a file imports, wherever in it"""
    return {module.split(".")[0] for module in modules(path)}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_one_way(room):
    for path in FILES:
        if path.is_relative_to(PROJECT / room):
            wrong = (imported(path) & OURS) - MAY_IMPORT[room] - {room}
            assert not wrong, f"{name(path)} imports {wrong}; {room} may import {MAY_IMPORT[room] | {room}}"


def test_a_training_takes_its_losses_from_the_methods():
    """So that another loss for negatives is a change of one file, of losses or of methods"""
    for script in SCRIPTS:
        if not script.startswith("evaluate_"):
            assert "losses" not in imported(PROJECT / f"{script}.py"), script


def test_the_ground_floor_imports_nothing_of_ours():
    for ground in GROUND:
        assert not imported(PROJECT / f"{ground}.py") & OURS, ground


def test_a_script_imports_no_other_script_tool_or_demo():
    for script in SCRIPTS:
        assert not imported(PROJECT / f"{script}.py") & {*SCRIPTS, "tools", "demo"}, script


def test_a_tool_imports_no_other_tool_nor_what_stands_above_it():
    """What two tools need is in a room; only the demo runs scripts"""
    outside = {"tests", "benchmarks"}
    for path in FILES:
        if path.is_relative_to(PROJECT / "tools"):
            own = "tools." + path.relative_to(PROJECT / "tools").with_suffix("").parts[0]
            others = {module for module in modules(path) if module.startswith("tools") and not below(module, own)}
            wrong = others | imported(path) & {*SCRIPTS, *outside, "demo"}
            assert not wrong, f"{name(path)} imports {wrong}; a tool may import the rooms and files of its own"
        elif path.is_relative_to(PROJECT / "demo"):
            wrong = imported(path) & {*outside, "tools"}
            assert not wrong, f"{name(path)} imports {wrong}; the demo may import rooms, scripts and files of its own"


def below(module, package):
    return module == package or module.startswith(f"{package}.")


def test_no_file_names_a_place_on_one_machine():
    place = re.compile(r"""["'](/|~/|[A-Z]:\\)\w[^"'\s]*/""")
    allowed = re.compile(r"/(proc|dev|sys)/")
    for path in FILES:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = place.search(line)
            assert not found or allowed.search(line) or path == Path(__file__), f"{name(path)}, line {number}: {line}"


def test_nothing_moves_itself_to_the_gpu():
    for path in FILES:
        if not path.is_relative_to(PROJECT / "tests"):  # a test that there is a GPU for may
            for node in ast.walk(ast.parse(path.read_text())):
                called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr
                assert called != "cuda", f"{name(path)}, line {node.lineno}: take .to(device), which --device chooses"


@pytest.mark.slow
def test_no_test_file_imports_another():
    """What several of them need is in tests/support/"""
    files = {path for path in FILES if path.is_relative_to(PROJECT / "tests")}
    tests = {path.stem for path in files if path.name.startswith(("test_", "conftest"))}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            module = getattr(node, "module", None) or ""
            found = {part for whole in (module, *names) for part in whole.split(".")} & tests
            assert not found, f"{name(path)}, line {node.lineno}, imports {found}"
