"""Figures of merit, exact, over all pixels updated so far.

A larger score is more anomalous. Labels are 0..K-1 (known classes), OUTLIER, IGNORE; ignored pixels enter no figure.
A predicted class is 0..K, where K is "unknown". Figures are fractions in 0..1, and NaN where they are undefined.
Everything takes tensors or arrays, of any shape and on any device; `update` returns its object.
"""

from metrics.anomaly import AnomalyMetrics, mean_of_images
from metrics.components import ComponentMetrics
from metrics.segmentation import ConfusionMatrix, classes_averaged

__all__ = ["AnomalyMetrics", "ComponentMetrics", "ConfusionMatrix", "classes_averaged", "mean_of_images"]
