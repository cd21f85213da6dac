"""What the training scripts build and hand to fit, as their recipes say; the networks are left out."""

import contextlib
from pathlib import Path

import pytest
import torch

import dlv3_cityscapes_finetune
import dlv3_cityscapes_finetune_flow
import evaluate_closed_set
import evaluate_osr_coco
import ldn_streethazards
import ldn_streethazards_finetune
import ldn_streethazards_finetune_flow
import segmenter_coco20
import segmenter_coco20_finetune
import segmenter_coco20_finetune_flow
import train_denseflow
from labels import IGNORE, OUTLIER
from tests.support.layouts import cityscapes, coco_scenes
from tests.support.parsers import CROPS, FLAGS, Network, spare_networks
from tests.support.stand_ins import put_in_place

STREETS = (ldn_streethazards, ldn_streethazards_finetune, ldn_streethazards_finetune_flow,
           dlv3_cityscapes_finetune, dlv3_cityscapes_finetune_flow)  # fmt: skip
PHOTOGRAPHS = (segmenter_coco20, segmenter_coco20_finetune, segmenter_coco20_finetune_flow)
TRAINING = [*STREETS, *PHOTOGRAPHS]
HYBRID = [script for script in TRAINING if "finetune" in script.__name__]


def short(script):
    return script.__name__


@pytest.fixture
def hand_over(street_hazards, ade20k, in_tmp, monkeypatch):
    """hand_over(script, *flags): (how its networks were built, the steps that fit was given)"""
    for root, place in ((street_hazards, "SH"), (ade20k, "ADE")):
        Path(place).symlink_to(root)
    cityscapes(Path("CITY"), 10, (40, 64))

    def hand_over(script, *flags):
        built = []

        def build(*sizes, **choices):
            built.append((sizes, choices))
            return Network()

        networks = ("ladder_densenet121", "deeplabv3plus", "segmenter", "denseflow_25_6")
        instead = {
            **{f"models.{name}": build for name in networks},
            "models.load_weights": lambda network, file, **choices: network,
            "models.backbone_slower": lambda model, *numbers: model.parameters(),
            "engine.fit": lambda steps, *rest, **more: steps,
        }
        put_in_place(monkeypatch, instead)
        if script in PHOTOGRAPHS:
            coco_scenes(Path("COCO"))
        steps = script.main([*CROPS, *FLAGS[script.__name__], *flags])
        return built, steps["optimizer"] if isinstance(steps, dict) else steps

    return hand_over


@pytest.mark.slow
@pytest.mark.parametrize("script", [*TRAINING, train_denseflow], ids=short)
def test_each_network_is_checkpointed_where_its_own_key_says_so(script, hand_over):
    flow = "_flow" in script.__name__
    for key in ["checkpointing"] + ["flow_checkpointing"] * flow:
        for value in (False, True):
            word = str(value).lower()
            for flags in ([f"--{key}", word], ["--set", f"{key}={word}"]):
                built, _ = hand_over(script, *flags)
                found = [choices.get("checkpointing", sizes[0]) for sizes, choices in built]
                assert found == ([value and key == "checkpointing"] + [value and key == "flow_checkpointing"] * flow)


@pytest.mark.slow
@pytest.mark.parametrize("script", TRAINING, ids=short)
def test_pixels_are_counted_as_the_loss_takes_them(script, hand_over):
    labels = torch.tensor([[[0, 1, OUTLIER, IGNORE, IGNORE, IGNORE]]])
    for ignored_are_inliers in ("false", "true"):
        flags = ["--ignored_are_inliers", ignored_are_inliers] if script in HYBRID else []
        _, step = hand_over(script, *flags)
        counts = {name: int(count) for name, count in step.counts(None, labels).items()}
        inliers_too = script in HYBRID and ignored_are_inliers == "true"
        assert counts == {"class": 2, "likelihood": 1, "dataset": 6 if inliers_too else 3}


@pytest.mark.parametrize("script", STREETS, ids=short)
def test_a_last_batch_of_one_image_is_refused(script, hand_over):
    flags = ["--batch_size", "3", "--drop_last"]  # of ten images
    with pytest.raises(ValueError, match=r"10 images in batches of 3 leave the network one image at a time"):
        hand_over(script, *flags, "false")
    hand_over(script, *flags, "true")


SCANNING = {
    train_denseflow: ["--dataset", "coco20", "--exp_name", "run"],
    evaluate_closed_set: ["--dataset", "coco20", "--folder", "out", "--params", "w.pth"],
    evaluate_osr_coco: ["--folder", "out", "--model", "w.pth"],
} | {script: [*CROPS, *FLAGS[script.__name__]] for script in PHOTOGRAPHS}


@pytest.mark.parametrize("script", SCANNING, ids=short)
def test_process_0_is_the_first_to_scan_the_photographs(script, in_tmp, monkeypatch):
    turns = []

    @contextlib.contextmanager
    def main_process_first():
        turns.append("its turn")
        yield
        turns.append("over")

    class Scanned(Exception):
        pass

    def scan(*inputs, **choices):
        assert turns == ["its turn"]
        raise Scanned

    scan.num_classes, scan.mean_colour = 20, (0, 0, 0)
    spare_networks(monkeypatch)
    instead = {
        "models.fast_inference": lambda network, *choices: network,
        "engine.main_process_first": main_process_first,
        "data.COCO20": scan,
    }
    put_in_place(monkeypatch, instead)
    with pytest.raises(Scanned):
        script.main(["--dataroot", "COCO", "--device", "cpu", *SCANNING[script]])


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        ["--dataset", "cityscapes", "--dataroot", "CITY"],
        ["--dataset", "street-hazards", "--dataroot", "SH"],
        ["--dataset", "coco20", "--dataroot", "COCO"],
        ["--images", "SH/train/images/training"],
    ],
    ids=lambda source: source[1],
)
def test_the_flows_images_are_kept_decoded_wherever_they_come_from(source, street_hazards, in_tmp, monkeypatch):
    Path("SH").symlink_to(street_hazards)
    cityscapes(Path("CITY"), 10, (40, 64))
    coco_scenes(Path("COCO"))
    spare_networks(monkeypatch)
    put_in_place(monkeypatch, {"engine.fit": lambda steps, state, dataset, *rest, **more: dataset})
    flags = [*CROPS, "--warmup_steps", "0", "--resume", "--cache", "copies", *source]
    train_denseflow.main(flags)[0]
    assert [*Path("copies").glob("*.raw")]
