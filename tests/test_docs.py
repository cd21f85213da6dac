"""The documentation: its examples run, and the files, functions, flags, links and numbers that it names are there."""

import ast
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from labels import IGNORE, OUTLIER
from tools.check_data import CHOSEN, SOURCES

PROJECT = Path(__file__).resolve().parent.parent
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
EXTENDING, METHOD, DATA = (PROJECT / "docs" / f"{name}.md" for name in ("extending", "method", "data"))

# Runs the tests of the examples in the working directory, a copy of the checkout with the examples in it, and writes
# what the scripts named in the arguments say of their flags.
HARNESS = """
import contextlib, importlib, io, json, sys
import pytest
tests = ["tests/test_harbour.py", "tests/scripts/test_recipes.py", "tests/test_rooms.py", "-k", "harbour or thin"]
ended = pytest.main(["-q", "-p", "no:cacheprovider", *tests])
helps = {}
for script in sys.argv[1:]:
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        importlib.import_module(script.removesuffix(".py").replace("/", ".")).main(["--help"])
    helps[script] = told.getvalue()
json.dump(helps, open("helps.json", "w"))
sys.exit(ended)
"""


def name(page):
    return page.relative_to(PROJECT).as_posix()


def sections(page):
    """{heading: text} of a page's parts; a deeper heading belongs to the part above it"""
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def examples(language):
    """(what the first line says, the rest) of the blocks of docs/extending.md"""
    blocks = re.findall(rf"^```{language}\n# (.+?)\n(.*?)^```$", EXTENDING.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == EXTENDING.read_text().count(f"```{language}\n")
    return blocks


def commands():
    """(page, script, flags) of every command line of the pages under docs/"""
    found = []
    for page in PAGES[1:]:
        text = re.sub(r"\\+\n\s*", "", page.read_text())  # a line that goes on
        for script, module, rest in re.findall(r"\bpython (?:([\w/]+\.py)|-m ((?:tools|demo)[\w.]*))([^`\n]*)", text):
            if module:
                path = module.replace(".", "/")
                script = f"{path}.py" if (PROJECT / f"{path}.py").is_file() else f"{path}/__main__.py"
            words = shlex.split(rest.split(" #")[0].split(" > ")[0])
            found.append((name(page), script, [word.split("=")[0] for word in words if word.startswith("--")]))
    return found


def flags_told(help_text):
    return set(re.findall(r"(?<![\w-])--[a-z]\w*", help_text))


def insert(path, text, place):
    """Put a line of a file where docs/extending.md says: among its imports or into one of its tables"""
    source = path.read_text()
    before = (
        re.search(r"^from (data|errors) import", source, re.MULTILINE)[0] if place == "imports" else f"{place} = {{"
    )
    assert source.count(before) == 1, f"{path.name} has no single {before!r}"
    path.write_text(source.replace(before, text + before if place == "imports" else before + text.strip()))


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """(a copy of the checkout with the examples in it, what running their tests printed, scripts' help texts)"""
    copy = tmp_path_factory.mktemp("docs") / "checkout"
    for room in ("data", "demo", "engine", "losses", "methods", "metrics", "models", "tools"):
        shutil.copytree(PROJECT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    own = [*PROJECT.glob("*.py"), *PROJECT.glob("*.yaml"), PROJECT / "pyproject.toml"]
    tests = ("conftest.py", "support/*.py", "golden/fill.py", "scripts/test_recipes.py", "test_rooms.py")
    own += [path for pattern in tests for path in (PROJECT / "tests").glob(pattern)]
    for path in own:
        (copy / path.relative_to(PROJECT)).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(path, copy / path.relative_to(PROJECT))
    for place, code in examples("python"):
        file, _, where = place.partition(", ")
        if where:
            insert(copy / file, code, where)
        else:
            assert not (copy / file).exists(), f"{file} is there already"
            (copy / file).write_text(code)
    for file, block in examples("yaml"):
        with open(copy / file, "a") as whole:
            whole.write("\n" + block)
    scripts = sorted({script for _, script, _ in commands() if (copy / script).is_file()})
    ended = subprocess.run(
        [sys.executable, "-c", HARNESS, *scripts],
        cwd=copy,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert (copy / "helps.json").is_file(), ended.stdout + ended.stderr
    return copy, ended, json.loads((copy / "helps.json").read_text())


# docs/extending.md


@pytest.mark.processes
@pytest.mark.slow
def test_the_examples_pass_their_own_tests(extended):
    _, ended, _ = extended
    assert ended.returncode == 0, ended.stdout + ended.stderr
    tests = (code for place, code in examples("python") if place == "tests/test_harbour.py")
    written = re.findall(r"^def test_", next(tests), re.MULTILINE)
    passed = int(re.search(r"(\d+) passed", ended.stdout)[1])
    assert passed > len(written) > 0 and "skipped" not in ended.stdout and "failed" not in ended.stdout


@pytest.mark.slow
@pytest.mark.processes
def test_the_examples_are_in_the_projects_style(extended):
    copy, *_ = extended
    files = [place for place, _ in examples("python") if ", " not in place]
    check = [sys.executable, "-m", "ruff", "check", "--no-cache", *files]
    checked = subprocess.run(check, cwd=copy, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


# Commands and links


@pytest.mark.slow
@pytest.mark.processes
def test_every_command_names_a_script_and_its_flags(extended):
    *_, helps = extended
    found = commands()
    assert len(found) > 10
    for page, script, flags in found:
        if script in helps:
            known = flags_told(helps[script])
            assert {"--help"} < known, f"{script} has no help"
        else:
            assert (PROJECT / script).is_file(), f"{page} names {script}, which is not there"
            known = flags_told((PROJECT / script).read_text())
        assert set(flags) <= known, f"{page}: {script} does not know {set(flags) - known}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://", "#", "mailto:")):
            assert (page.parent / target.split("#")[0]).exists(), f"{name(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_a_link_into_code_calls_by_name_is_defined_there(page):
    for told, target in re.findall(r"\[`([\w.]+)`\]\(([\w./]+\.py)\)", page.read_text()):
        path = (page.parent / target).resolve()
        if not told.endswith(".py") and path.name != "__init__.py":
            assert told in defined(path), f"{name(page)}: {name(path)} does not define {told}"


@functools.cache
def defined(path):
    """Functions, classes, their methods as Class.method, and names that get a value, of the top level"""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@functools.cache
def all_names():
    """Every name in the code and in its tests: of functions, classes, arguments, attributes, recipe keys, choices"""
    names = set()
    for path in PROJECT.rglob("*.py"):
        if any(part.startswith(".") for part in path.relative_to(PROJECT).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            for field in ("name", "arg", "attr", "id"):
                names.add(getattr(node, field, None))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.strip("-").isidentifier():
                names.add(node.value.strip("-"))
    return names


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_name_that_looks_like_one_of_the_code_is_one(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for word in re.findall(r"`([A-Za-z]\w*)(?:\([^`]*\))?`", text):
        if ("_" in word or not word.islower()) and not word.isupper() and not word.endswith("_"):
            assert word in all_names(), f"{name(page)} names {word}, which is not there"


@pytest.mark.parametrize("page", PAGES[1:], ids=name)
def test_what_stands_in_the_code_is_a_function_or_class_of_a_file_that_is_linked_there(page):
    for paragraph in re.findall(r"^In the code: .+?(?=\n\n|\Z)", page.read_text(), re.MULTILINE | re.DOTALL):
        files = [(page.parent / target).resolve() for target in re.findall(r"\]\(([\w./]+\.py)\)", paragraph)]
        names = {node.name for path in files for node in ast.walk(ast.parse(path.read_text())) if hasattr(node, "name")}
        names |= {word for path in files for word in defined(path)}
        for word in re.findall(r"`([A-Za-z]\w*)(?:\(\))?`", paragraph):
            assert word in names, f"{name(page)}: {word} is in none of {[path.name for path in files]}"


# docs/method.md


@pytest.mark.parametrize("heading", sections(METHOD))
def test_a_section_on_the_method_names_the_function_that_implements_it(heading):
    linked = re.findall(r"\[`([\w.]+)`\]\(\.\./[\w./]+\.py\)", sections(METHOD)[heading])
    assert any(not told.endswith(".py") for told in linked)


@pytest.mark.parametrize("page", PAGES[1:], ids=name)
def test_files_and_recipe_keys_that_are_named_exist(page):
    for path in re.findall(
        r"`((?:data|demo|engine|losses|methods|metrics|models|tests|tools|benchmarks)/[\w/]+\.\w+)`", page.read_text()
    ):
        assert (PROJECT / path).is_file() or path in dict(examples("python")), f"{name(page)} names {path}"
    sources = [path for place in ("", "engine/", "methods/", "tools/**/") for path in PROJECT.glob(f"{place}*.py")]
    every = "".join(path.read_text() for path in sources)
    every += (PROJECT / "recipes.yaml").read_text()
    for flag in re.findall(r"`--([a-z]\w*)", page.read_text()):
        assert re.search(rf"\b{flag}\b", every), f"{name(page)} names --{flag}"


def test_math_is_balanced():
    for page in PAGES[1:]:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for number, line in enumerate(re.sub(r"`[^`\n]*`", "", text).splitlines(), 1):
            assert line.count("$") % 2 == 0, f"{name(page)}, line {number} without code blocks: {line}"


# docs/data.md


@pytest.mark.parametrize("dataset", SOURCES)
def test_a_data_set_has_its_section_with_labels_numbers_and_check(dataset):
    (text,) = (text for text in sections(DATA).values() if f"--dataset {dataset} " in text)
    assert re.search(rf"^    python -m tools.check_data --dataset {dataset} --dataroot \w+$", text, re.MULTILINE)
    assert "```text\n" in text
    for split in SOURCES[dataset].splits.values():
        assert split.published is None or f"{split.published:,}" in text
    if dataset == "coco20":
        assert all(f"{chosen:,}" in text for chosen in CHOSEN.values())
    if dataset != "images":
        assert torch.equal(table_told(text, dataset), SOURCES[dataset].dataset.table)


def table_told(text, dataset):
    """The table of labels that a section's rows give: | stored values | label |, a label being a number, OUTLIER,
    IGNORE or "the same"; values are as ranges: 0-6, 9"""
    table = torch.full((256,), -1, dtype=torch.int16)
    rows = re.findall(r"^\| ([\d, -]+) \| (\d+|OUTLIER|IGNORE|the same) \|", text, re.MULTILINE)
    words = {"OUTLIER": OUTLIER, "IGNORE": IGNORE}
    for stored, label in rows:
        for run in stored.split(", "):
            first, _, last = run.partition("-")
            for value in range(int(first), int(last or first) + 1):
                assert table[value] == -1, f"{dataset}: two labels for {value}"
                table[value] = value if label == "the same" else int(words.get(label, label))
    return table
