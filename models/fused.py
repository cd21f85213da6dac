"""What lies between convolutions, as one pass each: by a Triton kernel on CUDA, by torch's operators elsewhere.

In both, numbers are at least float32 in between, whatever the types in memory. `scale`, `shift` and `bias` are (D,), in
the type that is computed in. No gradients.
"""

import functools
import warnings
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from models.rows import as_images, as_rows


def scaled(
    features: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool = False,
    dtype: torch.dtype | None = None,
    inplace: bool = False,
) -> Tensor:
    """scale * features + shift (None: without it), after ReLU where asked for; features (B, D, H, W).

    dtype    of the result; None: that of the features
    inplace  write it over the features, where its type is theirs
    """
    dtype = dtype or features.dtype
    if kernels := kernels_for(features):
        rows = as_rows(features)
        out = rows if inplace and dtype == features.dtype else rows.new_empty(rows.shape, dtype=dtype)
        kernels.scaled(rows, scale, shift, out, relu)
        return as_images(out, features)
    if scale is not None:
        features = features * column(scale)
    if shift is not None:
        features = features + column(shift)
    return (features.relu() if relu else features).to(dtype)


def product(
    features: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relu: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A 1x1 convolution of relu(scale * features + shift), after ReLU where asked for; (B, D, H, W) -> (B, E, H, W).

    weight  (E, D, 1, 1); to its type the factors are rounded
    dtype   of the result; None: that of the weight
    """
    dtype = dtype or weight.dtype
    narrow = weight.dtype != torch.float32  # Triton's tf32 cuts factors off, cuDNN's rounds them: a third of the error
    if narrow and (kernels := kernels_for(features)):
        rows = as_rows(features)
        out = rows.new_empty((len(rows), len(weight)), dtype=dtype)
        kernels.product(rows, scale, shift, weight.flatten(1), bias, out, relu)
        return as_images(out, features)
    factors = scaled(features, scale, shift, relu=True, dtype=weight.dtype)
    return scaled(F.conv2d(factors, weight), None, bias, relu, dtype)


def blended(features: Tensor, coarse: Tensor, scale: Tensor) -> Tensor:
    """relu(features + scale * coarse, enlarged bilinearly to their size); the features may be overwritten.

    features (B, D, H, W), coarse (B, D, h, w)
    """
    if kernels := kernels_for(features):
        rows = as_rows(features)
        kernels.blended(rows, as_rows(coarse), scale, rows, features.shape[2:], coarse.shape[2:])
        return as_images(rows, features)
    enlarged = F.interpolate(coarse * column(scale), features.shape[2:], mode="bilinear", align_corners=False)
    return (features + enlarged).relu().to(features.dtype)


def column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def kernels_for(features: Tensor) -> ModuleType | None:
    return working_kernels(features.device) if features.is_cuda and features.dtype != torch.float64 else None


@functools.cache
def working_kernels(device: torch.device) -> ModuleType | None:
    """models.kernels; None where Triton is missing or cannot compile, which needs a C compiler, after a warning."""
    try:
        from models import kernels

        one = torch.ones(1, 1, device=device)
        kernels.scaled(one, None, one[0], one, relu=True)
    except Exception as error:  # whatever an installation lacks
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        warnings.warn(f"without Triton's kernels, inference on {device} is slower ({reason})", stacklevel=2)
        return None
    return kernels
