"""What is read of image files and label maps, and the data sets of pairs of them.

Every error names the file or folder, what is wrong with it, and the way out.
"""

from pathlib import Path

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
from data.listing import say_once
from data.pairs import Pairs
from data.transforms import Transform
from errors import WrongInput

UNKNOWN_VALUE = -1  # in a table of labels: a stored value that the data set does not have
PLAIN_HEAD = b"\x08\x02\x00\x00\x00"  # at byte 24 of a PNG file: depth 8, colour RGB, not interlaced
HEAD_BYTES = 33  # of a PNG file, with its size
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
PNG_TURNED = (b"exif", b"EXIF", b"rientation", b"xmp")  # what texts with an orientation have in their names or data
BLURRING = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")  # formats that change the values they are given, or may


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
