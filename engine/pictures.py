"""Pictures of classes and scores, and sheets of evaluated frames."""

import functools
import io
from collections.abc import Sequence
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
PICTURE_WIDTH = 640  # pixels; less than twice this is kept of a frame, which is shown at 320 to 480
CELL_WIDTH = 320  # of a frame in a sheet
LEAST_WIDTH = 96  # of a sample in a sheet
GAP, HEADER, LEGEND_LINE = 6, 26, 22
HEAT_SAMPLE = 1000  # pixels of each frame that the range of heat over many frames is taken from


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
    share = np.clip((scores - low) / max(high - low, 1e-12), 0, 1)
    return heat_colours()[np.rint(255 * share).astype(np.uint8)]


@functools.cache
def heat_colours() -> np.ndarray:
    """(256, 3) uint8, from cold to hot: even in lightness, readable by the colour-blind."""
    from engine.curves import matplotlib  # here, since importing it takes a while

    return np.rint(255 * matplotlib.colormaps["inferno"](np.arange(256))[:, :3]).astype(np.uint8)


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


def save_samples(path: Path, images: Tensor, columns: int) -> None:
    """A sheet of images (n, 3, h, w) in 0..255, `columns` a row, small ones enlarged pixel by pixel."""
    zoom = -(-LEAST_WIDTH // images.shape[3])
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
    captions: Sequence[str] = (),
) -> None:
    """One row of (H, W, 3) uint8 pictures per frame under the columns' titles, with a legend of the class colours.

    captions  a line above each row, or none
    """
    font = ImageFont.load_default(14)
    heights = [max(round(picture.shape[0] * CELL_WIDTH / picture.shape[1]) for picture in row) for row in rows]
    width = len(columns) * (CELL_WIDTH + GAP) + GAP
    legend = [*colours.items(), ("unknown", UNKNOWN_COLOUR), ("ignored", IGNORE_COLOUR)]
    places, legend_lines = lay_out([name for name, _ in legend], font, width)
    total = HEADER + sum(heights) + GAP * len(rows) + LEGEND_LINE * (len(captions) + legend_lines + bool(note)) + GAP
    sheet = Image.new("RGB", (width, total), "white")
    draw = ImageDraw.Draw(sheet)
    for number, title in enumerate(columns):
        draw.text((GAP + number * (CELL_WIDTH + GAP), 5), title, "black", font)
    top = HEADER
    for row, height, caption in zip_longest(rows, heights, captions):
        if caption is not None:
            draw.text((GAP, top + 2), caption, "black", font)
            top += LEGEND_LINE
        for number, picture in enumerate(row):
            cell = Image.fromarray(picture).resize((CELL_WIDTH, height), Image.Resampling.BILINEAR)
            sheet.paste(cell, (GAP + number * (CELL_WIDTH + GAP), top))
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


def png(picture: Image.Image, text: dict[str, str] | None = None, compress_level: int = 6) -> bytes:
    """The content of a PNG file, with text chunks."""
    chunks, buffer = PngInfo(), io.BytesIO()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    picture.save(buffer, "png", pnginfo=chunks, compress_level=compress_level)
    return buffer.getvalue()
