"""Large images window by window."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import WrongInput


class SlidingWindows(nn.Module):
    """A model run on overlapping square windows; logits are averaged where windows overlap.

    The result has the model's outputs at the images' size, with memory bounded by the windows of one forward pass. It
    is not the result for the whole image: a network that pools over its whole input sees less of it.

    window      side in pixels; a shorter side of the image is taken whole
    stride      pixels from window to window; the last ones end flush with the image
    at_a_time   windows in one forward pass of the model, of each image given
    enlarge     an image whose shorter side is less than a window is first enlarged, bilinearly, until it is one
                (the longer side rounded down), and the averaged logits are brought back to the image's size
    """

    def __init__(self, model: nn.Module, window: int, stride: int, at_a_time: int = 1, enlarge: bool = False):
        super().__init__()
        if not 0 < stride <= window:
            raise WrongInput(f"windows of {window} pixels every {stride} pixels: the stride must be in 1..{window}")
        if at_a_time < 1:
            raise WrongInput(f"{at_a_time} windows at a time: there must be at least 1")
        check_sides(model, f"windows of {window} pixels", window, window)
        self.model, self.window, self.stride = model, window, stride
        self.at_a_time, self.enlarge = at_a_time, enlarge
        self.smallest_side = 1 if enlarge else smallest_side(model)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        size = [*images.shape[2:]]
        short = min(size)
        if not self.enlarge or short >= self.window:
            return self.averaged(images)
        enlarged = [side * self.window // short for side in size]
        output = self.averaged(resized(images, enlarged))
        return tuple(resized(logits, size) for logits in output) if isinstance(output, tuple) else resized(output, size)

    def averaged(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        height, width = images.shape[2:]
        places = [
            (..., slice(top, top + self.window), slice(left, left + self.window))
            for top in window_starts(height, self.window, self.stride)
            for left in window_starts(width, self.window, self.stride)
        ]
        sums: list[Tensor] = []
        counts = images.new_zeros(1, 1, height, width)
        for first in range(0, len(places), self.at_a_time):
            some = places[first : first + self.at_a_time]
            output = self.model(torch.cat([images[place] for place in some]))
            outputs = output if isinstance(output, tuple) else (output,)
            if not sums:
                # Added up in float32 at least, whatever autocast made of them.
                sums = [
                    images.new_zeros(
                        (len(images), logits.shape[1], height, width),
                        dtype=torch.promote_types(logits.dtype, torch.float32),
                    )
                    for logits in outputs
                ]
            for total, logits in zip(sums, outputs, strict=True):
                for place, part in zip(some, logits.split(len(images)), strict=True):
                    total[place] += part
            for place in some:
                counts[place] += 1
        means = tuple(total / counts for total in sums)
        return means if isinstance(output, tuple) else means[0]


def smallest_side(model: nn.Module) -> int:
    """The shortest side of an image that a model takes: networks say it as `smallest_side`, others take any."""
    sides: list = [part.smallest_side for part in model.modules() if hasattr(part, "smallest_side")]
    return sides[0] if sides else 1


def check_sides(model: nn.Module, what: str, height: int, width: int) -> None:
    """Raise ValueError where an image is smaller than the model takes; `what` names it."""
    least = smallest_side(model)
    if min(height, width) < least:
        raise WrongInput(
            f"{what}: {width}x{height} pixels are too few for this network, which needs at least {least}x{least}; "
            "take larger images, or enlarge them"
        )


def resized(maps: Tensor, size: tuple[int, int] | list[int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one axis: every `stride`, and one flush with the end."""
    last = max(0, length - window)
    return [*range(0, last, stride), last]
