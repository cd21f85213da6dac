"""What the processes of a run tell each other, each piece alone; started by torchrun, as two processes.

python tests/support/shared_pieces.py FOLDER

Each process N writes told_N.json, and must leave alone the folder that its own run names.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).parents[2]))

from engine import Recipe, Run, fit, main_process_first, run_script
from engine.device import start_process
from engine.processes import is_main_process, rank
from models.denseflow import ActNorm

NUMBERS = {
    "lr": 0.1, "lr_min": 0.0, "schedule": "constant", "epochs": 2, "batch_size": 4, "drop_last": True,
    "crop_size": 4, "scale": (1.0, 1.0), "statistics_batches": 0,
}  # fmt: skip
ONES_SHARE = 3  # of five images, process 0 has so many


class Greys(Dataset):
    """Eight images of one grey each"""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((3, 4, 4), 30 * index, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.uint8), f"{index}"


class Network(nn.Module):
    """Its BatchNorm sees the images, and nothing comes of it but running statistics"""

    def __init__(self):
        super().__init__()
        self.norm, self.weights = nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 1, 1)
        for weight in self.weights.parameters():
            nn.init.constant_(weight, 0.5)

    def forward(self, images):
        self.norm(images)
        return self.weights(images)


def features():
    """Five images of channels that differ in mean and deviation"""
    draw = torch.Generator().manual_seed(2)
    size = torch.arange(1.0, 6).view(5, 1, 1, 1)  # so that the shares differ, too
    return size * torch.randn(5, 3, 4, 4, generator=draw) + torch.tensor([0.0, 5.0, -7.0]).view(3, 1, 1)


def in_turns(folder):
    """Whether this process found the file that each writes when its turn is over"""
    with main_process_first():
        found = (folder / "written").exists()
        time.sleep(0.5)
        (folder / "written").touch()
    return {"found": found}


def norm_is_set():
    norm = ActNorm(3)
    norm.initialize(features()[ONES_SHARE:] if not is_main_process() else features()[:ONES_SHARE])
    return {"shift": norm.shift.flatten().tolist(), "log_scale": norm.log_scale.flatten().tolist()}


def two_networks_are_trained(folder, device):
    """By losses that are means over images, each network by one of them; validated to other figures by each process"""
    networks = {"model": Network(), "helper": Network()}
    optimizers = {
        "optimizer": torch.optim.SGD(networks["model"].parameters(), lr=0.1),
        "helper_optimizer": torch.optim.SGD(networks["helper"].parameters(), lr=0.1),
    }
    drawn, pictures = [], []

    def loss(model, images, labels):
        drawn.append(torch.rand(()).item())
        return {"square": model(images).square().mean()}

    def helper_loss(model, images, labels):
        return {"distance": (networks["helper"](images) - 2).square().mean()}

    steps = {"optimizer": loss, "helper_optimizer": helper_loss}
    record = {"script": "pieces", "command": "python pieces.py", "seed": 0, "recipe": {"release": {}}}
    run = Run(folder / f"run_{rank()}", device, seed=0, workers=0, resume=False, compile=False, record=record)
    figures = fit(
        steps, networks | optimizers, Greys(), Recipe(**NUMBERS), run, lambda model: {"AP": 0.5 - 0.25 * rank()},
        best="AP", save_picture=lambda model, path: pictures.append(path.name),
    )  # fmt: skip
    buffers = {name: networks[name].norm.running_mean.tolist() for name in networks}
    return {"figures": figures, "drawn": drawn, "pictures": pictures, "buffers": buffers}


def main():
    folder = Path(sys.argv[1])
    device = start_process("cpu", several_processes=True)
    told = in_turns(folder) | norm_is_set() | two_networks_are_trained(folder, device)
    (folder / f"told_{rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    run_script(main)
