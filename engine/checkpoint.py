"""Checkpoints: what a run needs to go on, written whole, read with care, and put back only if it fits."""

import math
import shlex
import zipfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.files import write_whole
from engine.processes import is_main_process, rank
from engine.record import check_same_recipe, flat_recipe
from engine.run import Run
from errors import MissingFile, WrongInput, message_of

LAST, BEFORE_LAST = "last.pt", "last.pt.1"
PROGRESS: dict[str, Any] = {
    "epoch": int,
    "step": int,
    "best": (int, float),
    "figures": dict,
}  # Progress as a checkpoint has it


@dataclass
class Progress:
    """How far a run is.

    best     the largest merit of an epoch: its figure, or minus it where the figure is to be small
    figures  of the last validation
    """

    epoch: int = 0  # epochs done
    step: int = 0  # steps done
    best: float = -math.inf
    figures: dict[str, float] = field(default_factory=dict)

    def improves(self, figures: dict[str, float], best: str, lower_is_better: bool) -> bool:
        """Take an epoch's figures; whether the one that is called `best` is the best so far, which NaN never is."""
        self.figures = figures
        merit = -figures[best] if lower_is_better else figures[best]
        improved = merit > self.best
        if improved:
            self.best = merit
        return improved


def save_run(state: dict[str, Any], progress: Progress, run: Run, samples: int) -> None:
    """last.pt: all that the run needs to go on; the one before becomes last.pt.1. Process 0 writes."""
    if not is_main_process():
        return
    parts = {name: part.state_dict() for name, part in state.items()}
    tensors = {name: count_tensors(part) for name, part in parts.items()}  # see parts_problem
    about = {"progress": vars(progress), "samples": samples, "recipe": flat_recipe(run.record), "tensors": tensors}
    save(parts | about, run.folder / LAST, kept=run.folder / BEFORE_LAST)


def can_be_resumed(folder: Path) -> bool:
    return any((folder / name).exists() for name in (LAST, BEFORE_LAST))


def restore_run(state: dict[str, Any], run: Run, samples: int) -> Progress:
    """Load last.pt into the state; returns the progress.

    Raises WrongInput where the file is damaged, of another recipe or does not fit the state, which is then untouched.
    """
    path = run.folder / LAST
    if not path.exists():
        lost = f"process {rank()} does not see {path}; all processes need the same logs/"
        raise MissingFile(lost if not is_main_process() else f"no {path}. {way_out(run.folder)}")
    try:
        saved = load(path)
    except WrongInput as error:
        raise WrongInput(f"{error}. {way_out(run.folder)}") from error
    # A run may go on in another precision, with a scaler or without.
    parts = {
        name: part
        for name, part in state.items()
        if not (isinstance(part, torch.amp.GradScaler) and isinstance(saved, dict) and name not in saved)
    }
    problem = content_problem(parts, saved)
    if problem is None:
        check_same_recipe(saved["recipe"], run)
        problem = parts_problem(parts, saved, saved.get("tensors", {}))
    if problem:
        raise WrongInput(f"{path} does not fit this run: {problem}. {way_out(run.folder)}")
    if saved["samples"] != samples:
        raise WrongInput(
            f"{path} was trained on {saved['samples']} images, there are {samples} now; resume on the same data"
        )
    for name, part in parts.items():
        part.load_state_dict(saved[name])
        if isinstance(part, torch.optim.Optimizer):
            lay_out_as_weights(part)
    return Progress(**{name: saved["progress"][name] for name in PROGRESS})


def save(content: Any, path: Path, kept: Path | None = None) -> None:
    """torch.save that never leaves a half-written file at `path`; a GPU's tensors pass through the host one by one.

    kept  where the file that is replaced stays

    Raises OSError where it cannot be written; a file that was there before is then untouched.
    """
    write_whole(partial(torch.save, content), path, ", then go on with --resume", kept)


def load(path: Path) -> Any:
    """What `save` wrote, on the CPU, if every byte of it is as it was written.

    torch.load alone takes a flipped bit for a weight: it looks at none of the checksums (CRC-32 of each tensor) that
    torch.save put into the file.

    Raises WrongInput where the file is damaged or none; what the system says of it stays as it is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
        reason = f"{damaged} differs from its checksum"
    except MemoryError:
        raise
    except Exception as error:  # zipfile and torch.load fail in dozens of ways on a damaged file
        if message_of(error):  # what the system says of the file
            raise
        # Not in torch's words, which advise to run whatever code the file holds.
        reason = "it is damaged or none"
    raise WrongInput(f"{path} cannot be read as a checkpoint: {reason}")


def lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Moments lie in memory as their weights do: fused optimizers go through both by address.

    A checkpoint has them as they lay in its run, which may have had another precision or device.
    """
    for weight, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                moments[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def content_problem(parts: dict[str, Any], saved: Any) -> str | None:
    """Whether a checkpoint holds what `save_run` puts into it, by kind."""
    if not isinstance(saved, dict):
        return "it holds no parts of a run"
    kinds = {"progress": dict, "samples": int, "recipe": dict, "tensors": dict}
    saved = {"tensors": {}} | saved  # older files have none
    missing = [key for key in (*parts, *kinds) if key not in saved]
    if missing:
        return f"it has no {missing[0]}"
    wrong = [key for key, kind in kinds.items() if not isinstance(saved[key], kind)]
    if not wrong:
        wrong = [key for key, kind in PROGRESS.items() if not isinstance(saved["progress"].get(key), kind)]
    return f"its {wrong[0]} is not sound" if wrong else None


def parts_problem(parts: dict[str, Any], saved: dict[str, Any], tensors: dict[str, int]) -> str | None:
    """Why saved state_dicts do not fit the parts of a run; None where they do.

    parts    networks, optimizers and whatever else has a state_dict, by name: names and shapes must be theirs
    tensors  how many tensors each part had when it was saved, where that is known
    """
    for name, part in parts.items():
        content = saved.get(name)
        if not isinstance(content, dict):
            return f"it has no {name}"
        if isinstance(part, nn.Module):
            problem = tensors_problem(part.state_dict(), content)
        elif isinstance(part, torch.optim.Optimizer):
            problem = optimizer_problem(part, content)
        else:
            problem = numbers_problem(part.state_dict(), content)
        count = count_tensors(content)
        if not problem and tensors.get(name, count) != count:
            problem = f"has {count} tensors instead of the {tensors[name]} that were saved"
        if problem:
            return f"its {name} {problem}"
    return None


def tensors_problem(own: dict[str, Tensor], saved: dict[str, Any]) -> str | None:
    for key in sorted({*own, *saved}, key=str):
        if key not in saved:
            return f"lacks {key}"
        if key not in own:
            return f"has {key}, which the network does not have"
        if not isinstance(saved[key], Tensor) or saved[key].shape != own[key].shape:
            return f"has {key} of another shape than {tuple(own[key].shape)}"
    return None


def optimizer_problem(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> str | None:
    groups, moments = saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list) or not isinstance(moments, dict):
        return "has no groups or no moments"
    own = optimizer.state_dict()["param_groups"]
    if [group.get("params") for group in groups if isinstance(group, dict)] != [group["params"] for group in own]:
        return "has other groups of parameters"
    for before, now in zip(groups, own, strict=True):
        problem = numbers_problem(now, before)
        if problem:
            return f"has a group that {problem}"
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in moments.items():
        if not isinstance(values, dict) or number not in range(len(parameters)):
            return f"has moments of a parameter {number!r}, which is none"
        for key, value in values.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameters[number].shape:
                return f"has {key} of parameter {number} of another shape than {tuple(parameters[number].shape)}"
    return None


def numbers_problem(own: dict[str, Any], saved: dict[str, Any]) -> str | None:
    """Of numbers and lists of them; what else there is may differ between versions of torch."""
    for key, value in own.items():
        if is_number(value):
            sound = is_number(saved.get(key))
        elif isinstance(value, list) and all(map(is_number, value)):
            there = saved.get(key)
            sound = isinstance(there, list) and len(there) == len(value) and all(map(is_number, there))
        else:
            sound = True
        if not sound:
            return f"has no sound {key}"
    return None


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def count_tensors(content: Any) -> int:
    """In nested dicts and lists."""
    if isinstance(content, dict):
        content = [*content.values()]
    if isinstance(content, (list, tuple)):
        return sum(map(count_tensors, content))
    return int(isinstance(content, Tensor))


def way_out(folder: Path) -> str:
    """How to go on where last.pt cannot be used."""
    older = folder / BEFORE_LAST
    try:
        epochs = load(older)["progress"]["epoch"]
    except (OSError, ValueError, TypeError, KeyError):
        return f"No older one is whole beside it: start a new run under another --exp_name, from {folder}/best.pth"
    return (
        f"The one before it is whole, of {epochs} epochs: put it in its place and resume again: "
        f"mv {shlex.quote(str(older))} {shlex.quote(str(folder / LAST))}"
    )
