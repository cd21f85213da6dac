"""Whether a folder is a data set's, and what lies in it that no data set reads."""

import os
from collections.abc import Iterable
from pathlib import Path

from data.listing import PICTURE_ENDINGS, files_below
from tools.check_data.problems import MOST, Problem, shortened
from tools.check_data.sources import Source

JUNK_NAMES = ("Thumbs.db", "desktop.ini")
DEPTH = 3  # of folders, above and below a wrong one, in which the right one is looked for


def folder_problems(root: Path, source: Source) -> Iterable[Problem]:
    """Whether the root is the right folder; where not, which one is."""
    if not root.is_dir():
        yield Problem("error", f"there is no folder {root}; give the data set's folder as --dataroot")
        return
    try:
        os.scandir(root).close()
    except OSError as error:
        yield Problem("error", f"the folder {root} cannot be read ({error.strerror}): make it readable")
        return
    if fits(root, source):
        return
    better = better_roots(root, source)
    if better:
        where = "further up" if root.resolve().is_relative_to(better[0]) else "further down"
        given = " or ".join(f"--dataroot {path}" for path in better[:MOST])
        yield Problem("error", f"{root} is not the data set's folder, which lies {where}: give {given}")
        return
    inside = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    holds = ", ".join(inside[:8]) + (f" and {len(inside) - 8} more" if len(inside) > 8 else "") if inside else "nothing"
    yield Problem(
        "error",
        f"{root} is not the data set's folder: it should hold {' or '.join(source.holds)}, and it holds {holds}; "
        "give the folder that the archives were unpacked into",
    )


def fits(folder: Path, source: Source) -> bool:
    return any(True for pattern in source.holds for _ in folder.glob(pattern))


def better_roots(root: Path, source: Source) -> list[Path]:
    """The nearest folders above the root or below it that hold what the data set's folder should hold."""
    root = root.resolve()
    above = [parent for parent in root.parents[:DEPTH] if fits(parent, source)]
    if above:
        return above[:1]
    level = [root]
    for _ in range(DEPTH):
        level = [Path(entry) for folder in level for entry in folders_in(folder)]
        below = [folder for folder in level if fits(folder, source)]
        if below:
            return below
    return []


def folders_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def junk_files(root: Path) -> Iterable[Problem]:
    """What file managers and systems leave behind and no data set reads."""
    try:
        listing = files_below(root, PICTURE_ENDINGS)
    except OSError as error:  # the split that needs the folder makes an error of it
        yield Problem("warning", str(error))
        return
    for path in [path for path in listing.others if path.name in JUNK_NAMES]:
        yield Problem(
            "note", f"{path.name} is left by a file manager and never read; it may stay", shortened(path, root)
        )
    for path in listing.hidden:
        yield Problem("note", "hidden, or a system's, and never read; it may stay", shortened(path, root))
