"""Segmenter (Strudel et al., ICCV 2021), closed-set or with a dataset head (DenseHybrid, TPAMI 2024).

Attribute names are those of the released checkpoints, so that released files load here and ours load there.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import WrongInput
from models.deeplab import MEAN, STD
from models.mask_transformer import MaskTransformer
from models.upsampling import upsample
from models.vit import VisionTransformer, start_linear
from models.weights import SEGMENTER_DATASET_HEADS

WINDOW, WINDOW_STRIDE = 512, 320  # pixels; of the windows that slide over a photograph, as in the release


def segmenter(
    num_classes: int,
    hybrid: bool = True,
    heads: int = 16,
    dataset_head: str = "decoder",
    checkpointing: bool = False,
) -> "Segmenter":
    """Segmenter on ViT-B/16 with random weights; hybrid adds a dataset head.

    heads          of the encoder's attention: 16 in the released weights, 12 in the ViT-B that ImageNet weights are of
    dataset_head   "decoder": the release's, a second mask transformer `decoder_th` of 2 classes, which adds 15 % to
                   the network's operations and parameters; "linear": ours, a LayerNorm and a linear layer
                   `logits_ood` on the encoder's patch tokens, which add a hundred-thousandth to the operations
    checkpointing  compute blocks again in training's backward pass instead of keeping what they computed
    raises         ValueError where dataset_head is neither, or the heads do not divide the width
    """
    encoder = VisionTransformer(heads=heads, checkpointing=checkpointing)
    return Segmenter(encoder, num_classes, hybrid, dataset_head, checkpointing=checkpointing)


class Segmenter(nn.Module):
    """(B, 3, H, W) RGB in 0..1 -> class logits (B, K, H, W) and, hybrid, dataset logits (B, 2, H, W).

    Channel 0 of the dataset logits is inlier, channel 1 outlier. H and W are any: the image is padded with
    ImageNet's mean colour, right and below, to whole patches.
    """

    smallest_side = 1  # padded to a patch

    def __init__(self, encoder: VisionTransformer, num_classes: int, hybrid: bool, dataset_head: str, **decoder_sizes):
        super().__init__()
        if dataset_head not in SEGMENTER_DATASET_HEADS:
            raise WrongInput(f"dataset_head {dataset_head!r} is none of {', '.join(SEGMENTER_DATASET_HEADS)}")
        self.model = nn.Module()  # the released keys begin with it
        self.model.encoder = encoder
        self.model.decoder = MaskTransformer(num_classes, encoder.width, **decoder_sizes)
        if hybrid and dataset_head == "decoder":
            self.model.decoder_th = MaskTransformer(2, encoder.width, **decoder_sizes)
        elif hybrid:
            norm, linear = nn.LayerNorm(encoder.width), nn.Linear(encoder.width, 2)
            self.model.logits_ood = nn.Sequential(OrderedDict(norm=norm, linear=linear)).apply(start_linear)
        self.hybrid, self.dataset_head = hybrid, dataset_head
        # In no released file: not persistent, so that the keys stay the released ones.
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        height, width = images.shape[2:]
        patch = self.model.encoder.patch
        images = F.pad((images - self.mean) / self.std, (0, -width % patch, 0, -height % patch))
        padded = images.shape[2:]
        grid = (padded[0] // patch, padded[1] // patch)
        patches = self.model.encoder(images)

        def at_image_size(logits: Tensor) -> Tensor:
            logits = logits.transpose(1, 2).unflatten(2, grid)
            return upsample(logits, padded)[:, :, :height, :width]

        class_logits = at_image_size(self.model.decoder(patches))
        if not self.hybrid:
            return class_logits
        head = self.model.decoder_th if self.dataset_head == "decoder" else self.model.logits_ood
        return class_logits, at_image_size(head(patches))


class ReleasedScoring(nn.Module):
    """A model's probabilities in the place of its logits: the defect of the release's COCO20 evaluation.

    The release averages its windows' logits, but takes the softmax of both outputs before they reach the score, which
    takes them for logits. Wrapped around the windows, this gives the score what the published numbers were made of;
    without it, logits reach the score, as the method has it.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        output = self.model(images)
        return tuple(logits.softmax(1) for logits in output) if isinstance(output, tuple) else output.softmax(1)
