"""Negatives: masked patches of other pictures, where they go, and their pasting into known scenes."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from data.transforms import draw_integer, scaled_crop
from labels import IGNORE, OUTLIER

SMALLEST_SIDE, SIDE_STEP = 16, 8  # of a random rectangle; the release's


class MaskedPatches(Dataset):
    """Square patches of a labelled data set with a mask of what is to be pasted.

    Samples (patch uint8 (3, S, S), mask bool (S, S), name). The image is resized to a short side of `resize`
    pixels times a factor drawn from `scale`, and a square of `size` pixels cut out at random. The mask is, every
    other time, a random rectangle, else the union of two label ids of the patch drawn with replacement (the
    released code's rule).
    """

    def __init__(self, dataset: Dataset, resize: int, size: int, scale: tuple[float, float] = (1.0, 1.0)):
        if not SMALLEST_SIDE < size <= resize * scale[0]:
            raise ValueError(
                f"negative_size {size} must be over {SMALLEST_SIDE} and at most {resize * scale[0]:g} pixels, "
                f"negative_resize {resize} times the least negative_scale {scale[0]}"
            )
        self.dataset, self.resize, self.size, self.scale = dataset, resize, size, scale

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        image, ids, name = self.dataset[index]
        factor = torch.empty(()).uniform_(*self.scale).item() * self.resize / min(image.shape[1:])
        patch, ids = scaled_crop(image, ids, factor, self.size, self.dataset.mean_colour)
        mask = random_rectangle(self.size) if torch.rand(()) < 0.5 else two_ids(ids)
        return patch, mask & (ids != IGNORE), name


def random_rectangle(size: int) -> Tensor:
    """A bool (size, size) mask, True in a rectangle whose sides are drawn from 16, 24, ... below size."""
    sides = range(SMALLEST_SIDE, size, SIDE_STEP)
    height, width = (sides[draw_integer(0, len(sides) - 1)] for _ in range(2))
    top, left = draw_corner((size, size), (height, width)).tolist()
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


def two_ids(ids: Tensor) -> Tensor:
    """True on the pixels of two ids of the map, drawn with replacement: now and then on those of one."""
    present = ids.unique()
    return torch.isin(ids, present[torch.randint(len(present), (2,))])


def draw_corner(image_size: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """(2,) int64: row and column of a patch's upper left corner, uniform over the places where it fits.

    Both sizes are (height, width); raises ValueError where the patch is larger than the image.
    """
    if any(patch > image for patch, image in zip(patch_size, image_size, strict=True)):
        sizes = [f"{width}x{height}" for height, width in (patch_size, image_size)]
        raise ValueError(
            f"a negative patch of {sizes[0]} pixels is larger than the image of {sizes[1]}; lower negative_size"
        )
    return torch.tensor([draw_integer(0, image - patch) for patch, image in zip(patch_size, image_size, strict=True)])


def paste(images: Tensor, labels: Tensor, patches: Tensor, masks: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """New images and labels with one masked patch in each; pasted pixels are labelled OUTLIER.

    images   (B, 3, H, W); labels (B, H, W)
    patches  (B, 3, h, w); masks (B, h, w) bool, True where the patch shows
    corners  (B, 2) row and column of the patch's upper left pixel, such that it lies inside the image

    Nothing is changed in place, and gradients flow to images and patches.
    """
    height, width = images.shape[2:]
    placed, shown = [], []
    for patch, mask, (row, column) in zip(patches, masks, corners.tolist(), strict=True):
        border = (column, width - column - patch.shape[2], row, height - row - patch.shape[1])
        assert min(border) >= 0, f"patch at {row}, {column} leaves the image; draw its corner with draw_corner"
        placed.append(F.pad(patch, border))
        shown.append(F.pad(mask, border))
    shown = torch.stack(shown)
    images = torch.where(shown[:, None], torch.stack(placed).to(images.dtype), images)
    return images, labels.masked_fill(shown, OUTLIER)


class WithNegatives(Dataset):
    """A data set whose samples carry a negative: (image, labels, patch, mask, corner, name), not yet pasted.

    The negative and its place are drawn anew each time, from torch's generator.
    """

    def __init__(self, dataset: Dataset, negatives: MaskedPatches):
        self.dataset, self.negatives = dataset, negatives

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, str]:
        image, labels, name = self.dataset[index]
        patch, mask, source = self.negatives[draw_integer(0, len(self.negatives) - 1)]
        corner = draw_corner(image.shape[1:], patch.shape[1:])
        return image, labels, patch, mask, corner, f"{name} with {source}"


class WithFixedNegatives(Dataset):
    """Samples (image, labels, name) with a negative pasted in, the same one at every visit: for validation."""

    def __init__(self, dataset: Dataset, negatives: MaskedPatches, seed: int = 0):
        self.samples, self.seed = WithNegatives(dataset, negatives), seed
        self[0]  # a negative that is larger than the frames shows now, not after the first epoch

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed * len(self) + index)
            *tensors, name = self.samples[index]
        images, labels = paste(*(tensor[None] for tensor in tensors))
        return images[0], labels[0], name
