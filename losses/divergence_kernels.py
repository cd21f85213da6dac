"""The divergence of the flow's loss as Triton kernels, as losses/kernels.py has the other sums over pixels."""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from losses.kernels import class_places, dense, exponentials, grid, layout


class Divergence(torch.autograd.Function):
    """The Jensen-Shannon divergence between P(y | x) and the uniform distribution, summed over the outliers, ().

    apply(class_logits, outlier) with outlier (B, H, W) uint8, 0 or 1
    """

    @staticmethod
    def forward(ctx: Any, class_logits: Tensor, outlier: Tensor) -> Tensor:
        class_logits, outlier = dense(class_logits), outlier.contiguous()
        ctx.save_for_backward(class_logits, outlier)
        ctx.layout = layout(class_logits) | {"log_uniform": -math.log(class_logits.shape[1])}
        programs = grid(class_logits, ctx.layout)
        sums = class_logits.new_empty(programs, dtype=torch.float32)
        with torch.cuda.device_of(class_logits):
            add_up_divergence[programs](class_logits, outlier, sums, outlier[0].numel(), **ctx.layout)
        return sums.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, sum_gradient: Tensor) -> tuple[Tensor, None]:
        class_logits, outlier = ctx.saved_tensors
        gradient = torch.empty_like(class_logits)
        with torch.cuda.device_of(class_logits):
            write_divergence_gradient[grid(class_logits, ctx.layout)](
                class_logits, outlier, sum_gradient, gradient, outlier[0].numel(), **ctx.layout
            )
        return gradient, None


@triton.jit
def pasted_pixels(
    class_logits,
    outlier,
    pixels,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    SIZE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Of this program's pixels: where their image's logits begin, and from there their places, (SIZE, PADDED); which of
    them there are, which pixels are outliers, and the logits"""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = pixel < pixels
    pasted = tl.load(outlier + image * pixels + pixel, mask=inside, other=0) != 0
    places, there = class_places(pixel, inside, pixels, CLASSES, PADDED, CHANNELS_LAST)
    image_offset = image * pixels * CLASSES
    logits = tl.load(class_logits + image_offset + places, mask=there, other=-float("inf")).to(tl.float32)
    return image_offset, places, there, pasted, logits


@triton.jit
def divergences(logits, there, log_uniform, CLASSES: tl.constexpr):
    """Of (SIZE, PADDED): P, ln(P / M), KL(P || M) and KL(U || M), where U is uniform and M = (P + U) / 2"""
    highest, shares, total = exponentials(logits)
    posterior = shares / total[:, None]
    log_mean = tl.log((posterior + 1 / CLASSES) / 2)
    ratio = logits - highest[:, None] - tl.log(total)[:, None] - log_mean
    of_posterior = tl.sum(tl.where(there, posterior * ratio, 0.0), 1)
    of_uniform = tl.sum(tl.where(there, log_uniform - log_mean, 0.0), 1) / CLASSES
    return posterior, ratio, of_posterior, of_uniform


@triton.jit
def add_up_divergence(
    class_logits,
    outlier,
    sums,  # (programs,)
    pixels,
    log_uniform,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    SIZE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    _, _, there, pasted, logits = pasted_pixels(class_logits, outlier, pixels, CLASSES, PADDED, SIZE, CHANNELS_LAST)
    _, _, of_posterior, of_uniform = divergences(logits, there, log_uniform, CLASSES)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + program, tl.sum(tl.where(pasted, (of_posterior + of_uniform) / 2, 0.0), 0))


@triton.jit
def write_divergence_gradient(
    class_logits,
    outlier,
    sum_gradient,  # ()
    gradient,
    pixels,
    log_uniform,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    SIZE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    image_offset, places, there, pasted, logits = pasted_pixels(
        class_logits, outlier, pixels, CLASSES, PADDED, SIZE, CHANNELS_LAST
    )
    posterior, ratio, of_posterior, _ = divergences(logits, there, log_uniform, CLASSES)
    # By P_k the divergence has the derivative ln(P_k / M_k) / 2; the softmax takes off the mean of it under P.
    weight = tl.where(pasted, tl.load(sum_gradient), 0.0) / 2
    values = weight[:, None] * posterior * (ratio - of_posterior[:, None])
    tl.store(gradient + image_offset + places, values, mask=there)
