"""Photographs of any folder, with or without label maps."""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from data.cache import cached
from data.decoding import MAX_PIXELS, THIRTY_TWO_BITS, NotRead, open_image
from data.files import check_sizes, label_table, read_labels, read_photograph
from data.listing import PICTURE_ENDINGS, files_below, say_left_out, why_no_file
from data.transforms import Transform
from errors import MissingFile, WrongInput

ENDINGS = PICTURE_ENDINGS
VALUE_MODES = ("1", "L", "LA", "P", "I", "I;16")  # one value per pixel
LABEL_WORDS = {"label", "labels", "labelids", "labeltrainids", "mask", "masks", "annotation", "annotations"}
LABEL_WORDS |= {"segmentation", "segmentations", "groundtruth", "gt", "gtfine"}


class ImageFolder(Dataset):
    """Samples (image uint8 (3, H, W), ids uint8 (H, W), name) of every photograph below a folder.

    masks       a folder with a label map for each image, at the same relative path but with the ending .png; its values
                are the ids, 255 as 254, since 255 is padding in here. Without it all ids are 0.
    cache       a folder for decoded copies of the files (see data/cache.py)
    max_pixels  of the largest picture that is taken; None: data.decoding.MAX_PIXELS
    as_stored   every image is taken as the file has it, as frames that results are compared on must be; else those
                without label maps are turned as EXIF data say, and left out and counted, in one printed line, are
                pictures that cannot be converted or are too large, and label maps among the photographs

    Any mode of pictures is converted (docs/data.md has the table). Raises FileNotFoundError where a folder, its images
    or a label map are missing, ValueError for a damaged header, what is no file, and an image and a label map that
    differ in size, OSError where a folder cannot be read.
    """

    mean_colour = (123, 116, 103)  # of ImageNet, 0..255
    table = label_table({value: min(value, 254) for value in range(256)})

    def __init__(
        self,
        root: str | Path,
        transform: Transform | None = None,
        masks: str | Path | None = None,
        cache: str | Path | None = None,
        max_pixels: int | None = None,
        as_stored: bool = False,
    ):
        self.root, self.transform, self.masks, self.cache = Path(root), transform, masks and Path(masks), cache
        self.max_pixels, self.upright = max_pixels or MAX_PIXELS, not (as_stored or masks)
        if not self.root.is_dir():
            raise MissingFile(f"no folder {root}; give one that holds images, at any depth")
        listing = files_below(self.root, ENDINGS)
        for path in listing.no_files:
            raise WrongInput(f"{path} is {why_no_file(path)}, and no file; take it out")
        self.paths, unfit = (listing.files, {}) if as_stored else photographs(self.root, listing.files, self.max_pixels)
        say_left_out(self.root, listing.left_out() | unfit)
        if not self.paths:
            raise MissingFile(f"no image ({', '.join(ENDINGS)}) below {root}")
        missing = [path for path in self.paths if self.masks and not self.mask_of(path).is_file()]
        if missing:
            raise MissingFile(
                f"{missing[0]} has no label map {self.mask_of(missing[0])} ({len(missing)} such images); add it, take "
                "the image out, or leave the folder of label maps away"
            )

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> list[str]:
        """Relative to the folder."""
        return [path.relative_to(self.root).as_posix() for path in self.paths]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        path = self.paths[index]
        image = cached(self.cache, path, read_photograph, self.upright, self.max_pixels)
        if self.masks:
            labels = cached(self.cache, self.mask_of(path), read_labels, self.table, self.max_pixels)
            check_sizes(path, image, self.mask_of(path), labels)
        else:
            labels = torch.zeros(image.shape[1:], dtype=torch.uint8)
        if self.transform:
            image, labels = self.transform(image, labels)
        return image, labels, path.relative_to(self.root).as_posix()

    def mask_of(self, path: Path) -> Path:
        return (self.masks / path.relative_to(self.root)).with_suffix(".png")


class Header(NamedTuple):
    """What a file's header says of its picture."""

    format: str
    mode: str
    size: tuple[int, int]  # width, height


def photographs(root: Path, paths: list[Path], max_pixels: int) -> tuple[list[Path], dict[str, list[Path]]]:
    """Those of the pictures below root that are photographs to be read, and the others by what they are.

    Only headers are read. Raises ValueError for one that is damaged.
    """
    headers = {}
    heic, deep, too_large = [], [], []
    for path in tqdm(paths, "reading headers", leave=False, dynamic_ncols=True, disable=None):
        try:
            header = header_of(path)
        except NotRead:  # of any size, so what is not read is HEIC
            heic.append(path)
            continue
        if header.mode in THIRTY_TWO_BITS:
            deep.append(path)
        elif header.size[0] * header.size[1] > max_pixels:
            too_large.append(path)
        else:
            headers[path] = header
    label_maps = label_maps_among(headers, root)
    return [path for path in headers if path not in label_maps], {
        "HEIC, which is not read": heic,
        "of 32-bit values": deep,
        f"over {max_pixels:,} pixels, the limit (--max_pixels)": too_large,
        "label maps by name and mode": sorted(label_maps),
    }


def header_of(path: Path) -> Header:
    with open_image(path, decoded=False, max_pixels=2**62) as image:
        return Header(image.format, image.mode, image.size)


def label_maps_among(headers: dict[Path, Header], root: Path) -> set[Path]:
    """Those of the pictures below root that are label maps of others: PNG files with one value per pixel, which either

    are called so, or lie in a folder that is (a word of LABEL_WORDS in the path below root), or have the size of a
    picture in colours beside them and its name, alone or before one of _ - . (a.png and a_x.png beside a.jpg).
    """
    coloured = {path.with_suffix(""): header.size for path, header in headers.items() if header.mode not in VALUE_MODES}
    found = set()
    for path, header in headers.items():
        if header.format != "PNG" or header.mode not in VALUE_MODES:
            continue
        words = re.findall("[a-z]+", path.relative_to(root).with_suffix("").as_posix().lower())
        names = [path.stem[: match.start()] for match in re.finditer(r"[_.-]|$", path.stem)]
        if LABEL_WORDS & set(words) or any(coloured.get(path.parent / name) == header.size for name in names if name):
            found.add(path)
    return found
