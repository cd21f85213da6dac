"""What an evaluation hands on: how it was made, published figures beside its own, and one page that shows it all."""

import contextlib
import json
import platform
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision
import yaml
from torch import Tensor

from engine.curves import Distribution, draw_histogram, draw_precision_recall, draw_roc, panels_png, percent
from engine.device import device_name
from engine.evaluate import Frame, picture_of, shown
from engine.files import sha256, write_whole
from engine.page import (
    html_every_frame,
    html_frames,
    html_panels,
    html_paragraph,
    html_record,
    html_sheet,
    html_tables,
    page,
)
from engine.pictures import Colours, Picture, save_pictures
from engine.precision import Precision
from engine.processes import is_main_process, launch_command, world_size
from engine.recipe import PROJECT
from engine.record import git_revision
from errors import FileInTheWay, UnusableFile, WrongInput, message_of
from metrics import AnomalyMetrics

PUBLISHED = PROJECT / "published.yaml"
RANKED_WIDTH = 640  # pixels; less than twice this is kept of a ranked frame, which is shown at 320 to 480


# How it was made


def evaluation_record(
    script: str,
    argv: list[str] | None,
    dataroot: str,
    images: int,
    weights: str,
    device: torch.device,
    precision: Precision,
) -> dict:
    """What it takes to get the same figures again, ready for JSON.

    recipe  what recipe.yaml beside the weights says of their training, None where there is none
    """
    recipe = Path(weights).with_name("recipe.yaml")
    try:
        trained = yaml.safe_load(recipe.read_text(encoding="utf-8")) if recipe.exists() else None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WrongInput(f"{recipe} beside the weights cannot be read as YAML: {error}; mend it or move it") from error
    record = {
        "command": launch_command(script, argv),
        "dataroot": str(dataroot),
        "images": images,
        "weights": str(weights),
        "weights_sha256": sha256(weights),
        "recipe": trained,
        "revision": git_revision(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "numpy": np.__version__,
        },
        "device": device_name(device),
        "precision": precision.name,
        "processes": world_size(),
    }
    return json.loads(json.dumps(record, default=str))


def require_same_weights(folder: Path, weights: str | Path) -> None:
    """Refuse a folder with the results of other weights, which an evaluation would replace. Raises FileExistsError.

    Results of the same weights, and what does not say whose it is, are replaced. Of several processes, process 0 looks.
    """
    path = folder / "results.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))["record"]
        before, digest = record["weights"], record["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if is_main_process() and Path(weights).is_file() and digest != sha256(weights):
        raise FileInTheWay(
            f"{folder} holds the results of other weights, {before}; give a --folder of their own to those of {weights}"
        )


# Published figures


def published_tables(block: str, ours: dict[str, dict]) -> dict[str, list[list]]:
    """Title -> rows for write_results: DenseHybrid's published figures beside ours, then its peers' where there are.

    block  of published.yaml
    ours   figures as fractions by the name of the score; those that the block does not know are left out
    """
    known = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))[block]
    header = ["method", "source", *(f"{heading} %" for heading in known["figures"].values())]
    lines = [
        [f"ours, {name}", "this run", *(shown(figures.get(key, "")) for key in known["figures"])]
        for name, figures in ours.items()
    ]
    none = [["DenseHybrid", "no published figures at hand", *("" for _ in known["figures"])]]
    tables = {
        "beside DenseHybrid's published figures": [published_row(line, known) for line in known["dense_hybrid"]] or none
    }
    if "peers" in known:
        tables["beside its peers'"] = [published_row(line, known) for line in known["peers"]]
    if any(line["status"] == "unconfirmed" for line in known["dense_hybrid"]):
        tables = {f"{title} (?: not confirmed)": rows for title, rows in tables.items()}
    return {f"{known['title']}, {title}": [header, *lines, *rows] for title, rows in tables.items()}


def published_row(line: dict, known: dict) -> list[str]:
    doubt = " ?" if line["status"] == "unconfirmed" else ""
    source = line["source"] + (", not confirmed" if doubt else "")
    return [line["method"], source, *(f"{line[key]}{doubt}" if key in line else "" for key in known["figures"])]


# The best and the worst frames


class RankedFrame(NamedTuple):
    number: int
    name: str
    ap: float
    picture: Picture


class FrameRanking:
    """The AP of every frame, and pictures of the `keep` best and the `keep` worst; of equal APs the earlier frame's.

    A frame without outliers, or with nothing else, has no AP and no place. Pictures wider than 2 * RANKED_WIDTH are
    thinned, so that some megabytes are kept, however many and large the frames. The frames may come in any order:
    what counts is their numbers, of which each comes once.
    """

    def __init__(self, keep: int):
        self.keep = keep
        self._aps: dict[int, tuple[str, float | None]] = {}  # by the frame's number
        self._best: list[RankedFrame] = []
        self._worst: list[RankedFrame] = []

    def add(self, frame: Frame, scores: Tensor, open_prediction: Tensor | None = None, ap: float | None = None) -> None:
        """ap  of these scores, where it is known already"""
        if ap is None:
            ap = AnomalyMetrics().update(scores, frame.labels).compute()["AP"]
        self._aps[frame.number] = frame.name, None if ap != ap else ap
        if ap != ap:
            return
        ranked = RankedFrame(frame.number, frame.name, ap, None)
        for kept, place in ((self._best, best_first), (self._worst, worst_first)):
            if len(kept) < self.keep or (kept and place(ranked) < place(kept[-1])):
                if ranked.picture is None:
                    ranked = ranked._replace(picture=thinned(picture_of(frame, scores, open_prediction)))
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
        """Change every kept picture, as when a threshold is known only after all frames."""
        for kept in (self._best, self._worst):
            kept[:] = [frame._replace(picture=change(frame.picture)) for frame in kept]

    def captioned(self) -> dict[str, Picture]:
        """Best first, then worst first, without those that are among the best."""
        best = {frame.name for frame in self._best}
        worst = [frame for frame in self._worst if frame.name not in best]
        return {
            f"{kind} {place}: {frame.name}, AP {percent(frame.ap)} %": frame.picture
            for kind, frames in (("best", self._best), ("worst", worst))
            for place, frame in enumerate(frames, 1)
        }


def best_first(frame: RankedFrame) -> tuple[float, int]:
    return -frame.ap, frame.number


def worst_first(frame: RankedFrame) -> tuple[float, int]:
    return frame.ap, frame.number


def thinned(picture: Picture) -> Picture:
    """Every second, third ... pixel of a wide picture."""
    step = max(1, picture.labels.shape[1] // RANKED_WIDTH)
    return Picture(*(part if part is None else part[..., ::step, ::step].copy() for part in picture))


# The report


@contextlib.contextmanager
def figures_are_written(folder: Path) -> Iterator[None]:
    """Where the pictures and the page are made: an error says that the figures are there without them."""
    try:
        yield
    except OSError as error:
        told = message_of(error) or str(error)
        raise UnusableFile(
            error.errno,
            f"{told}. The figures are in {folder}/results.json and table.md; a picture or the page is missing",
        ) from error


def write_report(
    folder: Path,
    title: str,
    score_name: str,
    headline: dict[str, float],
    tables: dict[str, list[list]],
    record: dict,
    distributions: dict[str, Distribution],
    ranking: FrameRanking,
    colours: Colours,
    truth_colours: Colours | None = None,
    without_curves: str = "No pixels of both kinds, outliers and others, so there is no curve to draw.",
) -> None:
    """curves.png, histogram.png and pictures_best_worst.png into the folder, and index.html that shows everything.

    score_name      the score that ranks the frames and whose figures are the headline's
    headline        name -> fraction
    tables          as for write_results
    record          of evaluation_record
    distributions   pooled scores by the names that the curves get; none where nothing was pooled
    truth_colours   those of the truth, where its labels are not the predicted classes
    without_curves  what the page says in the place of curves
    """
    drawn = {name: each for name, each in distributions.items() if each.curves["tpr"].size}
    curves = {
        "precision and recall": partial(draw_precision_recall, distributions=drawn),
        "ROC": partial(draw_roc, distributions=drawn),
    }
    bars = {f"scores, {name}": partial(draw_histogram, name=name, distribution=drawn[name]) for name in drawn}
    frames = ranking.captioned()
    files = [folder / name for name in ("curves.png", "histogram.png", "pictures_best_worst.png")]
    for path in files:
        path.unlink(missing_ok=True)  # of an earlier evaluation, which this one may not draw anew
    if drawn:
        write_whole(panels_png([*curves.values()], 2, len(drawn) + 1), files[0])
        write_whole(panels_png([*bars.values()], min(3, len(bars)), 3), files[1])
    if frames:
        save_pictures(files[2], [*frames.values()], colours, score_name, truth_colours, [*frames])

    if drawn:
        curves_and_bars = (
            html_paragraph("Over all pixels pooled; a dot marks the threshold's true positive rate.")
            + html_panels({name: panels_png([draw], 1, len(drawn) + 1) for name, draw in curves.items()})
            + html_panels({name: panels_png([draw], 1, 3) for name, draw in bars.items()})
        )
    else:
        curves_and_bars = html_paragraph(without_curves)
    sections = {
        "Figures": html_tables(tables),
        "Curves and scores": curves_and_bars,
        "Frames": html_frames(frames, score_name, colours, truth_colours)
        + html_sheet(folder / "pictures.png")
        + html_every_frame(ranking.ap, score_name),
        "How to reproduce": html_record(record),
    }
    subtitle = f"{score_name} score, weights {Path(record['weights']).name}, {record['images']} images"
    text = page(title, subtitle, sections, headline)
    write_whole(text.encode(errors="backslashreplace"), folder / "index.html")
    print(f"page: {folder / 'index.html'}")
