"""One image and its label map: whether they can be read, and what they hold."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.decoding import MAX_PIXELS, THIRTY_TWO_BITS, NotRead, described, orientation, read_picture
from data.files import BLURRING, UNKNOWN_VALUE, NoLabelMap, label_values, ranges
from data.images import VALUE_MODES, Header
from tools.check_data.problems import Problem, shortened


class Found(NamedTuple):
    """What one image and its label map are."""

    header: Header | None = None  # of the image; None where it cannot be read
    label_mode: str | None = None
    pixels: dict[int, int] | None = None  # by stored value
    problems: tuple[Problem, ...] = ()


class ImageFound(NamedTuple):
    header: Header | None  # None where the image cannot be read
    orientation: int  # EXIF's, 1 where it is stored upright
    problems: list[Problem]


def inspect_pair(
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
    quick   read headers alone, where they say enough
    """
    image_path, label_path = pair
    image = inspect_image(image_path, root, modes, quick, max_pixels)
    if label_path is None:
        return Found(image.header, problems=tuple(image.problems))
    labels = inspect_label_map(label_path, root, values, quick, max_pixels, image, shortened(image_path, root))
    return labels._replace(header=image.header, problems=(*image.problems, *labels.problems))


def inspect_image(path: Path, root: Path, modes: tuple[str, ...] | None, quick: bool, max_pixels: int) -> ImageFound:
    """As inspect_pair has it."""
    problems, header, turned = [], None, 1
    example = shortened(path, root)
    try:
        image, _ = read_picture(path, not quick, max_pixels)
        with image:
            header, turned = Header(image.format, image.mode, image.size), orientation(image)
        problems += endless(image, example)
        problems += mode_problems(header, modes, example)
    except NotRead as error:
        kind = "images that are left out" if modes is None else "images that are not read"
        problems.append(Problem("error" if modes else "warning", kind, str(error)))
    except (OSError, ValueError) as error:
        problems.append(damaged(path, root, error))
    return ImageFound(header, turned, problems)


def mode_problems(header: Header, modes: tuple[str, ...] | None, example: str) -> Iterable[Problem]:
    if modes is None and header.mode in THIRTY_TWO_BITS:
        kind = "images of 32-bit values, of no stated range, which are left out; convert them to 8 or 16 bits"
        yield Problem("warning", kind, example)
    elif modes is not None and header.mode not in modes:
        kind = f"images that are not {' or '.join(modes)}; convert them, or take out label maps that lie among them"
        yield Problem("error", kind, f"{example} is {described(header.mode)}")


def inspect_label_map(
    path: Path, root: Path, values: np.ndarray, quick: bool, max_pixels: int, image: ImageFound, image_example: str
) -> Found:
    """As inspect_pair has it, beside its image; what is found is of the label map alone."""
    problems: list[Problem] = []
    mode = pixels = None
    example = shortened(path, root)
    try:
        labels, content = read_picture(path, not quick, max_pixels)
        with labels:
            mode, size, file_format = labels.mode, labels.size, labels.format
        problems += size_problems(image_example, image.header, image.orientation, size)
        if file_format in BLURRING:
            kind = f"label maps saved as {file_format}, which blurs the values, whatever the file is called"
            problems.append(Problem("error", f"{kind}; take the originals", example))
        elif not quick or mode not in VALUE_MODES:
            if quick:  # its header does not say enough
                labels, content = read_picture(path, max_pixels=max_pixels)
            stored = label_values(labels, content)
            if mode in ("LA", "RGB", "RGBA"):
                kind = "label maps saved in colour or with transparency, read by value since all channels agree"
                problems.append(Problem("note", kind, f"{example} is {described(mode)}"))
            counted = counts(stored)
            pixels = None if quick else counted
            problems += value_problems(counted, values, example)
    except NoLabelMap as error:
        kind = (
            "label maps saved in colour; a label map has one value per pixel: take the original files, not pictures of "
            "them"
        )
        problems.append(Problem("error", kind, f"{example} {error}"))
    except NotRead as error:
        problems.append(Problem("error", "label maps that are not read", str(error)))
    except (OSError, ValueError) as error:
        problems.append(damaged(path, root, error))
    return Found(None, mode, pixels, tuple(problems))


def value_problems(counted: dict[int, int], values: np.ndarray, example: str) -> Iterable[Problem]:
    """Of stored values that the data set does not have; inspect_split says of a kind "values" what they mean."""
    wrong = [value for value in counted if not 0 <= value < len(values) or values[value] == UNKNOWN_VALUE]
    if wrong:
        yield Problem("error", "values", f"{example} holds {ranges(sorted(wrong))}")


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
