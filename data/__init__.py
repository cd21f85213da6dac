"""Data sets and what is done to their samples.

A sample is (image uint8 (3, H, W) RGB, labels uint8 (H, W), name). Labels: 0..K-1 known, OUTLIER, IGNORE. Pixels
stay uint8 until they are on the device. All randomness is drawn from torch's generator.
"""

from data.ade20k import ADE20K
from data.cityscapes import Cityscapes
from data.coco import COCO20
from data.fishyscapes import FishyscapesStatic, LostAndFound
from data.images import ImageFolder
from data.negatives import (
    MaskedPatches,
    WithFixedNegatives,
    WithNegatives,
    paste,
)
from data.roadanomaly import RoadAnomaly
from data.smiyc import AnomalyTrack, ObstacleTrack
from data.streethazards import StreetHazards
from data.synthetic import cut_out, draw_patch_size, paste_at_random, whole_patches
from data.transforms import filled_transform, train_transform
from labels import IGNORE, OUTLIER

__all__ = [
    "ADE20K",
    "COCO20",
    "IGNORE",
    "OUTLIER",
    "AnomalyTrack",
    "Cityscapes",
    "FishyscapesStatic",
    "ImageFolder",
    "LostAndFound",
    "MaskedPatches",
    "ObstacleTrack",
    "RoadAnomaly",
    "StreetHazards",
    "WithFixedNegatives",
    "WithNegatives",
    "cut_out",
    "draw_patch_size",
    "filled_transform",
    "paste",
    "paste_at_random",
    "train_transform",
    "whole_patches",
]
