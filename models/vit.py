"""ViT (Dosovitskiy et al., ICLR 2021): a transformer over an image's patches, ViT-B/16 for 512x512 by default.

Attribute names are those of the released checkpoints, so that released files load here and ours load there.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from errors import WrongInput
from models.checkpointing import checkpointed_if

IMAGENET_CLASSES = 1000


class Attention(nn.Module):
    """(B, N, D) -> (B, N, D): every token looks at all tokens; dropout on the weights and on the result."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        if heads < 1 or width % heads:
            raise WrongInput(f"{heads} attention heads do not divide the width {width} evenly; choose a divisor of it")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weight_dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=weight_dropout)
        return self.dropout(self.proj(attended.transpose(1, 2).flatten(2)))


class MLP(nn.Module):
    """Two layers on each token by itself, four times as wide between them."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(tokens)))))


class Block(nn.Module):
    """(B, N, D) -> (B, N, D): attention, then the MLP, both residual and behind a LayerNorm."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, dropout)
        self.mlp = MLP(width, dropout)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class VisionTransformer(nn.Module):
    """Normalised images (B, 3, H, W) -> patch tokens (B, h * w, D), row by row, h = H / patch, w = W / patch.

    patch          side of a patch, pixels; H and W are multiples of it
    grid           side of the position embedding in patches; for images of another size it is resized bilinearly
    heads          the released weights have 16, which is odd: a ViT-B has 12. No key or shape tells the
                   number: it travels in a state_dict's metadata, which torch saves and strict loading passes over
    drop_path      share of samples that the last block's branches leave out in training; rises linearly from 0
    checkpointing  compute blocks again in training's backward pass instead of keeping what they computed
    """

    def __init__(
        self,
        patch: int = 16,
        grid: int = 32,
        width: int = 768,
        depth: int = 12,
        heads: int = 16,
        drop_path: float = 0.1,
        checkpointing: bool = False,
    ):
        super().__init__()
        self.checkpointing = checkpointing
        self.patch, self.width, self.grid, self.heads = patch, width, grid, heads
        self.register_state_dict_post_hook(note_heads)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.patch_embed = nn.Module()  # the released keys read patch_embed.proj.NAME
        self.patch_embed.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.blocks = nn.ModuleList(
            Block(width, heads, drop_path=drop_path * number / max(1, depth - 1)) for number in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        # In every released checkpoint, used by none: the ImageNet classifier.
        self.head = nn.Linear(width, IMAGENET_CLASSES)
        self.head.requires_grad_(False)
        self.apply(start_linear)
        for tokens in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(tokens, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed.proj(images)
        positions = resize_positions(self.pos_embed, tuple(patches.shape[2:]))
        patches = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + positions
        for block in self.blocks:
            tokens = checkpointed_if(self.checkpointing and self.training, block, tokens, random=True)
        return self.norm(tokens)[:, 1:]  # without the class token, which stands first


def note_heads(encoder: VisionTransformer, _state_dict: dict, _prefix: str, metadata: dict) -> None:
    """Beside the version that torch notes of every module; see noted_numbers in models/weights.py."""
    metadata["heads"] = encoder.heads


def start_linear(module: nn.Module) -> None:
    """Weights of a linear layer from a narrow normal distribution, biases at zero, as is usual for transformers."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, 1 + n * n, D) -> (1, 1 + h * w, D) for a grid (h, w): the class token's row stays, the others are resized."""
    side = math.isqrt(positions.shape[1] - 1)
    if grid == (side, side):
        return positions
    patches = positions[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    patches = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
