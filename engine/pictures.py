"""Pictures of evaluated frames and predictions: what people would rather look at than a table."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.utils import save_image

from engine.files import write_whole
from labels import IGNORE, OUTLIER

Colours = dict[str, tuple[int, int, int]]  # of the classes by name, in the order of their ids

HEAT_RANGE = (0.01, 0.99)  # the share of scores that is black, and that below pale yellow
UNKNOWN_COLOUR = (0, 255, 255)
IGNORE_COLOUR = (0, 0, 0)
# From cold to hot; even in lightness, readable by the colour-blind (points of matplotlib's inferno).
HEAT = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ],
    float,
)
PICTURE_WIDTH = 640  # pixels; less than twice this is kept of a frame, which is shown at 320 to 480
GAP, HEADER, LEGEND_LINE = 6, 26, 22
HEAT_SAMPLE = 1000  # pixels of each frame that the range of heat over many frames is taken from
LARGEST_16_BIT = 65535
SCORE_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)  # of each prediction, in its report
KNOWN_SHARE, UNKNOWN_SHARE, HEAT_SHARE = 0.4, 0.7, 0.5  # of the colours in an overlay, the rest is the photograph


def class_picture(labels: np.ndarray, colours: Colours) -> np.ndarray:
    """(H, W) of 0..K-1, K or OUTLIER (unknown), IGNORE -> (H, W, 3) uint8."""
    return colour_table(colours)[labels]


def colour_table(colours: Colours) -> np.ndarray:
    """(256, 3) uint8, the colour of each label."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = list(colours.values())
    table[len(colours)] = table[OUTLIER] = UNKNOWN_COLOUR
    table[IGNORE] = IGNORE_COLOUR
    return table


def heat_picture(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H, W) scores -> (H, W, 3) uint8, black at `low` and below, pale yellow at `high` and above."""
    place = np.clip((scores - low) / max(high - low, 1e-12), 0, 1) * (len(HEAT) - 1)
    channels = (np.interp(place, range(len(HEAT)), HEAT[:, channel]).astype(np.uint8) for channel in range(3))
    return np.stack(list(channels), -1)


def heat_sample(scores: Tensor) -> np.ndarray:
    """The scores of HEAT_SAMPLE pixels, the same places in every map of one size."""
    places = np.random.default_rng(0).integers(0, scores.numel(), HEAT_SAMPLE)
    return scores.flatten()[torch.from_numpy(places).to(scores.device)].cpu().numpy()


def heat_range(scores: np.ndarray | Sequence[np.ndarray]) -> list[float]:
    """[low, high] for heat_picture: HEAT_RANGE of one frame's scores, or of the heat_samples of many."""
    return np.quantile(np.concatenate([np.ravel(part) for part in scores]), HEAT_RANGE).tolist()


class Picture(NamedTuple):
    """What is drawn of one evaluated frame, (H, W) each but for the image."""

    image: np.ndarray  # (3, H, W) in 0..1
    labels: np.ndarray
    prediction: np.ndarray  # 0..K-1
    scores: np.ndarray
    open_prediction: np.ndarray | None = None  # 0..K, K is unknown


def evenly_spread(count: int, length: int) -> set[int]:
    """Indices of `count` frames, or as many as there are, from the first to the last of `length`."""
    return set(np.linspace(0, length - 1, min(count, length), dtype=int).tolist()) if count > 0 else set()


def save_pictures(
    path: Path,
    pictures: Sequence[Picture],
    colours: Colours,
    score_name: str,
    truth_colours: Colours | None = None,
    captions: Sequence[str] = (),
) -> None:
    """A sheet with one frame a row: image, truth, prediction, heat map and, where there is one, open-set prediction.

    truth_colours  those of the truth, where its labels are not the predicted classes
    captions       one line above each row
    """
    low, high = heat_range([picture.scores for picture in pictures])
    rows = [list(picture_cells(picture, colours, low, high, truth_colours).values()) for picture in pictures]
    columns = [title.replace("score", f"{score_name} score") for title in CELLS[: max(map(len, rows))]]
    save_grid(path, columns, rows, colours | (truth_colours or {}), heat_note(score_name, low, high), captions=captions)
    print(f"pictures: {path}")


CELLS = ("image", "truth", "closed-set prediction", "score", "open-set prediction")


def picture_cells(
    picture: Picture, colours: Colours, low: float, high: float, truth_colours: Colours | None = None
) -> dict[str, np.ndarray]:
    """What is shown of a frame by CELLS' titles, (H, W, 3) uint8 each; the last where there is an open prediction."""
    cells = [
        (255 * picture.image.transpose(1, 2, 0)).astype(np.uint8),
        class_picture(picture.labels, truth_colours or colours),
        class_picture(picture.prediction, colours),
        heat_picture(picture.scores, low, high),
    ]
    if picture.open_prediction is not None:
        cells.append(class_picture(picture.open_prediction, colours))
    return dict(zip(CELLS, cells, strict=False))


def heat_note(score_name: str, low: float, high: float) -> str:
    return (
        f"{score_name} score: black at {low:.2f} and below, pale yellow at {high:.2f} and above "
        "(1 % and 99 % of the scores in these frames)"
    )


def save_samples(path: Path, images: Tensor, columns: int, least_width: int = 96) -> None:
    """A sheet of images (n, 3, h, w) in 0..255, `columns` a row, small ones enlarged pixel by pixel."""
    zoom = -(-least_width // images.shape[3])
    images = (images.float().cpu() / 255).repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    save_image(images, content, format="png", nrow=columns, padding=GAP, pad_value=1.0)
    write_whole(content.getbuffer(), path)


def save_grid(
    path: Path,
    columns: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    colours: Colours,
    note: str = "",
    cell_width: int = 320,
    captions: Sequence[str] = (),
) -> None:
    """One row of (H, W, 3) uint8 pictures per frame under the columns' titles, with a legend of the class colours.

    captions  a line above each row, or none
    """
    font = ImageFont.load_default(14)
    heights = [max(round(picture.shape[0] * cell_width / picture.shape[1]) for picture in row) for row in rows]
    width = len(columns) * (cell_width + GAP) + GAP
    legend = [*colours.items(), ("unknown", UNKNOWN_COLOUR), ("ignored", IGNORE_COLOUR)]
    places, legend_lines = lay_out([name for name, _ in legend], font, width)
    total = HEADER + sum(heights) + GAP * len(rows) + LEGEND_LINE * (len(captions) + legend_lines + bool(note)) + GAP
    sheet = Image.new("RGB", (width, total), "white")
    draw = ImageDraw.Draw(sheet)
    for number, title in enumerate(columns):
        draw.text((GAP + number * (cell_width + GAP), 5), title, "black", font)
    top = HEADER
    for row, height, caption in zip_longest(rows, heights, captions):
        if caption is not None:
            draw.text((GAP, top + 2), caption, "black", font)
            top += LEGEND_LINE
        for number, picture in enumerate(row):
            cell = Image.fromarray(picture).resize((cell_width, height), Image.Resampling.BILINEAR)
            sheet.paste(cell, (GAP + number * (cell_width + GAP), top))
        top += height + GAP
    for (name, colour), (left, line) in zip(legend, places, strict=True):
        y = top + line * LEGEND_LINE
        draw.rectangle((left, y + 3, left + 13, y + 16), fill=colour, outline="grey")
        draw.text((left + 18, y + 2), name, "black", font)
    if note:
        draw.text((GAP, top + legend_lines * LEGEND_LINE + 2), note, "black", font)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(png(sheet), path)


def lay_out(names: Sequence[str], font, width: int) -> tuple[list[tuple[int, int]], int]:
    """Places (left, line) of the legend's entries, and how many lines they take."""
    places, left, line = [], GAP, 0
    for name in names:
        needed = 18 + round(font.getlength(name)) + 16
        if left + needed > width:
            left, line = GAP, line + 1
        places.append((left, line))
        left += needed
    return places, line + 1


def overlaid(image: np.ndarray, picture: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """`share` of a picture and the rest of the image below it, (H, W, 3) uint8 each; a share (H, W) is each pixel's."""
    share = np.asarray(share, np.float32)
    mixed = np.empty_like(image)
    for channel in range(3):  # one at a time: floats of a large photograph take four times its memory
        mixed[..., channel] = np.rint(image[..., channel] * (1 - share) + picture[..., channel] * share)
    return mixed


def png(picture: Image.Image, text: dict[str, str] | None = None, compress_level: int = 6) -> bytes:
    """The content of a PNG file, with text chunks."""
    chunks, buffer = PngInfo(), io.BytesIO()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    picture.save(buffer, "png", pnginfo=chunks, compress_level=compress_level)
    return buffer.getvalue()


def label_png(labels: np.ndarray, colours: Colours) -> bytes:
    """(H, W) uint8 of 0..K as a palette PNG: one channel, whose values are the labels; K is unknown."""
    picture = Image.fromarray(labels)
    picture.putpalette(colour_table(colours).tobytes())
    return png(picture)


def score_png(scores: np.ndarray, score_name: str) -> bytes:
    """(H, W) finite float32 as a 16-bit PNG whose text chunks `low` and `high` give the scores back.

    score = low + value * (high - low) / 65535, to half a step: (high - low) / 131070.
    """
    low, high = float(scores.min()), float(scores.max())
    steps = (scores.astype(np.float64) - low) * (LARGEST_16_BIT / (high - low) if high > low else 0)
    text = {
        "score": score_name,
        "low": repr(low),
        "high": repr(high),
        "Description": f"score = low + value * (high - low) / {LARGEST_16_BIT}",
    }
    return png(Image.fromarray(np.rint(steps).astype(np.uint16)), text, compress_level=1)


def save_legend(
    path: Path, title: str, colours: Colours, unknown: bool, heat: tuple[str, str], notes: Sequence[str]
) -> None:
    """Every class with its id, unknown where there is such a thing, the scale of the heat maps, and notes below.

    heat  what the cold and the hot end of the scale stand for
    """
    font = ImageFont.load_default(14)
    entries = [(f"{label}  {name}", colour) for label, (name, colour) in enumerate(colours.items())]
    if unknown:
        entries.append((f"{len(colours)}  unknown", UNKNOWN_COLOUR))
    bar = heat_picture(np.linspace(0, 1, 320)[None].repeat(16, 0), 0, 1)
    ends = f"{heat[0]}  (black)  to  {heat[1]}  (pale yellow)"
    lines = [title, ends, *notes]
    width = 2 * GAP + max(bar.shape[1], *(round(font.getlength(line)) + 1 for line in lines))
    sheet = Image.new("RGB", (width, LEGEND_LINE * (len(entries) + len(lines) + 1) + 3 * GAP), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, "black", font)
    y = GAP + LEGEND_LINE
    for name, colour in entries:
        draw.rectangle((GAP, y + 2, GAP + 32, y + 18), fill=colour, outline="grey")
        draw.text((GAP + 42, y + 2), name, "black", font)
        y += LEGEND_LINE
    sheet.paste(Image.fromarray(bar), (GAP, y + GAP))
    for line in lines[1:]:
        y += LEGEND_LINE
        draw.text((GAP, y + GAP), line, "black", font)
    write_whole(png(sheet), path)


@dataclass(frozen=True)
class Drawing:
    """What is drawn of the predictions of one run, all of them alike."""

    colours: Colours
    score_name: str
    threshold: float | None
    heat_range: list[float] | None  # None: each picture has its own

    def open_set(self, classes: np.ndarray, scores: np.ndarray) -> np.ndarray | None:
        """(H, W) of 0..K; None where no threshold says what is unknown."""
        if self.threshold is None:
            return None
        return np.where(scores >= self.threshold, len(self.colours), classes).astype(np.uint8)

    def overlay(self, image: np.ndarray, opened: np.ndarray | None, heat: np.ndarray) -> np.ndarray:
        """The photograph below the open-set prediction, or below the heat map where there is none."""
        if opened is None:
            return overlaid(image, heat, HEAT_SHARE)
        share = np.where(opened == len(self.colours), UNKNOWN_SHARE, KNOWN_SHARE)
        return overlaid(image, class_picture(opened, self.colours), share)

    def note(self, low: float, high: float) -> str:
        whose = "all pictures of the run" if self.heat_range else "this picture alone, by 1 % and 99 % of its scores"
        return f"{self.score_name} score: black at {low:g} and below, pale yellow at {high:g} and above, in {whose}"

    def report(self, opened: np.ndarray | None, scores: np.ndarray, low: float, high: float) -> dict:
        """What the report says of a picture or frame."""
        quantiles = np.quantile(scores, SCORE_QUANTILES).tolist()
        return {
            "unknown_share": None if opened is None else float((opened == len(self.colours)).mean()),
            "low": float(scores.min()),
            "high": float(scores.max()),
            "score_quantiles": dict(zip(map(str, SCORE_QUANTILES), quantiles, strict=True)),
            "heat_range": [low, high],
        }

    def contents(self, image: np.ndarray, classes: np.ndarray, scores: np.ndarray) -> tuple[dict[str, bytes], dict]:
        """PNG files of an image (H, W, 3) uint8 by their kind, and what the report says of it."""
        opened = self.open_set(classes, scores)
        low, high = self.heat_range or heat_range(scores)
        heat, note = heat_picture(scores, low, high), {"Description": self.note(low, high)}
        overlay = png(Image.fromarray(self.overlay(image, opened, heat)), {} if opened is not None else note, 1)
        files = {"closed": label_png(classes, self.colours), "heat": png(Image.fromarray(heat), note, 1)}
        files |= {"overlay": overlay, "score": score_png(scores, self.score_name)}
        if opened is not None:
            files["open"] = label_png(opened, self.colours)
        return files, self.report(opened, scores, low, high)

    def frame(self, image: np.ndarray, classes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, dict]:
        """A video's frame: its overlay (H, W, 3) uint8, and what the report says of it."""
        opened, (low, high) = self.open_set(classes, scores), self.heat_range or heat_range(scores)
        return self.overlay(image, opened, heat_picture(scores, low, high)), self.report(opened, scores, low, high)

    def save_legend(self, path: Path, title: str) -> None:
        if self.heat_range:
            ends, notes = [f"{value:g}" for value in self.heat_range], []
        else:
            ends = ["1 % of the picture's scores", "99 %"]
            notes = ["Each picture has a heat scale of its own: do not compare colours between pictures."]
        if self.threshold is None:
            notes.append("No threshold was given: nothing is called unknown, and overlays show the heat.")
        else:
            notes.append(f"Unknown: where the score is {self.threshold:g} or more.")
        save_legend(path, title, self.colours, self.threshold is not None, tuple(ends), notes)
