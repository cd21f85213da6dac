"""The losses' sums over pixels as Triton kernels: each pixel's logits are read once forward, and once backward.

PyTorch's own operations, some 80 of them, pass over tensors of that size again and again. Sums are added up in a fixed
order, so that two runs agree to the bit.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from labels import IGNORE, OUTLIER

IGNORED_LABEL, OUTLIER_LABEL = tl.constexpr(IGNORE), tl.constexpr(OUTLIER)
TILE = 4096  # logits, or labels, that one program handles at a time


class PixelSums(torch.autograd.Function):
    """(cross-entropy over labelled inliers, ln p^(x) over outliers, cross-entropy of membership), float32 (3,).

    apply(class_logits, dataset_logits, labels, ignored_are_inliers, likelihood_margin) with the arguments of
    dense_hybrid_loss; dataset_logits may be None, and the third sum is 0. A label that is no class makes the first
    sum NaN, since a kernel cannot raise.
    """

    @staticmethod
    def forward(
        ctx: Any,
        class_logits: Tensor,
        dataset_logits: Tensor | None,
        labels: Tensor,
        ignored_are_inliers: bool,
        likelihood_margin: float | None,
    ) -> Tensor:
        assert dataset_logits is None or dataset_logits.shape[1] == 2
        class_logits, labels = dense(class_logits), labels.contiguous()
        dataset_logits = None if dataset_logits is None else dense(dataset_logits)
        ctx.save_for_backward(class_logits, dataset_logits, labels)
        ctx.options = options(class_logits, dataset_logits, ignored_are_inliers, likelihood_margin)
        programs = grid(class_logits, ctx.options)
        sums = class_logits.new_empty((3, programs[0] * programs[1]), dtype=torch.float32)
        with torch.cuda.device_of(class_logits):
            add_up[programs](class_logits, dataset_logits, labels, sums, labels[0].numel(), **ctx.options)
        return sums.sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, sums_gradient: Tensor) -> tuple[Tensor | None, ...]:
        class_logits, dataset_logits, labels = ctx.saved_tensors
        class_gradient = torch.empty_like(class_logits)
        dataset_gradient = None if dataset_logits is None else torch.empty_like(dataset_logits)
        with torch.cuda.device_of(class_logits):
            write_gradients[grid(class_logits, ctx.options)](
                class_logits,
                dataset_logits,
                labels,
                sums_gradient.contiguous(),
                class_gradient,
                dataset_gradient,
                labels[0].numel(),
                **ctx.options,
            )
        return class_gradient, dataset_gradient, None, None, None


def label_counts(labels: Tensor) -> Tensor:
    """How many of the labels are (inliers, outliers), int64 (2,)."""
    labels = labels.contiguous()
    programs = triton.cdiv(labels.numel(), TILE)
    counts = labels.new_empty((2, programs), dtype=torch.int32)
    with torch.cuda.device_of(labels):
        count[(programs,)](labels, counts, labels.numel(), SIZE=TILE)
    return counts.sum(1)


def dense(logits: Tensor) -> Tensor:
    """Logits (B, C, H, W) without gaps, either NCHW or channels-last."""
    return logits if logits.is_contiguous(memory_format=torch.channels_last) else logits.contiguous()


def layout(class_logits: Tensor) -> dict[str, Any]:
    """What kernels are compiled for: SIZE pixels to a program, and PADDED, the power of two that holds CLASSES."""
    num_classes = class_logits.shape[1]
    padded = max(2, triton.next_power_of_2(num_classes))
    return {
        "CLASSES": num_classes,
        "PADDED": padded,
        "SIZE": max(16, TILE // padded),
        "CHANNELS_LAST": not class_logits.is_contiguous(),
    }


def options(
    class_logits: Tensor, dataset_logits: Tensor | None, ignored_are_inliers: bool, likelihood_margin: float | None
) -> dict[str, Any]:
    """What the kernels of PixelSums are compiled for; `margin` alone is a value."""
    return layout(class_logits) | {
        "margin": likelihood_margin or 0.0,
        "DATASET": dataset_logits is not None,
        "DATASET_CHANNELS_LAST": dataset_logits is not None and not dataset_logits.is_contiguous(),
        "IGNORED_ARE_INLIERS": ignored_are_inliers,
        "MARGIN": likelihood_margin is not None,
    }


def grid(class_logits: Tensor, layout: dict[str, Any]) -> tuple[int, int]:
    """Programs: (blocks of pixels, images)"""
    return triton.cdiv(class_logits[0, 0].numel(), layout["SIZE"]), len(class_logits)


@triton.jit
def logit_places(pixel, channel, pixels, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Where in one image's memory the logits of these pixels and channels are"""
    if CHANNELS_LAST:
        return pixel * CHANNELS + channel
    else:
        return channel * pixels + pixel


@triton.jit
def class_places(pixel, inside, pixels, CLASSES: tl.constexpr, PADDED: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """(SIZE, PADDED): the places, and which of them there are"""
    channel = tl.arange(0, PADDED)[None, :]
    places = logit_places(pixel[:, None], channel, pixels, CLASSES, CHANNELS_LAST)
    return places, inside[:, None] & (channel < CLASSES)


@triton.jit
def exponentials(logits):
    """Of (SIZE, PADDED): the highest logit, exp(logits - highest) and its sum, so that ln p^ = highest + ln(sum)"""
    highest = tl.max(logits, 1)
    highest = tl.where(tl.abs(highest) == float("inf"), 0.0, highest)  # an infinite one has an infinite ln p^, not NaN
    shares = tl.exp(logits - highest[:, None])
    return highest, shares, tl.sum(shares, 1)


@triton.jit
def labelled_pixels(labels, pixels, SIZE: tl.constexpr):
    """This program's image and its pixels: which of them there are, their labels, outliers and known classes"""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = pixel < pixels
    label = tl.load(labels + image * pixels + pixel, mask=inside, other=IGNORED_LABEL).to(tl.int32)
    outlier = label == OUTLIER_LABEL
    inlier = (label != OUTLIER_LABEL) & (label != IGNORED_LABEL)
    return image, pixel, inside, label, outlier, inlier


@triton.jit
def add_up(
    class_logits,
    dataset_logits,
    labels,
    sums,  # (3, programs)
    pixels,
    margin,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    SIZE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    DATASET: tl.constexpr,
    DATASET_CHANNELS_LAST: tl.constexpr,
    IGNORED_ARE_INLIERS: tl.constexpr,
    MARGIN: tl.constexpr,
):
    image, pixel, inside, label, outlier, inlier = labelled_pixels(labels, pixels, SIZE)
    places, there = class_places(pixel, inside, pixels, CLASSES, PADDED, CHANNELS_LAST)
    image_logits = class_logits + image * pixels * CLASSES
    logits = tl.load(image_logits + places, mask=there, other=-float("inf")).to(tl.float32)
    highest, _, total = exponentials(logits)
    chosen = tl.sum(tl.where(tl.arange(0, PADDED)[None, :] == label[:, None], logits, 0.0), 1)
    cross_entropy = tl.log(total) - (chosen - highest)
    cross_entropy = tl.where((label >= 0) & (label < CLASSES), cross_entropy, float("nan"))
    log_density = highest + tl.log(total)
    if MARGIN:
        log_density = tl.where(log_density < margin, margin, log_density)  # keeps NaN, as clamp does

    programs = tl.num_programs(0) * tl.num_programs(1)
    sums += tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums, tl.sum(tl.where(inlier, cross_entropy, 0.0), 0))
    tl.store(sums + programs, tl.sum(tl.where(outlier, log_density, 0.0), 0))
    if DATASET:
        image_logits = dataset_logits + image * pixels * 2
        in_places = logit_places(pixel, 0, pixels, 2, DATASET_CHANNELS_LAST)
        out_places = logit_places(pixel, 1, pixels, 2, DATASET_CHANNELS_LAST)
        in_logit = tl.load(image_logits + in_places, mask=inside, other=0.0).to(tl.float32)
        out_logit = tl.load(image_logits + out_places, mask=inside, other=0.0).to(tl.float32)
        highest = tl.maximum(in_logit, out_logit)
        total = tl.exp(in_logit - highest) + tl.exp(out_logit - highest)
        cross_entropy = tl.log(total) - (tl.where(outlier, out_logit, in_logit) - highest)
        member = inside if IGNORED_ARE_INLIERS else inlier | outlier
        tl.store(sums + 2 * programs, tl.sum(tl.where(member, cross_entropy, 0.0), 0))
    else:
        tl.store(sums + 2 * programs, 0.0)


@triton.jit
def write_gradients(
    class_logits,
    dataset_logits,
    labels,
    sums_gradient,  # (3,)
    class_gradient,
    dataset_gradient,
    pixels,
    margin,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    SIZE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    DATASET: tl.constexpr,
    DATASET_CHANNELS_LAST: tl.constexpr,
    IGNORED_ARE_INLIERS: tl.constexpr,
    MARGIN: tl.constexpr,
):
    image, pixel, inside, label, outlier, inlier = labelled_pixels(labels, pixels, SIZE)
    pulled = tl.where(inlier, tl.load(sums_gradient), 0.0)
    # Of the cross-entropy P - [label], of ln p^ P. Zero times P keeps a NaN, as autograd does.
    places, there = class_places(pixel, inside, pixels, CLASSES, PADDED, CHANNELS_LAST)
    image_offset = image * pixels * CLASSES
    logits = tl.load(class_logits + image_offset + places, mask=there, other=-float("inf")).to(tl.float32)
    highest, shares, total = exponentials(logits)
    pushed = outlier
    if MARGIN:
        pushed = outlier & (highest + tl.log(total) > margin)
    weight = pulled + tl.where(pushed, tl.load(sums_gradient + 1), 0.0)
    is_label = tl.arange(0, PADDED)[None, :] == label[:, None]
    gradient = shares * (weight / total)[:, None] - tl.where(is_label, pulled[:, None], 0.0)
    tl.store(class_gradient + image_offset + places, gradient, mask=there)

    if DATASET:
        image_offset = image * pixels * 2
        in_places = image_offset + logit_places(pixel, 0, pixels, 2, DATASET_CHANNELS_LAST)
        out_places = image_offset + logit_places(pixel, 1, pixels, 2, DATASET_CHANNELS_LAST)
        in_logit = tl.load(dataset_logits + in_places, mask=inside, other=0.0).to(tl.float32)
        out_logit = tl.load(dataset_logits + out_places, mask=inside, other=0.0).to(tl.float32)
        highest = tl.maximum(in_logit, out_logit)
        in_share, out_share = tl.exp(in_logit - highest), tl.exp(out_logit - highest)
        member = inside if IGNORED_ARE_INLIERS else inlier | outlier
        weight = tl.where(member, tl.load(sums_gradient + 2), 0.0)
        total = in_share + out_share
        in_gradient = weight * (in_share / total - tl.where(outlier, 0.0, 1.0))
        out_gradient = weight * (out_share / total - tl.where(outlier, 1.0, 0.0))
        tl.store(dataset_gradient + in_places, in_gradient, mask=inside)
        tl.store(dataset_gradient + out_places, out_gradient, mask=inside)


@triton.jit
def count(labels, counts, pixels, SIZE: tl.constexpr):
    pixel = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    label = tl.load(labels + pixel, mask=pixel < pixels, other=IGNORED_LABEL).to(tl.int32)
    outlier = label == OUTLIER_LABEL
    inlier = (label != OUTLIER_LABEL) & (label != IGNORED_LABEL)
    tl.store(counts + tl.program_id(0), tl.sum(inlier.to(tl.int32), 0))
    tl.store(counts + tl.num_programs(0) + tl.program_id(0), tl.sum(outlier.to(tl.int32), 0))
