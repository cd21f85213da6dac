"""LDN-121: a ladder-style DenseNet-121 for segmentation, closed-set or with a dataset head (DenseHybrid, ECCV 2022).

Attribute names are those of the released checkpoints, so that released files load here and ours load there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import densenet121

from errors import WrongInput
from models.checkpointing import checkpointed_if
from models.norms import Layers, dense_block, dense_block_kernels
from models.upsampling import upsample

BATCHNORM_MOMENTUM = 0.01
PYRAMID_HEIGHTS = (8, 4, 2, 1)
STEM = 4  # layers before the first dense block: convolution, norm, ReLU, pool


def ladder_densenet121(num_classes: int, hybrid: bool = True, checkpointing: bool = False) -> "LadderDenseNet":
    """LDN-121 with random weights; hybrid adds the dataset head `logits_ood`.

    checkpointing  compute layers again in training's backward pass instead of keeping what they computed
    """
    return LadderDenseNet(num_classes, hybrid, checkpointing)


class NormReluConv(Layers):
    """BatchNorm, ReLU, then a convolution that keeps height and width."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, bias: bool = False):
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels, momentum=BATCHNORM_MOMENTUM)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)


class Backbone(nn.Module):
    """torchvision's DenseNet-121 without its last norm, with the pools of the release.

    The input is RGB in 0..1, not normalised: the release feeds its network so.
    """

    def __init__(self, checkpointing: bool = False):
        super().__init__()
        self.checkpointing = checkpointing
        self.features = densenet121(weights=None).features
        del self.features.norm5
        self.features.pool0 = nn.MaxPool2d(2, stride=2)
        for number in (1, 2, 3):
            transition = getattr(self.features, f"transition{number}")
            transition.pool = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = BATCHNORM_MOMENTUM

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> raw outputs of the four dense blocks, strides 4, 8, 16, 32."""
        checkpointing = self.checkpointing and self.training
        features = checkpointed_if(checkpointing, Layers(*self.features[:STEM]), images)
        outputs = []
        for name, layer in list(self.features.named_children())[STEM:]:
            if not name.startswith("denseblock"):
                features = checkpointed_if(checkpointing, Layers(*layer), features)
                continue
            if kernels := dense_block_kernels(layer, features):
                features = dense_block(layer, features, kernels, checkpointing)
            else:
                features = checkpointed_layers(layer, features) if checkpointing else layer(features)
            outputs.append(features)
        return outputs


def checkpointed_layers(block: nn.Module, features: Tensor) -> Tensor:
    """A dense block that keeps each layer's input and output alone; the inputs are shared."""
    seen = [features]
    for layer in block.children():
        seen.append(checkpointed_if(True, layer, list(seen)))  # a list of its own, for this one grows
    return torch.cat(seen, dim=1)


class SpatialPyramidPooling(nn.Module):
    """Context from four grids laid over the coarsest features, fused with the features themselves."""

    def __init__(self, in_channels: int, width: int = 512, level_width: int = 128):
        super().__init__()
        self.spp = nn.Module()  # the released keys read spp.spp.spp.NAME
        self.spp.spp = nn.Module()
        layers = self.spp.spp
        layers.spp_bn = NormReluConv(in_channels, width)
        for level in range(len(PYRAMID_HEIGHTS)):
            setattr(layers, f"spp{level}", NormReluConv(width, level_width))
        layers.spp_fuse = NormReluConv(width + len(PYRAMID_HEIGHTS) * level_width, width)

    def forward(self, features: Tensor) -> Tensor:
        layers = self.spp.spp
        height, width = features.shape[2:]
        features = layers.spp_bn(features)
        levels = [features]
        for level, grid_height in enumerate(PYRAMID_HEIGHTS):
            grid = (grid_height, max(1, round(grid_height * width / height)))
            pooled = F.adaptive_avg_pool2d(features, grid)
            levels.append(upsample(getattr(layers, f"spp{level}")(pooled), (height, width)))
        return layers.spp_fuse(torch.cat(levels, dim=1))


class LadderStep(nn.Module):
    """Upsample the coarse features to a skip connection's size and blend the two."""

    def __init__(self, coarse_width: int, skip_width: int, out_width: int):
        super().__init__()
        self.bottleneck = NormReluConv(skip_width, coarse_width)
        self.blend_conv = NormReluConv(coarse_width, out_width, kernel_size=3)
        # In every released checkpoint, used by none: an auxiliary loss's head that never gets a gradient.
        self.logits_aux = NormReluConv(coarse_width, 1, bias=True)
        self.logits_aux.requires_grad_(False)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        return self.blend_conv(self.bottleneck(skip) + upsample(coarse, skip.shape[2:]))


class Ladder(nn.Module):
    """From stride 32 to stride 4 in three steps, coarsest skip first."""

    def __init__(
        self,
        coarse_width: int,
        skip_widths: tuple[int, ...],
        out_widths: tuple[int, ...],
        checkpointing: bool = False,
    ):
        super().__init__()
        self.checkpointing = checkpointing
        self.upsample_layers = nn.Module()
        for number, (skip_width, out_width) in enumerate(zip(skip_widths, out_widths, strict=True)):
            setattr(self.upsample_layers, f"upsample_{number}", LadderStep(coarse_width, skip_width, out_width))
            coarse_width = out_width

    def forward(self, features: Tensor, skips: list[Tensor]) -> Tensor:
        for step, skip in zip(self.upsample_layers.children(), skips, strict=True):
            features = checkpointed_if(self.checkpointing and self.training, step, features, skip)
        return features


class LadderDenseNet(nn.Module):
    """(B, 3, H, W) RGB in 0..1 -> class logits (B, K, H, W) and, hybrid, dataset logits (B, 2, H, W).

    Channel 0 of the dataset logits is inlier, channel 1 outlier.
    """

    smallest_side = 3  # halved, rounding up, and halved, rounding down, one pixel is left of it; later pools round up

    def __init__(self, num_classes: int, hybrid: bool, checkpointing: bool = False):
        super().__init__()
        self.backbone = Backbone(checkpointing)
        self.spp = SpatialPyramidPooling(1024)
        self.upsample = Ladder(512, (1024, 512, 256), (256, 256, 128), checkpointing)
        self.logits = NormReluConv(128, num_classes, bias=True)
        if hybrid:
            self.logits_ood = NormReluConv(128, 2, bias=True)
        self.hybrid, self.checkpointing = hybrid, checkpointing

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        checkpointing = self.checkpointing and self.training
        *skips, coarsest = self.backbone(images)
        context = checkpointed_if(checkpointing, self.spp, coarsest)
        features = self.upsample(context, skips[::-1])
        size = images.shape[2:]
        class_logits = upsample(checkpointed_if(checkpointing, self.logits, features), size)
        if not self.hybrid:
            return class_logits
        return class_logits, upsample(checkpointed_if(checkpointing, self.logits_ood, features), size)


def backbone_slower(model: LadderDenseNet, lr: float, factor: float) -> list[dict]:
    """Parameter groups for an optimiser: the pretrained backbone at lr * factor, the rest at lr; 0 < factor <= 1."""
    if not 0 < factor <= 1:
        raise WrongInput(f"backbone_lr_factor {factor} must be over 0 and at most 1: it is the backbone's share of lr")
    backbone = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
    own = {id(parameter) for parameter in backbone}
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in own]
    return [{"params": backbone, "lr": lr * factor}, {"params": rest, "lr": lr}]
