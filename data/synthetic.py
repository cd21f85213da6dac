"""Negatives that a generative model draws: their sizes, their places, and what of the known they cover."""

import torch
from torch import Tensor

from data.negatives import paste, place_negative
from data.transforms import draw_integer


def draw_patch_size(sides: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width, drawn one by one from smallest, smallest + step ... largest; `sides` is those three."""
    smallest, largest, step = sides
    height, width = (smallest + step * draw_integer(0, (largest - smallest) // step) for _ in range(2))
    return height, width


def paste_at_random(
    images: Tensor, labels: Tensor, patches: Tensor, content: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Paste whole patches at random places; pure, with gradients to images and patches.

    images   (B, 3, H, W); labels (B, H, W)
    patches  (n B, 3, h, w), not larger than the images: n for each image, those of the first image first
    content  (B, 4) top, left, height, width of the part of each image that may be pasted onto; None: all of it
    returns  new images, new labels with OUTLIER where something was pasted, and corners (n B, 2)
    """
    count = len(patches) // len(images)
    assert len(patches) == count * len(images) and count > 0, f"{len(patches)} patches for {len(images)} images"
    boxes = [tuple(box) for box in content.tolist()] if content is not None else [None] * len(images)
    everywhere = torch.ones(patches.shape[2:], dtype=torch.bool)
    size = tuple(images.shape[2:])
    places = [place_negative(patch, everywhere, size, boxes[i // count]) for i, patch in enumerate(patches)]
    masks, corners = torch.stack([mask for _, mask, _ in places]), torch.stack([corner for *_, corner in places])
    if images.is_cuda:  # on their way while the host goes on
        masks = masks.pin_memory().to(images.device, non_blocking=True)
    grouped = (len(images), count)
    images, labels = paste(
        images,
        labels,
        patches.unflatten(0, grouped),
        masks.unflatten(0, grouped),
        corners.unflatten(0, grouped),
    )
    return images, labels, corners


def cut_out(images: Tensor, corners: Tensor, size: tuple[int, int]) -> Tensor:
    """What lies at the corners (n B, 2) of images (B, 3, H, W) in 0..1: whole numbers (n B, 3, *size) in 0..255."""
    count, (height, width) = len(corners) // len(images), size
    cut = [
        images[i // count, :, row : row + height, column : column + width]
        for i, (row, column) in enumerate(corners.tolist())
    ]
    return (255 * torch.stack(cut)).round()


def whole_patches(images: list[Tensor]) -> list[tuple[Tensor, Tensor, str]]:
    """Drawn images (3, h, w) in 0..255 as negatives that are shown whole: (patch uint8, mask bool, name) each."""
    return [
        (image.round().to("cpu", torch.uint8), torch.ones(image.shape[1:], dtype=torch.bool), f"drawn patch {number}")
        for number, image in enumerate(images)
    ]
