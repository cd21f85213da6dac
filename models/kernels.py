"""Triton kernels of models/fused.py, for CUDA; imported only where they run, since Triton is not everywhere.

Features are the rows of a matrix, one a pixel: channels lie next to one another, rows may lie further apart, as those
of a part of the channels do. Whatever the types in memory, numbers are float32 in between, but for a product's factors.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 64, 64  # of a tile of one program, in passes that only move and scale
MANY_ROWS = 16384  # from which on tiles of a product may be large and there are enough to keep a GPU busy


@triton.jit
def rectified(x):
    return tl.where(x < 0, 0.0, x)  # tl.maximum would make a zero of what is not a number


@triton.jit
def scaled_kernel(
    features, scale, shift, out, rows, width, row_step, out_row_step,
    SCALE: tl.constexpr, SHIFT: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < width)
    x = tl.load(features + row * row_step + column, inside, other=0).to(tl.float32)
    if SCALE:
        x *= tl.load(scale + column, column < width, other=0)
    if SHIFT:
        x += tl.load(shift + column, column < width, other=0)
    if RELU:
        x = rectified(x)
    tl.store(out + row * out_row_step + column, x.to(out.dtype.element_ty), inside)


def scaled(features: Tensor, scale: Tensor | None, shift: Tensor | None, out: Tensor, relu: bool) -> None:
    """out = scale * features + shift, after ReLU where asked for; features and out (N, D), out may be features."""
    rows, width = features.shape
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(width, COLUMNS))
    with torch.cuda.device_of(features):
        scaled_kernel[grid](
            features, scale, shift, out, rows, width, features.stride(0), out.stride(0),
            SCALE=scale is not None, SHIFT=shift is not None, RELU=relu, ROWS=ROWS, COLUMNS=COLUMNS,
        )  # fmt: skip


@triton.jit
def product_kernel(
    features, scale, shift, weight, bias, out, rows, width, out_width, row_step, out_row_step,
    BIAS: tl.constexpr, RELU: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(out_width, OUT_WIDTH)  # beside one another; they read the same features, one soon after the other
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    out_column = (tl.program_id(0) % tiles) * OUT_WIDTH + tl.arange(0, OUT_WIDTH)[None, :]
    total = tl.zeros((ROWS, OUT_WIDTH), tl.float32)
    for first in range(0, width, WIDTH):
        columns = first + tl.arange(0, WIDTH)
        column = columns[None, :]
        x = tl.load(features + row * row_step + column, (row < rows) & (column < width), other=0).to(tl.float32)
        x = x * tl.load(scale + column, column < width, other=0) + tl.load(shift + column, column < width, other=0)
        column = columns[:, None]
        w = tl.load(weight + out_column * width + column, (out_column < out_width) & (column < width), other=0)
        total = tl.dot(rectified(x).to(w.dtype), w, total)
    if BIAS:
        total += tl.load(bias + out_column, out_column < out_width, other=0)
    if RELU:
        total = rectified(total)
    place = out + row * out_row_step + out_column
    tl.store(place, total.to(out.dtype.element_ty), (row < rows) & (out_column < out_width))


def product(
    features: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, relu: bool
) -> None:
    """out = relu(scale * features + shift) @ weight.T + bias, after ReLU where asked for.

    features (N, D), weight (E, D) without gaps, out (N, E); factors are rounded to the type of the weight
    """
    rows, width = features.shape
    out_width = len(weight)
    many = rows >= MANY_ROWS
    tile = {"ROWS": 128 if many else 32, "WIDTH": 64, "OUT_WIDTH": 16 if out_width <= 16 else 128 if many else 64}
    warps = 8 if many and out_width > 16 else 4
    grid = (triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(out_width, tile["OUT_WIDTH"]),)
    with torch.cuda.device_of(features):
        product_kernel[grid](
            features, scale, shift, weight, bias, out, rows, width, out_width, features.stride(0), out.stride(0),
            BIAS=bias is not None, RELU=relu, num_warps=warps, **tile,
        )  # fmt: skip


@triton.jit
def blended_kernel(
    features, coarse, scale, out, rows, width, row_step, coarse_row_step, out_row_step,
    image_height, image_width, coarse_height, coarse_width, down, across,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < width)
    left = row % image_width
    top = row // image_width % image_height
    image = row // image_width // image_height
    y = tl.maximum((top.to(tl.float32) + 0.5) * down - 0.5, 0.0)
    x = tl.maximum((left.to(tl.float32) + 0.5) * across - 0.5, 0.0)
    y0, x0 = y.to(tl.int32), x.to(tl.int32)
    y1, x1 = tl.minimum(y0 + 1, coarse_height - 1), tl.minimum(x0 + 1, coarse_width - 1)
    y, x = y - y0, x - x0
    above = coarse + (image * coarse_height + y0) * coarse_width * coarse_row_step + column
    below = coarse + (image * coarse_height + y1) * coarse_width * coarse_row_step + column
    upper = (1 - x) * tl.load(above + x0 * coarse_row_step, inside, other=0).to(tl.float32)
    upper += x * tl.load(above + x1 * coarse_row_step, inside, other=0).to(tl.float32)
    lower = (1 - x) * tl.load(below + x0 * coarse_row_step, inside, other=0).to(tl.float32)
    lower += x * tl.load(below + x1 * coarse_row_step, inside, other=0).to(tl.float32)
    total = tl.load(features + row * row_step + column, inside, other=0).to(tl.float32)
    total += tl.load(scale + column, column < width, other=0) * ((1 - y) * upper + y * lower)
    tl.store(out + row * out_row_step + column, rectified(total).to(out.dtype.element_ty), inside)


def blended(
    features: Tensor, coarse: Tensor, scale: Tensor, out: Tensor, size: tuple[int, int], coarse_size: tuple[int, int]
) -> None:
    """out = relu(features + scale * coarse, enlarged bilinearly, corners not aligned); out may be features.

    features, out (B * H * W, D), coarse (B * h * w, D); sizes are (H, W) and (h, w)
    """
    rows, width = features.shape
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(width, COLUMNS))
    with torch.cuda.device_of(features):
        blended_kernel[grid](
            features, coarse, scale, out, rows, width, features.stride(0), coarse.stride(0), out.stride(0),
            *size, *coarse_size, coarse_size[0] / size[0], coarse_size[1] / size[1], ROWS=ROWS, COLUMNS=COLUMNS,
        )  # fmt: skip
