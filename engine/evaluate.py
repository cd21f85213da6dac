"""Running a model over a data set, and writing down what came out."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from engine.checkpoint import write_whole
from engine.loader import batches, evaluation_loader, to_device
from engine.pictures import Picture
from metrics import AnomalyMetrics, ConfusionMatrix


class Frame(NamedTuple):
    """One evaluated image, batch size 1."""

    name: str
    image: Tensor  # (1, 3, H, W) in 0..1
    labels: Tensor  # (1, H, W)
    class_logits: Tensor  # (1, K, H, W)
    dataset_logits: Tensor | None  # (1, 2, H, W); None for a closed-set model


def evaluated_frames(
    model: nn.Module, dataset: Dataset, device: torch.device, workers: int = 0, title: str = "evaluating"
) -> Iterator[Frame]:
    """Each frame of the data set through the model once, in order, in eval mode, without gradients."""
    model.eval().to(memory_format=torch.channels_last)
    with tqdm(total=len(dataset), desc=title, leave=False, dynamic_ncols=True, disable=None) as bar:
        for tensors, names in batches(evaluation_loader(dataset, workers, device)):
            image, labels = to_device(tensors, device)
            with torch.inference_mode():
                output = model(image)
            class_logits, dataset_logits = output if isinstance(output, tuple) else (output, None)
            yield Frame(names[0], image, labels, class_logits, dataset_logits)
            bar.update()


def picture_of(frame: Frame, scores: Tensor, open_prediction: Tensor | None = None) -> Picture:
    """What a picture shows of a frame, off the device; scores and open_prediction (1, H, W)."""
    prediction = frame.class_logits.argmax(1)
    tensors = [frame.image, frame.labels, prediction, scores, open_prediction]
    return Picture(*(tensor[0].cpu().numpy() for tensor in tensors if tensor is not None))


def closed_set_figures(
    model: nn.Module, dataset: Dataset, num_classes: int, device: torch.device, workers: int = 0
) -> dict[str, float]:
    """{"mIoU": fraction} of the most probable class, over the pixels of known classes."""
    confusion = ConfusionMatrix(num_classes)
    for frame in evaluated_frames(model, dataset, device, workers, "validating"):
        confusion.update(frame.class_logits.argmax(1), frame.labels)
    return {"mIoU": confusion.miou()}


def anomaly_figures(
    model: nn.Module,
    dataset: Dataset,
    score: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
    workers: int = 0,
) -> dict[str, float]:
    """{"AP", "FPR95"}, fractions, of score(class_logits, dataset_logits) over the pixels of all frames."""
    anomaly = AnomalyMetrics()
    for frame in evaluated_frames(model, dataset, device, workers, "validating"):
        anomaly.update(score(frame.class_logits, frame.dataset_logits), frame.labels)
    figures = anomaly.compute()
    return {name: figures[name] for name in ("AP", "FPR95")}


def write_results(folder: Path, results: dict, tables: dict[str, list[list]]) -> None:
    """results.json and table.md into the folder, and the tables to the screen.

    tables  title -> rows, the first of them the header; fractions are shown as percent, NaN as an empty cell
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(f"{title}\n\n{markdown_table(rows)}" for title, rows in tables.items()) + "\n"
    write_whole(json.dumps(without_nan(results), indent=2).encode(), folder / "results.json")
    write_whole(text.encode(), folder / "table.md")
    print(f"\n{text}\nwritten: {folder}/results.json, {folder}/table.md")


def markdown_table(rows: list[list]) -> str:
    cells = [[shown(value) for value in row] for row in rows]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def shown(value) -> str:
    """A cell: fractions as percent with one digit more than published tables have, NaN as nothing."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{100 * value:.2f}"
    return str(value)


def without_nan(value):
    """JSON has no NaN: undefined figures become null."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
