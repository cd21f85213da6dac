"""Every script on tiny data, from its first line to its last, on any device: in the rehearsal and on a GPU alike.

The scripts, their data sets and their files are the real ones; the networks are small. As a process of its own, below a
world's folder:

python tests/support/script_runs.py FOLDER KIND SCRIPT [FLAGS]

KIND is `whole`, `killed` after its first epoch, or `nccl`, with one process that talks to itself through NCCL.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torchvision.models import DenseNet

sys.path.insert(0, str(Path(__file__).parents[2]))  # of a process of its own

import engine.train
from demo.world import draw_negatives, draw_street_hazards
from models import deeplabv3plus, ladder_densenet, ladder_densenet121
from tests.golden.fill import golden_state_dict
from tests.support.layouts import boxes, cityscapes, coco_scenes, lost_and_found
from tests.support.networks import small_flow, small_segmenter, thin_trunk, with_fitting_statistics
from tests.support.parsers import script_module
from tests.support.stand_ins import put_in_place

SMALL = "--workers 0 --epochs 1 --batch_size 2 --crop_size 32 --exp_name {name}"
NEGATIVES = "--neg_dataroot {ade} --negative_resize 48 --negative_size 24"
FLOW = "--flow_state {flow} --patch_sides 8 16 8 --validation_patches 2"
WINDOWS = "--window 32 --window_stride 20"
EVALUATION = "--workers 0 --folder {name} --pictures 2"
TRAININGS = {
    "ldn_streethazards": f"--dataroot {{streets}} --init none {SMALL}",
    "ldn_streethazards_finetune": f"--dataroot {{streets}} --model {{ldn_closed}} {NEGATIVES} {SMALL}",
    "ldn_streethazards_finetune_flow": f"--dataroot {{streets}} --model {{ldn_closed}} {FLOW} {SMALL}",
    "dlv3_cityscapes_finetune": f"--dataroot {{city}} --init {{deeplab_closed}} {NEGATIVES} {SMALL}",
    "dlv3_cityscapes_finetune_flow": f"--dataroot {{city}} --init {{deeplab_closed}} {FLOW} {SMALL}",
    "segmenter_coco20": f"--dataroot {{coco}} --init none {WINDOWS} {SMALL}",
    "segmenter_coco20_finetune": f"--dataroot {{coco}} --model {{segmenter_closed}} {WINDOWS} {NEGATIVES} {SMALL}",
    "segmenter_coco20_finetune_flow": f"--dataroot {{coco}} --model {{segmenter_closed}} {WINDOWS} {FLOW} {SMALL}",
    "train_denseflow": f"--dataset street-hazards --dataroot {{streets}} --warmup_steps 2 --sampled_images 2 {SMALL}",
}
EVALUATIONS = {
    "evaluate_ood lf": f"--dataroot {{lost_and_found}} --dataset lf --params {{deeplab_hybrid}} {EVALUATION}",
    "evaluate_ood street-hazards": "--dataroot {streets} --dataset street-hazards --params {ldn_hybrid} --scores all "
    f"--pooled {EVALUATION}",
    "evaluate_osr_sh": f"--dataroot {{streets}} --model {{ldn_hybrid}} {EVALUATION}",
    "evaluate_osr_coco": f"--dataroot {{coco}} --model {{segmenter_hybrid}} {WINDOWS} {EVALUATION}",
    "evaluate_closed_set": "--dataroot {streets} --dataset street-hazards --params {ldn_hybrid} --workers 0 "
    "--folder {name}",
}
TOOLS = {
    "predict": "--params {ldn_hybrid} --network ldn121 --input {frames} --folder {name} --threshold 2 --raw npy "
    "--workers 0",
    "export_scores": "--benchmark fishyscapes --dataroot {frames} --folder {name} --params {ldn_hybrid} "
    "--network ldn121 --num_classes 12 --workers 0",
}


class World:
    """The data and the weights that the scripts' flags name, below a folder; made where they are not there yet."""

    def __init__(self, root: Path):
        names = ("streets", "city", "coco", "lost_and_found")
        weights = [f"{network}_{kind}" for network in ("ldn", "deeplab", "segmenter") for kind in ("closed", "hybrid")]
        self.files = {name: root / name for name in names} | {"ade": root / "ADEChallengeData2016"}
        self.files |= {name: root / f"{name}.pth" for name in (*weights, "flow")}
        self.files["frames"] = self.files["streets"] / "test" / "images" / "test" / "t5"
        if not root.exists():
            self.make()

    def make(self) -> None:
        draw_street_hazards(self.files["streets"], training=10, validation=2, test=4, width=64, height=48)
        draw_negatives(self.files["ade"], count=4, width=48, height=48)
        cityscapes(self.files["city"], 10, (40, 64))
        lost_and_found(self.files["lost_and_found"], [boxes(number, 1, 2, (40, 64)) for number in range(3)])
        coco_scenes(self.files["coco"])
        with small_networks():
            networks = {
                "ldn": lambda hybrid: ladder_densenet121(12, hybrid),
                "deeplab": lambda hybrid: deeplabv3plus(19, hybrid),
                "segmenter": lambda hybrid: small_segmenter(20, hybrid),
            }
            for name, build in networks.items():
                for kind in ("closed", "hybrid"):
                    torch.manual_seed(0)
                    network = with_fitting_statistics(build(kind == "hybrid"))
                    torch.save(network.state_dict(), self.files[f"{name}_{kind}"])
            flow = small_flow()
            flow.load_state_dict(golden_state_dict(flow.state_dict(), gain=0.3))
            torch.save(flow.state_dict(), self.files["flow"])

    def run(self, script: str, *flags: str) -> Any:
        """What the script's main returns; it runs in the working directory, and a flag given here comes last."""
        name = script.replace(" ", "_")
        words = (TRAININGS | EVALUATIONS | TOOLS)[script].format(name=name, **self.files).split()
        with small_networks():
            return script_module(script.split()[0]).main([*words, *flags])


@contextlib.contextmanager
def small_networks() -> Iterator[None]:
    """LDN-121 with 14 dense layers in the place of 58, a thin DeepLabV3+, Segmenter and DenseFlow of a few layers."""
    instead = {
        ladder_densenet: {"densenet121": lambda weights: DenseNet(128, (1, 3, 6, 4), num_init_features=128)},
    }
    with thin_trunk(), pytest.MonkeyPatch.context() as patch:
        for owner, attributes in instead.items():
            for name, value in attributes.items():
                patch.setattr(owner, name, value)
        put_in_place(
            patch,
            {
                "models.segmenter": small_segmenter,
                "models.denseflow_25_6": small_flow,
            },
        )
        yield


def log_of(script: str) -> list[dict]:
    """The lines of a training's log"""
    return [json.loads(line) for line in Path("logs", script, "log.jsonl").read_text().splitlines()]


def figures_of(value: Any, path: str = "") -> dict[str, float]:
    """All numbers of nested results by their path, but for what says how the run went."""
    if isinstance(value, dict):
        parts = [(key, part) for key, part in value.items() if key != "record"]
    elif isinstance(value, list):
        parts = list(enumerate(value))
    else:
        return {path: value} if isinstance(value, (int, float)) else {}
    return {key: number for name, part in parts for key, number in figures_of(part, f"{path}/{name}").items()}


@contextlib.contextmanager
def each_epoch_within(context: Callable[[], contextlib.AbstractContextManager]) -> Iterator[None]:
    """Inside, the steps of each epoch of a training, and nothing else of it, are taken in a context of their own."""
    train_epoch = engine.train.train_epoch

    def within(*inputs):
        with context():
            return train_epoch(*inputs)

    with mock.patch.object(engine.train, "train_epoch", within):
        yield


@contextlib.contextmanager
def stopped_after(epochs: int, stop: Callable[[], None]) -> Iterator[None]:
    """Inside, a training is stopped at the beginning of the epoch after so many."""
    taken = []

    @contextlib.contextmanager
    def counted():
        if len(taken) == epochs:
            stop()
        taken.append(None)
        yield

    with each_epoch_within(counted):
        yield


def assert_close(found: dict[str, float], expected: dict[str, float], tolerance: float) -> None:
    """Figures by their paths; those of memory are left out, and of numbers that are undefined both are."""
    found, expected = ({key: figures[key] for key in figures if "memory" not in key} for figures in (found, expected))
    assert found == pytest.approx(expected, rel=tolerance, abs=tolerance, nan_ok=True)


def ctrl_c() -> None:
    raise KeyboardInterrupt


def main() -> None:
    folder, kind, script, *flags = sys.argv[1:]
    world = World(Path(folder))
    with contextlib.ExitStack() as stack:
        if kind == "killed":
            stack.enter_context(stopped_after(1, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        elif kind == "nccl":
            torch.cuda.set_device(0)
            dist.init_process_group("cpu:gloo,cuda:nccl", device_id=torch.device("cuda", 0))
            stack.callback(dist.destroy_process_group)
        world.run(script, *flags)


if __name__ == "__main__":
    main()
