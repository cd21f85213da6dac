"""Triton kernels of models/norms.py, for CUDA; imported only where they run, since Triton is not everywhere.

Features are rows of a matrix (N, D), one row a pixel: channels lie next to one another, rows may lie further apart, as
those of some of a larger tensor's channels do. Numbers in memory are bfloat16, float16 or float32, in between float32.
Moments are (3, D) float32: the mean, 1 / sqrt(variance + eps), and the variance without bias. Sums run over fixed parts
of the rows one after the other, never by atomics: the same input gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 512  # of a kernel that sums over rows: a large GPU runs about as many at once
COLUMNS = 64  # most channels of a tile: 128 bytes of a row in bfloat16
TILE, SMALL_TILE = 4096, 2048  # numbers of a tile, in kernels that read one tensor and in those that read several
# Tiles of the kernels that sum over parts
FEW_PARTS, MANY_PARTS = {"PARTS": 32, "COLUMNS": 64}, {"PARTS": 256, "COLUMNS": 8}
COUNTS = ["rows", "parts"]  # whatever they are, no kernel is compiled again


def tile(width: int, numbers: int) -> dict[str, int]:
    columns = max(16, min(COLUMNS, triton.next_power_of_2(width)))
    return {"ROWS": numbers // columns, "COLUMNS": columns}


def parted(rows: int, width: int, shape: dict[str, int]) -> tuple[int, int]:
    """(number of parts, rows of each but the last) so that parts times tiles beside one another keep a GPU busy"""
    beside = triton.cdiv(width, shape["COLUMNS"])
    parts = min(max(1, PROGRAMS // beside), triton.cdiv(rows, shape["ROWS"]))
    rows_each = triton.cdiv(triton.cdiv(rows, parts), shape["ROWS"]) * shape["ROWS"]
    return triton.cdiv(rows, rows_each), rows_each


def finishing(parts: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    """(grid, tile) of a kernel that sums over parts"""
    shape = FEW_PARTS if parts <= FEW_PARTS["PARTS"] else MANY_PARTS
    return (triton.cdiv(width, shape["COLUMNS"]),), shape


@triton.jit(do_not_specialize=COUNTS)
def moments_kernel(
    features, copy, partial, rows, width, row_step, copy_row_step, parts, rows_each,
    COPY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    first = part.to(tl.int64) * rows_each
    count = tl.minimum(rows - first, rows_each).to(tl.int32)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row, column = tl.arange(0, ROWS)[:, None], columns[None, :]
    inside = column < width
    place = features + first * row_step + row * row_step + column
    head = tl.load(place, inside & (row < count), other=0).to(tl.float32)
    # Near the mean, so that squares of the differences do not cancel.
    shift = tl.sum(head, 0)[None, :] / tl.minimum(count, ROWS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, count, ROWS):
        here = inside & (row < count - start)
        x = tl.load(features + (first + start) * row_step + row * row_step + column, here, other=0)
        if COPY:
            tl.store(copy + (first + start) * copy_row_step + row * copy_row_step + column, x, here)
        x = tl.where(here, x.to(tl.float32) - shift, 0.0)
        total += x
        squares += x * x
    total, squares, shift = tl.sum(total, 0), tl.sum(squares, 0), tl.sum(shift, 0)
    out = partial + part * width + columns
    tl.store(out, shift + total / count, columns < width)
    tl.store(out + parts * width, tl.maximum(squares - total * total / count, 0.0), columns < width)


@triton.jit(do_not_specialize=COUNTS)
def finish_moments_kernel(
    partial, moments, rows, width, moments_step, parts, rows_each, eps, PARTS: tl.constexpr, COLUMNS: tl.constexpr
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    column = columns[None, :]
    total = tl.zeros((PARTS, COLUMNS), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)[:, None]
        here = (part < parts) & (column < width)
        count = tl.where(part < parts, tl.minimum(rows - part * rows_each, rows_each), 0).to(tl.float32)
        total += count * tl.load(partial + part * width + column, here, other=0)
    mean = tl.sum(total, 0) / rows
    squares = tl.zeros((PARTS, COLUMNS), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)[:, None]
        here = (part < parts) & (column < width)
        count = tl.where(part < parts, tl.minimum(rows - part * rows_each, rows_each), 0).to(tl.float32)
        apart = tl.load(partial + part * width + column, here, other=0) - mean[None, :]
        squares += count * apart * apart + tl.load(partial + (parts + part) * width + column, here, other=0)
    squares = tl.sum(squares, 0)
    out, inside = moments + columns, columns < width
    tl.store(out, mean, inside)
    tl.store(out + moments_step, 1.0 / tl.sqrt(squares / rows + eps), inside)
    tl.store(out + 2 * moments_step, squares / (rows - 1), inside)


def moments_of(features: Tensor, moments: Tensor, eps: float, copy: Tensor | None = None) -> None:
    """Writes the moments of features (N, D) to moments (3, D), and the features to copy (N, D) where given."""
    rows, width = features.shape
    shape = tile(width, TILE)
    parts, rows_each = parted(rows, width, shape)
    partial = moments.new_empty(2, parts, width)
    with torch.cuda.device_of(features):
        moments_kernel[(parts, triton.cdiv(width, shape["COLUMNS"]))](
            features, copy, partial, rows, width, features.stride(0), 0 if copy is None else copy.stride(0),
            parts, rows_each, COPY=copy is not None, **shape,
        )  # fmt: skip
        grid, shape = finishing(parts, width)
        finish_moments_kernel[grid](
            partial, moments, rows, width, moments.stride(0), parts, rows_each, eps, **shape
        )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def norm_relu_kernel(
    features, moments, weight, bias, out, rows, width, row_step, moments_step, out_row_step,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = column < width
    here = inside & (row < rows - first)
    mean = tl.load(moments + column, inside, other=0)
    scale = tl.load(moments + moments_step + column, inside, other=0)
    x = tl.load(features + first * row_step + row * row_step + column, here, other=0).to(tl.float32)
    y = (x - mean) * scale * tl.load(weight + column, inside, other=0) + tl.load(bias + column, inside, other=0)
    y = tl.where(y <= 0, 0.0, y)  # not tl.maximum, which makes a zero of what is not a number
    tl.store(out + first * out_row_step + row * out_row_step + column, y.to(out.dtype.element_ty), here)


def norm_relu(features: Tensor, moments: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, D) -> (N, D) in the given type: max((features - mean) * scale * weight + bias, 0)"""
    rows, width = features.shape
    out = features.new_empty((rows, width), dtype=dtype)
    shape = tile(width, TILE)
    grid = (triton.cdiv(rows, shape["ROWS"]), triton.cdiv(width, shape["COLUMNS"]))
    with torch.cuda.device_of(features):
        norm_relu_kernel[grid](
            features, moments, weight, bias, out, rows, width, features.stride(0), moments.stride(0), width, **shape
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=COUNTS)
def sums_kernel(
    grad, features, moments, weight, bias, base, out, partial,
    rows, width, grad_row_step, row_step, moments_step, base_row_step, out_row_step, parts, rows_each,
    ADD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    first = part.to(tl.int64) * rows_each
    count = tl.minimum(rows - first, rows_each).to(tl.int32)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row, column = tl.arange(0, ROWS)[:, None], columns[None, :]
    inside = column < width
    mean = tl.load(moments + column, inside, other=0)
    scale = tl.load(moments + moments_step + column, inside, other=0)
    w, b = tl.load(weight + column, inside, other=0), tl.load(bias + column, inside, other=0)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    products = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, count, ROWS):
        here = inside & (row < count - start)
        x = tl.load(features + (first + start) * row_step + row * row_step + column, here, other=0).to(tl.float32)
        g = tl.load(grad + (first + start) * grad_row_step + row * grad_row_step + column, here, other=0)
        x = (x - mean) * scale
        g = tl.where(x * w + b <= 0, 0.0, g.to(tl.float32))
        total += g
        products += g * x
        if ADD:
            so_far = tl.load(base + (first + start) * base_row_step + row * base_row_step + column, here, other=0)
            so_far = so_far.to(tl.float32) + scale * w * g
            place = out + (first + start) * out_row_step + row * out_row_step + column
            tl.store(place, so_far.to(out.dtype.element_ty), here)
    place = partial + part * width + columns
    tl.store(place, tl.sum(total, 0), columns < width)
    tl.store(place + parts * width, tl.sum(products, 0), columns < width)


@triton.jit(do_not_specialize=COUNTS)
def finish_sums_kernel(
    partial, sums, owed, moments, weight, rows, width, owed_step, moments_step, parts,
    OWE: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    column = columns[None, :]
    total = tl.zeros((PARTS, COLUMNS), tl.float32)
    products = tl.zeros((PARTS, COLUMNS), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)[:, None]
        here = (part < parts) & (column < width)
        total += tl.load(partial + part * width + column, here, other=0)
        products += tl.load(partial + (parts + part) * width + column, here, other=0)
    total, products = tl.sum(total, 0), tl.sum(products, 0)
    inside = columns < width
    tl.store(sums + columns, total, inside)
    tl.store(sums + width + columns, products, inside)
    if OWE:
        factor = tl.load(moments + moments_step + columns, inside, other=0)
        factor *= tl.load(weight + columns, inside, other=0) / rows
        place = owed + columns
        tl.store(place, tl.load(place, inside, other=0) + factor * total, inside)
        place += owed_step
        tl.store(place, tl.load(place, inside, other=0) + factor * products, inside)


def summed(
    grad: Tensor,
    features: Tensor,
    moments: Tensor,
    weight: Tensor,
    bias: Tensor,
    base: Tensor | None = None,
    out: Tensor | None = None,
    owed: Tensor | None = None,
) -> Tensor:
    """(2, D): the gradients of bias and weight, from the gradient (N, D) of what norm_relu gave.

    Given base and out (N, D), which may be one tensor, and owed (2, D) as well: out becomes base plus the part of the
    features' gradient that is the same for each row alone, scale * weight * grad. What the mean and the variance
    contribute is linear in the normalised features; its coefficients are added to owed, for `settled`.
    """
    rows, width = features.shape
    shape = tile(width, SMALL_TILE)
    parts, rows_each = parted(rows, width, shape)
    partial, sums = moments.new_empty(2, parts, width), moments.new_empty(2, width)
    adds = out is not None
    with torch.cuda.device_of(features):
        sums_kernel[(parts, triton.cdiv(width, shape["COLUMNS"]))](
            grad, features, moments, weight, bias, base, out, partial,
            rows, width, grad.stride(0), features.stride(0), moments.stride(0),
            base.stride(0) if adds else 0, out.stride(0) if adds else 0, parts, rows_each, ADD=adds, **shape,
        )  # fmt: skip
        grid, shape = finishing(parts, width)
        finish_sums_kernel[grid](
            partial, sums, owed, moments, weight, rows, width, owed.stride(0) if adds else 0, moments.stride(0), parts,
            OWE=adds, **shape,
        )  # fmt: skip
    return sums


@triton.jit(do_not_specialize=COUNTS)
def features_gradient_kernel(
    grad, features, moments, weight, bias, sums, out, rows, width, grad_row_step, row_step, moments_step,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = column < width
    here = inside & (row < rows - first)
    mean = tl.load(moments + column, inside, other=0)
    scale = tl.load(moments + moments_step + column, inside, other=0)
    w, b = tl.load(weight + column, inside, other=0), tl.load(bias + column, inside, other=0)
    total = tl.load(sums + column, inside, other=0) / rows
    products = tl.load(sums + width + column, inside, other=0) / rows
    x = tl.load(features + first * row_step + row * row_step + column, here, other=0).to(tl.float32)
    g = tl.load(grad + first * grad_row_step + row * grad_row_step + column, here, other=0).to(tl.float32)
    x = (x - mean) * scale
    g = tl.where(x * w + b <= 0, 0.0, g)
    g = scale * w * (g - total - x * products)
    tl.store(out + first * width + row * width + column, g.to(out.dtype.element_ty), here)


def features_gradient(
    grad: Tensor, features: Tensor, moments: Tensor, weight: Tensor, bias: Tensor, sums: Tensor
) -> Tensor:
    """(N, D) in the features' type, from the gradient (N, D) of what norm_relu gave and what `summed` made of it"""
    rows, width = features.shape
    out = features.new_empty(rows, width)
    shape = tile(width, SMALL_TILE)
    grid = (triton.cdiv(rows, shape["ROWS"]), triton.cdiv(width, shape["COLUMNS"]))
    with torch.cuda.device_of(features):
        features_gradient_kernel[grid](
            grad, features, moments, weight, bias, sums, out, rows, width, grad.stride(0), features.stride(0),
            moments.stride(0), **shape,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=COUNTS)
def settled_kernel(
    base, features, moments, owed, out, rows, width, base_row_step, row_step, moments_step, owed_step,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = column < width
    here = inside & (row < rows - first)
    mean = tl.load(moments + column, inside, other=0)
    scale = tl.load(moments + moments_step + column, inside, other=0)
    constant, slope = tl.load(owed + column, inside, other=0), tl.load(owed + owed_step + column, inside, other=0)
    x = tl.load(features + first * row_step + row * row_step + column, here, other=0).to(tl.float32)
    g = tl.load(base + first * base_row_step + row * base_row_step + column, here, other=0).to(tl.float32)
    g -= constant + slope * ((x - mean) * scale)
    tl.store(out + first * width + row * width + column, g.to(out.dtype.element_ty), here)


def settled(base: Tensor, features: Tensor, moments: Tensor, owed: Tensor) -> Tensor:
    """(N, D): base less what `summed` left owed, with no gaps between rows"""
    rows, width = features.shape
    out = features.new_empty(rows, width)
    shape = tile(width, SMALL_TILE)
    grid = (triton.cdiv(rows, shape["ROWS"]), triton.cdiv(width, shape["COLUMNS"]))
    with torch.cuda.device_of(features):
        settled_kernel[grid](
            base, features, moments, owed, out, rows, width, base.stride(0), features.stride(0), moments.stride(0),
            owed.stride(0), **shape,
        )  # fmt: skip
    return out
