"""--cache of the training scripts: decoded copies of what they read, training and validation, and the same samples."""

from pathlib import Path

import pytest
import torch

import dlv3_cityscapes_finetune
import dlv3_cityscapes_finetune_flow
import ldn_streethazards
import ldn_streethazards_finetune
import ldn_streethazards_finetune_flow
import train_denseflow
from tests.support.layouts import cityscapes
from tests.support.parsers import CROPS, FLAGS, spare_networks
from tests.support.stand_ins import put_in_place

# Of what there are copies after one sample of each data set: frames, label maps, negatives.
COPIES = {
    ldn_streethazards: 2,
    ldn_streethazards_finetune: 4,
    ldn_streethazards_finetune_flow: 2,
    dlv3_cityscapes_finetune: 4,
    dlv3_cityscapes_finetune_flow: 2,
    train_denseflow: 2,
}


def visited(frames):
    """The tensors of the first sample, always drawn with the same numbers"""
    torch.manual_seed(1)
    return frames[0][:-1]


@pytest.mark.slow
@pytest.mark.parametrize("script", COPIES, ids=lambda script: script.__name__)
def test_a_training_keeps_decoded_copies_where_it_is_told_to(script, street_hazards, ade20k, in_tmp, monkeypatch):
    cityscapes(Path("CITY"), 30, (40, 64))
    for root, place in ((street_hazards, "SH"), (ade20k, "ADE")):
        Path(place).symlink_to(root)
    samples = []
    spare_networks(monkeypatch)
    instead = {
        "models.backbone_slower": lambda model, *numbers: model.parameters(),
        "engine.closed_set_figures": lambda model, frames, *rest: samples.append(visited(frames)) or {},
        "engine.anomaly_figures": lambda model, frames, *rest: samples.append(visited(frames)) or {},
        "engine.fit": lambda steps, state, dataset, recipe, run, validate, **rest: (dataset, validate),
    }
    put_in_place(monkeypatch, instead)

    copies = COPIES[script]
    for cache in ([], ["--cache", "copies"], ["--cache", "copies"]):
        dataset, validate = script.main([*CROPS, *FLAGS[script.__name__], *cache])
        samples.append(visited(dataset))
        assert Path("copies").exists() == bool(cache)
        if script is not train_denseflow:  # whose validation is a part of the same data set
            validate(None)
    assert len([*Path("copies").iterdir()]) >= copies + (0 if script is train_denseflow else 2)
    negatives = (16 + 48 * 48, 16 + 3 * 48 * 48)  # bytes of a label map and of an image of 48x48, as no frame is
    of_frames = [path for path in Path("copies").iterdir() if path.stat().st_size not in negatives]
    assert len(of_frames) == (2 if script is train_denseflow else 4)  # image and label map, of training and validation
    third = len(samples) // 3
    for tensors in zip(samples[:third], samples[third : 2 * third], samples[2 * third :], strict=True):
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*tensors, strict=True))
