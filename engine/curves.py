"""Precision-recall and ROC curves and histograms of scores, drawn with matplotlib."""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from metrics import AnomalyMetrics

# Notebooks name their backend to every program that they start, and matplotlib cannot be imported where it is missing.
# It is of no use here: figures are drawn without pyplot.
named = os.environ.pop("MPLBACKEND", None) if "matplotlib" not in sys.modules else None
import matplotlib  # noqa: E402

if named is not None:
    os.environ["MPLBACKEND"] = named
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = named  # for who imports this in a notebook and draws with pyplot
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from engine.pictures import png  # noqa: E402

# Apart for the colour-blind too (Okabe and Ito, Color Universal Design); the first two are inliers and outliers.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
PANEL = (5.0, 3.6)  # inches, without the legend; type of 10 points is readable at the width of a telephone
LEGEND_LINE = 0.2  # inches
DOTS_PER_INCH = 160


class Distribution(NamedTuple):
    """What is drawn of pooled scores: some thousand numbers, however many the pixels."""

    figures: dict  # AnomalyMetrics.compute()
    curves: dict[str, np.ndarray]
    histogram: dict[str, np.ndarray]
    tpr: float
    threshold: float  # where the true positive rate is `tpr`


def distribution_of(metrics: AnomalyMetrics, tpr: float = 0.95, figures: dict | None = None) -> Distribution:
    """figures  of metrics.compute(), where they are known already"""
    figures = metrics.compute() if figures is None else figures
    return Distribution(figures, metrics.curves(), metrics.histogram(), tpr, metrics.threshold(tpr))


def plot_precision_recall(axes: Axes, distributions: dict[str, Distribution]) -> None:
    """One curve a score, and as a dotted line what chance gives: the share of outliers among the pixels."""
    for (name, each), colour in zip(distributions.items(), cycled(), strict=False):
        label = f"{name}: AP {percent(each.figures['AP'])}"
        found = slice(1, None)  # the first point's precision of 1, where nothing is found, is only a convention
        axes.plot(each.curves["recall"][found], each.curves["precision"][found], color=colour, label=label)
    figures = next(iter(distributions.values())).figures
    chance = figures["outlier_pixels"] / (figures["outlier_pixels"] + figures["inlier_pixels"])
    axes.axhline(chance, color="grey", linestyle=":", label=f"chance: AP {percent(chance)}")
    axes.set(title="Precision and recall of outlier pixels", xlabel="recall", ylabel="precision")
    finish_unit_square(axes)


def plot_roc(axes: Axes, distributions: dict[str, Distribution]) -> None:
    """One curve a score, with a dot where the true positive rate is that of the threshold."""
    for (name, each), colour in zip(distributions.items(), cycled(), strict=False):
        label = f"{name}: AUROC {percent(each.figures['AUROC'])}, FPR95 {percent(each.figures['FPR95'])}"
        axes.plot(each.curves["fpr"], each.curves["tpr"], color=colour, label=label)
        fpr = np.interp(each.tpr, each.curves["tpr"], each.curves["fpr"])
        axes.plot(fpr, each.tpr, "o", color=colour, markersize=5)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance: AUROC 50.00")
    axes.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    finish_unit_square(axes)


def plot_histogram(axes: Axes, name: str, distribution: Distribution) -> None:
    """Shares of inliers and of outliers by score, each kind's bars summing to its 100 %, and the threshold."""
    edges = distribution.histogram["edges"]
    for kind, colour in zip(("inliers", "outliers"), COLOURS, strict=False):
        counts = distribution.histogram[kind]
        shares = 100 * counts / max(counts.sum(), 1)
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(shares, edges, color=colour, label=f"{kind}: {counts.sum():,} pixels")
    label = f"threshold {distribution.threshold:.3f} at TPR {distribution.tpr:g}"
    axes.axvline(distribution.threshold, color="black", linestyle="--", label=label)
    axes.set(title=f"Scores: {name}", xlabel="score, larger is stranger", ylabel="% of the kind's pixels")
    axes.set_ylim(bottom=0)
    legend_below(axes)


def finish_unit_square(axes: Axes) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.grid(color="#dddddd")
    legend_below(axes)


def legend_below(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    # Anchored at the axes' lower edge and pushed below the labels by a number of lines, whatever the panel's height.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.2, frameon=False, fontsize=9)


def rendered_panel(draw: Callable[[Axes], None], legend_lines: int) -> np.ndarray:
    """(H, W, 3) uint8 of one panel, with room for so many lines of legend below it."""
    figure = Figure((PANEL[0], PANEL[1] + legend_lines * LEGEND_LINE), dpi=DOTS_PER_INCH, layout="constrained")
    draw(figure.add_subplot())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def panels_png(panels: Sequence[np.ndarray], columns: int = 1) -> bytes:
    """The content of a PNG file with panels of one size, so many beside each other."""
    height, width, _ = panels[0].shape
    sheet = np.full((-(-len(panels) // columns) * height, columns * width, 3), 255, np.uint8)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = panel
    return png(Image.fromarray(sheet))


def cycled():
    while True:
        yield from COLOURS


def percent(value: float) -> str:
    return f"{100 * value:.2f}"
