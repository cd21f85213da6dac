"""Networks: RGB images (B, 3, H, W) in 0..1 -> raw logits at the images' size.

A hybrid model returns (class_logits (B, K, H, W), dataset_logits (B, 2, H, W)), a closed-set one class_logits.
The flow is a density over images instead.
"""

from models.deeplab import deeplabv3plus
from models.denseflow import denseflow_25_6
from models.frozen import frozen
from models.inference import fast_inference
from models.ladder_densenet import backbone_slower, ladder_densenet121
from models.networks import NETWORKS, OF_WHOLE_IMAGES, hybrid_segmenter, open_network
from models.segmenter import ReleasedScoring, segmenter
from models.weights import (
    NVIDIA_SOURCE,
    NVIDIA_WEIGHTS,
    load_imagenet_densenet121,
    load_imagenet_vit,
    load_weights,
)

__all__ = [
    "NETWORKS",
    "NVIDIA_SOURCE",
    "NVIDIA_WEIGHTS",
    "OF_WHOLE_IMAGES",
    "ReleasedScoring",
    "backbone_slower",
    "deeplabv3plus",
    "denseflow_25_6",
    "fast_inference",
    "frozen",
    "hybrid_segmenter",
    "ladder_densenet121",
    "load_imagenet_densenet121",
    "load_imagenet_vit",
    "load_weights",
    "open_network",
    "segmenter",
]
