"""The mask transformer, Segmenter's decoder (Strudel et al., ICCV 2021).

Attribute names are those of the released checkpoints, so that released files load here and ours load there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpointing import checkpointed_if
from models.vit import Block, start_linear


class MaskTransformer(nn.Module):
    """Patch tokens (B, N, encoder_width) -> logits (B, N, K) of each patch.

    Each of the K classes has a token of its own that attends to the patches; a patch's logits are the cosines
    between it and the class tokens, normalised over the classes.
    """

    def __init__(
        self,
        num_classes: int,
        encoder_width: int = 768,
        width: int = 768,
        depth: int = 2,
        heads: int = 12,
        dropout: float = 0.1,
        checkpointing: bool = False,
    ):
        super().__init__()
        self.checkpointing = checkpointing
        self.num_classes = num_classes
        self.cls_emb = nn.Parameter(torch.zeros(1, num_classes, width))
        self.proj_patch = nn.Parameter(torch.zeros(width, width))
        self.proj_classes = nn.Parameter(torch.zeros(width, width))
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.proj_dec = nn.Linear(encoder_width, width)
        self.decoder_norm = nn.LayerNorm(width)
        self.mask_norm = nn.LayerNorm(num_classes)
        self.apply(start_linear)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)
        for matrix in (self.proj_patch, self.proj_classes):
            nn.init.normal_(matrix, std=width**-0.5)

    def forward(self, patches: Tensor) -> Tensor:
        patches, classes = self.attended(patches)
        patches = F.normalize(patches @ self.proj_patch, dim=2)
        classes = F.normalize(classes @ self.proj_classes, dim=2)
        return self.mask_norm(patches @ classes.transpose(1, 2))

    def attended(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of the patches (B, N, width) and of the classes (B, K, width), after all blocks."""
        patches = self.proj_dec(patches)
        tokens = torch.cat([patches, self.cls_emb.expand(len(patches), -1, -1)], dim=1)
        for block in self.blocks:
            tokens = checkpointed_if(self.checkpointing and self.training, block, tokens, random=True)
        tokens = self.decoder_norm(tokens)
        return tokens[:, : -self.num_classes], tokens[:, -self.num_classes :]
