"""A tiny experiment: everything that resuming could lose is in it."""

import dataclasses
import json

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from engine.loader import batches, training_loader
from engine.precision import choose_precision
from engine.recipe import Recipe
from engine.run import Run
from engine.train import fit

CPU = torch.device("cpu")


class Specks(Dataset):
    """Twelve pixels square, cropped to eight at a random place; a pixel's class is a quarter of its red range."""

    def __init__(self, count=10):
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randint(0, 256, (count, 3, 12, 12), generator=generator, dtype=torch.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        top, left = torch.randint(0, 5, (2,)).tolist()
        image = self.images[index, :, top : top + 8, left : left + 8]
        return image, image[0] // 64, f"speck_{index}.png"


TINY = Recipe(
    lr=1e-2, lr_min=1e-4, schedule="cosine", epochs=3, batch_size=3, drop_last=True, crop_size=8,
    scale=(1.0, 1.0), statistics_batches=1,
)  # fmt: skip
STEPS = 3  # an epoch has, of ten images in whole batches of three


def tiny_model():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(8, 4, 1)
    )  # fmt: skip


def tiny_step(model, images, labels):
    class_logits = model(images)
    return {"class": F.cross_entropy(class_logits, labels), "size": 1e-3 * class_logits.square().mean()}


def whole(step):
    """A Step in one go: the terms of a whole batch"""

    def terms(model, *tensors):
        inputs = step.prepare(*tensors) if step.prepare else tensors
        return step.loss(model, *inputs, step.counts(*inputs)) if step.counts else step.loss(model, *inputs)

    return terms


def red_share(model):
    """Share of the specks' pixels whose quarter of red is found"""
    images = Specks().images
    with torch.no_grad():
        found = model(images / 255).argmax(1) == images[:, 0] // 64
    return {"mIoU": found.float().mean().item()}


def train(
    folder, workers=0, resume=False, step=tiny_step, dataset=None, validate=red_share, compile=False,
    precision="float32", validate_every=1, more_state=None, accumulation=1, checkpointing=False, sync_batchnorm=False,
    **changes
):  # fmt: skip
    recipe = dataclasses.replace(TINY, **changes)
    numbers = dataclasses.asdict(recipe) | {"scale": list(recipe.scale)}
    command = "python tiny.py --exp_name tiny" + " --resume" * resume
    record = {"script": "tiny", "command": command, "seed": 5, "recipe": {"release": numbers}}
    run = Run(
        folder, CPU, record, choose_precision(precision, CPU), seed=5, workers=workers, resume=resume, compile=compile,
        validate_every=validate_every, accumulation=accumulation, checkpointing=checkpointing,
        sync_batchnorm=sync_batchnorm,
    )  # fmt: skip
    torch.manual_seed(run.seed)
    model = tiny_model()
    groups = [
        {"params": model[:2].parameters(), "lr": recipe.lr / 2},
        {"params": model[2:].parameters(), "lr": recipe.lr},
    ]
    state = {"model": model, "optimizer": torch.optim.Adam(groups)} | (more_state or {})
    return fit(step, state, dataset or Specks(), recipe, run, validate, best="mIoU")


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def steps_of(folder):
    return [line for line in log_of(folder) if "validation" not in line]


def read_weights(path):
    return torch.load(path, weights_only=True)


def same(one, other):
    """Whether nested dicts, lists and tensors are equal to the bit"""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def assert_same_weights(one, other):
    one, other = (value if isinstance(value, dict) else read_weights(value) for value in (one, other))
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def loaded(dataset=None, epoch=0, workers=0, seed=3, batch_size=2, process=0, processes=1):
    """{name: tensors} of an epoch, in its order"""
    loader = training_loader(dataset or Specks(), seed, batch_size, True, workers, CPU, process, processes)
    loader.sampler.epoch = epoch
    return samples_of(loader)


def samples_of(loader):
    return {
        name: [tensor[number] for tensor in tensors]
        for tensors, names in batches(loader)
        for number, name in enumerate(names)
    }
