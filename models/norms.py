"""BatchNorm with ReLU, and dense blocks, in few passes over memory: for training on CUDA, by Triton kernels.

Everywhere else (on a CPU, in eval mode, with SyncBatchNorm, compiled, without Triton) layers are computed one by one.
What is normalised and how, running statistics included, is nn.BatchNorm2d's in train mode.
"""

import functools
import warnings
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torchvision.models.densenet import _DenseBlock, _DenseLayer

from models.rows import as_images, as_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WEIGHTS_OF_LAYER = 6  # of a dense layer


class Layers(nn.Sequential):
    """nn.Sequential, with each BatchNorm and the ReLU after it in one pass where `kernels_for` has kernels."""

    def forward(self, features: Tensor) -> Tensor:
        layers = list(self)
        while layers:
            fuses = [type(layer) for layer in layers[:2]] == [nn.BatchNorm2d, nn.ReLU]
            if kernels := kernels_for(features, layers[0]) if fuses else None:
                # A convolution would round them anyway, and less memory is written.
                narrow = len(layers) > 2 and type(layers[2]) is nn.Conv2d
                dtype = type_of_products(features) if narrow else features.dtype
                features = norm_relu(features, layers[0], dtype, kernels)
                layers = layers[2:]
            else:
                features = layers.pop(0)(features)
        return features


def kernels_for(features: Tensor, *norms: nn.BatchNorm2d) -> ModuleType | None:
    """models.norm_kernels if it is for these features and norms and works here, else None"""
    if torch.compiler.is_compiling() or features.ndim != 4:  # a compiler fuses by itself
        return None
    laid_out = features.is_contiguous(memory_format=torch.channels_last)
    several = features.numel() > features.shape[1]  # of one number there is no variance
    if not laid_out or not several or not all(is_plain(norm, features.dtype) for norm in norms):
        return None
    return working_kernels(features.device, features.dtype)


def is_plain(norm: nn.Module, dtype: torch.dtype) -> bool:
    """Whether it is BatchNorm in train mode, of one process, affine, and no narrower than float32 or the features"""
    if type(norm) is not nn.BatchNorm2d or not norm.training or not norm.affine or norm.momentum is None:
        return False
    return norm.weight.dtype == torch.promote_types(dtype, torch.float32)


@functools.cache
def working_kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """models.norm_kernels; None, after a warning, where Triton is missing or cannot compile: it needs a C compiler"""
    if device.type != "cuda" or dtype not in DTYPES:
        return None
    try:
        from models import norm_kernels

        ones = torch.ones(3, 1, device=device)
        norm_kernels.norm_relu(ones.to(dtype), ones, ones[0], ones[0], dtype)
    except Exception as error:  # whatever an installation lacks
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        warnings.warn(f"without Triton's kernels, training on {device} is slower ({reason})", stacklevel=2)
        return None
    return norm_kernels


def type_of_products(features: Tensor) -> torch.dtype:
    """In which convolutions compute"""
    kind = features.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features.dtype


def new_moments(norm: nn.BatchNorm2d, width: int) -> Tensor:
    return norm.weight.new_empty(3, width)


@torch.no_grad()
def update_running_statistics(norms: list[nn.BatchNorm2d], moments: list[Tensor]) -> None:
    """One step of the moving averages of norms with the same momentum, by moments (3, D) of each"""
    tracked = [(norm, batch) for norm, batch in zip(norms, moments, strict=True) if norm.track_running_stats]
    if not tracked:
        return
    running = [norm.running_mean for norm, _ in tracked] + [norm.running_var for norm, _ in tracked]
    batch = [batch[0] for _, batch in tracked] + [batch[2] for _, batch in tracked]
    torch._foreach_lerp_(running, batch, tracked[0][0].momentum)
    torch._foreach_add_([norm.num_batches_tracked for norm, _ in tracked], 1)


def norm_relu(features: Tensor, norm: nn.BatchNorm2d, dtype: torch.dtype, kernels: ModuleType) -> Tensor:
    """relu(norm(features)) in the given type; features (B, D, H, W), channels last"""
    moments = new_moments(norm, features.shape[1])
    kernels.moments_of(as_rows(features.detach()), moments, norm.eps)
    update_running_statistics([norm], [moments])
    return NormRelu.apply(features, moments, norm.weight, norm.bias, dtype, kernels)


class NormRelu(torch.autograd.Function):
    """BatchNorm by given moments and ReLU; whether the ReLU lets a gradient pass is computed again, not kept."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        features: Tensor,
        moments: Tensor,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
        kernels: ModuleType,
    ) -> Tensor:
        ctx.save_for_backward(features, moments, weight, bias)
        ctx.kernels = kernels
        return as_images(kernels.norm_relu(as_rows(features), moments, weight, bias, dtype), features)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, *weights = ctx.saved_tensors
        grad, rows = as_rows(grad), as_rows(features)
        sums = ctx.kernels.summed(grad, rows, *weights)
        of_features = None
        if ctx.needs_input_grad[0]:
            of_features = as_images(ctx.kernels.features_gradient(grad, rows, *weights, sums), features)
        of_bias, of_weight = sums
        return of_features, None, of_weight, of_bias, None, None


def dense_block_kernels(block: nn.Module, features: Tensor) -> ModuleType | None:
    """models.norm_kernels if `dense_block` can take this block and these features, else None"""
    if type(block) is not _DenseBlock:
        return None
    layers = list(block.children())
    norms = [norm for layer in layers for norm in (layer.norm1, layer.norm2)]
    kernels = kernels_for(features, *norms)
    if not kernels or type_of_products(features) != features.dtype:
        return None
    if not all(is_plain_layer(layer, features) for layer in layers):
        return None
    same = len({(norm.eps, norm.momentum) for norm in norms}) == 1  # so that they can share statistics
    return kernels if same else None


def is_plain_layer(layer: _DenseLayer, features: Tensor) -> bool:
    convs = [type(conv) is nn.Conv2d and conv.bias is None for conv in (layer.conv1, layer.conv2)]
    if not all(convs) or layer.drop_rate or layer.memory_efficient:
        return False
    autocast = torch.is_autocast_enabled(features.device.type)
    return autocast or layer.conv1.weight.dtype == layer.conv2.weight.dtype == features.dtype


def dense_block(block: _DenseBlock, features: Tensor, kernels: ModuleType, checkpointing: bool) -> Tensor:
    """block(features) in train mode, in one tensor that each layer appends its features to.

    checkpointing  keep that tensor alone for the backward pass, and compute the layers again there. Running statistics
                   are updated once either way.
    """
    layers = list(block.children())
    weights = []
    for layer in layers:
        norm1, norm2 = layer.norm1, layer.norm2
        weights += [norm1.weight, norm1.bias, layer.conv1.weight, norm2.weight, norm2.bias, layer.conv2.weight]
    keep = torch.is_grad_enabled() and not checkpointing
    return DenseBlock.apply(features, layers, kernels, keep, *weights)


class DenseBlock(torch.autograd.Function):
    """A dense block whose features lie in one tensor, normalised by statistics that are computed once per channel.

    The backward pass has one tensor for the gradient of all of them. A layer's norm sends to each row a part that
    depends on this row and a part linear in the row's normalised features, whose coefficients are sums over all rows.
    Layers share the normalised features, so that coefficients add up, and are made good when all of a channel's readers
    are through: a layer takes one pass instead of two, and nothing is concatenated, split or added.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, features: Tensor, layers: list[_DenseLayer], kernels: ModuleType, keep: bool, *weights: Tensor
    ) -> Tensor:
        width, growth = features.shape[1], [len(layer.conv2.weight) for layer in layers]
        rows = as_rows(features)
        block = rows.new_empty(len(rows), width + sum(growth))
        eps = layers[0].norm1.eps
        moments = new_moments(layers[0].norm1, block.shape[1])
        kernels.moments_of(rows, moments[:, :width], eps, copy=block[:, :width])
        narrow = rounded([weight for weight in weights if weight.ndim == 4], features.dtype)
        norms, moments_of_norms, kept = [], [], []
        with torch.autocast(features.device.type, enabled=False):  # weights are rounded
            for number, layer in enumerate(layers):
                parts = weights[WEIGHTS_OF_LAYER * number :][:WEIGHTS_OF_LAYER]
                inputs = block[:, :width], moments[:, :width]
                inner_moments = new_moments(layer.norm2, len(layer.conv1.weight))
                convs = narrow[2 * number : 2 * number + 2]
                first, inner, second = DenseBlock.inside(kernels, features, inputs, inner_moments, parts, convs, eps)
                new = as_rows(F.conv2d(as_images(second, features), convs[1], padding=1))
                grown = slice(width, width + growth[number])
                kernels.moments_of(new, moments[:, grown], eps, copy=block[:, grown])
                norms += [layer.norm1, layer.norm2]
                moments_of_norms += [inputs[1], inner_moments]
                kept += [inner_moments, first, inner, second] if keep else [inner_moments]
                width = grown.stop
        update_running_statistics(norms, moments_of_norms)
        out = as_images(block, features)
        ctx.save_for_backward(out, moments, *weights, *narrow, *kept)
        ctx.kernels, ctx.keep, ctx.growth = kernels, keep, growth
        return out

    @staticmethod
    def inside(
        kernels: ModuleType,
        images: Tensor,
        inputs: tuple[Tensor, Tensor],
        inner_moments: Tensor,
        weights: tuple[Tensor, ...],
        convs: list[Tensor],
        eps: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What a layer computes before its second convolution: the input of the first, its output, the second's input.

        images  any of the size
        inputs  features and their moments
        eps     for inner_moments, which are computed; None: they are there
        """
        first = kernels.norm_relu(*inputs, *weights[:2], images.dtype)
        inner = as_rows(F.conv2d(as_images(first, images), convs[0]))
        if eps is not None:
            kernels.moments_of(inner, inner_moments, eps)
        return first, inner, kernels.norm_relu(inner, inner_moments, *weights[3:5], images.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernels, count = ctx.kernels, len(ctx.growth)
        images, moments, *saved = ctx.saved_tensors
        weights, saved = saved[: WEIGHTS_OF_LAYER * count], saved[WEIGHTS_OF_LAYER * count :]
        narrow, kept = saved[: 2 * count], saved[2 * count :]
        wanted = ctx.needs_input_grad[-WEIGHTS_OF_LAYER * count :]
        block, so_far, gathered = as_rows(images), as_rows(grad), None
        owed = torch.zeros_like(moments[:2])
        gradients: list[Tensor | None] = [None] * len(weights)
        stop = block.shape[1]
        for number in reversed(range(count)):
            place = WEIGHTS_OF_LAYER * number
            parts, convs = weights[place : place + WEIGHTS_OF_LAYER], narrow[2 * number : 2 * number + 2]
            start = stop - ctx.growth[number]
            grown = slice(start, stop)
            inputs = block[:, :start], moments[:, :start]
            if ctx.keep:
                inner_moments, first, inner, second = kept[4 * number : 4 * number + 4]
            else:
                inner_moments = kept[number]
                with torch.autocast(images.device.type, enabled=False):
                    first, inner, second = DenseBlock.inside(kernels, images, inputs, inner_moments, parts, convs, None)
            new = kernels.settled(so_far[:, grown], block[:, grown], moments[:, grown], owed[:, grown])
            asked = wanted[place : place + WEIGHTS_OF_LAYER]
            of_second, of_conv2 = convolution_gradients(new, second, convs[1], images, asked[5])
            norm2 = inner_moments, *parts[3:5]
            inner_sums = kernels.summed(of_second, inner, *norm2)
            of_inner = kernels.features_gradient(of_second, inner, *norm2, inner_sums)
            of_first, of_conv1 = convolution_gradients(of_inner, first, convs[0], images, asked[2])
            del new, of_second, of_inner, first, inner, second
            if gathered is None:  # the gradient that came in is not ours to write to
                gathered = block.new_empty(len(block), start)
            sums = kernels.summed(
                of_first, *inputs, *parts[:2], so_far[:, :start], gathered[:, :start], owed[:, :start]
            )
            so_far, stop = gathered, start
            found = [sums[1], sums[0], of_conv1, inner_sums[1], inner_sums[0], of_conv2]
            gradients[place : place + WEIGHTS_OF_LAYER] = found
        of_features = None
        if ctx.needs_input_grad[0]:
            of_features = kernels.settled(so_far[:, :stop], block[:, :stop], moments[:, :stop], owed[:, :stop])
            of_features = as_images(of_features, images)
        return of_features, None, None, None, *widened(gradients, weights)


def convolution_gradients(
    grad: Tensor, rows: Tensor, weight: Tensor, images: Tensor, of_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients (N, D) of a convolution's input and of its weight; grad (N, E) and rows (N, D) of the images' size"""
    padding = [weight.shape[2] // 2] * 2
    of_input, found, _ = torch.ops.aten.convolution_backward(
        as_images(grad, images), as_images(rows, images), weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1,
        [True, of_weight, False],
    )  # fmt: skip
    return as_rows(of_input), found


def rounded(weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The weights in the given type, by one launch"""
    if all(weight.dtype == dtype for weight in weights):
        return list(weights)
    narrow = [torch.empty_like(weight, dtype=dtype) for weight in weights]
    torch._foreach_copy_(narrow, weights)
    return narrow


def widened(gradients: list[Tensor | None], weights: list[Tensor]) -> list[Tensor | None]:
    """The gradients in the types of the weights, by one launch"""
    types = [None if gradient is None else gradient.dtype for gradient in gradients]
    narrow = [n for n, dtype in enumerate(types) if dtype not in (None, weights[n].dtype)]
    wide = [torch.empty_like(gradients[n], dtype=weights[n].dtype) for n in narrow]
    if narrow:
        torch._foreach_copy_(wide, [gradients[n] for n in narrow])
    for n, gradient in zip(narrow, wide, strict=True):
        gradients[n] = gradient
    return gradients
