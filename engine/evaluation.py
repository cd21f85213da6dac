"""An evaluation: how it starts, how it was made, and what it keeps of its frames for the report."""

import argparse
import json
import math
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor

from engine.device import device_name, peak_memory, start_process
from engine.evaluate import Frame, picture_of
from engine.files import require_writable, sha256
from engine.flags import Parser, check_tile
from engine.pictures import Picture, heat_range, heat_sample
from engine.precision import Precision, choose_precision
from engine.processes import gather, is_main_process, launch_command, world_size
from engine.record import git_revision, versions
from errors import FileInTheWay, WrongInput
from metrics import AnomalyMetrics


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation runs on and with, and how it was started."""

    command: str
    dataroot: str
    weights: str
    digest: Future  # SHA-256 of the weights, worked out while the network and the data are opened
    device: torch.device
    precision: Precision
    workers: int

    def record(self, images: int) -> dict:
        """What it takes to get the same figures again, ready for JSON.

        recipe  what recipe.yaml beside the weights says of their training, None where there is none
        """
        recipe = Path(self.weights).with_name("recipe.yaml")
        try:
            trained = yaml.safe_load(recipe.read_text(encoding="utf-8")) if recipe.exists() else None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise WrongInput(
                f"{recipe} beside the weights cannot be read as YAML: {error}; mend it or move it"
            ) from error
        record = {
            "command": self.command,
            "dataroot": self.dataroot,
            "images": images,
            "weights": self.weights,
            "weights_sha256": self.digest.result(),
            "recipe": trained,
            "revision": git_revision(),
            "versions": versions() | {"numpy": np.__version__},
            "device": device_name(self.device),
            "precision": self.precision.name,
            "processes": world_size(),
        }
        return json.loads(json.dumps(record, default=str))

    def peak_memory(self) -> int:
        """Bytes, of the process that took the most; process 0 knows, every process must ask."""
        return max(gather(peak_memory(self.device)), default=0)


def start_evaluation(
    parser: Parser, weights: str, script: str, argv: list[str] | None = None
) -> tuple[argparse.Namespace, Evaluation]:
    """Parse the command line, and find out before any work whether it can be followed.

    weights  the flag that names them, without its dashes
    raises   WrongInput for a device that is not there; UnusableFile where the results cannot be written; FileInTheWay
             where those of other weights lie there
    """
    args = parser.parse_args(argv)
    if "tile" in args:
        check_tile(parser, args)
    device = start_process(args.device, several_processes=True)
    precision = choose_precision(args.precision, device)
    require_writable(args.folder, "--folder")
    path = getattr(args, weights)
    thread = ThreadPoolExecutor(1, "digest")
    digest = thread.submit(sha256, path)
    thread.shutdown(wait=False)
    require_same_weights(args.folder, path, digest)
    return args, Evaluation(
        command=launch_command(script, argv),
        dataroot=str(args.dataroot),
        weights=str(path),
        digest=digest,
        device=device,
        precision=precision,
        workers=args.workers,
    )


def require_same_weights(folder: Path, weights: str | Path, digest: Future) -> None:
    """Refuse a folder with the results of other weights, which an evaluation would replace. Raises FileInTheWay.

    Results of the same weights, and what does not say whose it is, are replaced. Of several processes, process 0 looks.
    """
    path = folder / "results.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))["record"]
        before, known = record["weights"], record["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if is_main_process() and Path(weights).is_file() and known != digest.result():
        raise FileInTheWay(
            f"{folder} holds the results of other weights, {before}; give a --folder of their own to those of {weights}"
        )


# What is kept of the frames


class ReportedFrames:
    """What a report needs of each frame: its figures, some of its scores, and of some frames pictures.

    scores    names; the first ranks the frames and is what pictures show
    pictures  how many frames the sheets of the best and the worst have together
    shown     numbers of the frames of the other sheet

    Some kilobytes are kept of a frame, and some megabytes of pictures. The frames may come in any order: what counts
    is their numbers, of which each comes once.
    """

    def __init__(self, scores: list[str], pictures: int = 0, shown: Collection[int] = ()):
        self.scores, self.shown = scores, shown
        self.ranking = FrameRanking(math.ceil(pictures / 2))
        self._figures: dict[int, dict] = {}
        self._samples: dict[int, dict[str, np.ndarray]] = {}
        self._pictures: dict[int, Picture] = {}

    def add(
        self, frame: Frame, scores: dict[str, Tensor], open_prediction: Tensor | None = None
    ) -> dict[str, AnomalyMetrics]:
        """The metrics of this frame alone, by score, which can be merged into those of all.

        scores           name -> (1, H, W)
        open_prediction  (1, H, W) of 0..K, K is unknown
        """
        metrics = {name: AnomalyMetrics().update(each, frame.labels) for name, each in scores.items()}
        figures = {name: each.compute() for name, each in metrics.items()}
        self._figures[frame.number] = {"name": frame.name} | figures
        self._samples[frame.number] = {name: heat_sample(each) for name, each in scores.items()}
        first = self.scores[0]
        self.ranking.add(frame, scores[first], figures[first]["AP"], open_prediction)
        if frame.number in self.shown:
            self._pictures[frame.number] = picture_of(frame, scores[first], open_prediction)
        return metrics

    def merge(self, other: "ReportedFrames") -> "ReportedFrames":
        """Takes over the frames of another, as if they had been added here; returns itself."""
        self._figures |= other._figures
        self._samples |= other._samples
        self._pictures |= other._pictures
        self.ranking.merge(other.ranking)
        return self

    @property
    def images(self) -> list[dict]:
        """{"name": ..., score: figures} of each frame, in the order of their numbers."""
        return [self._figures[number] for number in sorted(self._figures)]

    @property
    def pictures(self) -> list[Picture]:
        return [self._pictures[number] for number in sorted(self._pictures)]

    def heat_range(self, score: str) -> list[float]:
        """[low, high] of a score over all frames, by samples of them."""
        return heat_range([self._samples[number][score] for number in sorted(self._samples)])

    def redraw(self, change: Callable[[Picture], Picture]) -> None:
        """Change every kept picture, as when a threshold is known only after all frames."""
        self._pictures = {number: change(picture) for number, picture in self._pictures.items()}
        self.ranking.redraw(change)


class RankedFrame(NamedTuple):
    number: int
    name: str
    ap: float
    picture: Picture


class FrameRanking:
    """The AP of every frame, and pictures of the `keep` best and the `keep` worst; of equal APs the earlier frame's.

    A frame without outliers, or with nothing else, has no AP and no place.
    """

    def __init__(self, keep: int):
        self.keep = keep
        self._aps: dict[int, tuple[str, float | None]] = {}  # by the frame's number
        self._best: list[RankedFrame] = []
        self._worst: list[RankedFrame] = []

    def add(self, frame: Frame, scores: Tensor, ap: float, open_prediction: Tensor | None = None) -> None:
        """ap  of these scores, NaN where the frame has none"""
        self._aps[frame.number] = frame.name, None if ap != ap else ap
        if ap != ap:
            return
        ranked = RankedFrame(frame.number, frame.name, ap, None)  # type: ignore[arg-type]  # made where it is kept
        for kept, place in ((self._best, best_first), (self._worst, worst_first)):
            if len(kept) < self.keep or (kept and place(ranked) < place(kept[-1])):
                if ranked.picture is None:
                    ranked = ranked._replace(picture=picture_of(frame, scores, open_prediction))
                kept.append(ranked)
        self._keep_few()

    def merge(self, other: "FrameRanking") -> "FrameRanking":
        """Takes over the frames of another, as if they had been added here; returns itself."""
        self._aps |= other._aps
        self._best += other._best
        self._worst += other._worst
        self._keep_few()
        return self

    def _keep_few(self) -> None:
        for kept, place in ((self._best, best_first), (self._worst, worst_first)):
            kept.sort(key=place)
            del kept[self.keep :]

    @property
    def ap(self) -> dict[str, float | None]:
        """By the frame's name, in the order of the frames' numbers."""
        return dict(self._aps[number] for number in sorted(self._aps))

    def redraw(self, change: Callable[[Picture], Picture]) -> None:
        for kept in (self._best, self._worst):
            kept[:] = [frame._replace(picture=change(frame.picture)) for frame in kept]

    def captioned(self) -> dict[str, Picture]:
        """Best first, then worst first, without those that are among the best."""
        best = {frame.name for frame in self._best}
        worst = [frame for frame in self._worst if frame.name not in best]
        return {
            f"{kind} {place}: {frame.name}, AP {100 * frame.ap:.2f} %": frame.picture
            for kind, frames in (("best", self._best), ("worst", worst))
            for place, frame in enumerate(frames, 1)
        }


def best_first(frame: RankedFrame) -> tuple[float, int]:
    return -frame.ap, frame.number


def worst_first(frame: RankedFrame) -> tuple[float, int]:
    return frame.ap, frame.number
