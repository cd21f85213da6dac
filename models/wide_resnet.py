"""WideResNet-38: a wide pre-activation ResNet for segmentation, output stride 8, without its classifier.

Attribute names are those of the released checkpoints, so that released files load here and ours load there.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpointing import checkpointed_if
from models.norms import Layers

# Number of blocks, widths of a block's convolutions, stride of the first block, dilation, channel dropout.
STAGES = {
    "mod2": (3, (128, 128), 1, 1, 0.0),
    "mod3": (3, (256, 256), 1, 1, 0.0),
    "mod4": (6, (512, 512), 2, 1, 0.0),
    "mod5": (3, (512, 1024), 1, 2, 0.0),
    "mod6": (1, (512, 1024, 2048), 1, 4, 0.3),
    "mod7": (1, (1024, 2048, 4096), 1, 4, 0.5),
}

KERNEL_SIZES = {2: (3, 3), 3: (1, 3, 1)}  # by the number of widths


def norm_relu(channels: int) -> Layers:
    return Layers(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class PreActivationBlock(nn.Module):
    """Residual block with BatchNorm and ReLU before every convolution.

    Two widths are two 3x3 convolutions, three a 1x1, 3x3, 1x1 bottleneck. The first has the stride; dropout zeroes
    whole channels before the last.
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...], stride: int, dilation: int, dropout: float):
        super().__init__()
        self.bn1 = norm_relu(in_channels)
        layers = OrderedDict()
        channels = in_channels
        for number, (width, kernel_size) in enumerate(zip(widths, KERNEL_SIZES[len(widths)], strict=True), 1):
            if number > 1:
                layers[f"bn{number}"] = norm_relu(channels)
            if dropout and number == len(widths):
                layers["dropout"] = nn.Dropout2d(dropout)
            layers[f"conv{number}"] = nn.Conv2d(
                channels,
                width,
                kernel_size,
                stride=stride if number == 1 else 1,
                padding=dilation * (kernel_size // 2),
                dilation=dilation if kernel_size > 1 else 1,
                bias=False,
            )
            channels = width
        self.convs = nn.Sequential(layers)
        projects = stride > 1 or channels != in_channels
        self.proj_conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if projects else None

    def forward(self, features: Tensor) -> Tensor:
        activated = self.bn1(features)
        shortcut = features if self.proj_conv is None else self.proj_conv(activated)
        return self.convs(activated) + shortcut


class WideResNet38(nn.Module):
    """Normalised images (B, 3, H, W) -> (fine features at stride 2, raw coarse features at stride 8)."""

    fine_width = 128
    coarse_width = 4096

    def __init__(self, checkpointing: bool = False):
        super().__init__()
        self.checkpointing = checkpointing
        channels = 64
        self.mod1 = nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, channels, 3, padding=1, bias=False)))
        for name, (num_blocks, widths, stride, dilation, dropout) in STAGES.items():
            blocks = OrderedDict()
            for number in range(1, num_blocks + 1):
                blocks[f"block{number}"] = PreActivationBlock(channels, widths, stride, dilation, dropout)
                channels, stride = widths[-1], 1
            setattr(self, name, nn.Sequential(blocks))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        stem = nn.Sequential(self.mod1, nn.MaxPool2d(3, stride=2, padding=1))
        fine = self.stage("mod2", checkpointed_if(self.checkpointing and self.training, stem, images))
        coarse = self.stage("mod3", F.max_pool2d(fine, 3, stride=2, padding=1))
        for name in ("mod4", "mod5", "mod6", "mod7"):
            coarse = self.stage(name, coarse)
        return fine, coarse

    def stage(self, name: str, features: Tensor) -> Tensor:
        for block in getattr(self, name):
            checkpointing = self.checkpointing and self.training
            features = checkpointed_if(checkpointing, block, features, random=STAGES[name][-1] > 0)
        return features
