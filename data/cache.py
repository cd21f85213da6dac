"""Decoded copies of image and label files, so that a later visit reads the rows that it needs and decodes nothing.

A copy is as large as its pixels: three bytes each of an image, one each of a label map. A frame of 2048x1024 takes
8.4 MB, Cityscapes' 2,975 training frames 25 GB, StreetHazards' 5,125 of 1280x720 19 GB. A copy's name tells which
file it is of, its size and time, and how it was read: where one of these has changed a new copy is made, and the old
one stays. The folder may be deleted at any time that nothing reads it.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from errors import UnusableFile

FORMAT = 2  # part of every copy's name: raise it when what a copy holds changes
HEADER = 16  # bytes before the pixels: channels, height, width as int32, of the machine's byte order; 4 zero bytes


def cached(
    folder: str | Path | None, path: Path, read: Callable[..., Tensor], how: tuple | Tensor | bool, max_pixels: int
) -> Tensor:
    """read(path, how, max_pixels), from its copy below `folder` where there is one; else the copy is made.

    folder   None: no copies are made or read
    read     of the file, of what decides how it is read (the modes taken, the table of labels) and of the limit of
             its size, to uint8 (3, H, W) or (H, W)
    returns  the same; of a copy, its file mapped privately: pages are read when they are used, no file stays open,
             and what is written to the tensor does not reach the file

    Copies are written beside their place and put there in one step, so any number of processes may do so at once.
    Raises what `read` does, and OSError where a copy cannot be written, as on a full disk.
    """
    if folder is None:
        return read(path, how, max_pixels)
    try:
        source = path.stat()
    except OSError:
        return read(path, how, max_pixels)  # which says what is wrong with it
    options = how.tolist() if isinstance(how, Tensor) else how
    key = (FORMAT, str(path.absolute()), source.st_size, source.st_mtime_ns, read.__name__, options)
    file = Path(folder, f"{path.stem[:40]}-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.raw")
    pixels = mapped(file)
    if pixels is None:
        pixels = read(path, how, max_pixels)
        write_copy(pixels, file, path)
    return pixels


def mapped(file: Path) -> Tensor | None:
    """The pixels of a copy; None where there is none, or not a whole one."""
    try:
        size = file.stat().st_size
    except OSError:
        return None
    if size < HEADER:
        return None
    content = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)
    channels, height, width, _ = content[:HEADER].view(torch.int32).tolist()
    if size != HEADER + channels * height * width:
        return None
    pixels = content[HEADER:].view(height, width, channels)
    return pixels[..., 0] if channels == 1 else pixels.permute(2, 0, 1)


def write_copy(pixels: Tensor, file: Path, source: Path) -> None:
    """Write the pixels so that other processes see a whole copy or none."""
    last = pixels[..., None] if pixels.dim() == 2 else pixels.permute(1, 2, 0)
    height, width, channels = last.shape
    part = file.with_name(f"{file.name}.{secrets.token_hex(4)}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as opened:
            opened.write(torch.tensor([channels, height, width, 0], dtype=torch.int32).numpy())
            opened.write(last.contiguous().numpy())
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(part, file)
    except OSError as error:
        raise UnusableFile(
            error.errno,
            f"could not write {file} ({error.strerror}), the decoded copy of {source}: it takes "
            f"{(HEADER + pixels.numel()) / 1e6:.1f} MB; make room, give another folder as cache, or go on without one",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
