"""Networks for inference: a copy that gives the outputs of eval mode, sooner.

Nothing in it is approximate: BatchNorm goes into the convolution beside it, a dense block's layers write into one
tensor and activations lie channels last. On a CPU oneDNN does the products. On a GPU what lies between two convolutions
is one kernel (models/fused.py), and a frame of a size seen before is one launch (models/graphs.py).
"""

import copy
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.densenet import _DenseBlock, _Transition

from errors import WrongInput
from models import fused
from models.deeplab import DeepLabV3Plus
from models.graphs import Replayed
from models.inference_layers import (
    Autocast,
    Bounds,
    Convolution,
    Form,
    Linear,
    NormRelu,
    Product,
    scale_and_shift,
)
from models.ladder_densenet import LadderDenseNet, LadderStep, NormReluConv
from models.mask_transformer import MaskTransformer
from models.norms import Layers
from models.segmenter import Segmenter
from models.upsampling import upsample
from models.wide_resnet import PreActivationBlock

NARROW = (torch.bfloat16, torch.float16)


@torch.no_grad()
def fast_inference(
    model: nn.Module, dtype: torch.dtype = torch.float32, memory_format: torch.memory_format = torch.channels_last
) -> nn.Module:
    """A copy of the model for inference: the outputs of eval mode up to rounding, computed faster.

    model          any module with networks of this package in it, such as windows around one; what is not known here is
                   copied as it is. It stays as it was, mode included, and shares no memory with the copy.
    dtype          float32: everything in the model's own type. bfloat16, float16: what autocast computes in it is, but
                   from weights that are rounded once. Autocast around the copy is not needed and changes nothing;
                   these networks take images in float32 and give logits in float32.
    memory_format  of activations. torch.contiguous_format pays for true float32 on CUDA, for which cuDNN has no good
                   kernels in channels_last.
    returns        the copy, on the model's device, where it is made, in eval mode, without gradients, and with keys of
                   its own. It holds the weights of now: after further training, make another, which takes about as long
                   as copying them. On CUDA its networks are Replayed.
    raises         ValueError for another dtype, and where a BatchNorm to be folded has no running statistics
    """
    if dtype not in (torch.float32, *NARROW):
        raise WrongInput(f"dtype {dtype} is none of float32, bfloat16 and float16, in which the copy can compute")
    narrow = dtype in NARROW
    fuses = narrow or (on_cuda(model) and memory_format == torch.channels_last)
    fast = inferring(model, Form(dtype if narrow else None, fuses, memory_format))
    for layer in fast.modules():
        if narrow and isinstance(layer, Convolution):  # last, for by now all norms are folded
            layer.weight = nn.Parameter(layer.weight.to(dtype))
    return fast.eval().requires_grad_(False).to(memory_format=memory_format)


def on_cuda(module: nn.Module) -> bool:
    return any(weight.is_cuda for weight in module.parameters())


def inferring(module: nn.Module, form: Form) -> nn.Module:
    return FASTER.get(type(module), copied)(module, form)


def copied(module: nn.Module, form: Form) -> nn.Module:
    children = {id(child): inferring(child, form) for child in module.children()}
    return copy.deepcopy(module, children)  # which takes what it finds there for copied


def folded(layers: list[nn.Module], form: Form) -> list[nn.Module]:
    """Copies of layers that are applied in turn, with nn.Identity in the place of those folded into their neighbours.

    BatchNorm and ReLU after a convolution go into it. Before a 1x1 convolution they become Bounds; before a larger one
    they stay, because the zeros around the image stand for features after the ReLU. Fused, those before a 1x1
    convolution are one layer with it, and those that stay are one layer.
    """
    layers = [inferring(layer, form) for layer in layers]
    for number, layer in enumerate(layers):
        if not isinstance(layer, Convolution):
            continue
        before, after = layers[max(0, number - 2) : number], layers[number + 1 : number + 3]
        if kinds(before) == [nn.BatchNorm2d, nn.ReLU] and layer.is_pointwise():
            if not form.fused:
                layers[number - 2 : number] = [Bounds(before[0], layer), nn.Identity()]
            elif set(layer.stride) == {1}:
                layers[number - 2 : number + 1] = [nn.Identity(), nn.Identity(), Product(before[0], layer)]
        if kinds(after)[:1] == [nn.BatchNorm2d]:
            layer.scale_outputs(*scale_and_shift(after[0]))
            layers[number + 1] = nn.Identity()
            if kinds(after)[1:] == [nn.ReLU]:
                layer.relu = True
                layers[number + 2] = nn.Identity()
    for number in range(len(layers) - 1):
        if form.fused and kinds(layers[number : number + 2]) == [nn.BatchNorm2d, nn.ReLU]:
            layers[number : number + 2] = [NormRelu(layers[number]), nn.Identity()]
    return layers


def kinds(layers: list[nn.Module]) -> list[type]:
    """Their classes; in eval mode a norm that was synchronised over processes is as any other."""
    return [nn.BatchNorm2d if isinstance(layer, nn.SyncBatchNorm) else type(layer) for layer in layers]


class NarrowMaskTransformer(nn.Module):
    """A mask transformer whose projections are narrow. The cosines stay wide, for mask_norm enlarges their rounding."""

    def __init__(self, decoder: MaskTransformer, form: Form):
        super().__init__()
        self.decoder, self.dtype = copied(decoder, form), form.dtype
        for name in ("proj_patch", "proj_classes"):
            setattr(self.decoder, name, nn.Parameter(getattr(decoder, name).to(form.dtype)))

    def forward(self, patches: Tensor) -> Tensor:
        patches, classes = self.decoder.attended(patches)
        patches = F.normalize((patches.to(self.dtype) @ self.decoder.proj_patch).float(), dim=2)
        classes = F.normalize((classes.to(self.dtype) @ self.decoder.proj_classes).float(), dim=2)
        return self.decoder.mask_norm(patches @ classes.transpose(1, 2))


class FastDenseBlock(nn.Module):
    """A dense block whose layers read the features so far from one tensor and append theirs to it, nothing is moved."""

    def __init__(self, block: _DenseBlock, form: Form):
        super().__init__()
        self.layout, self.fused = form.layout, form.fused
        self.layers = nn.ModuleList()
        for layer in block.children():
            chain = [layer.norm1, layer.relu1, layer.conv1, layer.norm2, layer.relu2, layer.conv2]
            bounds, _, bottleneck, _, _, conv = folded(chain, form)
            self.layers.append(nn.ModuleDict({"bounds": bounds, "bottleneck": bottleneck, "conv": conv}))

    def forward(self, features: Tensor) -> Tensor:
        width, grown = features.shape[1], [layer["conv"].weight.shape[0] for layer in self.layers]
        block = laid_out(features, width + sum(grown), self.layout)
        block[:, :width] = features
        room = None if self.fused else features.new_empty(features[:, :1].numel() * (width + sum(grown[:-1])))
        for layer, growth in zip(self.layers, grown, strict=True):
            seen = block[:, :width]
            if not self.fused:
                seen = layer["bounds"](seen, out=laid_out(features, width, self.layout, room))
            block[:, width : width + growth] = layer["conv"](layer["bottleneck"](seen))
            width += growth
        return block


def laid_out(features: Tensor, channels: int, layout: torch.memory_format, room: Tensor | None = None) -> Tensor:
    """A tensor of the features' size with so many channels, its values undefined; in the room where one is given."""
    batch, _, height, width = features.shape
    numel = batch * height * width * channels
    memory = features.new_empty(numel) if room is None else room[:numel]
    if layout == torch.channels_last:
        return memory.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return memory.view(batch, channels, height, width)


def transition(layers: _Transition, form: Form) -> nn.Sequential:
    """BatchNorm, ReLU, 1x1 convolution, mean of neighbours: the convolution goes last, where a quarter is left of it.

    Both are linear and a mean leaves a bias as it is, so they can change places. Fused, the convolution stays with the
    norm, for it halves the channels that are averaged.
    """
    bounds, relu, conv, pool = folded([layers.norm, layers.relu, layers.conv, layers.pool], form)
    return nn.Sequential(bounds, relu, conv, pool) if form.fused else nn.Sequential(bounds, pool, conv)


class FastLadderStep(nn.Module):
    """A ladder's step with the norm of its sum in what is summed, and one tensor of the sum's size for all of it."""

    def __init__(self, step: LadderStep, form: Form):
        super().__init__()
        self.fused = form.fused
        self.bottleneck, self.conv = inferring(step.bottleneck, form), inferring(step.blend_conv.conv, form)
        scale, shift = scale_and_shift(step.blend_conv.norm)
        last_layer(self.bottleneck).scale_outputs(scale, shift)
        self.register_buffer("scale", scale.view(-1, 1, 1))

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        features = self.bottleneck(skip)
        if self.fused:
            return self.conv(fused.blended(features, coarse, self.scale))
        features += upsample(coarse * self.scale, skip.shape[2:])
        return self.conv(features.relu_())


def last_layer(module: nn.Module) -> "Convolution | Linear":
    return [layer for layer in module.modules() if isinstance(layer, Convolution | Linear)][-1]


def in_turn(sequence: nn.Sequential, form: Form) -> nn.Sequential:
    """A sequence with the same names, layers folded."""
    layers = OrderedDict(sequence.named_children())
    return nn.Sequential(OrderedDict(zip(layers, folded(list(layers.values()), form), strict=True)))


def convolution(conv: nn.Conv2d, form: Form) -> nn.Module:
    if conv.padding_mode == "zeros":
        return Convolution(conv, form)
    return Autocast(copy.deepcopy(conv), form.dtype) if form.dtype else copy.deepcopy(conv)


def pre_activation_block(block: PreActivationBlock, form: Form) -> PreActivationBlock:
    """The norms between its convolutions are folded; the first stays, for the shortcut goes round it."""
    flat = [layer for layer in block.convs.modules() if not list(layer.children())]
    inner = {id(block.bn1): inferring(block.bn1, form), id(block.convs): nn.Sequential(*folded(flat, form))}
    if block.proj_conv is not None:
        inner[id(block.proj_conv)] = inferring(block.proj_conv, form)
    return copy.deepcopy(block, inner)


def mask_transformer(decoder: MaskTransformer, form: Form) -> nn.Module:
    return NarrowMaskTransformer(decoder, form) if form.dtype else copied(decoder, form)


def network(model: nn.Module, form: Form) -> nn.Module:
    """A network as a whole, whose logits come out in float32: Replayed, which is more on CUDA only."""
    fast = copied(model, form)
    for head in HEADS[type(model)] if form.dtype else ():
        if head in dict(fast.named_modules()):
            last_layer(fast.get_submodule(head)).out_dtype = torch.float32
    return Replayed(fast) if form.dtype or on_cuda(fast) else fast


HEADS = {  # those whose last layer is rounded in narrow types; a mask transformer ends with a LayerNorm, in float32
    DeepLabV3Plus: ("final", "logits_ood"),
    LadderDenseNet: ("logits", "logits_ood"),
    Segmenter: ("model.logits_ood",),
}

FASTER = {  # by a module's very class, for a class derived from it may compute something else
    nn.Conv2d: convolution,
    nn.Linear: Linear,
    nn.Sequential: in_turn,
    Layers: in_turn,
    NormReluConv: in_turn,
    LadderStep: FastLadderStep,
    PreActivationBlock: pre_activation_block,
    MaskTransformer: mask_transformer,
    _DenseBlock: FastDenseBlock,
    _Transition: transition,
    **dict.fromkeys(HEADS, network),
}
