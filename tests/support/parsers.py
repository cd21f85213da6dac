"""The scripts and their command lines, as tests look at them."""

import functools
import importlib
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from engine.flags import Parser
from engine.recipe import RECIPES
from tests.support.stand_ins import put_in_place

PROJECT = Path(__file__).resolve().parents[2]
TRAININGS = list(yaml.safe_load(RECIPES.read_text()))
MODULES = {path.stem: path.stem for path in PROJECT.glob("*.py") if path.stem not in ("labels", "errors")}
MODULES |= {path.stem: f"tools.{path.stem}" for path in PROJECT.glob("tools/[!_]*.py")} | {"demo": "demo.__main__"}
MODULES |= {path.parent.name: f"tools.{path.parent.name}.__main__" for path in PROJECT.glob("tools/*/__main__.py")}
SCRIPTS = sorted(MODULES)
# Flags of trainings on small crops; the data lie in folders SH, CITY, COCO and ADE below the working directory.
CROPS = ["--crop_size", "32", "--batch_size", "2", "--exp_name", "run", "--device", "cpu", "--workers", "0"]
NEGATIVES = ["--negative_resize", "64", "--negative_size", "24", "--neg_dataroot", "ADE"]
FLOW = ["--flow_state", "none", "--patch_sides", "8", "16", "8", "--validation_patches", "1"]
FLAGS = {
    "ldn_streethazards": ["--dataroot", "SH", "--init", "none"],
    "ldn_streethazards_finetune": ["--dataroot", "SH", "--model", "w.pth", *NEGATIVES],
    "ldn_streethazards_finetune_flow": ["--dataroot", "SH", "--model", "w.pth", *FLOW],
    "dlv3_cityscapes_finetune": ["--dataroot", "CITY", "--init", "none", *NEGATIVES],
    "dlv3_cityscapes_finetune_flow": ["--dataroot", "CITY", "--init", "none", *FLOW],
    "segmenter_coco20": ["--dataroot", "COCO", "--init", "none"],
    "segmenter_coco20_finetune": ["--dataroot", "COCO", "--model", "w.pth", *NEGATIVES],
    "segmenter_coco20_finetune_flow": ["--dataroot", "COCO", "--model", "w.pth", *FLOW],
    "train_denseflow": ["--dataset", "cityscapes", "--dataroot", "CITY", "--warmup_steps", "0", "--resume"],
}
EVALUATIONS = [script for script in SCRIPTS if script.startswith("evaluate_")]


def script_module(script):
    """The module of a script, a tool or the demo"""
    return importlib.import_module(MODULES[script])


class Stopped(Exception):
    """Carries a script's parser"""


@functools.cache
def parser_of(script):
    def stop(parser, *arguments):
        raise Stopped(parser)

    with pytest.MonkeyPatch.context() as stopping, pytest.raises(Stopped) as stopped:
        stopping.setattr(Parser, "parse_args", stop)
        script_module(script).main([])
    return stopped.value.args[0]


def words_for(parser):
    """A value for each flag that must be given"""
    words = []
    for group in parser._mutually_exclusive_groups:
        if group.required:
            words += [group._group_actions[0].option_strings[0], "x"]
    for action in parser._actions:
        if action.required:
            words += [action.option_strings[0], next(iter(action.choices or ["x"]))]
    return words


def recipe_type_of(script):
    """The dataclass that a training script reads its block into"""
    name = re.search(r"start_run\(parser, (\w+),", (PROJECT / f"{script}.py").read_text())[1]
    return getattr(script_module(script), name)


class Network(nn.Linear):
    """In the place of any network and of any flow"""

    hybrid, num_classes = True, 12

    def __init__(self, *sizes, **choices):
        super().__init__(1, 1)

    def sample(self, n, height, width, check=True):
        return torch.zeros(n, 3, height, width)


def spare_networks(patch):
    """Spares the scripts their networks and weight files, so that what they look for are the data"""
    networks = ("models.segmenter", "models.denseflow_25_6", "models.deeplabv3plus", "models.ladder_densenet121")
    instead = {
        **dict.fromkeys(networks, Network),
        "models.load_weights": lambda network, file, **choices: network,
        "models.load_imagenet_vit": lambda network, file: network,
        "models.open_network": lambda file, *asked, **choices: Network(),
        "engine.has_outliers": lambda dataset: True,
    }
    put_in_place(patch, instead)
