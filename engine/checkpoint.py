"""Checkpoints: everything a run needs to go on as if it had never stopped, written whole or not at all."""

import contextlib
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from errors import UnusableFile


def save(content: Any, path: Path) -> None:
    """torch.save that never leaves a half-written file at `path`.

    Raises OSError where it cannot be written; a file that was there before is then untouched.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(buffer.getbuffer(), path)


def write_whole(content: bytes | memoryview, path: Path) -> None:
    """Write beside the file, then put it in place in one step."""
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
            f"could not write {path} ({error.strerror}); {older}. "
            "Make room or make the folder writable, then go on with --resume",
        ) from error


def sha256(path: str | Path) -> str:
    """The digest of a file, which tells whether it is the same one."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
