"""Bilinear resizing whose gradient, on a GPU, is two matrix products."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MANY_CHANNELS = 64  # from which on channels-last maps are multiplied as they lie


def upsample(features: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), larger or smaller, as F.interpolate's bilinear does it.

    On a GPU PyTorch adds the gradient up with atomics: from a coarse grid that takes several times as long as the
    products here, and the order of the sums, so the last digits, change from run to run.
    """
    if by_products(features):
        return Bilinear.apply(features, size, align_corners)
    return F.interpolate(features, size=size, mode="bilinear", align_corners=align_corners)


def by_products(features: Tensor) -> bool:
    return not torch.compiler.is_compiling() and features.is_cuda and features.requires_grad and torch.is_grad_enabled()


class Bilinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
        ctx.size, ctx.align_corners = features.shape[2:], align_corners
        return F.interpolate(features, size=size, mode="bilinear", align_corners=align_corners)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        with torch.autocast(gradient.device.type, enabled=False):  # which would multiply in its own type
            return transposed(gradient, ctx.size, ctx.align_corners), None, None


def transposed(gradient: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """From the gradient (B, C, H, W) of resized features that of the features, (B, C, *size): U_h^T G U_w."""
    (batch, channels, height, width), (rows, columns) = gradient.shape, size
    channels_last = gradient.is_contiguous(memory_format=torch.channels_last) and not gradient.is_contiguous()
    maps = gradient.permute(0, 2, 3, 1) if channels_last else gradient.reshape(batch * channels, height, width, 1)
    steps = [
        (over_rows, rows, height, rows * width * (height + columns)),  # the cost of both products, this one first
        (over_columns, columns, width, columns * height * (width + rows)),
    ]
    for product, small, large, _ in sorted(steps, key=lambda step: step[-1]):
        if small != large:
            maps = product(maps, interpolation_matrix(small, large, align_corners, gradient.dtype, gradient.device))
    return maps.permute(0, 3, 1, 2) if channels_last else maps.view(batch, channels, rows, columns)


def over_rows(maps: Tensor, matrix: Tensor) -> Tensor:
    """(N, H, W, M) -> (N, h, W, M)"""
    return (matrix.T @ maps.flatten(2)).unflatten(2, maps.shape[2:])


def over_columns(maps: Tensor, matrix: Tensor) -> Tensor:
    """(N, H, W, M) -> (N, H, w, M)"""
    if maps.shape[3] >= MANY_CHANNELS:
        return (matrix.T @ maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
    maps = maps.transpose(2, 3)  # one large product instead of many narrow ones, for a copy of what is small by now
    return (maps.flatten(0, 2) @ matrix).unflatten(0, maps.shape[:3]).transpose(2, 3)


@functools.lru_cache(maxsize=64)
def interpolation_matrix(
    small: int, large: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(large, small): the share of each of the features in each resized one, rounded as PyTorch rounds it."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    places = torch.arange(large, dtype=exact, device=device)
    if align_corners:
        places = places * ((small - 1) / max(1, large - 1))
    else:
        places = ((places + 0.5) * (small / large) - 0.5).clamp(min=0)
    lower = places.floor().clamp(max=small - 1)
    upper, share = (lower + 1).clamp(max=small - 1), places - lower
    grid = torch.arange(small, dtype=exact, device=device)
    shares = (1 - share)[:, None] * (grid == lower[:, None]) + share[:, None] * (grid == upper[:, None])
    return shares.to(dtype)
