"""A flow trained alone, by maximum likelihood of crops of images."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from engine import Run, Step, batches, evaluation_loader, same_noise, save_samples, to_device
from engine.loader import Samples
from engine.processes import all_reduce_sum, rank, world_size
from losses import bits_per_dimension
from models.denseflow import DenseFlow


class Warmup:
    """A learning rate that rises with the optimizer's steps, where fit's schedules move once an epoch."""

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int):
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (steps + 1), total_iters=steps)
        optimizer.register_step_post_hook(lambda *_step: schedule.step())
        self.state_dict, self.load_state_dict = schedule.state_dict, schedule.load_state_dict


def likelihood_step() -> Step:
    """The bits per dimension of crops (B, 3, H, W) in 0..1."""

    def loss(flow: nn.Module, images: Tensor, _labels: Tensor) -> dict[str, Tensor]:
        crops = (255 * images).round()
        return {"bits_per_dimension": bits_per_dimension(flow(crops), crops[0].numel())}

    return Step(loss)


def likelihood_validation(val_set: Samples, batch_size: int, run: Run) -> Callable[[nn.Module], dict[str, float]]:
    """{"bits_per_dimension"}, the mean over images, with the same dequantization noise each time."""

    @torch.no_grad()
    def validate(flow: nn.Module) -> dict[str, float]:
        bits = []
        with same_noise(run.device):
            share = evaluation_loader(
                val_set, run.workers, run.device, batch_size, process=rank(), processes=world_size()
            )
            for tensors, _ in batches(share):
                crops = (255 * to_device(tensors, run.device)[0]).round()
                bits += [bits_per_dimension(log_prob, crops[0].numel()).item() for log_prob in flow(crops)[:, None]]
        total = all_reduce_sum({"bits": sum(bits), "images": len(bits)}, run.device)
        return {"bits_per_dimension": float(total["bits"] / total["images"])}

    return validate


def samples_picture(count: int, side: int, run: Run) -> Callable[[DenseFlow, Path], None]:
    """A square sheet of samples of side x side pixels, as fit's `save_picture` wants it."""

    @torch.no_grad()
    def save_picture(flow: DenseFlow, path: Path) -> None:
        with same_noise(run.device):
            save_samples(path, flow.sample(count, side, side), columns=math.ceil(math.sqrt(count)))

    return save_picture
