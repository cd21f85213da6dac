"""A flow that is trained along with the network, to draw its negatives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.loader import same_noise
from engine.pictures import save_samples
from engine.run import Run
from methods.recipes import FlowRecipe

FLOW_SOURCE = "--flow_state takes a file of train_denseflow.py, a released one, or none"


def trained_along(
    flow: nn.Module, flow_state: str, recipe: FlowRecipe, run: Run
) -> tuple[dict[str, Any], Callable[[nn.Module, Path], None]]:
    """What a flow adds to the state that fit trains, and fit's `draw`: eight of its samples.

    flow_state   the file that the flow was loaded from, or none: the learning rate depends on it
    """
    if run.device.type == "cuda":
        flow.to(memory_format=run.precision.memory_format)
    lr = recipe.flow_lr_scratch if flow_state == "none" else recipe.flow_lr_pretrained
    optimizer = torch.optim.Adamax(flow.parameters(), lr, eps=recipe.flow_eps)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, recipe.flow_lr_decay)

    @torch.no_grad()
    def draw(model: nn.Module, path: Path) -> None:
        with same_noise(run.device):
            save_samples(path, flow.sample(8, recipe.patch_sides[1], recipe.patch_sides[1]), columns=4)

    return {"flow": flow, "flow_optimizer": optimizer, "flow_schedule": schedule}, draw
