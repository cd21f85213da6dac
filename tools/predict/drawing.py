"""The pictures of a prediction: maps of labels and scores, heat maps, overlays, and the legend of them all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine.files import write_whole
from engine.pictures import (
    GAP,
    LEGEND_LINE,
    UNKNOWN_COLOUR,
    Colours,
    class_picture,
    colour_table,
    heat_picture,
    heat_range,
    png,
)

LARGEST_16_BIT = 65535
SCORE_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)  # of each prediction, in its report
KNOWN_SHARE, UNKNOWN_SHARE, HEAT_SHARE = 0.4, 0.7, 0.5  # of the colours in an overlay, the rest is the photograph


def overlaid(image: np.ndarray, picture: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """`share` of a picture and the rest of the image below it, (H, W, 3) uint8 each; a share (H, W) is each pixel's."""
    share = np.asarray(share, np.float32)
    mixed = np.empty_like(image)
    for channel in range(3):  # one at a time: floats of a large photograph take four times its memory
        mixed[..., channel] = np.rint(image[..., channel] * (1 - share) + picture[..., channel] * share)
    return mixed


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
