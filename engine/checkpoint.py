"""Files that are written whole or not at all, such as checkpoints, and whether a folder can be written."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from engine.processes import rank
from errors import UnusableFile, WrongInput, message_of, reason_of


def save(content: Any, path: Path, kept: Path | None = None) -> None:
    """torch.save that never leaves a half-written file at `path`; a GPU's tensors pass through the host one by one.

    kept  where the file that is replaced stays

    Raises OSError where it cannot be written; a file that was there before is then untouched.
    """
    write_whole(partial(torch.save, content), path, ", then go on with --resume", kept)


def write_whole(
    content: bytes | memoryview | Callable[[BinaryIO], None], path: Path, afterwards: str = "", kept: Path | None = None
) -> None:
    """Write beside the file, then put it in place in one step.

    content  what is written, or a function that writes it into an open file
    kept     where the file that is replaced stays

    Raises UnusableFile where it cannot be written; `afterwards` follows its advice to make room.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if kept is not None and path.exists():
            keep(path, kept)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        # torch.save raises its own error about what the file raised.
        failure = error if isinstance(error, OSError) else error.__context__
        if not isinstance(failure, OSError):
            raise
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        older = "the older one is whole" if path.exists() else "nothing was written"
        way_out = f"Make room or make the folder writable{afterwards}"
        if failure.errno == errno.ENOENT and path.parent.is_dir():
            way_out = f"Another process writes or removes the same file: end it, or choose another folder{afterwards}"
        raise UnusableFile(
            failure.errno, f"could not write {path} ({failure.strerror}); {older}. {way_out}"
        ) from failure


def keep(path: Path, kept: Path) -> None:
    """A second name for a file, put in place in one step; a copy on file systems without hard links."""
    part = kept.with_name(kept.name + ".part")
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError:
        shutil.copyfile(path, part)
    os.replace(part, kept)
    part.unlink(missing_ok=True)  # still there where both were names of one file already


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


def require_writable(folder: str | Path, flag: str) -> None:
    """Find out by writing there, before any work, whether files can be put into a folder; nothing is left behind.

    folder  the flag's value, or what becomes of it; its parents need not be there
    Raises UnusableFile with the reason. Of several processes, process 0 writes and looks.
    """
    if rank():
        return
    folder, made = Path(folder), []
    try:
        for place in (*reversed(folder.parents), folder):
            if not os.path.isdir(place):
                os.mkdir(place)
                made.append(place)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        link = " (a link that leads nowhere)" if os.path.islink(place) and not os.path.exists(place) else ""
        told = f"{flag}: {folder} cannot be written, {place}{link}: {reason_of(error)}"
        raise UnusableFile(error.errno, told) from error
    finally:
        for place in reversed(made):
            with contextlib.suppress(OSError):
                place.rmdir()


def sha256(path: str | Path) -> str:
    """The digest of a file, which tells whether it is the same one."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
