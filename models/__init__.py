"""Networks: RGB images (B, 3, H, W) in 0..1 -> raw logits at the images' size.

A hybrid model returns (class_logits (B, K, H, W), dataset_logits (B, 2, H, W)), a closed-set one class_logits.
"""

from models.deeplab import deeplabv3plus
from models.ladder_densenet import backbone_slower, ladder_densenet121
from models.weights import has_dataset_head, load_imagenet_densenet121, load_weights

__all__ = [
    "backbone_slower",
    "deeplabv3plus",
    "has_dataset_head",
    "ladder_densenet121",
    "load_imagenet_densenet121",
    "load_weights",
]
