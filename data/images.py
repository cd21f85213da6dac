"""Photographs of any folder, with or without label maps."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.cache import cached
from data.files import label_table, read_image, read_labels
from data.transforms import Transform

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class ImageFolder(Dataset):
    """Samples (image uint8 (3, H, W), ids uint8 (H, W), name) of every image below a folder.

    masks   a folder with a label map for each image, at the same relative path but with the ending .png; its values
            are the ids, 255 as 254, since 255 is padding in here. Without it all ids are 0.
    cache   a folder for decoded copies of the files (see data/cache.py)

    Colour and greyscale images are taken. Raises FileNotFoundError where a folder, its images or a label map are
    missing, ValueError where an image and its label map differ in size.
    """

    mean_colour = (123, 116, 103)  # of ImageNet, 0..255
    table = label_table({value: min(value, 254) for value in range(256)})

    def __init__(
        self,
        root: str | Path,
        transform: Transform | None = None,
        masks: str | Path | None = None,
        cache: str | Path | None = None,
    ):
        self.root, self.transform, self.masks, self.cache = Path(root), transform, masks and Path(masks), cache
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder {root}; give one that holds images, at any depth")
        self.paths = sorted(path for path in self.root.rglob("*") if path.suffix.lower() in ENDINGS)
        if not self.paths:
            raise FileNotFoundError(f"no image ({', '.join(ENDINGS)}) below {root}")
        missing = [path for path in self.paths if self.masks and not self.mask_of(path).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{missing[0]} has no label map {self.mask_of(missing[0])} ({len(missing)} such images); add it, take "
                "the image out, or leave the folder of label maps away"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        path = self.paths[index]
        image = cached(self.cache, path, read_image, ("RGB", "RGBA", "L", "LA", "P"))
        if self.masks:
            labels = cached(self.cache, self.mask_of(path), read_labels, self.table)
            if labels.shape != image.shape[1:]:
                sizes = [f"{width}x{height}" for height, width in (image.shape[1:], labels.shape)]
                raise ValueError(f"{path} is {sizes[0]} but its label map {self.mask_of(path)} is {sizes[1]}")
        else:
            labels = torch.zeros(image.shape[1:], dtype=torch.uint8)
        if self.transform:
            image, labels = self.transform(image, labels)
        return image, labels, path.relative_to(self.root).as_posix()

    def mask_of(self, path: Path) -> Path:
        return (self.masks / path.relative_to(self.root)).with_suffix(".png")
