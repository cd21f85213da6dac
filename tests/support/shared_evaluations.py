"""Evaluations one after the other, by as many processes as torchrun starts.

python tests/support/shared_evaluations.py '[["evaluate_ood", "--dataroot", ...], ...]'

After them, each process N writes figures_N.json: what it knows of a validation of frames that are drawn here.
"""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).parents[2]))

from engine import Run, anomaly_figures, closed_set_figures, run_script
from engine.processes import is_main_process, rank
from labels import IGNORE, OUTLIER
from tests.support.networks import small_segmenter
from tests.support.stand_ins import put_in_place


class Drawn(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        draw = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 9, 7), generator=draw, dtype=torch.uint8)
        kinds = torch.tensor([0, 1, 2, OUTLIER, IGNORE], dtype=torch.uint8)
        return image, kinds[torch.randint(0, 5, (9, 7), generator=draw)], f"frame {index}"


class Colours(nn.Module):
    """The class is the strongest colour, the score the blue one"""

    def forward(self, images):
        return images, images[:, :2]


def score(class_logits, dataset_logits):
    return class_logits[:, 2]


def figures():
    """Of the validation: mIoU, AP and FPR95"""
    inputs = Colours(), Drawn()
    run = Run(Path(), torch.device("cpu"), {})
    return [
        closed_set_figures(*inputs, 3, run),
        anomaly_figures(*inputs, score, run),
    ]


def main():
    with pytest.MonkeyPatch.context() as patch:
        put_in_place(patch, {"models.segmenter": small_segmenter})
        run(json.loads(sys.argv[1]))
    Path(f"figures_{rank()}.json").write_text(json.dumps(figures()))


def run(commands):
    for script, *flags in commands:
        results = importlib.import_module(script).main(flags)
        assert (results is None) == (not is_main_process())


if __name__ == "__main__":
    run_script(main)
