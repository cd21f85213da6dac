"""Features as rows of a matrix, one a pixel, as Triton's kernels go through them."""

from torch import Tensor


def as_rows(features: Tensor) -> Tensor:
    """(B, D, H, W) -> (B * H * W, D), the same memory where channels lie last, as in some of their channels."""
    rows = features.permute(0, 2, 3, 1).flatten(0, 2)
    return rows if rows.stride(1) == 1 else rows.contiguous()


def as_images(rows: Tensor, like: Tensor) -> Tensor:
    """(B * H * W, D) -> (B, D, H, W), a view whose channels lie last; B, H and W are those of `like`."""
    return rows.unflatten(0, (len(like), *like.shape[2:])).permute(0, 3, 1, 2)
