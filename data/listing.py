"""Which files below a folder count: one rule for data sets, folders of photographs and the inputs of a prediction.

Links to folders are followed, but not back into a folder that they lie in. What begins with a dot, and the folders
that systems leave behind, are left out and counted. What cannot be listed is an error, never fewer files.
"""

import errno
import functools
import os
import stat
from pathlib import Path
from typing import NamedTuple

from errors import UnusableFile

# What pictures are called; HEIC files, which telephones write and Pillow does not read, are listed to be counted.
PICTURE_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".avif",
    ".heic",
    ".heif",
)
SYSTEM_NAMES = {"@eadir", "__macosx", "lost+found", "$recycle.bin", "system volume information", "#recycle"}
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
    stat.S_IFDIR: "a folder",
}


class Listing(NamedTuple):
    """What lies below a folder: sorted paths, which begin with the folder as it was given."""

    files: list[Path]  # regular files, and links to them, whose names end as asked
    no_files: list[Path]  # what ends so and is none: pipes, devices, sockets, links to nothing; see why_no_file
    others: list[Path]  # what ends otherwise
    hidden: list[Path]  # left out: folders, and files that end as asked, with the name of something hidden
    loops: list[Path]  # left out: folders that were entered by another way, such as links to a folder above or beside
    folders: list[Path]  # folders whose names end as asked; what is in them is listed as elsewhere

    def left_out(self) -> dict[str, list[Path]]:
        """For say_left_out."""
        return {
            "hidden or a system's": self.hidden,
            "a folder that is listed already": self.loops,
            "a folder by the name of an image": self.folders,
        }


def files_below(root: Path, endings: tuple[str, ...]) -> Listing:
    """What lies below a folder, at any depth.

    endings  in lower case; names are compared without case. One may reach back over a folder: ".labels/map.png"
    raises   OSError for a folder that cannot be read
    """
    listing = Listing([], [], [], [], [], [])
    pending, linked, entered = [root], [], set()
    while pending or linked:
        folder = (pending or linked).pop()  # links last: a folder keeps its own name where a link leads there, too
        try:
            this = identity(folder)
            if this in entered:
                listing.loops.append(folder)
                continue
            entered.add(this)
            with os.scandir(folder) as entries:
                found = [(folder / entry.name, kind_of(entry)) for entry in entries]
        except OSError as error:
            raise UnusableFile(
                error.errno,
                f"the folder {folder} cannot be read ({error.strerror}): make it readable, or move it elsewhere",
            ) from error
        for path, kind in found:
            wanted = path.relative_to(root).as_posix().lower().endswith(endings)
            if path.name.startswith(".") or path.name.lower() in SYSTEM_NAMES:
                if kind == "folder" or wanted:
                    listing.hidden.append(path)
            elif kind == "folder":
                (linked if path.is_symlink() else pending).append(path)
                if wanted:
                    listing.folders.append(path)
            elif not wanted:
                listing.others.append(path)
            else:
                (listing.files if kind == "file" else listing.no_files).append(path)
    for paths in listing:
        paths.sort()
    return listing


def identity(folder: Path) -> tuple[int, int]:
    about = os.stat(folder)
    return about.st_dev, about.st_ino


def kind_of(entry: os.DirEntry) -> str:
    """ "folder", "file" or "", of what a link leads to."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return ""
        raise


def why_no_file(path: Path) -> str | None:
    """What a path is if it is no regular file, in words; None where it is one, or nothing is there.

    Whatever is opened is asked first: opening a pipe waits for ever for somebody who writes to it.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return f"a link to {os.readlink(path)}, where no file is" if path.is_symlink() else None
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "no regular file")


def say_left_out(root: Path, left_out: dict[str, list[Path]]) -> None:
    """One printed line of what below a folder is left out: {what they are: paths}, with an example of each."""
    parts = [
        f"{len(paths)} {kind} ({paths[0].relative_to(root).as_posix()}{', ...' if len(paths) > 1 else ''})"
        for kind, paths in left_out.items()
        if paths
    ]
    if parts:
        say_once(f"left out below {root}: {'; '.join(parts)}")


@functools.cache
def say_once(line: str) -> None:
    """Print a line, once in a process."""
    print(line, flush=True)
