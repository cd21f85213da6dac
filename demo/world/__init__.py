"""A drawn street world in the folder layouts of StreetHazards and ADE20K, for the embedded demo and the tests.

Every picture is painted by this package, polygon by polygon, so figures measured on it say nothing about real streets.

A scene is painted from far to near; each `Canvas.fill` paints picture and label through one mask, so the two agree.
Coordinates: a picture is 96 units high whatever its size in pixels, x right, y down. Streets are in metres:
X to the right of the camera, Y up from the ground, Z ahead. Colours are RGB, 1.0 is white. All randomness comes from
the seed and a frame's number: a frame is the same however many others are drawn.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from demo.world.frame import draw_street
from demo.world.negatives import draw_negative

__all__ = ["draw_negatives", "draw_street_hazards"]


def draw_street_hazards(
    root: str | Path,
    training: int = 160,
    validation: int = 24,
    test: int = 24,
    width: int = 192,
    height: int = 96,
    seed: int = 0,
) -> None:
    """Write root/{train,test}/{images,annotations}/{training,validation,test}/<town>/*.png as StreetHazards does

    Training frames are split between t1 and t2, validation is t3, test frames are split between t5 and t6. Pictures are
    RGB; labels are 8-bit with the stored values 1..14, 14 (1 to 3 unknown things a frame) in test frames only.
    """
    parts = (
        ("train", "training", training, ("t1", "t2")),
        ("train", "validation", validation, ("t3",)),
        ("test", "test", test, ("t5", "t6")),
    )
    for part, (folder, split, count, towns) in enumerate(parts):
        for number in range(count):
            rng = np.random.default_rng((seed, part, number))
            town = towns[number % len(towns)]
            unknowns = int(rng.integers(1, 4)) if split == "test" else 0
            picture, labels = draw_street(width, height, town, rng, unknowns)
            for kind, array in (("images", picture), ("annotations", labels)):
                write(array, Path(root, folder, kind, split, town, f"{number:04d}.png"))


def draw_negatives(root: str | Path, count: int = 60, width: int = 128, height: int = 128, seed: int = 0) -> None:
    """Write root/images/training/*.jpg (RGB) and root/annotations/training/*.png (8-bit ids) as ADE20K does"""
    for number in range(count):
        picture, ids = draw_negative(width, height, np.random.default_rng((seed, 3, number)))
        write(picture, Path(root, "images", "training", f"drawn_{number:04d}.jpg"), quality=92)
        write(ids, Path(root, "annotations", "training", f"drawn_{number:04d}.png"))


def write(array: np.ndarray, path: Path, **how: int) -> None:
    """Save a picture or label map; how goes to Pillow"""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(array)).save(path, **how)
