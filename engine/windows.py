"""Large images window by window."""

from torch import Tensor, nn


class SlidingWindows(nn.Module):
    """A model run on overlapping square windows; logits are averaged where windows overlap.

    The result has the model's outputs at the images' size, with memory bounded by one window. It is not the result
    for the whole image: a network that pools over its whole input sees less of it.

    window  side in pixels; a shorter side of the image is taken whole
    stride  pixels from window to window; the last ones end flush with the image
    """

    def __init__(self, model: nn.Module, window: int, stride: int):
        super().__init__()
        if not 0 < stride <= window:
            raise ValueError(f"windows of {window} pixels every {stride} pixels: the stride must be in 1..{window}")
        self.model, self.window, self.stride = model, window, stride

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        height, width = images.shape[2:]
        sums: list[Tensor] | None = None
        counts = images.new_zeros(1, 1, height, width)
        for top in window_starts(height, self.window, self.stride):
            for left in window_starts(width, self.window, self.stride):
                place = (..., slice(top, top + self.window), slice(left, left + self.window))
                output = self.model(images[place])
                outputs = output if isinstance(output, tuple) else (output,)
                if sums is None:
                    sums = [logits.new_zeros(*logits.shape[:2], height, width) for logits in outputs]
                for total, logits in zip(sums, outputs, strict=True):
                    total[place] += logits
                counts[place] += 1
        means = tuple(total / counts for total in sums)
        return means if isinstance(output, tuple) else means[0]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one axis: every `stride`, and one flush with the end."""
    last = max(0, length - window)
    return [*range(0, last, stride), last]
