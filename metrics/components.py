"""sIoU, PPV and F1 of connected components: whether each object is found, whatever its size."""

import math

import numpy as np

from errors import WrongInput
from labels import IGNORE, OUTLIER
from metrics.anomaly import check_mergeable
from metrics.scores import as_array

F1_THRESHOLDS = tuple(percent / 100 for percent in range(25, 80, 5))  # 0.25, 0.30 ... 0.75, each rounded once
EIGHT_NEIGHBOURS = np.ones((3, 3), int)


class ComponentMetrics:
    """The component-level figures of SegmentMeIfYouCan (Chan et al., NeurIPS 2021), pooled over frames.

    threshold      a pixel is predicted an outlier where score >= threshold; the benchmark takes the one of the best
                   pixel F1 over all frames: AnomalyMetrics.best_f1_threshold()[0]
    min_predicted  predicted components of fewer pixels are dropped: 500 on AnomalyTrack, 50 on ObstacleTrack
    min_true       true components of fewer pixels become IGNORE: 100 on AnomalyTrack, 10 on ObstacleTrack
    raises         ValueError: the threshold is NaN

    Components are 8-connected. The predicted ones are found and measured on the whole frame, ignored pixels too; then
    ignored pixels are left out of them, and one that has no other pixel is not counted.
    """

    def __init__(self, threshold: float, min_predicted: int = 500, min_true: int = 100):
        if math.isnan(threshold):
            raise WrongInput("the threshold is NaN, so nothing is predicted; there were no outliers to choose it by")
        self.threshold, self.min_predicted, self.min_true = float(threshold), min_predicted, min_true
        self._siou: list[np.ndarray] = []  # one array a frame
        self._ppv: list[np.ndarray] = []

    def update(self, scores, labels) -> "ComponentMetrics":
        """scores  (H, W), one frame; larger is more anomalous; NaN only where ignored, and not predicted there
        labels  (H, W); OUTLIER against anything else, IGNORE left out
        raises  ValueError: other shapes, NaN on a counted pixel, labels of a type too narrow for OUTLIER
        """
        scores, labels = as_array(scores), as_array(labels)
        if scores.ndim != 2 or scores.shape != labels.shape:
            raise WrongInput(f"scores have shape {scores.shape} and labels {labels.shape}; give one frame, both (H, W)")
        if labels.dtype in (np.bool_, np.int8):
            raise WrongInput(f"labels of type {labels.dtype} cannot hold OUTLIER = {OUTLIER}; use uint8 or wider")
        ignored, outlier = labels == IGNORE, labels == OUTLIER
        nans = np.count_nonzero(np.isnan(scores) & ~ignored)
        if nans:
            raise WrongInput(f"{nans} of {scores.size} scores are NaN and cannot be ranked; check the model's outputs")

        true = _components(outlier, self.min_true)
        predicted = _components(scores >= self.threshold, self.min_predicted)
        predicted[ignored | (outlier & (true == 0))] = 0  # the second: true components that are too small

        siou, ppv = _siou_and_ppv(true, predicted)
        self._siou.append(siou)
        self._ppv.append(ppv)
        return self

    def merge(self, other: "ComponentMetrics") -> "ComponentMetrics":
        """Takes over the frames of another, as if they had been updated here; returns itself

        raises  ValueError: other is of another kind or has another threshold, min_predicted or min_true
        """
        check_mergeable(self, other, "threshold", "min_predicted", "min_true")
        self._siou += other._siou
        self._ppv += other._ppv
        return self

    def compute(self) -> dict:
        """Means over all components of all frames, as plain floats, and the numbers of components.

        sIoU             mean over true components K of |K n P| / (|K u P| - |P on other true ones|), where P is the
                         union of the predicted components that share a pixel with K; NaN if there is no true one
        PPV              mean over predicted components of the share that lies on true ones; NaN if there is none
        F1_by_threshold  {"0.25": ..., "0.30": ... "0.75": ...}: at t, a true component with sIoU >= t is found and a
                         predicted one with PPV < t is false, counted over all frames; NaN if there is no component
        F1               their mean
        true_components, predicted_components    those that were counted
        """
        siou, ppv = (np.concatenate([np.empty(0), *frames]) for frames in (self._siou, self._ppv))
        f1 = {f"{threshold:.2f}": _f1(siou, ppv, threshold) for threshold in F1_THRESHOLDS}
        return {
            "sIoU": _mean(siou),
            "PPV": _mean(ppv),
            "F1": _mean(np.array(list(f1.values()))),
            "F1_by_threshold": f1,
            "true_components": siou.size,
            "predicted_components": ppv.size,
        }


def _components(mask, min_pixels):
    """Each pixel's component, numbered from 1; 0 outside the mask and in components of fewer pixels"""
    from scipy import ndimage  # as long to import as half of this package, and needed here alone

    ids, _ = ndimage.label(mask, EIGHT_NEIGHBOURS)
    large = np.bincount(ids.ravel(), minlength=1) >= min_pixels
    large[0] = False
    return np.where(large, large.cumsum(), 0)[ids]


def _siou_and_ppv(true, predicted):
    """sIoU of each true component, PPV of each predicted one that has a pixel left; both (H, W) of ids, 0 for none.

    The union without what lies on other true components is K and the part of P that lies on none.
    """
    true_pixels, predicted_pixels = (np.bincount(ids.ravel(), minlength=1) for ids in (true, predicted))
    both = (true > 0) & (predicted > 0)
    pairs, shared = np.unique(true[both] * predicted_pixels.size + predicted[both], return_counts=True)
    of_true, of_predicted = np.divmod(pairs, predicted_pixels.size)
    on_prediction = np.bincount(of_true, shared, true_pixels.size)
    on_truth = np.bincount(of_predicted, shared, predicted_pixels.size)
    off_truth = (predicted_pixels - on_truth)[of_predicted]  # of each pair, so of each component in P once
    union = true_pixels + np.bincount(of_true, off_truth, true_pixels.size)
    left = predicted_pixels > 0
    left[0] = False
    return on_prediction[1:] / union[1:], on_truth[left] / predicted_pixels[left]


def _f1(siou, ppv, threshold):
    found, false = np.count_nonzero(siou >= threshold), np.count_nonzero(ppv < threshold)
    counted = found + siou.size + false  # 2 found + missed + false
    return float(2 * found / counted) if counted else math.nan


def _mean(values):
    return math.fsum(values) / values.size if values.size else math.nan  # fsum: no matter in which order
