"""Layers of the copies that models/inference.py makes: products with what was folded into them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import WrongInput
from models import fused

UNREACHED = 1e30  # a ReLU that only a feature beyond this would switch is a constant
HOOKS = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def takes_hooks(features: Tensor) -> bool:
    """Whether oneDNN computes a product of these features in a way that PyTorch has no public call for.

    Both ways are of PyTorch 2.14.1: mkldnn._linear_pointwise is oneDNN's linear layer under a private name. And with
    one thread, convolutions are left to oneDNN only where they are dilated, so 1x1 convolutions get a dilation, which
    means nothing to them.
    """
    return HOOKS and features.is_cpu and features.dtype == torch.float32


class Form(NamedTuple):
    """How a copy computes.

    dtype   bfloat16 or float16, of convolutions and products; None: the type of the weights
    fused   what lies between convolutions is left to models/fused.py, which pays on a GPU, and rounds narrow numbers
            no more than the network itself does. Otherwise as much of it as can goes into the convolutions.
    layout  of activations
    """

    dtype: torch.dtype | None
    fused: bool
    layout: torch.memory_format


def scale_and_shift(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> tuple[Tensor, Tensor]:
    """(D,) each: in eval mode, the norm is scale * features + shift."""
    if norm.running_mean is None:
        raise WrongInput(
            "a BatchNorm without running statistics normalises by the batch in eval mode, too, and cannot be folded: "
            "build it with track_running_stats=True"
        )
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -scale * norm.running_mean
    return scale, shift + norm.bias if norm.affine else shift


class Convolution(nn.Module):
    """A convolution with zeros around the image, and ReLU where `relu` says so.

    The bias stays as wide as it was: where norms are folded into it, it may be large and cancel.
    """

    def __init__(self, conv: nn.Conv2d, form: Form):
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().clone())
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.bias = nn.Parameter(bias)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.fused, self.relu = form.fused, False
        self.biased = conv.bias is not None  # or by a norm that was folded
        self.out_dtype: torch.dtype | None = None  # of what comes out; None: that of the weight

    def is_pointwise(self) -> bool:
        return self.weight.shape[2:] == (1, 1) and self.padding == (0, 0) and self.groups == 1

    def scale_inputs(self, scale: Tensor, shift: Tensor) -> None:
        """From now on, take features and do as if scale * features + shift had been given; for a pointwise one."""
        self.bias += self.weight.flatten(1) @ shift
        self.weight *= scale.view(1, -1, 1, 1)

    def scale_outputs(self, scale: Tensor, shift: Tensor) -> None:
        self.bias.mul_(scale).add_(shift)
        self.weight *= scale.view(-1, 1, 1, 1)
        self.biased = True

    def forward(self, features: Tensor) -> Tensor:
        if self.fused:
            features = features.to(self.weight.dtype)
            features = F.conv2d(features, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
            if not self.biased and not self.relu and self.out_dtype is None:
                return features
            bias = self.bias if self.biased else None
            return fused.scaled(features, None, bias, self.relu, self.out_dtype, inplace=True)
        dilation = 2 if takes_hooks(features) and self.weight.shape[2:] == (1, 1) else self.dilation
        features = F.conv2d(features, self.weight, self.bias, self.stride, self.padding, dilation, self.groups)
        return features.relu_() if self.relu else features


class NormRelu(nn.Module):
    """BatchNorm and ReLU in one pass over the features."""

    def __init__(self, norm: nn.BatchNorm2d | nn.SyncBatchNorm):
        super().__init__()
        scale, shift = scale_and_shift(norm)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, features: Tensor) -> Tensor:
        return fused.scaled(features, self.scale, self.shift, relu=True)


class Product(NormRelu):
    """BatchNorm, ReLU, 1x1 convolution and what was folded into that, in one pass over the features."""

    def __init__(self, norm: nn.BatchNorm2d | nn.SyncBatchNorm, conv: Convolution):
        super().__init__(norm)
        self.conv = conv

    def forward(self, features: Tensor) -> Tensor:
        conv = self.conv
        bias = conv.bias if conv.biased else None
        return fused.product(features, self.scale, self.shift, conv.weight, bias, conv.relu, conv.out_dtype)


class Bounds(nn.Module):
    """BatchNorm and ReLU, but for a scale and a shift that the 1x1 convolution after them takes over.

    max(scale * x + shift, 0) is scale * max(x, -shift / scale) + shift, or with min where the scale is negative. So
    each channel has one bound, and one pass over the features is all that is left to do.
    """

    def __init__(self, norm: nn.BatchNorm2d | nn.SyncBatchNorm, conv: Convolution):
        super().__init__()
        scale, shift = scale_and_shift(norm)
        constant = scale.abs() * UNREACHED <= shift.abs()  # as with a scale of 0
        bound = torch.where(constant, 0, -shift / scale)
        infinity = torch.full_like(bound, torch.inf)
        self.register_buffer("lower", torch.where(scale < 0, -infinity, bound).masked_fill(constant, 0).view(-1, 1, 1))
        self.register_buffer("upper", torch.where(scale > 0, infinity, bound).masked_fill(constant, 0).view(-1, 1, 1))
        conv.scale_inputs(scale.masked_fill(constant, 0), torch.where(constant, shift.relu(), shift))

    def forward(self, features: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.clamp(features, self.lower, self.upper, out=out)


class Linear(nn.Module):
    """A linear layer; in float32 on a CPU by oneDNN, as torch.compile does it: MKL's takes twice as long on some."""

    def __init__(self, linear: nn.Linear, form: Form):
        super().__init__()
        dtype = form.dtype or linear.weight.dtype
        self.weight = nn.Parameter(linear.weight.detach().to(dtype, copy=True))
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(dtype, copy=True))
        self.narrow = form.dtype is not None
        self.out_dtype: torch.dtype | None = None  # of what comes out; None: that of the weight

    def forward(self, features: Tensor) -> Tensor:
        if self.narrow:
            features = F.linear(features.to(self.weight.dtype), self.weight, self.bias)
            return features if self.out_dtype is None else features.to(self.out_dtype)
        if takes_hooks(features):
            return torch.ops.mkldnn._linear_pointwise(features, self.weight, self.bias, "none", [], "")
        return F.linear(features, self.weight, self.bias)


class Autocast(nn.Module):
    """A convolution that is copied as it is, under autocast."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, self.dtype, cache_enabled=False):
            return self.module(features)
