"""Reading what lies on the disk: pairs of image and label files, images, label maps.

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
from data.transforms import Transform

UNKNOWN_VALUE = -1  # in a table of labels: a stored value that the data set does not have
PLAIN_HEAD = b"\x08\x02\x00\x00\x00"  # at byte 24 of a PNG file: depth 8, colour RGB, not interlaced


class LabelledImages(Dataset):
    """Samples (image uint8 (3, H, W), labels uint8 (H, W), name) of pairs of files: what the data sets share.

    What the transform returns besides image and labels stands between labels and name. A data set gives its `table`
    (see read_labels), its pairs, and `image_modes` where it takes other than RGB.

    cache   a folder for decoded copies of the files, from which later visits read their rows (see data/cache.py)
    """

    table: Tensor
    image_modes = ("RGB", "RGBA")

    def __init__(
        self,
        root: Path,
        pairs: list[tuple[Path, Path]],
        transform: Transform | None = None,
        cache: str | Path | None = None,
    ):
        self.root, self.pairs, self.transform, self.cache = root, pairs, transform, cache

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple:
        image_path, label_path = self.pairs[index]
        image = cached(self.cache, image_path, read_image, self.image_modes)
        labels = cached(self.cache, label_path, read_labels, self.table)
        if image.shape[1:] != labels.shape:
            sizes = [f"{width}x{height}" for height, width in (image.shape[1:], labels.shape)]
            raise ValueError(f"{image_path} is {sizes[0]} but its label map {label_path} is {sizes[1]}")
        sample = self.transform(image, labels) if self.transform else (image, labels)
        return *sample, image_path.relative_to(self.root).as_posix()


class PairProblem(NamedTuple):
    """What keeps files from being pairs."""

    kind: str  # "no folder", "no image", "no label", "image alone" or "label alone"
    path: Path  # the folder, image or label map
    told: str
    wanted: Path | None = None  # of an image alone: the label map that is missing


class UnpairedFiles(FileNotFoundError):
    """The first problem as its text; `problems` are all of them, `pairs` what is in order nevertheless."""

    def __init__(self, problems: list[PairProblem], pairs: list[tuple[Path, Path]]):
        super().__init__(problems[0].told)
        self.problems, self.pairs = problems, pairs


def pair_files(
    images_root: Path,
    labels_root: Path,
    hint: str,
    image_pattern: str = "*.png",
    label_suffix: str = ".png",
    every_image: bool = True,
) -> list[tuple[Path, Path]]:
    """Sorted pairs (image, label) of all images below images_root.

    An image's label lies at the same relative path below labels_root, its ending (what follows the * of
    image_pattern) replaced by label_suffix.

    hint         how the user names this folder, for the errors
    every_image  whether an image without a label is an error; else it is left out, as its data set means it
    raises       UnpairedFiles, a FileNotFoundError: no folder, no image, an image without label or a label without
                 image; it tells the first and carries all
    """
    problems = [
        PairProblem("no folder", folder, f"no folder {folder}; {hint}")
        for folder in (images_root, labels_root)
        if not folder.is_dir()
    ]
    if problems:
        raise UnpairedFiles(problems, [])
    ending = image_pattern.removeprefix("*")
    labels = set(labels_root.rglob("*" + label_suffix))
    images = sorted(images_root.rglob(image_pattern))
    pairs = []
    for image in images:
        relative = image.relative_to(images_root)
        label = labels_root / relative.parent / (relative.name.removesuffix(ending) + label_suffix)
        if label in labels:
            pairs.append((image, label))
        elif every_image:
            told = f"{image} has no label map: {label} is missing; add it or take the image out"
            problems.append(PairProblem("image alone", image, told, label))
    alone = sorted(labels - {label for _, label in pairs})
    for label in alone:
        told = f"{label} has no image under {images_root} ({len(alone)} such label maps); add it or take the map out"
        problems.append(PairProblem("label alone", label, told))
    if not images and not alone:
        problems.append(PairProblem("no image", images_root, f"no {image_pattern} under {images_root}; {hint}"))
    elif not pairs and not problems:
        problems.append(PairProblem("no label", labels_root, f"no *{label_suffix} under {labels_root}; {hint}"))
    if problems:
        raise UnpairedFiles(problems, pairs)
    return pairs


def read_image(path: Path, modes: tuple[str, ...] = ("RGB", "RGBA")) -> Tensor:
    """An image file as uint8 RGB (3, H, W); an alpha channel is dropped.

    modes   Pillow modes that are taken: "L" must be asked for, since a greyscale picture among street scenes is
            more often a label map in the wrong folder
    """
    pixels = plain_png(path) if "RGB" in modes else None
    if pixels is not None:
        return pixels
    with open_image(path) as image:
        if image.mode not in modes:
            raise ValueError(
                f"{path} is stored as {described(image.mode)}; expected {' or '.join(modes)}: "
                "convert it, or check that no label map lies among the images"
            )
        pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def plain_png(path: Path) -> Tensor | None:
    """A PNG file of 8-bit RGB as (3, H, W), in three fifths of Pillow's time; None: it is left to Pillow.

    Left are all other files, and damaged ones, of which Pillow says what is wrong.
    """
    try:
        encoded = path.read_bytes()
        pixels = imagecodecs.spng_decode(encoded) if encoded[24:29] == PLAIN_HEAD else None
    except (OSError, RuntimeError, MemoryError):  # the last: a head that asks for too much
        return None
    if pixels is None or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_labels(path: Path, table: Tensor) -> Tensor:
    """A label map as uint8 (H, W) of internal labels.

    table   (256,) int16: internal label of each stored value, UNKNOWN_VALUE where the data set has no such value
    """
    with open_image(path) as image:
        if image.mode not in ("L", "P", "I", "I;16"):
            raise ValueError(f"{path} is stored as {described(image.mode)}; a label map has one value per pixel")
        stored = np.asarray(image)
    values = table.numpy()
    unknown = min(set(range(256)).difference(values.tolist()), default=0)  # no label, where there are unknown values
    lookup = np.where(values == UNKNOWN_VALUE, unknown, values).astype(np.uint8).tobytes()
    labels = bytearray(stored.astype(np.uint8, copy=False)).translate(lookup)  # half of NumPy's time
    inside = stored.dtype == np.uint8 or ((stored >= 0) & (stored <= 255)).all()
    if not inside or (UNKNOWN_VALUE in values and unknown in labels):
        valid = (values != UNKNOWN_VALUE).nonzero()[0].tolist()
        wrong = np.setdiff1d(stored, valid).min()
        raise ValueError(f"{path} holds label value {wrong}; this data set's values are {ranges(valid)}")
    return torch.frombuffer(labels, dtype=torch.uint8).view(stored.shape)


def label_table(known: dict[int, int]) -> Tensor:
    """A table for read_labels from {stored value: internal label}."""
    table = torch.full((256,), UNKNOWN_VALUE, dtype=torch.int16)
    for stored, label in known.items():
        table[stored] = label
    return table


def open_image(path: Path, decoded: bool = True) -> Image.Image:
    """A picture, decoded or only its header read; a truncated or foreign file is a ValueError that names it."""
    try:
        image = Image.open(path)
        if decoded:
            image.load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is gone; it was there when the data set was listed") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
        raise ValueError(f"{path} cannot be read as an image: {error}; fetch or write it again") from error
    return image


def described(mode: str) -> str:
    """A Pillow mode in words."""
    kind = {"L": "a greyscale", "LA": "a greyscale", "P": "a palette", "1": "a black-and-white"}.get(mode, "an")
    return f"{kind} image (mode {mode})"


def ranges(values: list[int]) -> str:
    """[1, 2, 3, 7] -> '1-3, 7'."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
