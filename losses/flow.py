"""The flow's losses, where it draws the negatives (Hybrid Open-set Segmentation, TPAMI 2024)."""

import math

import torch
from torch import Tensor

from losses.dense_hybrid import kernels_for


def bits_per_dimension(log_prob: Tensor, values_per_image: int) -> Tensor:
    """The mean over images of -log p / (ln 2 * number of values), a scalar.

    log_prob  (B,) nats, of images of values_per_image whole numbers each (three per pixel)
    """
    return -log_prob.mean() / (math.log(2) * values_per_image)


def jensen_shannon_to_uniform(class_logits: Tensor, outlier_mask: Tensor, count: int | Tensor | None = None) -> Tensor:
    """Jensen-Shannon divergence between P(y | x) and the uniform distribution, summed over the outliers / count.

    class_logits  (B, K, H, W) raw; outlier_mask (B, H, W) bool
    count         the divisor, where it is not the number of outliers here
    returns       a scalar, 0 (uniform, or no outlier) up to less than ln 2 nats; computed in float32 under autocast
    """
    outlier = outlier_mask.view(torch.uint8)
    if kernels_for(outlier, class_logits):
        from losses.divergence_kernels import Divergence  # here, since Triton is not everywhere

        total = Divergence.apply(class_logits, outlier)
    else:
        log_posterior = class_logits.float().log_softmax(1)
        log_uniform = -math.log(class_logits.shape[1])
        log_mean = torch.logaddexp(log_posterior, torch.full_like(log_posterior, log_uniform)) - math.log(2)
        to_posterior = (log_posterior.exp() * (log_posterior - log_mean)).sum(1)
        to_uniform = (math.exp(log_uniform) * (log_uniform - log_mean)).sum(1)
        divergence = (to_posterior + to_uniform) / 2
        total = divergence.where(outlier_mask, 0).sum()
    count = outlier_mask.sum() if count is None else torch.as_tensor(count)
    return total / count.clamp(min=1)


def synthetic_negatives_loss(
    class_logits: Tensor,
    outlier_mask: Tensor,
    log_prob: Tensor,
    patches: Tensor,
    divergence_weight: float,
    bits_weight: float,
) -> dict[str, Tensor]:
    """The flow's loss in the joint training, as terms weighted and ready to sum.

    jensen_shannon      divergence_weight times the divergence over the pasted patches / their number of pixels
    bits_per_dimension  bits_weight times that of what the patches cover

    class_logits  (B, K, H, W) raw, of images with patches pasted in; outlier_mask (B, H, W) bool, where they show
    log_prob      (n,) nats, of the n parts of the images that the patches (n, 3, h, w) cover
    """
    divergence = jensen_shannon_to_uniform(class_logits, outlier_mask, count=patches[:, 0].numel())
    bits = bits_per_dimension(log_prob, patches[0].numel())
    return {"jensen_shannon": divergence_weight * divergence, "bits_per_dimension": bits_weight * bits}
