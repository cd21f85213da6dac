"""A data set as a whole, and its splits one after another."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from data.coco import check_names
from data.decoding import MAX_PIXELS
from data.files import UNKNOWN_VALUE, ranges
from data.images import label_maps_among
from data.workers import map_in_processes
from tools.check_data.contents import (
    chosen_problems,
    content_problems,
    count_problems,
    is_chosen,
    label_pixels,
    value_advice,
)
from tools.check_data.files import Found, inspect_pair
from tools.check_data.folders import folder_problems, junk_files
from tools.check_data.pairs import list_pairs
from tools.check_data.problems import LEVELS, Problem, grouped, shortened
from tools.check_data.sources import SOURCES, ImagesAndMaps


def check(
    name: str,
    root: Path,
    splits: list[str] | None = None,
    workers: int = 0,
    quick: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> dict:
    """A data set's problems and contents, ready for JSON: {"usable", "errors", "warnings", "notes", "splits", ...}.

    name        of SOURCES
    root        its folder
    splits      only these; None: all
    workers     processes that read the files; 0: this one
    quick       look at folders, pairs and headers alone
    max_pixels  of the largest picture that is read
    """
    source = SOURCES[name]
    problems, reports = list(folder_problems(root, source)), {}
    if not problems:
        problems += junk_files(root)
        if name == "coco20":
            problems += names_problems(root)
        for title in splits or source.splits:
            pairs, found = list_pairs(source, title, root)
            problems += found
            if pairs:
                reports[title], found = inspect_split(name, title, pairs, root, workers, quick, max_pixels)
                problems += found
    levels = {f"{level}s": grouped(problem for problem in problems if problem.level == level) for level in LEVELS}
    head = {"dataset": name, "dataroot": str(root), "quick": quick, "usable": not levels["errors"]}
    return head | levels | {"splits": reports}


def names_problems(root: Path) -> Iterable[Problem]:
    try:
        check_names(root / "labels.txt")
    except (FileNotFoundError, ValueError) as error:
        yield Problem("error", str(error))


def inspect_split(
    name: str, title: str, pairs: ImagesAndMaps, root: Path, workers: int, quick: bool, max_pixels: int
) -> tuple[dict, list[Problem]]:
    """What a split holds, by reading all of its pairs, and what is wrong with it; arguments as of check."""
    source = SOURCES[name]
    labelled = name != "images"
    values = source.dataset.table.numpy() if labelled else None
    modes = source.dataset.image_modes if labelled else None
    inspect = partial(inspect_pair, root=root, values=values, modes=modes, quick=quick, max_pixels=max_pixels)
    chunk = max(1, min(64, len(pairs) // (4 * max(1, workers))))
    found = map_in_processes(inspect, pairs, workers, "check", f"checking {title}", chunk)

    problems = [problem for file in found for problem in file.problems]
    headers = {image: file.header for (image, _), file in zip(pairs, found, strict=True) if file.header}
    if not labelled:
        kind = "label maps, by names and modes, which are left out; put them in a folder of their own for --neg_masks"
        problems += [Problem("note", kind, shortened(path, root)) for path in sorted(label_maps_among(headers, root))]
    sizes = Counter(f"{header.size[0]}x{header.size[1]}" for header in headers.values())
    report = {
        "images": len(pairs),
        "published_images": source.splits[title].published,
        "sizes": dict(sizes.most_common()),
        "image_modes": dict(Counter(header.mode for header in headers.values())),
        "label_modes": dict(Counter(file.label_mode for file in found if file.label_mode)),
    }
    problems += count_problems(title, len(pairs), source.splits[title].published)
    if labelled and not quick:
        of_labels, problems = label_report(name, title, pairs, found, values, problems)
        report |= of_labels
    return report, problems


def label_report(
    name: str, title: str, pairs: ImagesAndMaps, found: list[Found], values: np.ndarray, problems: list[Problem]
) -> tuple[dict, list[Problem]]:
    """What the label maps of a split hold together, and its problems, of which those of values get their meaning.

    values    (256,), the data set's table
    problems  of the split so far
    """
    counted, report = [file.pixels for file in found if file.pixels], {}
    if name == "coco20":
        counted = [pixels for pixels in counted if is_chosen(pixels, title)]
        report["chosen_images"] = len(counted)
        if counted or all(file.pixels for file in found):  # else those that are damaged may be the ones
            problems = [*problems, *chosen_problems(title, len(counted))]
    pixels = Counter()
    for part in counted:
        pixels.update(part)
    report["stored_values"] = {str(value): count for value, count in sorted(pixels.items())}
    report["labels"] = label_pixels(name, pixels)
    report["outlier_pixels"] = report["labels"].get("outlier", {}).get("pixels", 0)

    valid = ranges(np.flatnonzero(values != UNKNOWN_VALUE).tolist())
    kind = f"{title}: label values that the data set does not have; its values are {valid}"
    kind += value_advice(name, set(pixels))
    problems = [problem._replace(kind=kind) if problem.kind == "values" else problem for problem in problems]
    if counted:
        all_valid = not any(problem.kind == kind for problem in problems)
        problems += content_problems(name, title, pixels, report, pairs, all_valid)
    return report, problems
