"""Pairs of image and label files, and what is read of them.

Every error names the file or folder, what is wrong with it, and the way out.
"""

from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.cache import cached
from data.decoding import (
    MAX_PIXELS,
    PNG_START,
    described,
    open_image,
    orientation,
    png_parts,
    read_picture,
    rgb_pixels,
    sixteen_bit_values,
    turned,
)
from data.listing import PICTURE_ENDINGS, Listing, files_below, say_left_out, say_once, why_no_file
from data.transforms import Transform
from errors import MissingFile, WrongInput

UNKNOWN_VALUE = -1  # in a table of labels: a stored value that the data set does not have
PLAIN_HEAD = b"\x08\x02\x00\x00\x00"  # at byte 24 of a PNG file: depth 8, colour RGB, not interlaced
HEAD_BYTES = 33  # of a PNG file, with its size
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
PNG_TURNED = (b"exif", b"EXIF", b"rientation", b"xmp")  # what texts with an orientation have in their names or data
BLURRING = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")  # formats that change the values they are given, or may


Pairs = list[tuple[Path, Path]]  # (image, label map)


class LabelledImages(Dataset):
    """Samples (image uint8 (3, H, W), labels uint8 (H, W), name) of pairs of files: what the data sets share.

    What the transform returns besides image and labels stands between labels and name. A data set gives its `table`
    (see read_labels), its pairs, and `image_modes` where it takes other than RGB; its static `list_pairs` lists the
    pairs without opening a file, for tools.check_data.

    cache       a folder for decoded copies of the files, from which later visits read their rows (see data/cache.py)
    max_pixels  of the largest picture that is read, a larger one is an error; None: data.decoding.MAX_PIXELS
    """

    table: Tensor
    num_classes: int  # of data sets of known classes
    image_modes = ("RGB", "RGBA")

    def __init__(
        self,
        root: Path,
        pairs: Pairs,
        transform: Transform | None = None,
        cache: str | Path | None = None,
        max_pixels: int | None = None,
    ):
        self.root, self.pairs, self.transform, self.cache = root, pairs, transform, cache
        self.max_pixels = max_pixels or MAX_PIXELS

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def names(self) -> list[str]:
        """Of the images, relative to the data set's folder."""
        return [image.relative_to(self.root).as_posix() for image, _ in self.pairs]

    def __getitem__(self, index: int) -> tuple:
        image_path, label_path = self.pairs[index]
        image = cached(self.cache, image_path, read_image, self.image_modes, self.max_pixels)
        labels = cached(self.cache, label_path, read_labels, self.table, self.max_pixels)
        check_sizes(image_path, image, label_path, labels)
        sample = self.transform(image, labels) if self.transform else (image, labels)
        return *sample, image_path.relative_to(self.root).as_posix()


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
                 image, two of one name, what is no file; it tells the first and carries all. OSError for a folder
                 that cannot be read
    """
    problems = [
        PairProblem("no folder", folder, f"no folder {folder}; {hint}")
        for folder in (images_root, labels_root)
        if not folder.is_dir()
    ]
    if problems:
        raise UnpairedFiles(problems, [])
    ending = image_pattern.removeprefix("*")
    image_endings, label_endings = spellings(ending), spellings(label_suffix)
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
    stem = ending.removesuffix(Path(ending).suffix or ending)
    unread = {
        path.relative_to(images_root).with_suffix("").as_posix(): path
        for path in image_files.others
        if path.suffix.lower() in PICTURE_ENDINGS
    }
    for key, label in alone.items():
        message = f"{label} has no image under {images_root} ({len(alone)} such label maps); add it or take the map out"
        if key + stem in unread:
            message += f"; {unread[key + stem]} is there, but this data set's images are {image_pattern}: convert it"
        problems.append(PairProblem("label alone", label, message))
    if not images and not alone:
        problems.append(PairProblem("no image", images_root, f"no {image_pattern} under {images_root}; {hint}"))
    elif not pairs and not problems:
        problems.append(PairProblem("no label", labels_root, f"no *{label_suffix} under {labels_root}; {hint}"))
    if problems:
        raise UnpairedFiles(problems, pairs)
    return pairs


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


def check_sizes(image_path: Path, image: Tensor, label_path: Path, labels: Tensor) -> None:
    """Raise ValueError where an image (3, H, W) and its label map (H, W) differ in size."""
    if image.shape[1:] == labels.shape:
        return
    sizes = [f"{width}x{height}" for height, width in (image.shape[1:], labels.shape)]
    message = f"{image_path} is {sizes[0]} but its label map {label_path} is {sizes[1]}"
    with open_image(image_path, decoded=False, max_pixels=image[0].numel()) as header:
        way = orientation(header)
    if way >= 5 and image.shape[1:] == labels.shape[::-1]:
        message += f": EXIF orientation {way} turns the image in viewers; store it turned, or turn its label map"
    raise WrongInput(message)


def read_image(path: Path, modes: tuple[str, ...] = ("RGB", "RGBA"), max_pixels: int = MAX_PIXELS) -> Tensor:
    """An image of a labelled data set as uint8 RGB (3, H, W), as it is stored: not turned, an alpha channel dropped.

    Says once where viewers would turn an image, which its label map may have been drawn on.

    modes   Pillow modes that are taken: "L" must be asked for, since a greyscale picture among street scenes is
            more often a label map in the wrong folder
    """
    pixels = plain_png(path, max_pixels) if "RGB" in modes else None
    if pixels is not None:
        return pixels
    image, content = read_picture(path, max_pixels=max_pixels)
    if image.mode not in modes:
        raise WrongInput(
            f"{path} is stored as {described(image.mode)}; expected {' or '.join(modes)}: "
            "convert it, or check that no label map lies among the images"
        )
    way = orientation(image)
    if way != 1:
        say_once(
            f"{path} has EXIF orientation {way}: viewers turn it; here it is used as stored, and its label map must be "
            "of the same way up (tools.check_data lists all such images)"
        )
    return torch.from_numpy(np.ascontiguousarray(rgb_pixels(image, content))).permute(2, 0, 1)


def read_photograph(path: Path, upright: bool, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Any picture as uint8 RGB (3, H, W); transparency is dropped, and of several pictures the first is taken.

    upright  whether it is turned as its EXIF data say, as viewers do; else it is as it is stored
    raises   as open_image does, and ValueError for values of 32 bits
    """
    pixels = plain_png(path, max_pixels)
    if pixels is not None:
        return pixels
    image, content = read_picture(path, max_pixels=max_pixels)
    try:
        pixels = rgb_pixels(image, content)
    except ValueError as error:
        raise WrongInput(f"{path} cannot be read as an image: {error}") from error
    if upright:
        pixels = turned(pixels, orientation(image))
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def plain_png(path: Path, max_pixels: int = MAX_PIXELS) -> Tensor | None:
    """A PNG file of 8-bit RGB as (3, H, W), in three fifths of Pillow's time; None: it is left to Pillow.

    Left are all other files; damaged or too large ones, of which open_image says what is wrong; and those that may
    say how viewers turn them.
    """
    try:
        if not path.is_file():
            return None
        with open(path, "rb") as opened:
            encoded = opened.read(HEAD_BYTES)
            if encoded[: len(PNG_START)] != PNG_START or encoded[24:29] != PLAIN_HEAD:
                return None
            encoded += opened.read()
        width, height = (int.from_bytes(encoded[place : place + 4], "big") for place in (16, 20))
        if width * height > max_pixels:
            return None
        for name, data in png_parts(encoded):
            if name == b"eXIf" or (name in PNG_TEXTS and any(word in bytes(data) for word in PNG_TURNED)):
                return None
        pixels = imagecodecs.spng_decode(encoded)
    except (OSError, RuntimeError, ValueError, MemoryError):
        return None
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_labels(path: Path, table: Tensor, max_pixels: int = MAX_PIXELS) -> Tensor:
    """A label map as uint8 (H, W) of internal labels.

    table   (256,) int16: internal label of each stored value, UNKNOWN_VALUE where the data set has no such value
    """
    try:
        stored = label_values(*read_picture(path, max_pixels=max_pixels))
    except NoLabelMap as error:
        raise WrongInput(f"{path} {error}") from None
    values = table.numpy()
    unknown = min(set(range(256)).difference(values.tolist()), default=0)  # no label, where there are unknown values
    lookup = np.where(values == UNKNOWN_VALUE, unknown, values).astype(np.uint8).tobytes()
    labels = bytearray(stored.astype(np.uint8, copy=False)).translate(lookup)  # half of NumPy's time
    inside = stored.dtype == np.uint8 or ((stored >= 0) & (stored <= 255)).all()
    if not inside or (UNKNOWN_VALUE in values and unknown in labels):
        valid = (values != UNKNOWN_VALUE).nonzero()[0].tolist()
        wrong = np.setdiff1d(stored, valid).min()
        raise WrongInput(f"{path} holds label value {wrong}; this data set's values are {ranges(valid)}")
    return torch.frombuffer(labels, dtype=torch.uint8).view(stored.shape)


class NoLabelMap(WrongInput):
    """Why a picture is no label map, as the end of a sentence that begins with its name."""


def label_values(image: Image.Image, content: bytes) -> np.ndarray:
    """The stored values (H, W), integers, of a decoded label map: grey values, bits, or numbers into a palette.

    Colours are taken where all channels agree, alpha where it hides nothing. Raises NoLabelMap for all else.
    """
    if image.format in BLURRING:
        raise NoLabelMap(
            f"is a {image.format} file, whatever its name says, and such files blur label values; take the original "
            "PNG file"
        )
    if image.mode in ("L", "P", "I"):
        return np.asarray(image)
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    deep = sixteen_bit_values(image, content)
    if deep is not None and deep.ndim == 2:
        return deep
    if image.mode in ("LA", "RGB", "RGBA"):
        channels = np.asarray(image) if deep is None else deep
        alpha = channels[..., -1] if channels.shape[2] in (2, 4) else None
        colours = channels[..., : 1 if channels.shape[2] == 2 else 3]
        if (colours == colours[..., :1]).all():
            if alpha is not None and (alpha != np.iinfo(alpha.dtype).max).any():
                raise NoLabelMap(
                    f"is stored as {described(image.mode)} with transparent pixels, of which nobody knows the label; "
                    "store one value per pixel"
                )
            return colours[..., 0]
    raise NoLabelMap(f"is stored as {described(image.mode)}; a label map has one value per pixel")


def label_table(known: dict[int, int]) -> Tensor:
    """A table for read_labels from {stored value: internal label}."""
    table = torch.full((256,), UNKNOWN_VALUE, dtype=torch.int16)
    for stored, label in known.items():
        table[stored] = label
    return table


def ranges(values: list[int]) -> str:
    """[1, 2, 3, 7] -> '1-3, 7'."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
