"""Joint transforms of an image, uint8 (3, H, W), and its label map, uint8 (H, W).

All randomness is drawn from torch's generator, which the training loop seeds for every sample.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from labels import IGNORE

Transform = Callable[[Tensor, Tensor], tuple[Tensor, ...]]  # image, labels, and what else its user asks for


def train_transform(
    crop_size: int, scale: tuple[float, float], mean_colour: tuple[int, int, int], with_content: bool = False
) -> Transform:
    """Resize by a factor drawn from `scale`, crop a square of crop_size pixels, flip every other one.

    Where the resized image is smaller than the crop, the rest is mean_colour (0..255) and IGNORE.

    with_content   whether the transform also returns where the image is in the crop, past the flip: content, int64
                   (4,) top, left, height, width
    """
    return partial(random_crop, crop_size=crop_size, scale=scale, mean_colour=mean_colour, with_content=with_content)


def random_crop(
    image: Tensor,
    labels: Tensor,
    crop_size: int,
    scale: tuple[float, float],
    mean_colour: tuple[int, int, int],
    with_content: bool,
) -> tuple[Tensor, ...]:
    factor = torch.empty(()).uniform_(*scale).item()
    image, labels, (top, left, height, width) = scaled_crop(image, labels, factor, crop_size, mean_colour)
    if torch.rand(()) < 0.5:
        image, labels, left = image.flip(-1), labels.flip(-1), crop_size - left - width
    return (image, labels, torch.tensor([top, left, height, width])) if with_content else (image, labels)


def filled_transform(crop_size: int, scale: tuple[float, float]) -> Transform:
    """As train_transform, but the factor is raised where the image would not fill the crop: nothing is padded."""
    return partial(filled_crop, crop_size=crop_size, scale=scale)


def filled_crop(image: Tensor, labels: Tensor, crop_size: int, scale: tuple[float, float]) -> tuple[Tensor, Tensor]:
    factor = max(torch.empty(()).uniform_(*scale).item(), crop_size / min(image.shape[1:]))
    image, labels, _ = scaled_crop(image, labels, factor, crop_size, mean_colour=(0, 0, 0))
    return (image.flip(-1), labels.flip(-1)) if torch.rand(()) < 0.5 else (image, labels)


def scaled_crop(
    image: Tensor,
    labels: Tensor,
    factor: float,
    crop_size: int,
    mean_colour: tuple[int, int, int],
    antialias: bool = True,
) -> tuple[Tensor, Tensor, tuple[int, int, int, int]]:
    """A square at a random place of the image resized by `factor`, its labels, its content.

    The content is top, left, height, width of the image in the square; the rest is mean_colour and IGNORE.

    The part of the source that the square shows is cut out before it is resized, so that a frame of two
    megapixels is not resized to keep a quarter of it.

    antialias  whether a shrunk image is smoothed first; without it, it is sharper, with jagged edges
    """
    rows = crop_range(image.shape[1], factor, crop_size)
    columns = crop_range(image.shape[2], factor, crop_size)
    (top, height, y, shown_height), (left, width, x, shown_width) = rows, columns
    size = [shown_height, shown_width]
    image = F.resized_crop(image, top, left, height, width, size, InterpolationMode.BILINEAR, antialias=antialias)
    labels = F.resized_crop(labels[None], top, left, height, width, size, InterpolationMode.NEAREST_EXACT)[0]
    content = (y, x, shown_height, shown_width)
    if size == [crop_size, crop_size]:
        return image, labels, content
    padded = torch.tensor(mean_colour, dtype=torch.uint8)[:, None, None].repeat(1, crop_size, crop_size)
    padded_labels = torch.full((crop_size, crop_size), IGNORE, dtype=torch.uint8)
    padded[:, y : y + shown_height, x : x + shown_width] = image
    padded_labels[y : y + shown_height, x : x + shown_width] = labels
    return padded, padded_labels, content


def crop_range(length: int, factor: float, crop_size: int) -> tuple[int, int, int, int]:
    """Along one axis: first source pixel, number of source pixels, where they go in the crop, how long they get."""
    resized = max(1, round(length * factor))
    place = draw_integer(min(0, resized - crop_size), max(0, resized - crop_size))
    if resized <= crop_size:  # the whole image is seen, somewhere in the crop
        return 0, length, -place, resized
    first = round(place * length / resized)
    count = min(length - first, max(1, round(crop_size * length / resized)))
    return first, count, 0, crop_size


def draw_integer(low: int, high: int) -> int:
    """Uniform over low..high, both included."""
    return int(torch.randint(low, high + 1, ()))
