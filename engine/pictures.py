"""Pictures of evaluated frames: what people would rather look at than a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import save_image

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
GAP, HEADER, LEGEND_LINE = 6, 26, 22


def class_picture(labels: np.ndarray, colours: Colours) -> np.ndarray:
    """(H, W) of 0..K-1, K or OUTLIER (unknown), IGNORE -> (H, W, 3) uint8."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = list(colours.values())
    table[len(colours)] = table[OUTLIER] = UNKNOWN_COLOUR
    table[IGNORE] = IGNORE_COLOUR
    return table[labels]


def heat_picture(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H, W) scores -> (H, W, 3) uint8, black at `low` and below, pale yellow at `high` and above."""
    place = np.clip((scores - low) / max(high - low, 1e-12), 0, 1) * (len(HEAT) - 1)
    return np.stack([np.interp(place, range(len(HEAT)), HEAT[:, channel]) for channel in range(3)], -1).astype(np.uint8)


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
    path: Path, pictures: Sequence[Picture], colours: Colours, score_name: str, truth_colours: Colours | None = None
) -> None:
    """A sheet with one frame a row: image, truth, prediction, heat map and, where there is one, open-set prediction.

    truth_colours  those of the truth, where its labels are not the predicted classes
    """
    pooled = np.concatenate([picture.scores.ravel() for picture in pictures])
    low, high = np.quantile(pooled, HEAT_RANGE)
    columns = ["image", "truth", "closed-set prediction", f"{score_name} score"]
    rows = []
    for picture in pictures:
        row = [
            (255 * picture.image.transpose(1, 2, 0)).astype(np.uint8),
            class_picture(picture.labels, truth_colours or colours),
            class_picture(picture.prediction, colours),
            heat_picture(picture.scores, low, high),
        ]
        if picture.open_prediction is not None:
            row.append(class_picture(picture.open_prediction, colours))
        rows.append(row)
    if len(rows[0]) > len(columns):
        columns.append("open-set prediction")
    note = (
        f"{score_name} score: black at {low:.2f} and below, pale yellow at {high:.2f} and above "
        "(1 % and 99 % of the scores in these frames)"
    )
    save_grid(path, columns, rows, colours | (truth_colours or {}), note)
    print(f"pictures: {path}")


def save_samples(path: Path, images: Tensor, columns: int, least_width: int = 96) -> None:
    """A sheet of images (n, 3, h, w) in 0..255, `columns` a row, small ones enlarged pixel by pixel."""
    zoom = -(-least_width // images.shape[3])
    images = (images.float().cpu() / 255).repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(images, path, nrow=columns, padding=GAP, pad_value=1.0)


def save_grid(
    path: Path,
    columns: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    colours: Colours,
    note: str = "",
    cell_width: int = 320,
) -> None:
    """One row of (H, W, 3) uint8 pictures per frame under the columns' titles, with a legend of the class colours."""
    font = ImageFont.load_default(14)
    heights = [max(round(picture.shape[0] * cell_width / picture.shape[1]) for picture in row) for row in rows]
    width = len(columns) * (cell_width + GAP) + GAP
    legend = [*colours.items(), ("unknown", UNKNOWN_COLOUR), ("ignored", IGNORE_COLOUR)]
    places, legend_lines = lay_out([name for name, _ in legend], font, width)
    total = HEADER + sum(heights) + GAP * len(rows) + LEGEND_LINE * (legend_lines + bool(note)) + GAP
    sheet = Image.new("RGB", (width, total), "white")
    draw = ImageDraw.Draw(sheet)
    for number, title in enumerate(columns):
        draw.text((GAP + number * (cell_width + GAP), 5), title, "black", font)
    top = HEADER
    for row, height in zip(rows, heights, strict=True):
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
    sheet.save(path)


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
