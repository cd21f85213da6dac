"""The folder of results: where each goes, the settings it was made with, and the report of what is done."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.files import write_whole
from errors import FileInTheWay, UnusableFile, WrongInput

REPORT, SETTINGS, KINDS = "report.jsonl", "settings.json", ("closed", "open", "heat", "overlay", "score")


def result_files(folder: Path, name: str, raw: str, opened: bool) -> dict[str, Path]:
    """Where a picture's results go, by kind; its name keeps its ending, so that a.jpg and a.png stay apart.

    raw     of the score map: png16, npy or none
    opened  whether there are open-set maps
    """
    kinds = ["closed", "heat", "overlay", *(["open"] if opened else [])]
    files = {kind: folder / kind / f"{name}.png" for kind in kinds}
    if raw != "none":
        files["score"] = folder / "score" / (f"{name}.npy" if raw == "npy" else f"{name}.png")
    return files


def video_files(folder: Path, name: str) -> dict[str, Path]:
    return {"overlay": folder / "overlay" / f"{name}.mp4"}


def open_folder(folder: Path, settings: dict) -> dict[str, dict]:
    """The report's lines by input of an earlier run with the same settings; a new folder gets the settings.

    Raises ValueError for other settings, FileExistsError for a folder with other content at the results' places.
    """
    path = folder / SETTINGS
    if not path.exists():
        there = [name for name in (REPORT, *KINDS) if (folder / name).exists()]
        if there or (folder.exists() and not folder.is_dir()):
            raise FileInTheWay(
                f"{folder} was not made by predict, having no {SETTINGS} but {', '.join(there) or 'being a file'}; "
                "choose another --folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_or_explain(json.dumps(settings, indent=2).encode(), path)
        return {}
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise WrongInput(
            f"{path} is damaged, and with what the results beside it were made is unknown; choose another --folder"
        ) from error
    now = json.loads(json.dumps(settings))
    differences = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if differences:
        raise WrongInput(
            f"{folder} was made with other settings: {'; '.join(differences)}; "
            "give the same, or choose another --folder"
        )
    return {line["name"]: line for line in report_lines(folder) if "frame" not in line}


def report_lines(folder: Path) -> Iterator[dict]:
    """The lines of the report, but for damaged ones, such as one that was being written when the run was killed."""
    if (folder / REPORT).exists():
        with open(folder / REPORT, encoding="utf-8", errors="replace") as report:
            for text in report:
                with contextlib.suppress(json.JSONDecodeError):
                    line = json.loads(text)
                    if isinstance(line, dict) and isinstance(line.get("name"), str):
                        yield line


def keep_lines(folder: Path, names: set[str]) -> None:
    """Leave in the report only the lines of these inputs: the others are done anew."""
    kept = [json.dumps(line) + "\n" for line in report_lines(folder) if line["name"] in names]
    write_or_explain("".join(kept).encode(), folder / REPORT)


def append_lines(folder: Path, lines: Iterable[dict]) -> list[dict]:
    """Append lines to the report as they come; returns those of inputs that failed."""
    failed = []
    with open(folder / REPORT, "a", encoding="utf-8") as report:
        for line in lines:
            report.write(json.dumps(line) + "\n")
            report.flush()
            if line["status"] == "failed":
                failed.append(line)
    return failed


def is_done(line: dict | None, path: Path, files: dict[str, Path]) -> bool:
    """Whether an input has its line, was not changed since, and all its files are there, as large as they were.

    A line without sizes, of an older version, does not tell a whole file from one that is cut short: it is not done.
    """
    if line is None or line.get("status") != "done" or line.get("file") != fingerprint(path):
        return False
    return sizes_of(files) == line.get("bytes")


def say_sizeless(lines: list[dict]) -> None:
    """One printed line of results that are made anew because their files' sizes were not noted."""
    names = [line["name"] for line in lines if line.get("status") == "done" and "bytes" not in line]
    if names:
        print(f"{len(names)} results of an older version, which noted no sizes, are made anew (first: {names[0]!r})")


def sizes_of(files: dict[str, Path]) -> dict[str, int]:
    """Bytes of each file; 0 where there is none."""
    return {kind: path.stat().st_size if path.is_file() else 0 for kind, path in files.items()}


def fingerprint(path: Path) -> list[int] | None:
    """[bytes, time of the last change in nanoseconds] of a file; None where it is gone."""
    try:
        about = path.stat()
    except OSError:
        return None
    return [about.st_size, about.st_mtime_ns]


def write_or_explain(content: bytes, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(content, path)
    except OSError as error:
        raise UnusableFile(
            error.errno,
            f"could not write {path}: {os.strerror(error.errno)}. Make room or make the folder writable, then run the "
            "same command again: what is done is kept",
        ) from error
