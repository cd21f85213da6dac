"""A run's folder and its recipe.yaml: who made it, with what, and whether a run may go on there."""

import contextlib
import platform
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision
import yaml

from engine.files import write_whole
from engine.inputs import FILES, differences, files_of
from engine.loader import Samples
from engine.lock import FolderLock
from engine.processes import is_main_process
from engine.recipe import PROJECT
from engine.run import Run
from errors import FileInTheWay, WrongInput

RECORD = "recipe.yaml"
# What each --resume has of its own.
OF_A_PROCESS = ("command", "device", "precision", "processes", "run", "revision", "versions")


def flat_recipe(record: dict) -> dict:
    """What a resumed run must agree on: {"script", "seed", and every recipe number}."""
    numbers = {key: value for source in record["recipe"].values() for key, value in source.items()}
    return {"script": record["script"], "seed": record["seed"], **numbers}


def check_folder(run: Run) -> None:
    """Refuse an existing run without --resume, and --resume with another recipe or of a run that still runs."""
    recipe_file = run.folder / RECORD
    if not run.resume:
        if run.folder.exists():
            raise FileInTheWay(f"{run.folder} exists; add --resume to go on with it, or choose another --exp_name")
        return
    if run.folder.is_dir():
        FolderLock(run.folder, run.record["command"]).release()
    if not recipe_file.exists():
        if not any(run.folder.glob("last.pt*")):
            print(f"nothing to resume in {run.folder}: starting from the beginning")
        return
    before = read_record(run.folder)
    check_same_recipe(flat_recipe(before), run)
    inputs = {flag: value for flag, value in before.get("inputs", {}).items() if flag != FILES}
    check_same_inputs(inputs, run.record["inputs"], run)


def read_record(folder: Path) -> dict:
    """What recipe.yaml says of a run."""
    path = folder / RECORD
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
        flat_recipe(record)
        record["inputs"] = dict(record.get("inputs", {}))
        record["inputs"].pop("max_pixels", None)  # earlier versions took it for an input
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise WrongInput(
            f"{path} is damaged; take it away: last.pt, where there is one, holds the same numbers"
        ) from error
    return record


@contextlib.contextmanager
def run_folder(run: Run) -> Iterator[None]:
    """Inside, the run's folder is there, and process 0 holds its lock.

    Raises FileInTheWay where another process made the folder or holds its lock.
    """
    if not is_main_process():
        yield
        return
    try:
        run.folder.mkdir(parents=True, exist_ok=run.resume)
    except FileExistsError as error:
        raise FileInTheWay(
            f"{run.folder} was made by another process since this one started; choose another --exp_name"
        ) from error
    with FolderLock(run.folder, run.record["command"]):
        yield


def check_same_recipe(before: dict, run: Run) -> None:
    now = flat_recipe(run.record)
    changes = [
        f"{key} was {before[key]!r} and is {now[key]!r}"
        for key in sorted(before.keys() & now.keys())  # older versions had fewer keys, and others
        if before[key] != now[key]
    ]
    if changes:
        raise WrongInput(
            f"{run.folder} was started with another recipe: {'; '.join(changes)}; resume with the same command, or "
            f"choose another --exp_name{further(run)}"
        )


def check_same_inputs(before: dict, now: dict, run: Run) -> None:
    changes = differences(before, now) if before else []  # older records have none
    if changes and not run.other_inputs:
        raise WrongInput(
            f"{run.folder} was started with other inputs: {'; '.join(changes)}; resume with the same, add "
            f"--other_inputs to go on with these, or choose another --exp_name{further(run)}"
        )


def further(run: Run) -> str:
    """How a new run goes on from the weights of this one, where the script has a flag for them."""
    weights = next((name for name in ("final.pth", "best.pth") if (run.folder / name).exists()), None)
    flags = [flag for flag in ("model", "init", "flow_state") if flag in run.record.get("inputs", {})]
    if not weights or not flags:
        return ""
    words = [f"--{flags[0]}", str(run.folder / weights)]
    if "flow_state" in flags[1:] and (run.folder / "final_flow.pth").exists():
        words += ["--flow_state", str(run.folder / "final_flow.pth")]
    return f" for a run that begins with the weights of this one: {shlex.join(words)}"


def begin_record(run: Run, dataset: Samples) -> None:
    """Write recipe.yaml of a run that begins, with the files that it trains on; refuse others than a begun one had."""
    record = with_files(run.record, dataset)
    if (run.folder / RECORD).exists():
        check_same_inputs(read_record(run.folder).get("inputs", {}), record["inputs"], run)
    write_record(run.folder, record)


def continue_record(run: Run, dataset: Samples, epochs: int) -> None:
    """Write into recipe.yaml what the run goes on with; refuse other training files than before.

    epochs  that the run has behind it
    """
    now = with_files(run.record, dataset)
    if not (run.folder / RECORD).exists():
        return
    record = read_record(run.folder)
    before = record.get("inputs", {})
    check_same_inputs(before, now["inputs"], run)
    if before and differences(before, now["inputs"]):
        changes = [*record.get("inputs_before", []), {"until_epoch": epochs, **before}]
        record |= {"inputs": now["inputs"], "inputs_before": changes}
    going_on = {"after_epoch": epochs} | {key: now[key] for key in OF_A_PROCESS if key in now}
    write_record(run.folder, record | {"resumed": [*record.get("resumed", []), going_on]})


def with_files(record: dict, dataset: Samples) -> dict:
    return record | {"inputs": record.get("inputs", {}) | {FILES: files_of(dataset)}}


def write_record(folder: Path, record: dict) -> None:
    write_whole(yaml.safe_dump(record, sort_keys=False).encode(), folder / RECORD)


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }


def git_revision() -> str | None:
    """The commit of this code, with "+changes" where files differ from it; None outside a git checkout."""
    try:
        git = ["git", "-C", str(PROJECT)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if status else "")
