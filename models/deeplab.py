"""DeepLabV3+ on WideResNet-38, closed-set or with a dataset head (DenseHybrid, ECCV 2022).

Attribute names are those of the released checkpoints, so that released files load here and ours load there.
"""

import torch
from torch import Tensor, nn

from errors import WrongInput
from models.checkpointing import checkpointed_if
from models.ladder_densenet import NormReluConv
from models.norms import Layers
from models.upsampling import upsample
from models.wide_resnet import WideResNet38

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's RGB in 0..1
STD = (0.229, 0.224, 0.225)
ATROUS_RATES = (12, 24, 36)


def deeplabv3plus(num_classes: int, hybrid: bool = True, checkpointing: bool = False) -> "DeepLabV3Plus":
    """DeepLabV3+ with random weights; hybrid adds the dataset head `logits_ood`.

    checkpointing  compute blocks again in training's backward pass instead of keeping what they computed
    """
    return DeepLabV3Plus(num_classes, hybrid, checkpointing=checkpointing)


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1) -> list[nn.Module]:
    """A convolution that keeps height and width, BatchNorm, ReLU."""
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


class AtrousSpatialPyramidPooling(nn.Module):
    """(B, D, h, w) -> (B, 5 * width, h, w): the image's mean, a 1x1 and three dilated 3x3 convolutions."""

    def __init__(self, in_channels: int, width: int = 256):
        super().__init__()
        levels = [conv_norm_relu(in_channels, width)]
        levels += [conv_norm_relu(in_channels, width, 3, rate) for rate in ATROUS_RATES]
        self.features = nn.ModuleList(Layers(*level) for level in levels)
        self.img_conv = Layers(*conv_norm_relu(in_channels, width))

    def forward(self, features: Tensor) -> Tensor:
        image = self.img_conv(features.mean((2, 3), keepdim=True)).expand(-1, -1, *features.shape[2:])
        return torch.cat([image, *(level(features) for level in self.features)], dim=1)


class DeepLabV3Plus(WideResNet38):
    """(B, 3, H, W) RGB in 0..1 -> class logits (B, K, H, W) and, hybrid, dataset logits (B, 2, H, W).

    Channel 0 of the dataset logits is inlier, channel 1 outlier. The trunk is inherited, not held, because the
    released keys give it no prefix; only its pair of fine and coarse features and their widths are used here.
    """

    smallest_side = 1  # all that is strided rounds up

    def __init__(
        self, num_classes: int, hybrid: bool, width: int = 256, fine_width: int = 48, checkpointing: bool = False
    ):
        super().__init__(checkpointing)
        self.aspp = AtrousSpatialPyramidPooling(self.coarse_width, width)
        self.bot_fine = nn.Conv2d(self.fine_width, fine_width, 1, bias=False)  # bottlenecks, without norm or ReLU
        self.bot_aspp = nn.Conv2d(5 * width, width, 1, bias=False)
        self.final = Layers(
            *conv_norm_relu(fine_width + width, width, 3),
            *conv_norm_relu(width, width, 3),
            nn.Conv2d(width, num_classes, 1, bias=False),
        )
        for module in self.final:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        if hybrid:
            self.logits_ood = NormReluConv(fine_width + width, 2, bias=True)
        self.hybrid = hybrid
        # In no released file: not persistent, so that the keys stay the released ones.
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        norm = self.aspp.img_conv[1]
        if len(images) < 2 and norm.training and not isinstance(norm, nn.SyncBatchNorm):
            raise WrongInput(
                f"training DeepLabV3+ needs at least two images per process, got {len(images)}: BatchNorm after image "
                "pooling has one value per image and channel. Raise --batch_size, or drop the last incomplete batch"
            )
        fine, coarse = super().forward((images - self.mean) / self.std)
        fine = self.bot_fine(fine)
        checkpointing = self.checkpointing and self.training
        coarse = self.bot_aspp(checkpointed_if(checkpointing, self.aspp, coarse))
        features = torch.cat([fine, upsample(coarse, fine.shape[2:], align_corners=True)], dim=1)
        size = images.shape[2:]
        class_logits = checkpointed_if(checkpointing, self.final, features)
        class_logits = upsample(class_logits, size, align_corners=True)
        if not self.hybrid:
            return class_logits
        dataset_logits = checkpointed_if(checkpointing, self.logits_ood, features)
        return class_logits, upsample(dataset_logits, size, align_corners=True)
