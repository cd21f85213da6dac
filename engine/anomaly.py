"""Figures, tables and thresholds of anomaly detection, of the pixels and of the connected components of all frames."""

import math

import numpy as np

from engine.evaluation import ReportedFrames
from engine.processes import broadcast, gather_merged, is_main_process
from engine.results import Calibration, Rows, threshold_text
from metrics import TPR, AnomalyMetrics, ComponentMetrics, mean_of_images

FIGURES = ("AP", "AUROC", "FPR95")
COMPONENT_FIGURES = ("sIoU", "PPV", "F1")
NO_THRESHOLD = (
    "figures of each image by itself (mean_of_images) and no threshold for all (pooled): run evaluate_ood.py once more "
    "with --pooled"
)


def anomaly_results(
    frames: ReportedFrames, pooled: dict[str, AnomalyMetrics], components: dict[str, dict], mean: bool
) -> dict:
    """Figures of each score: over the pixels of all images, of components, the mean over images; numbers of pixels.

    pooled, components  by score; none where nothing was pooled, or no components were looked for
    mean                whether the mean over images is one of the figures
    """
    figures = {}
    if pooled:
        figures["pooled"] = {name: metrics.compute() for name, metrics in pooled.items()}
    if components:
        figures["components"] = components
        for name, each in components.items():
            figures["pooled"][name] |= {key: each[key] for key in COMPONENT_FIGURES}
    images, (first, *_) = frames.images, frames.scores
    if mean:
        figures["mean_of_images"] = {name: mean_of_images([image[name] for image in images]) for name in frames.scores}
    figures["pixels"] = {
        kind: sum(image[first][f"{kind}_pixels"] for image in images) for kind in ("inlier", "outlier", "ignored")
    }
    return figures


def anomaly_calibration(frames: ReportedFrames, figures: dict) -> dict[str, Calibration]:
    """Thresholds are those of pooled pixels."""
    note = "" if "pooled" in figures else NO_THRESHOLD
    thresholds = {name: each["threshold95"] for name, each in figures.get("pooled", {}).items()}
    return {
        name: Calibration(thresholds.get(name, math.nan), TPR, frames.heat_range(name), note=note)
        for name in frames.scores
    }


def anomaly_tables(title: str, figures: dict, images: int) -> dict[str, Rows]:
    """Title -> rows of what anomaly_results gives; `title` names the benchmark."""
    tables = {}
    if "pooled" in figures:
        tables[f"{title}, the pixels of all {images} images pooled"] = figure_table(figures["pooled"])
    if "components" in figures:
        tables[f"{title}, connected components"] = component_table(figures["components"])
    if "mean_of_images" in figures:
        mean = next(iter(figures["mean_of_images"].values()))
        counted = (
            f"mean over {mean['images']} images ({mean['images_without_outliers']} without outliers left out, "
            f"{mean['images_without_inliers']} without inliers)"
        )
        tables[f"{title}, {counted}"] = figure_table(figures["mean_of_images"])
    return tables


def component_figures(
    metrics: AnomalyMetrics, maps: list[tuple[np.ndarray, np.ndarray]], sizes: dict[str, int]
) -> dict:
    """sIoU, PPV and F1 at the threshold of the best F1 of pixels, over (scores, labels) of all frames.

    Without any outlier there is no threshold, and all are NaN. Of several processes each looks at its own frames, and
    process 0 gets the figures of all.
    """
    threshold, pixel_f1 = broadcast(None if not is_main_process() else metrics.best_f1_threshold())
    if math.isnan(threshold):
        counts = {"true_components": 0, "predicted_components": math.nan}
        return dict.fromkeys(COMPONENT_FIGURES, math.nan) | counts | {"threshold": threshold, "pixel_F1": pixel_f1}
    components = ComponentMetrics(threshold, **sizes)
    for scores, labels in maps:
        components.update(scores, labels)
    return gather_merged(components).compute() | {"threshold": threshold, "pixel_F1": pixel_f1}


def component_table(figures: dict[str, dict]) -> Rows:
    counts = ("true_components", "predicted_components")
    return [
        ["score", *(f"{name} %" for name in COMPONENT_FIGURES), "true", "predicted", "threshold", "F1 of pixels %"],
        *(
            [
                score,
                *(figure[name] for name in COMPONENT_FIGURES),
                *(figure[name] for name in counts),
                threshold_text(figure["threshold"]),
                figure["pixel_F1"],
            ]
            for score, figure in figures.items()
        ),
    ]


def figure_table(figures: dict[str, dict]) -> Rows:
    """Where figures are not exact, a last column has the largest error that one of a score can have."""
    rows = [["score", *(f"{name} %" for name in FIGURES)]]
    rows += [[score, *(figure[name] for name in FIGURES)] for score, figure in figures.items()]
    if any("AP_error" in figure for figure in figures.values()):
        errors = [max(figure[f"{name}_error"] for name in FIGURES) for figure in figures.values()]
        cells = ["largest error, % points", *(f"{100 * error:.4f}" for error in errors)]
        rows = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
    return rows
