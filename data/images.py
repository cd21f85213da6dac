"""Photographs of any folder, without labels."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.files import read_image
from data.transforms import Transform

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class ImageFolder(Dataset):
    """Samples (image uint8 (3, H, W), labels uint8 (H, W), name) of every image below a folder; all labels are 0.

    Colour and greyscale images are taken. Raises FileNotFoundError where the folder or images in it are missing.
    """

    mean_colour = (123, 116, 103)  # of ImageNet, 0..255

    def __init__(self, root: str | Path, transform: Transform | None = None):
        self.root, self.transform = Path(root), transform
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder {root}; give one that holds images, at any depth")
        self.paths = sorted(path for path in self.root.rglob("*") if path.suffix.lower() in ENDINGS)
        if not self.paths:
            raise FileNotFoundError(f"no image ({', '.join(ENDINGS)}) below {root}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        path = self.paths[index]
        image = read_image(path, modes=("RGB", "RGBA", "L", "LA", "P"))
        labels = torch.zeros(image.shape[1:], dtype=torch.uint8)
        if self.transform:
            image, labels = self.transform(image, labels)
        return image, labels, path.relative_to(self.root).as_posix()
