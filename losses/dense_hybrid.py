"""The training losses (DenseHybrid, ECCV 2022): named terms, each a sum over pixels divided by a count."""

import functools
import warnings
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from labels import IGNORE, OUTLIER

Terms = dict[str, Tensor]
Counts = dict[str, int | Tensor]
MOST_CHANNELS = 256  # of a pixel that a kernel holds at once


def closed_set_loss(class_logits: Tensor, labels: Tensor, counts: Counts | None = None) -> Terms:
    """Cross-entropy over the labelled pixels of known classes, {"class": ...}.

    class_logits  (B, K, H, W) raw; labels (B, H, W) int64 or uint8 of 0..K-1, OUTLIER, IGNORE
    counts        divisors by term, where they are not those of these labels: see pixel_counts
    """
    counts = counts or pixel_counts(labels)
    if kernels := kernels_for(labels, class_logits):
        total = kernels.PixelSums.apply(class_logits, None, labels, False, None)[0]
    else:
        total = class_cross_entropy(class_logits, labels)
    return {"class": total / at_least_one(counts["class"])}


def dense_hybrid_loss(
    class_logits: Tensor,
    dataset_logits: Tensor,
    labels: Tensor,
    beta: float,
    counts: Counts | None = None,
    ignored_are_inliers: bool = False,
    likelihood_margin: float | None = None,
) -> Terms:
    """The DenseHybrid loss on images with pasted negatives, as terms weighted and ready to sum.

    class       cross-entropy over the labelled inliers
    likelihood  beta times the mean of ln p^(x), the log-sum-exp of the class logits, over the outliers
    dataset     10 beta times the cross-entropy of P(d_out | x), over labelled inliers and outliers

    class_logits         (B, K, H, W) raw; dataset_logits (B, 2, H, W) raw, channel 1 is outlier
    labels               (B, H, W) int64 or uint8: 0..K-1 known, OUTLIER where a negative was pasted, IGNORE
    counts               divisors by term; those of the whole batch where these are a part of it: see pixel_counts
    ignored_are_inliers  count IGNORE pixels as inliers in the dataset term, as the released code does for streets
    likelihood_margin    nats under which ln p^(x) of a negative is not pushed further; the release has no such
                         floor, and its term is unbounded below. The released code also adds a detached constant
                         to this term, which changes no gradient and is left out.

    Computed in float32 under autocast too. A term without pixels is 0. A label that is no class is an IndexError on a
    CPU; on a GPU it makes the class term NaN.
    """
    counts = counts or pixel_counts(labels, ignored_are_inliers)
    if kernels := kernels_for(labels, class_logits, dataset_logits):
        sums = kernels.PixelSums.apply(class_logits, dataset_logits, labels, ignored_are_inliers, likelihood_margin)
        known, likelihood, dataset = sums.unbind()
    else:
        outlier = labels == OUTLIER
        log_density = class_logits.float().logsumexp(1)
        if likelihood_margin is not None:
            log_density = log_density.clamp(min=likelihood_margin)
        likelihood = log_density.where(outlier, 0).sum()
        membership = outlier.long()
        if not ignored_are_inliers:
            membership = membership.masked_fill(labels == IGNORE, IGNORE)
        dataset = F.cross_entropy(dataset_logits.float(), membership, ignore_index=IGNORE, reduction="sum")
        known = class_cross_entropy(class_logits, labels)
    return {
        "class": known / at_least_one(counts["class"]),
        "likelihood": beta * likelihood / at_least_one(counts["likelihood"]),
        "dataset": 10 * beta * dataset / at_least_one(counts["dataset"]),
    }


def class_cross_entropy(class_logits: Tensor, labels: Tensor) -> Tensor:
    known = labels.long().masked_fill(labels == OUTLIER, IGNORE)
    return F.cross_entropy(class_logits.float(), known, ignore_index=IGNORE, reduction="sum")


def pixel_counts(labels: Tensor, ignored_are_inliers: bool = False) -> Counts:
    """How many pixels each term is a sum over; add them up where a batch is split over parts or processes."""
    if kernels := kernels_for(labels):
        inliers, outliers = kernels.label_counts(labels).unbind()
    else:
        outliers = (labels == OUTLIER).sum()
        ignored = (labels == IGNORE).sum()
        inliers = labels.numel() - outliers - ignored
    return {
        "class": inliers,
        "likelihood": outliers,
        "dataset": labels.numel() if ignored_are_inliers else inliers + outliers,
    }


def kernels_for(labels: Tensor, *logits: Tensor) -> ModuleType | None:
    """losses.kernels where labels and logits are what its kernels take, None where PyTorch's operations have to do."""
    if torch.compiler.is_compiling() or not (labels.is_cuda and labels.numel()):
        return None
    if labels.dtype not in (torch.int64, torch.uint8):
        return None
    for maps in logits:
        fits = maps.device == labels.device and maps.dtype in (torch.float32, torch.bfloat16, torch.float16)
        if not fits or maps.shape[:1] + maps.shape[2:] != labels.shape:
            return None
        if maps.shape[1] > MOST_CHANNELS or maps[0].numel() >= 2**31:
            return None
    return working_kernels(labels.device)


@functools.cache
def working_kernels(device: torch.device) -> ModuleType | None:
    """losses.kernels where a first kernel runs; Triton may be missing, or what it needs to compile."""
    try:
        from losses import kernels

        kernels.label_counts(torch.zeros(16, dtype=torch.int64, device=device))
    except Exception as error:  # of Triton, of its C compiler or of the driver: all leave PyTorch's operations
        warnings.warn(
            f"the loss runs without its Triton kernels, slower: {type(error).__name__}: {error}; Triton needs a C "
            "compiler and Python's headers",
            stacklevel=2,
        )
        return None
    return kernels


def at_least_one(count: int | Tensor) -> int | Tensor:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
