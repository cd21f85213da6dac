"""Check a data set before it is used: folders, pairs, sizes, modes, label values, numbers of images.

    python -m tools.check_data --dataset DATASET --dataroot DATAROOT [--quick] [--folder OUTPUT_DIR]

DATASET is street-hazards, cityscapes, lf or static (Fishyscapes), ade20k, coco20, anomaly-track or obstacle-track
(SegmentMeIfYouCan), road-anomaly, or images: any folder of them. Every file is read, with all cores; what is wrong is
listed with the way to mend it. The exit code is 1 where the data cannot be used, else 0: another number of images
than is published is only a warning. Nothing is written below DATAROOT.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from data import (
    ADE20K,
    COCO20,
    IGNORE,
    OUTLIER,
    AnomalyTrack,
    Cityscapes,
    FishyscapesStatic,
    ImageFolder,
    LostAndFound,
    ObstacleTrack,
    RoadAnomaly,
    StreetHazards,
)
from data.coco import FOLDERS as COCO_FOLDERS
from data.coco import HINT as COCO_HINT
from data.coco import REMOVED_IDS, RULES, check_names, leave_interrupts_to_the_main_process
from data.decoding import MAX_PIXELS, THIRTY_TWO_BITS, NotRead, described, orientation, read_picture
from data.files import (
    BLURRING,
    UNKNOWN_VALUE,
    NoLabelMap,
    PairProblem,
    UnpairedFiles,
    label_values,
    pair_files,
    ranges,
)
from data.images import VALUE_MODES, Header, label_maps_among
from data.listing import PICTURE_ENDINGS, files_below
from engine import run_script, write_results
from engine.files import require_writable
from engine.flags import Parser, available_cores, number_of_workers, whole_number
from engine.results import markdown_table
from errors import LostProcess

MOST = 5  # examples shown of each kind of problem
MOST_ROWS = 25  # of the table of labels on the screen; results.json holds all
LEVELS = {"error": "errors, with which the data cannot be used", "warning": "warnings", "note": "notes"}
JUNK_NAMES = ("Thumbs.db", "desktop.ini")

Pairs = list[tuple[Path, Path | None]]


class Problem(NamedTuple):
    level: str  # error, warning or note
    kind: str  # what is wrong and how to mend it; problems of one kind are told together
    example: str = ""


class Split(NamedTuple):
    """A part of a data set, how many samples of it are published (None: not known for sure), and what it is for."""

    pairs: Callable[[Path], Pairs]
    published: int | None
    evaluated: bool = False  # whether unknown pixels are looked for in it


class Source(NamedTuple):
    """A data set and what its folder holds."""

    dataset: type
    holds: tuple[str, ...]  # of which at least one lies in the right folder, as glob patterns
    labels: str  # the folder of the label maps, or their ending
    get_labels: str  # where the label maps come from
    splits: dict[str, Split]


class Found(NamedTuple):
    """What one image and its label map are."""

    header: Header | None = None  # of the image; None where it cannot be read
    label_mode: str | None = None
    pixels: dict[int, int] | None = None  # by stored value
    problems: tuple[Problem, ...] = ()


def coco_pairs(root: Path, split: str) -> Pairs:
    """All photographs, not only the chosen ones: COCO20 itself would keep a list of these below the root."""
    folder = COCO_FOLDERS[split]
    return pair_files(root / "images" / folder, root / "labels" / folder, COCO_HINT, image_pattern="*.jpg")


def lost_and_found_pairs(root: Path) -> Pairs:
    """As LostAndFound pairs them, without its look into every map, which ends at the first damaged one."""
    hint = "--dataroot is Fishyscapes Lost & Found, which holds leftImg8bit/ and ood/"
    names = "*_leftImg8bit.png", "_ood_segmentation.png"
    return pair_files(root / "leftImg8bit", root / "ood", hint, *names, every_image=False)


def only_split(pairs: Callable[[Path], Pairs], published: int) -> dict[str, Split]:
    return {"all": Split(pairs, published, evaluated=True)}


# The published numbers: StreetHazards, Cityscapes, Fishyscapes, ADE20K (ADEChallengeData2016), SegmentMeIfYouCan
# and RoadAnomaly from the data sets' papers, COCO 2017 from its own page.
SOURCES = {
    "street-hazards": Source(
        StreetHazards,
        ("train/images", "train/annotations", "test/images", "test/annotations"),
        "annotations",
        "they come in the same archives (train and test) as the images",
        {
            "training": Split(lambda root: StreetHazards(root, "training").pairs, 5125),
            "validation": Split(lambda root: StreetHazards(root, "validation").pairs, 1031),
            "test": Split(lambda root: StreetHazards(root, "test").pairs, 1500, evaluated=True),
        },
    ),
    "cityscapes": Source(
        Cityscapes,
        ("leftImg8bit", "gtFine"),
        "gtFine",
        "unpack Cityscapes' gtFine_trainvaltest.zip beside leftImg8bit/",
        {
            "train": Split(lambda root: Cityscapes(root, "train").pairs, 2975),
            "val": Split(lambda root: Cityscapes(root, "val").pairs, 500),
        },
    ),
    "lf": Source(
        LostAndFound,
        ("ood", "leftImg8bit"),
        "ood",
        "ood/ is Fishyscapes' own download and goes beside Lost & Found's leftImg8bit/",
        only_split(lost_and_found_pairs, 100),
    ),
    "static": Source(
        FishyscapesStatic,
        ("*_rgb.jpg", "*_labels.png"),
        "_labels.png",
        "NAME_labels.png lies beside NAME_rgb.jpg in Fishyscapes' download",
        only_split(lambda root: FishyscapesStatic(root).pairs, 30),
    ),
    "ade20k": Source(
        ADE20K,
        ("images/training", "annotations/training"),
        "annotations",
        "they are in ADEChallengeData2016.zip, annotations/",
        {"training": Split(lambda root: ADE20K(root).pairs, 20210)},
    ),
    "coco20": Source(
        COCO20,
        ("images/train2017", "images/val2017", "labels/train2017", "labels/val2017", "labels.txt"),
        "labels",
        "unpack COCO-Stuff's stuffthingmaps_trainval2017.zip into labels/",
        {
            "training": Split(partial(coco_pairs, split="training"), 118287),
            "validation": Split(partial(coco_pairs, split="validation"), 5000, evaluated=True),
        },
    ),
    "anomaly-track": Source(
        AnomalyTrack,
        ("images", "labels_masks"),
        "labels_masks",
        "they are in the download of the data set, labels_masks/, for its validation frames",
        only_split(lambda root: AnomalyTrack(root).pairs, 10),
    ),
    "obstacle-track": Source(
        ObstacleTrack,
        ("images", "labels_masks"),
        "labels_masks",
        "they are in the download of the data set, labels_masks/, for its validation frames",
        only_split(lambda root: ObstacleTrack(root).pairs, 30),
    ),
    "road-anomaly": Source(
        RoadAnomaly,
        ("frames",),
        "labels_semantic.png",
        "they are frames/NAME.labels/labels_semantic.png in the download",
        only_split(lambda root: RoadAnomaly(root).pairs, 60),
    ),
    "images": Source(
        ImageFolder,
        ("*",),
        "",
        "",
        {"all": Split(lambda root: [(path, None) for path in ImageFolder(root, as_stored=True).paths], None)},
    ),
}
CHOSEN = {"training": 20581, "validation": 4952}  # of COCO's photographs; as data.coco has it


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--dataset", required=True, choices=list(SOURCES))
    parser.add_argument("--dataroot", required=True, type=Path, help="the data set's folder")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these (default: all that are read)")
    parser.add_argument("--quick", action="store_true", help="folders, pairs and the files' headers only")
    parser.add_argument(
        "--workers",
        type=number_of_workers,
        default=available_cores(),
        help="processes; 0: this one (default: all cores)",
    )
    parser.add_argument(
        "--max_pixels",
        type=whole_number(1),
        default=MAX_PIXELS,
        help=f"of the largest picture that is read (default {MAX_PIXELS:,})",
    )
    parser.add_argument("--folder", type=Path, help="where results.json and table.md go (default: nowhere)")
    args = parser.parse_args(argv)
    unknown = set(args.splits or ()) - SOURCES[args.dataset].splits.keys()
    if unknown:
        parser.error(
            f"{args.dataset} has no split {', '.join(sorted(unknown))}: {', '.join(SOURCES[args.dataset].splits)}"
        )
    # Not Path.resolve, to which a loop of links is a mistake in the code.
    if args.folder and Path(os.path.realpath(args.folder)).is_relative_to(os.path.realpath(args.dataroot)):
        parser.error(f"--folder {args.folder} lies in --dataroot, where nothing is to be written; choose another")
    if args.folder:
        require_writable(args.folder, "--folder")

    results = checked(args.dataset, args.dataroot, args.splits, args.workers, args.quick, args.max_pixels)
    tables = split_tables(args.dataset, results["splits"])
    if args.folder:
        write_results(args.folder, results, tables)
    elif tables:
        print("\n".join(f"\n{title}\n\n{markdown_table(rows)}" for title, rows in tables.items()))
    print(told(results))
    if not results["usable"]:
        raise SystemExit(1)
    return results


def checked(
    name: str,
    root: Path,
    splits: list[str] | None = None,
    workers: int = 0,
    quick: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> dict:
    """What is to be said of a data set: {"usable", "errors", "warnings", "notes", "splits", ...}."""
    source = SOURCES[name]
    problems, reports = list(folder_problems(root, source)), {}
    if not problems:
        problems += junk_files(root)
        if name == "coco20":
            problems += names_problems(root)
        for title in splits or source.splits:
            pairs, found = listed(name, title, root)
            problems += found
            if pairs:
                report, found = looked_into(name, title, pairs, root, workers, quick, max_pixels)
                reports[title] = report
                problems += found
    levels = {f"{level}s": grouped(problem for problem in problems if problem.level == level) for level in LEVELS}
    head = {"dataset": name, "dataroot": str(root), "quick": quick, "usable": not levels["errors"]}
    return head | levels | {"splits": reports}


# Folders and pairs


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


def better_roots(root: Path, source: Source, depth: int = 3) -> list[Path]:
    """The nearest folders above the root or below it that hold what the data set's folder should hold."""
    root = root.resolve()
    above = [parent for parent in root.parents[:depth] if fits(parent, source)]
    if above:
        return above[:1]
    level = [root]
    for _ in range(depth):
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


def names_problems(root: Path) -> Iterable[Problem]:
    try:
        check_names(root / "labels.txt")
    except (FileNotFoundError, ValueError) as error:
        yield Problem("error", str(error))


def listed(name: str, title: str, root: Path) -> tuple[Pairs, list[Problem]]:
    """The pairs of a split that are in order, and what is wrong with the others."""
    source = SOURCES[name]
    try:
        pairs, unpaired = source.splits[title].pairs(root), []
    except UnpairedFiles as error:
        pairs, unpaired = error.pairs, error.problems
    except (OSError, ValueError) as error:  # a folder that cannot be read; ImageFolder's
        return [], [Problem("error", str(error))]
    problems = []
    missing = [problem for problem in unpaired if problem.kind == "no folder"]
    if len(missing) > 1 and len(source.splits) > 1:
        others = " ".join(other for other in source.splits if other != title)
        advice = f"unpack it, or leave it out of the check: --splits {others}"
        problems.append(Problem("error", f"the split {title} is not there: {missing[0].told}; {advice}"))
    else:
        problems += [unpaired_problem(problem, source, title, root, bool(pairs)) for problem in unpaired]
    return pairs, problems


def unpaired_problem(problem: PairProblem, source: Source, title: str, root: Path, some: bool) -> Problem:
    """A problem of pairing with its way out; `some` says whether other files of the split are pairs."""
    example = shortened(problem.path, root)
    if problem.kind in ("no folder", "no label"):
        of_labels = source.labels in problem.path.relative_to(root).parts
        advice = (
            f"the label maps are missing: {source.get_labels}" if of_labels else "the images are missing: unpack them"
        )
        return Problem("error", f"{problem.told} ({advice})")
    if problem.kind == "no image":
        endings = Counter(path.suffix for path in files_below(problem.path, ("",)).files).most_common(3)
        there = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in endings)
        return Problem("error", f"{problem.told}; files that are there: {there or 'none'}")
    if problem.kind == "no file":
        return Problem("error", "what is named like an image or label map and is no file; take it out", problem.told)
    if problem.kind == "twice":
        return Problem("error", f"{title}: files that differ in their ending alone; take one out", example)
    if problem.kind == "label alone":
        alone = "label maps without their image" if some else "no label map has its image"
        return Problem("error", f"{title}: {alone}; unpack the images again, or take the label maps out", example)
    beside = names_beside(problem.path, problem.wanted)
    if any("labelTrainIds" in other for other in beside):
        told = "there is only *_labelTrainIds.png where *_labelIds.png is read; " + source.get_labels
    elif any(other.lower().endswith((".jpg", ".jpeg")) for other in beside):
        told = "the label map is a JPEG, which blurs the values; take the original PNG file"
    elif some:
        told = "images without label map; unpack the label maps again, or take the images out"
    else:
        told = f"no image has its label map; {source.get_labels}"
    return Problem("error", f"{title}: {told}", f"{example}: {shortened(problem.wanted, root)} is missing")


def names_beside(image: Path, wanted: Path) -> list[str]:
    """What lies where an image's label map should be, by names that begin as both do."""
    same = [a == b for a, b in zip(image.stem, wanted.stem, strict=False)]
    stem = wanted.stem[: (same + [False]).index(False)].rstrip("_-")
    if image.parent == wanted.parent or not wanted.parent.is_dir():
        return []
    return [path.name for path in wanted.parent.glob(f"{stem}*") if not path.name[len(stem) : len(stem) + 1].isalnum()]


def shortened(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


# Files


def looked_into(
    name: str, title: str, pairs: Pairs, root: Path, workers: int, quick: bool, max_pixels: int
) -> tuple[dict, list[Problem]]:
    """What a split holds, and what is wrong with it."""
    source = SOURCES[name]
    labelled = name != "images"
    values = source.dataset.table.numpy() if labelled else None
    modes = source.dataset.image_modes if labelled else None
    look = partial(look_at, root=root, values=values, modes=modes, quick=quick, max_pixels=max_pixels)
    found = looked_at(pairs, look, workers, title)
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
        counted = [file.pixels for file in found if file.pixels]
        if name == "coco20":
            counted = [pixels for pixels in counted if chosen(pixels, title)]
            report["chosen_images"] = len(counted)
            if counted or all(file.pixels for file in found):  # else those that are damaged may be the ones
                problems += chosen_problems(title, len(counted))
        pixels = Counter()
        for part in counted:
            pixels.update(part)
        report["stored_values"] = {str(value): count for value, count in sorted(pixels.items())}
        report["labels"] = label_pixels(name, pixels)
        report["outlier_pixels"] = report["labels"].get("outlier", {}).get("pixels", 0)
        advice = value_advice(name, set(pixels))
        valid = ranges(np.flatnonzero(values != UNKNOWN_VALUE).tolist())
        kind = f"{title}: label values that the data set does not have; its values are {valid}" + advice
        problems = [problem._replace(kind=kind) if problem.kind == "values" else problem for problem in problems]
        if counted:
            problems += content_problems(name, title, pixels, report, pairs, not any(p.kind == kind for p in problems))
    return report, problems


def looked_at(pairs: Pairs, look: Callable, workers: int, title: str) -> list[Found]:
    chunk = max(1, min(64, len(pairs) // (4 * max(1, workers))))
    pool = ProcessPoolExecutor(workers, initializer=leave_interrupts_to_the_main_process) if workers else None
    try:
        found = pool.map(look, pairs, chunksize=chunk) if pool else map(look, pairs)
        return list(tqdm(found, f"checking {title}", len(pairs), leave=False, dynamic_ncols=True, disable=None))
    except BrokenProcessPool as error:
        raise LostProcess("a process died; most often memory ran out: lower --workers, or 0 for one") from error
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def look_at(
    pair: tuple[Path, Path | None],
    root: Path,
    values: np.ndarray | None,
    modes: tuple[str, ...] | None,
    quick: bool,
    max_pixels: int = MAX_PIXELS,
) -> Found:
    """Read an image and its label map; with NumPy alone, since torch's threads do not survive a fork.

    values  (256,) as a data set's table: UNKNOWN_VALUE where a stored value is none of its own
    modes   Pillow modes of images that the data set takes; None: of any folder, from which some are left out
    """
    image_path, label_path = pair
    problems, header, way = [], None, 1
    example = shortened(image_path, root)
    try:
        image, _ = read_picture(image_path, not quick, max_pixels)
        with image:
            header, way = Header(image.format, image.mode, image.size), orientation(image)
        problems += endless(image, example)
        if modes is None and header.mode in THIRTY_TWO_BITS:
            kind = "images of 32-bit values, of no stated range, which are left out; convert them to 8 or 16 bits"
            problems.append(Problem("warning", kind, example))
        elif modes is not None and header.mode not in modes:
            kind = f"images that are not {' or '.join(modes)}; convert them, or take out label maps that lie among them"
            problems.append(Problem("error", kind, f"{example} is {described(header.mode)}"))
    except NotRead as error:
        kind = "images that are left out" if modes is None else "images that are not read"
        problems.append(Problem("error" if modes else "warning", kind, str(error)))
    except (OSError, ValueError) as error:
        problems.append(damaged(image_path, root, error))
    if label_path is None:
        return Found(header, problems=tuple(problems))
    label_mode = pixels = None
    try:
        labels, content = read_picture(label_path, not quick, max_pixels)
        with labels:
            label_mode, label_size, kind_of_file = labels.mode, labels.size, labels.format
        problems += size_problems(example, header, way, label_size)
        example = shortened(label_path, root)
        if quick and label_mode not in VALUE_MODES and kind_of_file not in BLURRING:  # its header does not say enough
            labels, content = read_picture(label_path, max_pixels=max_pixels)
        if kind_of_file in BLURRING:
            kind = f"label maps saved as {kind_of_file}, which blurs the values, whatever the file is called"
            problems.append(Problem("error", f"{kind}; take the originals", example))
        elif not quick or label_mode not in VALUE_MODES:
            stored = label_values(labels, content)
            if label_mode in ("LA", "RGB", "RGBA"):
                kind = "label maps saved in colour or with transparency, read by value since all channels agree"
                problems.append(Problem("note", kind, f"{example} is {described(label_mode)}"))
            found = counts(stored)
            pixels = None if quick else found
            wrong = [v for v in found if not 0 <= v < len(values) or values[v] == UNKNOWN_VALUE]
            if wrong:
                problems.append(Problem("error", "values", f"{example} holds {ranges(sorted(wrong))}"))
    except NoLabelMap as error:
        kind = (
            "label maps saved in colour; a label map has one value per pixel: take the original files, not pictures of "
            "them"
        )
        problems.append(Problem("error", kind, f"{example} {error}"))
    except NotRead as error:
        problems.append(Problem("error", "label maps that are not read", str(error)))
    except (OSError, ValueError) as error:
        problems.append(damaged(label_path, root, error))
    return Found(header, label_mode, pixels, tuple(problems))


def endless(image: Image.Image, example: str) -> Iterable[Problem]:
    if "no end marker" in image.info:
        yield Problem("note", "JPEG files that lack their end marker and nothing else; they are read", example)


def size_problems(example: str, header: Header | None, way: int, label_size: tuple[int, int]) -> Iterable[Problem]:
    """An image and a label map of two sizes, or that may be of two ways up."""
    if header and label_size != header.size:
        sizes = " and ".join(f"{width}x{height}" for width, height in (header.size, label_size))
        turned = f", by EXIF orientation {way}" if way >= 5 else ""
        turned = f" (one of the two is turned{turned})" if label_size == header.size[::-1] else ""
        kind = (
            "image and label map are of two sizes; take both from the original archives, "
            "or resize the label map to the image's size with nearest neighbour"
        )
        yield Problem("error", kind, f"{example} {sizes}{turned}")
    elif way != 1:
        kind = (
            "images that viewers turn, by their EXIF data; they are used as stored, so their label maps must be of "
            "the same way up: look at some, and store the images turned where they are not"
        )
        yield Problem("warning", kind, f"{example} has orientation {way}")


def damaged(path: Path, root: Path, error: Exception) -> Problem:
    reason = str(error).removeprefix(f"{path} ").removeprefix("cannot be read as an image: ")
    reason = reason.removesuffix("; fetch or write it again").replace(repr(str(path)), "the file")
    if path.is_file() and path.stat().st_size == 0:
        reason = "the file is empty"
    return Problem(
        "error",
        "files that cannot be read as images: cut short, empty or something else; copy, unpack or download them again",
        f"{shortened(path, root)}: {reason}",
    )


def counts(stored: np.ndarray) -> dict[int, int]:
    """Pixels by stored value."""
    if stored.dtype == np.uint8:
        pixels = np.bincount(stored.ravel(), minlength=256)
        return {int(value): int(pixels[value]) for value in pixels.nonzero()[0]}
    return {int(value): int(count) for value, count in zip(*np.unique(stored, return_counts=True), strict=True)}


# What a split holds as a whole


def count_problems(title: str, images: int, published: int | None) -> Iterable[Problem]:
    if published and images != published:
        why = (
            "is the download complete, and all of it unpacked?"
            if images < published
            else "is something else among them?"
        )
        yield Problem("warning", f"{title}: {images:,} images with label map; {published:,} are published: {why}")


def chosen(pixels: dict[int, int], title: str) -> bool:
    """Whether COCO20 takes a photograph: the rules in data.coco.RULES."""
    table = COCO20.table
    labels = {int(table[value]) for value in pixels if 0 <= value < len(table)}
    known = any(0 <= label < COCO20.num_classes for label in labels)
    return known and OUTLIER not in labels if title == "training" else known or OUTLIER in labels


def chosen_problems(title: str, count: int) -> Iterable[Problem]:
    if not count:
        yield Problem(
            "error", f"{title}: no label map holds {RULES[title]}; a pixel's value must be COCO-Stuff's id - 1"
        )
    elif count != CHOSEN[title]:
        yield Problem(
            "warning", f"{title}: {count:,} photographs are chosen by their labels; {CHOSEN[title]:,} are published"
        )


def label_pixels(name: str, pixels: Counter) -> dict[str, dict]:
    """{label: {"stored", "pixels", "share"}} of all labels that the data set has, the share among valid values."""
    table = SOURCES[name].dataset.table.tolist()
    classes = list(getattr(SOURCES[name].dataset, "class_colours", ()))
    stored = {}
    for value, label in enumerate(table):
        if label != UNKNOWN_VALUE:
            stored.setdefault(label, []).append(value)
    total = sum(pixels[value] for values in stored.values() for value in values)
    labels = {}
    for label, values in sorted(stored.items()):
        title = {OUTLIER: "outlier", IGNORE: "ignored"}.get(label, f"id {label}" if len(stored) > 100 else "inlier")
        count = sum(pixels[value] for value in values)
        share = count / total if total else 0.0
        title = classes[label] if label < len(classes) else title
        labels[title] = {"stored": ranges(values), "pixels": count, "share": share}
    return labels


def value_advice(name: str, values: set[int]) -> str:
    """What wrong values most often mean in this data set."""
    if name == "street-hazards" and 0 in values and max(values) <= 13:
        return ". These begin at 0: another project took 1 off each; take the original maps"
    if name == "road-anomaly" and 1 in values:
        return ". In RoadAnomaly's own files the outlier is 2; 1 is Fishyscapes' and SegmentMeIfYouCan's: store it as 2"
    if name in ("static", "anomaly-track", "obstacle-track") and 2 in values:
        return ". 2 is ignored in Lost & Found and the outlier in RoadAnomaly: is it the right --dataset?"
    if name == "ade20k":
        return ". Take ADEChallengeData2016, not the full ADE20K, and maps in which unlabeled is 0"
    if name == "coco20":
        return ". A pixel's value is COCO-Stuff's id - 1: take the maps of stuffthingmaps_trainval2017.zip"
    return ". Many values in between come from resizing with interpolation: take the original maps"


def content_problems(
    name: str, title: str, pixels: Counter, report: dict, pairs: Pairs, valid: bool
) -> Iterable[Problem]:
    """What the files say only together; `valid`: whether all values were ones that the data set has."""
    labels, values = report["labels"], set(pixels)
    known = sum(part["pixels"] for label, part in labels.items() if label not in ("outlier", "ignored"))
    if not known:
        yield Problem("error", f"{title}: no pixel of a known class in any label map; are they the right ones?")
    if name == "cityscapes" and not values & set(range(19, 34)):
        yield Problem(
            "error",
            f"{title}: the label maps hold {ranges(sorted(values))} and none of 19-33 (traffic light, vegetation, sky, "
            "person, car): these are train ids under the name labelIds; unpack gtFine_trainvaltest.zip again",
        )
    if name == "lf" and 1 not in values and 2 in values:
        yield Problem(
            "error",
            f"{title}: no label map holds 1 (outlier) but some hold 2, which is ignored in Lost & Found; in "
            "RoadAnomaly's maps 2 is the outlier: --dataset road-anomaly, or store it as 1",
        )
    elif SOURCES[name].splits[title].evaluated and not report["outlier_pixels"] and valid:
        advice = "; 255 is read as ignored: store the outliers as 1" if 255 in values and name != "coco20" else ""
        yield Problem("error", f"{title}: no outlier pixel in any label map, so there is nothing to find{advice}")
    if name == "lf" and 255 in values and 1 in values:
        yield Problem("note", f"{title}: 255 is read as ignored, as 2 is")
    if name == "coco20" and values & {number - 1 for number in REMOVED_IDS}:
        yield Problem(
            "warning", f"{title}: pixels of ids that COCO removed; are values ids where they should be ids - 1?"
        )
    if name == "street-hazards" and title != "test" and report["outlier_pixels"]:
        yield Problem(
            "warning", f"{title}: {report['outlier_pixels']:,} pixels of anomalies, of which there should be none"
        )
    if name == "street-hazards" and title == "test":
        towns = {town for image, _ in pairs for town in image.parts if town in ("t5", "t6")}
        for town in sorted({"t5", "t6"} - towns):
            yield Problem("warning", f"test: no frame of town {town}, which evaluate_osr_sh.py needs")
    if title in ("training", "train") and name != "ade20k":
        never = [label for label, part in labels.items() if not part["pixels"] and label not in ("outlier", "ignored")]
        if never and known:
            yield Problem("warning", f"{title}: classes without a pixel, which cannot be learnt: {', '.join(never)}")


# What is shown


def grouped(problems: Iterable[Problem]) -> list[dict]:
    """[{"kind", "examples"}] in the order in which the kinds turned up."""
    kinds = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem.example)
    return [{"kind": kind, "examples": [text for text in found if text]} for kind, found in kinds.items()]


def told(results: dict) -> str:
    lines = []
    for level, title in LEVELS.items():
        groups = results[f"{level}s"]
        if groups:
            lines.append(f"\n{title}:")
        for group in groups:
            examples = group["examples"]
            count = f" ({len(examples):,} files)" if len(examples) > 1 else ""
            lines.append(f"  - {group['kind']}{count}")
            lines += [f"      {example}" for example in examples[:MOST]]
            if len(examples) > MOST:
                lines.append(f"      and {len(examples) - MOST:,} more")
    counted = {level: len(results[f"{level}s"]) for level in ("error", "warning")}
    numbers = [f"{count} {level}{'s' * (count > 1)}" for level, count in counted.items() if count]
    verdict = "can be used" if results["usable"] else "CANNOT be used"
    depth = "by folders, pairs and headers alone, " if results["quick"] else ""
    lines.append(
        f"\n{depth}{results['dataset']} in {results['dataroot']} {verdict}: {', '.join(numbers) or 'all is well'}"
    )
    return "\n".join(lines)


def split_tables(name: str, reports: dict[str, dict]) -> dict[str, list[list]]:
    if not reports:
        return {}
    rows = [["split", "images", "published", "sizes", "outlier pixels"]]
    for title, report in reports.items():
        outliers = f"{report['outlier_pixels']:,}" if "outlier_pixels" in report else ""
        images = f"{report['images']:,}" + (
            f", {report['chosen_images']:,} chosen" if "chosen_images" in report else ""
        )
        published = f"{report['published_images']:,}" if report["published_images"] else ""
        published += f", {CHOSEN[title]:,} chosen" if name == "coco20" else ""
        sizes = [f"{size} ({count:,})" for size, count in report["sizes"].items()]
        more = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
        rows.append([title, images, published, ", ".join(sizes[:3]) + more, outliers])
    tables = {f"{name}: what is there": rows}
    counted = {title: report["labels"] for title, report in reports.items() if "labels" in report}
    if counted:
        labels = next(iter(counted.values()))
        order = list(labels)
        if len(order) > MOST_ROWS:
            order = sorted(order, key=lambda label: -sum(part[label]["pixels"] for part in counted.values()))
        rows = [["label", "stored", *(f"{title}, % of pixels" for title in counted)]]
        for label in order[:MOST_ROWS]:
            rows.append([label, labels[label]["stored"], *(part[label]["share"] for part in counted.values())])
        if order[MOST_ROWS:]:
            rest = [sum(part[label]["share"] for label in order[MOST_ROWS:]) for part in counted.values()]
            rows.append([f"{len(order) - MOST_ROWS} others", "", *rest])
        tables[f"{name}: labels, in what is chosen" if name == "coco20" else f"{name}: labels"] = rows
    return tables


if __name__ == "__main__":
    run_script(main)
