"""A small hybrid experiment whose figures do not depend on how it is split; started by torchrun, as several processes.

python tests/support/shared_experiment.py WORLD NEGATIVES '[{"folder": ..., a recipe key: ...}, ...]'
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from data import MaskedPatches, StreetHazards, WithNegatives, paste, train_transform
from engine import Run, Step, closed_set_figures, fit, run_script
from engine.device import start_process
from engine.processes import rank
from losses import dense_hybrid_loss, pixel_counts
from methods import RealNegativesRecipe
from methods.real_negatives import negative_images

NUMBERS = {
    "lr": 0.05, "lr_min": 0.0, "schedule": "cosine", "epochs": 2, "batch_size": 4, "drop_last": False,
    "crop_size": 32, "scale": [0.5, 2.0], "statistics_batches": 0,
    "adam_eps": 1e-8, "beta": 0.3, "ignored_are_inliers": False,
    "likelihood_margin": None, "negative_resize": 24, "negative_scale": [1.0, 1.0], "negative_size": 20,
    "negative_antialias": True,
}  # fmt: skip


class FrozenNorm(nn.BatchNorm2d):
    """In eval mode always, with statistics that are not those of any batch"""

    def __init__(self, channels):
        super().__init__(channels)
        self.running_mean.fill_(0.3)
        self.running_var.fill_(2)
        super().train(False)

    def train(self, mode=True):
        return self


class Network(nn.Module):
    def __init__(self, norm=FrozenNorm):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU())
        self.classes, self.dataset = nn.Conv2d(8, 12, 1), nn.Conv2d(8, 2, 1)

    def forward(self, images):
        features = self.trunk(images)
        return self.classes(features), self.dataset(features)


def train(world, negatives, folder, resume=False, dies_at=None, norm=FrozenNorm, accumulation=1, **changes):
    """dies_at  step of the run at which process 1 kills itself, if anyone"""
    numbers = NUMBERS | changes
    recipe = RealNegativesRecipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in numbers.items()})
    record = {"script": "shared", "command": "python shared.py", "seed": 5, "recipe": {"ours": numbers}}
    device = start_process("cpu", several_processes=True)
    run = Run(Path(folder), device, record, seed=5, resume=resume, accumulation=accumulation)
    torch.manual_seed(run.seed)
    transform = train_transform(recipe.crop_size, recipe.scale, StreetHazards.mean_colour)
    patches = MaskedPatches(negative_images(negatives, None, None, []), recipe.negative_resize,
                            recipe.negative_size, recipe.negative_scale)  # fmt: skip
    dataset = WithNegatives(StreetHazards(world, "training", transform), patches)
    validation = StreetHazards(world, "validation")
    model = Network(norm)
    steps = []

    def loss(model, images, labels, counts):
        steps.append(None)
        if len(steps) == dies_at and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return dense_hybrid_loss(*model(images), labels, beta=recipe.beta, counts=counts)

    def validate(model):
        return closed_set_figures(model, validation, 12, run)

    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), recipe.lr, momentum=0.9)}
    step = Step(loss, paste, lambda images, labels: pixel_counts(labels))
    return fit(step, state, dataset, recipe, run, validate, best="mIoU")


def main():
    world, negatives, experiments = sys.argv[1:]
    for experiment in json.loads(experiments):
        norm = {"norm": nn.BatchNorm2d} if experiment.pop("moving_norm", False) else {}
        train(world, negatives, **experiment, **norm)


if __name__ == "__main__":
    run_script(main)
