"""Files that are written whole or not at all, and whether a folder can be written."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from engine.processes import is_main_process
from errors import UnusableFile, reason_of


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


def require_writable(folder: str | Path, flag: str) -> None:
    """Find out by writing there, before any work, whether files can be put into a folder; nothing is left behind.

    folder  the flag's value, or what becomes of it; its parents need not be there
    Raises UnusableFile with the reason. Of several processes, process 0 writes and looks.
    """
    if not is_main_process():
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
        message = f"{flag}: {folder} cannot be written, {place}{link}: {reason_of(error)}"
        raise UnusableFile(error.errno, message) from error
    finally:
        for place in reversed(made):
            with contextlib.suppress(OSError):
                place.rmdir()


def sha256(path: str | Path) -> str:
    """The digest of a file, which tells whether it is the same one."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
