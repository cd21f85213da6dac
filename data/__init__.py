"""Data sets and what is done to their samples.

A sample is (image uint8 (3, H, W) RGB, labels uint8 (H, W), name). Labels: 0..K-1 known, OUTLIER, IGNORE. Pixels
stay uint8 until they are on the device. All randomness is drawn from torch's generator.
"""

from data.ade20k import ADE20K
from data.cityscapes import Cityscapes
from data.fishyscapes import FishyscapesStatic, LostAndFound
from data.negatives import MaskedPatches, WithFixedNegatives, WithNegatives, draw_corner, paste
from data.streethazards import StreetHazards
from data.transforms import train_transform
from labels import IGNORE, OUTLIER

__all__ = [
    "ADE20K",
    "IGNORE",
    "OUTLIER",
    "Cityscapes",
    "FishyscapesStatic",
    "LostAndFound",
    "MaskedPatches",
    "StreetHazards",
    "WithFixedNegatives",
    "WithNegatives",
    "draw_corner",
    "paste",
    "train_transform",
]
