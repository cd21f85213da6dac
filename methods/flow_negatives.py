"""Negatives that a flow samples, trained along with the network (Hybrid Open-set Segmentation, TPAMI 2024)."""

from pathlib import Path

import torch
from torch import Tensor, nn

from data import cut_out, draw_patch_size, paste_at_random, whole_patches
from engine import Run, Step, same_noise, save_samples
from engine.flags import Parser, add_checkpointing_flag
from labels import OUTLIER
from losses import synthetic_negatives_loss
from methods.recipes import FlowRecipe
from models import denseflow_25_6, frozen, load_weights

FLOW_SOURCE = "--flow_state takes a file of train_denseflow.py, a released one, or none"


def add_flow_flags(parser: Parser) -> None:
    parser.add_argument("--flow_state", required=True, help="weights of the flow, or none to start it from scratch")
    add_checkpointing_flag(parser, "--flow_checkpointing", "the flow's coupling networks")


class FlowNegatives:
    """A flow whose samples are pasted as negatives, and which learns to sample at the border of the known.

    flow_state     file of the flow's first weights, or "none" for random ones; the learning rate depends on which it is
    checkpointing  of the flow's coupling networks, see add_flow_flags
    per_image      patches that `paste` puts into each image

    step           the flow's own, for the optimizer "flow_optimizer"
    state          what it adds to the state that fit trains and keeps
    best           the figure of a validation on its samples that says which weights are the best
    """

    def __init__(self, flow_state: str, recipe: FlowRecipe, run: Run, checkpointing: bool = False, per_image: int = 1):
        self.recipe, self.device, self.per_image = recipe, run.device, per_image
        from_scratch = flow_state == "none"
        self.flow = denseflow_25_6(checkpointing)
        if not from_scratch:
            load_weights(self.flow, flow_state, source=FLOW_SOURCE)
        self.flow.to(run.device)
        if run.device.type == "cuda":  # there DenseFlow lays features out as its weights lie, on a CPU it does not
            self.flow.to(memory_format=run.precision.memory_format)
        lr = recipe.flow_lr_scratch if from_scratch else recipe.flow_lr_pretrained
        optimizer = torch.optim.Adamax(self.flow.parameters(), lr, eps=recipe.flow_eps)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, recipe.flow_lr_decay)
        self.state = {"flow": self.flow, "flow_optimizer": optimizer, "flow_schedule": schedule}
        self.step = Step(self.loss)
        self.best = "mIoU" if from_scratch else "AP"  # on the noise of an untrained flow an AP says nothing

    def sample(self, count: int) -> Tensor:
        """(count, 3, h, w) in 0..1, all of one size that is drawn anew; with gradients to the flow.

        That the values are finite is not checked, for which the host would wait for a GPU.
        """
        return self.flow.sample(count, *draw_patch_size(self.recipe.patch_sides), check=False) / 255

    @torch.no_grad()
    def paste(self, images: Tensor, labels: Tensor, content: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images and labels with samples in them, for the network's step; see paste_at_random."""
        return paste_at_random(images, labels, self.sample(self.per_image * len(images)), content)[:2]

    def loss(
        self, model: nn.Module, images: Tensor, labels: Tensor, content: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The flow's terms: the network should find its samples uncertain, and it should model what they cover.

        One patch is pasted into each image (B, 3, H, W) in 0..1. The network only passes the gradient on.
        """
        patches = self.sample(len(images))
        pasted, pasted_labels, corners = paste_at_random(images, labels, patches, content)
        with frozen(model):
            class_logits, _ = model(pasted)
        height, width = patches.shape[2:]
        covered = cut_out(images, corners, (height, width))
        return synthetic_negatives_loss(
            class_logits,
            pasted_labels == OUTLIER,
            self.flow.log_prob(covered),
            patches,
            divergence_weight=self.recipe.divergence_weight,
            bits_weight=self.recipe.bits_weight,
        )

    @torch.no_grad()
    def validation_patches(self) -> list[tuple[Tensor, Tensor, str]]:
        """Patches of the flow as it is now, before the training: they stay the negatives of every validation.

        returns  (patch (3, h, w) uint8, mask (h, w) bool, all of it, name) each, in sizes that are drawn anew
        """
        sides, count = self.recipe.patch_sides, self.recipe.validation_patches
        return whole_patches([self.flow.sample(1, *draw_patch_size(sides))[0] for _ in range(count)])

    @torch.no_grad()
    def save_picture(self, _model: nn.Module, path: Path) -> None:
        """Eight samples, as fit's `save_picture` wants it."""
        side = self.recipe.patch_sides[1]
        with same_noise(self.device):
            save_samples(path, self.flow.sample(8, side, side), columns=4)
