"""Figures of merit over all pixels updated so far; exact, but for BoundedAnomalyMetrics, which says how far off it is.

A larger score is more anomalous. Labels are 0..K-1 (known classes), OUTLIER, IGNORE; ignored pixels enter no figure.
A predicted class is 0..K, where K is "unknown". Figures are fractions in 0..1, and NaN where they are undefined.
Everything takes tensors or arrays, of any shape and on any device; `update` and `merge` return their object, and
objects can be pickled: counted in parts, in processes, and merged in any order, the figures are exactly the same.
"""

from metrics.anomaly import TPR, AnomalyMetrics, mean_of_images
from metrics.bounded import BoundedAnomalyMetrics
from metrics.components import ComponentMetrics
from metrics.segmentation import ConfusionMatrix, classes_averaged

__all__ = [
    "TPR",
    "AnomalyMetrics",
    "BoundedAnomalyMetrics",
    "ComponentMetrics",
    "ConfusionMatrix",
    "classes_averaged",
    "mean_of_images",
]
