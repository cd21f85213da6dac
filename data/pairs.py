"""Pairs of image and label map by their names below two folders; no file is opened.

Every error names the file or folder, what is wrong with it, and the way out.
"""

from pathlib import Path
from typing import NamedTuple

from data.listing import PICTURE_ENDINGS, Listing, files_below, say_left_out, why_no_file
from errors import MissingFile

Pairs = list[tuple[Path, Path]]  # (image, label map)


class PairProblem(NamedTuple):
    """What keeps files from being pairs."""

    kind: str  # "no folder", "no image", "no label", "image alone", "label alone", "no file" or "twice"
    path: Path  # the folder, image or label map
    message: str
    wanted: Path | None = None  # of an image alone: the label map that is missing


class UnpairedFiles(MissingFile):
    """The first problem as its text; `problems` are all of them, `pairs` what is in order nevertheless."""

    def __init__(self, problems: list[PairProblem], pairs: Pairs):
        super().__init__(problems[0].message)
        self.problems, self.pairs = problems, pairs


def pair_files(
    images_root: Path,
    labels_root: Path,
    hint: str,
    image_pattern: str = "*.png",
    label_suffix: str = ".png",
    every_image: bool = True,
) -> Pairs:
    """Sorted pairs (image, label) of all images below images_root, listed as data/listing.py has it.

    An image's label lies at the same relative path below labels_root, its ending (what follows the * of
    image_pattern) replaced by label_suffix. Endings are compared without case, and .jpeg counts as .jpg.

    hint         how the user names this folder, for the errors
    every_image  whether an image without a label is an error; else it is left out, as its data set means it
    raises       UnpairedFiles, a FileNotFoundError: no folder, no image, an image without label or a label without
                 image, two of one name, what is no file; its text is the first, and it carries all. OSError for a
                 folder that cannot be read
    """
    problems = [
        PairProblem("no folder", folder, f"no folder {folder}; {hint}")
        for folder in (images_root, labels_root)
        if not folder.is_dir()
    ]
    if problems:
        raise UnpairedFiles(problems, [])
    image_endings, label_endings = spellings(image_pattern.removeprefix("*")), spellings(label_suffix)
    image_files, label_files = files_below(images_root, image_endings), files_below(labels_root, label_endings)
    for root, listing in ((images_root, image_files), (labels_root, label_files)):
        say_left_out(root, listing.left_out())
        problems += no_file_problems(listing)
    images = by_key(images_root, image_files.files, image_endings)
    labels = by_key(labels_root, label_files.files, label_endings)
    pairs = []
    for key, same in images.items():
        image, wanted = same[0], labels_root / (key + label_suffix)
        if key in labels:
            pairs.append((image, labels[key][0]))
            for one, *more in (same, labels[key]):
                if more:
                    message = f"{one} and {more[0].name} differ in their ending alone, and one is needed; take one out"
                    problems.append(PairProblem("twice", one, message))
        elif every_image:
            message = f"{image} has no label map: {wanted} is missing; add it or take the image out"
            problems.append(PairProblem("image alone", image, message, wanted))
    alone = {key: same[0] for key, same in labels.items() if key not in images}
    problems += alone_problems(alone, images_root, image_files.others, image_pattern)
    if not images and not alone:
        problems.append(PairProblem("no image", images_root, f"no {image_pattern} under {images_root}; {hint}"))
    elif not pairs and not problems:
        problems.append(PairProblem("no label", labels_root, f"no *{label_suffix} under {labels_root}; {hint}"))
    if problems:
        raise UnpairedFiles(problems, pairs)
    return pairs


def alone_problems(
    alone: dict[str, Path], images_root: Path, others: list[Path], image_pattern: str
) -> list[PairProblem]:
    """Of label maps without image, by their key; where one is there that the data set does not read, they name it.

    others  files below images_root that are no images of this data set
    """
    ending = image_pattern.removeprefix("*")
    stem = ending.removesuffix(Path(ending).suffix or ending)
    unread = {
        path.relative_to(images_root).with_suffix("").as_posix(): path
        for path in others
        if path.suffix.lower() in PICTURE_ENDINGS
    }
    problems = []
    for key, label in alone.items():
        message = f"{label} has no image under {images_root} ({len(alone)} such label maps); add it or take the map out"
        if key + stem in unread:
            message += f"; {unread[key + stem]} is there, but this data set's images are {image_pattern}: convert it"
        problems.append(PairProblem("label alone", label, message))
    return problems


def no_file_problems(listing: Listing) -> list[PairProblem]:
    return [
        PairProblem("no file", path, f"{path} is {why_no_file(path)}, and no file; take it out")
        for path in listing.no_files
    ]


def spellings(ending: str) -> tuple[str, ...]:
    """What files_below takes for files of this ending."""
    ending = ending.lower()
    return (ending, ending.removesuffix(".jpg") + ".jpeg") if ending.endswith(".jpg") else (ending,)


def by_key(root: Path, paths: list[Path], endings: tuple[str, ...]) -> dict[str, list[Path]]:
    """{path below root without its ending: the files that differ in it alone}."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        text = path.relative_to(root).as_posix()
        ending = next(ending for ending in endings if text.lower().endswith(ending))
        found.setdefault(text[: -len(ending)], []).append(path)
    return found
