"""Files that are written whole or not at all, such as checkpoints, and whether a folder can be written."""

import contextlib
import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from engine.processes import rank
from errors import UnusableFile, reason_of


def save(content: Any, path: Path) -> None:
    """torch.save that never leaves a half-written file at `path`.

    Raises OSError where it cannot be written; a file that was there before is then untouched.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(buffer.getbuffer(), path, ", then go on with --resume")


def write_whole(content: bytes | memoryview, path: Path, afterwards: str = "") -> None:
    """Write beside the file, then put it in place in one step.

    Raises UnusableFile where it cannot be written; `afterwards` follows its advice to make room.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        older = "the older one is whole" if path.exists() else "nothing was written"
        raise UnusableFile(
            error.errno,
            f"could not write {path} ({error.strerror}); {older}. Make room or make the folder writable{afterwards}",
        ) from error


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
