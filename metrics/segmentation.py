"""Intersection over union, for K known classes and for an open set."""

import math

import numpy as np

from errors import WrongInput
from labels import IGNORE, OUTLIER
from metrics.anomaly import check_mergeable
from metrics.scores import as_array


class ConfusionMatrix:
    """Counts of pixels: rows are the truth, columns the prediction, both 0..K-1 and then K for outlier or unknown.

    A class that occurs neither in the truth nor in the prediction has an empty union: its IoU is NaN, and means
    leave it out (the DenseHybrid release of 2024 counts it as 0 in open-mIoU).
    """

    def __init__(self, num_classes: int):
        if not 1 <= num_classes <= OUTLIER:
            raise WrongInput(f"num_classes is {num_classes}; 1..{OUTLIER} are possible, as {OUTLIER} labels outliers")
        self.num_classes = num_classes
        self.matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    def update(self, prediction, labels) -> "ConfusionMatrix":
        """prediction  integers of any shape, 0..K, where K is unknown; not looked at where labels are IGNORE
        labels      same shape; 0..K-1, OUTLIER, IGNORE
        """
        prediction, labels = as_array(prediction), as_array(labels)
        if prediction.shape != labels.shape:
            raise WrongInput(f"predictions have shape {prediction.shape} but labels {labels.shape}; one each is needed")
        for name, values in (("predictions", prediction), ("labels", labels)):
            if not np.issubdtype(values.dtype, np.integer):
                raise WrongInput(f"{name} are {values.dtype}, but class ids are integers; take logits.argmax(1)")
        unknown = self.num_classes
        counted = labels != IGNORE
        predicted, truth = prediction[counted], labels[counted]
        _refuse((predicted < 0) | (predicted > unknown), predicted, f"predictions must be 0..{unknown} (unknown)")
        _refuse(
            ((truth < 0) | (truth >= unknown)) & (truth != OUTLIER),
            truth,
            f"labels must be 0..{unknown - 1}, OUTLIER = {OUTLIER} or IGNORE = {IGNORE}",
        )
        truth = np.where(truth == OUTLIER, unknown, truth.astype(np.int64))
        cells = truth * (unknown + 1) + predicted.astype(np.int64)
        self.matrix += np.bincount(cells, minlength=self.matrix.size).reshape(self.matrix.shape)
        return self

    def merge(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Takes over the pixels of another, as if they had been updated here; returns itself

        raises  ValueError: other is of another kind or has another num_classes
        """
        check_mergeable(self, other, "num_classes")
        self.matrix += other.matrix
        return self

    def iou(self) -> np.ndarray:
        """(K,) over pixels of known classes only; such a pixel predicted unknown is a miss"""
        known = self.matrix.copy()
        known[self.num_classes] = 0
        return _iou(known)[: self.num_classes]

    def open_iou(self) -> np.ndarray:
        """(K + 1,) over all pixels: outliers predicted known and known pixels predicted unknown are both errors"""
        return _iou(self.matrix)

    def miou(self) -> float:
        return _mean(self.iou())

    def open_miou(self) -> float:
        """open-mIoU: the mean over the K known classes, outliers counting as errors (DenseHybrid, ECCV 2022)"""
        return _mean(self.open_iou()[: self.num_classes])

    def miou_with_unknown(self) -> float:
        return _mean(self.open_iou())

    def compute(self) -> dict:
        """The three means as plain floats, each beside the number of classes that it averages"""
        return {
            "mIoU": self.miou(),
            "mIoU_classes": classes_averaged(self.iou()),
            "open_mIoU": self.open_miou(),
            "open_mIoU_classes": classes_averaged(self.open_iou()[: self.num_classes]),
            "mIoU_with_unknown": self.miou_with_unknown(),
            "mIoU_with_unknown_classes": classes_averaged(self.open_iou()),
        }


def classes_averaged(iou: np.ndarray) -> int:
    """How many classes a mean over these IoUs averages: those with a union"""
    return int(np.count_nonzero(~np.isnan(iou)))


def _iou(matrix):
    hits = matrix.diagonal()
    union = matrix.sum(0) + matrix.sum(1) - hits
    return np.divide(hits, union, out=np.full(len(matrix), np.nan), where=union > 0)


def _mean(iou):
    return float(np.nansum(iou)) / classes_averaged(iou) if classes_averaged(iou) else math.nan


def _refuse(wrong, values, rule):
    if wrong.any():
        raise WrongInput(f"{rule}; {np.count_nonzero(wrong)} pixels have others, such as {values[wrong][0]}")
