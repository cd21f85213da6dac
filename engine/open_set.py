"""Figures and tables of an open-set evaluation: known classes, and pixels that are called unknown."""

import math

import torch.nn.functional as F
from torch import Tensor

from engine.results import Rows, threshold_text
from metrics import ConfusionMatrix

MEANS = {"mIoU": "closed mIoU %", "open_mIoU": "open-mIoU %", "mIoU_with_unknown": "mIoU with unknown %"}


def open_set_figures(closed: ConfusionMatrix, opened: ConfusionMatrix) -> dict:
    """Closed-set and open-set figures of two confusion matrices; `gap` is what the unknown costs.

    Each mean has the number of classes that it averages beside it: a class with an empty union is left out, which the
    release counts as 0 in open-mIoU. Without a threshold nothing was counted in `opened`: what needs it is NaN.
    """
    known = closed.compute()
    figures = opened.compute() | {name: known[name] for name in ("mIoU", "mIoU_classes")}
    return figures | {
        "gap": figures["mIoU"] - figures["open_mIoU"],
        "closed_iou": closed.iou().tolist(),
        "open_iou": opened.open_iou().tolist(),
    }


def open_set_headline(figures: dict) -> dict[str, float]:
    return {title.removesuffix(" %"): figures[name] for name, title in MEANS.items()}


def open_set_table(figures: dict) -> Rows:
    rows = [["figure", "value", "classes"]]
    rows += [[title, figures[name], figures[f"{name}_classes"]] for name, title in MEANS.items()]
    rows += [["gap %, closed mIoU less open-mIoU", figures["gap"], ""]]
    rows += [[f"{name} %", figures[name], ""] for name in ("AP", "AUROC", "FPR95")]
    rows += [["threshold", threshold_text(figures["threshold"]), ""], ["images", figures["images"], ""]]
    return rows + [[f"{kind} pixels", figures[f"{kind}_pixels"], ""] for kind in ("inlier", "outlier", "ignored")]


def town_table(figures: dict[str, dict]) -> Rows:
    """A row for each town and for both."""
    rows = [
        ["town", "images", *(cell for title in MEANS.values() for cell in (title, "classes")), "gap %", "threshold"]
    ]
    for town, each in figures.items():
        means = [cell for name in MEANS for cell in (each[name], each.get(f"{name}_classes", ""))]
        rows.append([town, each["images"], *means, each["gap"], threshold_text(each.get("threshold", math.nan))])
    return rows


def total_figures(towns: list[dict]) -> dict:
    """The towns' figures weighted by their numbers of images."""
    images = sum(town["images"] for town in towns)
    mean = {
        name: sum(town["images"] * town[name] for town in towns) / images
        for name in ("mIoU", "open_mIoU", "gap", "mIoU_with_unknown")
    }
    return {"images": images} | mean


def halved(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Score maps bilinearly, label maps by their nearest pixel, at half their height and width.

    scores, labels  (B, H, W)
    returns         (B, H // 2, W // 2) each, no side below 1
    """
    size = [max(1, side // 2) for side in scores.shape[1:]]
    labels = F.interpolate(labels[:, None].float(), size, mode="nearest")[:, 0].long()
    return F.interpolate(scores[:, None], size, mode="bilinear", align_corners=False)[:, 0], labels
