"""Networks for inference: a copy that gives the outputs of eval mode, sooner.

Nothing in it is approximate and nothing is compiled: BatchNorm goes into the convolution beside it, a dense block's
layers write into one tensor, activations lie channels last, and on a CPU oneDNN does the products.
"""

import copy
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.densenet import _DenseBlock, _Transition

from models.ladder_densenet import LadderStep, NormReluConv
from models.norms import Layers
from models.upsampling import upsample
from models.wide_resnet import PreActivationBlock

ONEDNN = torch.backends.mkldnn.is_available()
NEVER = 1e30  # no feature gets there: a ReLU that such a feature alone would switch is constant


@torch.no_grad()
def fast_inference(
    model: nn.Module, dtype: torch.dtype = torch.float32, memory_format: torch.memory_format = torch.channels_last
) -> nn.Module:
    """A copy of the model for inference: the outputs of eval mode up to rounding, computed faster.

    model    any module with networks of this package in it, such as windows around one; what is not known here is
             copied as it is. It stays as it was, mode included, and shares no memory with the copy.
             In bfloat16 take the model itself: folded weights and bounds lose more to its rounding.
    returns  the copy, on the model's device, in eval mode, without gradients, and with keys of its own. It holds the
             weights of now: after further training, make another, which takes about as long as copying them.
    raises   ValueError where a BatchNorm to be folded has no running statistics
    """
    copied = inferring(model) if dtype is torch.float32 else copy.deepcopy(model)
    return copied.eval().requires_grad_(False).to(memory_format=memory_format)


def inferring(module: nn.Module) -> nn.Module:
    if type(module) in FASTER:
        return FASTER[type(module)](module)
    children = {id(child): inferring(child) for child in module.children()}
    return copy.deepcopy(module, children)  # which takes what it finds there for copied


def folded(layers: list[nn.Module]) -> list[nn.Module]:
    """Copies of layers that are applied in turn, with nn.Identity in the place of those folded into their neighbours.

    BatchNorm and ReLU after a convolution go into it. Before a 1x1 convolution they become Bounds; before a larger one
    they stay, because the zeros around the image stand for features after the ReLU.
    """
    layers = [inferring(layer) for layer in layers]
    for number, layer in enumerate(layers):
        if not isinstance(layer, Convolution):
            continue
        before, after = layers[max(0, number - 2) : number], layers[number + 1 : number + 3]
        if kinds(before) == [nn.BatchNorm2d, nn.ReLU] and layer.is_pointwise():
            layers[number - 2 : number] = [Bounds(before[0], layer), nn.Identity()]
        if kinds(after)[:1] == [nn.BatchNorm2d]:
            layer.scale_outputs(*scale_and_shift(after[0]))
            layers[number + 1] = nn.Identity()
            if kinds(after)[1:] == [nn.ReLU]:
                layer.relu = True
                layers[number + 2] = nn.Identity()
    return layers


def kinds(layers: list[nn.Module]) -> list[type]:
    """Their classes; in eval mode a norm that was synchronised over processes is as any other."""
    return [nn.BatchNorm2d if isinstance(layer, nn.SyncBatchNorm) else type(layer) for layer in layers]


def scale_and_shift(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> tuple[Tensor, Tensor]:
    """(D,) each: in eval mode, the norm is scale * features + shift."""
    if norm.running_mean is None:
        raise ValueError(
            "a BatchNorm without running statistics normalises by the batch in eval mode, too, and cannot be folded: "
            "build it with track_running_stats=True"
        )
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -scale * norm.running_mean
    return scale, shift + norm.bias if norm.affine else shift


class Convolution(nn.Module):
    """A convolution with zeros around the image, and ReLU where `relu` says so."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().clone())
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.bias = nn.Parameter(bias)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.relu = False

    def is_pointwise(self) -> bool:
        return self.weight.shape[2:] == (1, 1) and self.padding == (0, 0) and self.groups == 1

    def scale_inputs(self, scale: Tensor, shift: Tensor) -> None:
        """From now on, take features and do as if scale * features + shift had been given; for a pointwise one."""
        self.bias += self.weight.flatten(1) @ shift
        self.weight *= scale.view(1, -1, 1, 1)

    def scale_outputs(self, scale: Tensor, shift: Tensor) -> None:
        self.bias.mul_(scale).add_(shift)
        self.weight *= scale.view(-1, 1, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        dilation = self.dilation
        if features.is_cpu and ONEDNN and self.weight.shape[2:] == (1, 1):
            dilation = 2  # nothing to a 1x1 kernel, but with one thread PyTorch leaves only dilated ones to oneDNN
        features = F.conv2d(features, self.weight, self.bias, self.stride, self.padding, dilation, self.groups)
        return features.relu_() if self.relu else features


class Bounds(nn.Module):
    """BatchNorm and ReLU, but for a scale and a shift that the 1x1 convolution after them takes over.

    max(scale * x + shift, 0) is scale * max(x, -shift / scale) + shift, or with min where the scale is negative. So
    each channel has one bound, and one pass over the features is all that is left to do.
    """

    def __init__(self, norm: nn.BatchNorm2d | nn.SyncBatchNorm, conv: Convolution):
        super().__init__()
        scale, shift = scale_and_shift(norm)
        constant = scale.abs() * NEVER <= shift.abs()  # such as a scale of 0
        bound = torch.where(constant, 0, -shift / scale)
        infinity = torch.full_like(bound, torch.inf)
        self.register_buffer("lower", torch.where(scale < 0, -infinity, bound).masked_fill(constant, 0).view(-1, 1, 1))
        self.register_buffer("upper", torch.where(scale > 0, infinity, bound).masked_fill(constant, 0).view(-1, 1, 1))
        conv.scale_inputs(scale.masked_fill(constant, 0), torch.where(constant, shift.relu(), shift))

    def forward(self, features: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.clamp(features, self.lower, self.upper, out=out)


class Linear(nn.Module):
    """A linear layer; in float32 on a CPU by oneDNN, as torch.compile does it: MKL's takes twice as long on some."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().clone())
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        if features.is_cpu and ONEDNN and features.dtype == torch.float32:
            return torch.ops.mkldnn._linear_pointwise(features, self.weight, self.bias, "none", [], "")
        return F.linear(features, self.weight, self.bias)


class FastDenseBlock(nn.Module):
    """A dense block whose layers read the features so far from one tensor and append theirs to it, nothing is moved."""

    def __init__(self, block: _DenseBlock):
        super().__init__()
        self.layers = nn.ModuleList()
        for layer in block.children():
            chain = [layer.norm1, layer.relu1, layer.conv1, layer.norm2, layer.relu2, layer.conv2]
            bounds, _, bottleneck, _, _, conv = folded(chain)
            self.layers.append(nn.ModuleDict({"bounds": bounds, "bottleneck": bottleneck, "conv": conv}))

    def forward(self, features: Tensor) -> Tensor:
        width, grown = features.shape[1], [len(layer["conv"].weight) for layer in self.layers]
        block = like(features, width + sum(grown))
        block[:, :width] = features
        room = like(features, width + sum(grown[:-1])).permute(0, 2, 3, 1).flatten()  # for one layer's input
        for layer, growth in zip(self.layers, grown, strict=True):
            bounded = room[: features[:, :1].numel() * width].view(len(features), *features.shape[2:], width)
            bounded = layer["bounds"](block[:, :width], out=bounded.permute(0, 3, 1, 2))
            block[:, width : width + growth] = layer["conv"](layer["bottleneck"](bounded))
            width += growth
        return block


def like(features: Tensor, channels: int) -> Tensor:
    """An empty tensor of the features' size with so many channels, channels last."""
    shape = (len(features), channels, *features.shape[2:])
    return torch.empty(shape, dtype=features.dtype, device=features.device, memory_format=torch.channels_last)


def transition(layers: _Transition) -> nn.Sequential:
    """BatchNorm, ReLU, 1x1 convolution, mean of neighbours: the convolution goes last, where a quarter is left of it.

    Both are linear and a mean leaves a bias as it is, so they can change places.
    """
    bounds, _, conv, pool = folded([layers.norm, layers.relu, layers.conv, layers.pool])
    return nn.Sequential(bounds, pool, conv)


class FastLadderStep(nn.Module):
    """A ladder's step with the norm of its sum in what is summed, and one tensor of the sum's size for all of it."""

    def __init__(self, step: LadderStep):
        super().__init__()
        self.bottleneck, self.conv = inferring(step.bottleneck), inferring(step.blend_conv.conv)
        scale, shift = scale_and_shift(step.blend_conv.norm)
        self.bottleneck.conv.scale_outputs(scale, shift)
        self.register_buffer("scale", scale.view(-1, 1, 1))

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        features = self.bottleneck(skip)
        features += upsample(coarse * self.scale, skip.shape[2:])
        return self.conv(features.relu_())


def in_turn(sequence: nn.Sequential) -> nn.Sequential:
    """A sequence with the same names, layers folded."""
    layers = OrderedDict(sequence.named_children())
    return nn.Sequential(OrderedDict(zip(layers, folded(list(layers.values())), strict=True)))


def convolution(conv: nn.Conv2d) -> nn.Module:
    return Convolution(conv) if conv.padding_mode == "zeros" else copy.deepcopy(conv)


def pre_activation_block(block: PreActivationBlock) -> PreActivationBlock:
    """The norms between its convolutions are folded; the first stays, for the shortcut goes round it."""
    flat = [layer for layer in block.convs.modules() if not list(layer.children())]
    copied = {id(block.convs): nn.Sequential(*folded(flat))}
    if block.proj_conv is not None:
        copied[id(block.proj_conv)] = inferring(block.proj_conv)
    return copy.deepcopy(block, copied)


FASTER = {  # by a module's very class, for a class derived from it may compute something else
    nn.Conv2d: convolution,
    nn.Linear: Linear,
    nn.Sequential: in_turn,
    Layers: in_turn,
    NormReluConv: in_turn,
    LadderStep: FastLadderStep,
    PreActivationBlock: pre_activation_block,
    _DenseBlock: FastDenseBlock,
    _Transition: transition,
}
