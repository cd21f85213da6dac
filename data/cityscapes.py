"""Cityscapes (Cordts et al., CVPR 2016): streets of German cities, 19 classes."""

from pathlib import Path

from data.files import LabelledImages, label_table
from data.pairs import Pairs, pair_files
from data.transforms import Transform
from labels import IGNORE

# Label ids of the 19 classes, in the order of their train ids.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
LICENCE_PLATE = 255  # label id -1 as a byte


class Cityscapes(LabelledImages):
    """Samples (image uint8 (3, H, W), labels uint8 (H, W) of the 19 train ids and IGNORE, name).

    cache   a folder for decoded copies of the files (see data/cache.py)
    """

    class_colours = {  # the data set's own; in the order of the train ids
        "road": (128, 64, 128),
        "sidewalk": (244, 35, 232),
        "building": (70, 70, 70),
        "wall": (102, 102, 156),
        "fence": (190, 153, 153),
        "pole": (153, 153, 153),
        "traffic light": (250, 170, 30),
        "traffic sign": (220, 220, 0),
        "vegetation": (107, 142, 35),
        "terrain": (152, 251, 152),
        "sky": (70, 130, 180),
        "person": (220, 20, 60),
        "rider": (255, 0, 0),
        "car": (0, 0, 142),
        "truck": (0, 0, 70),
        "bus": (0, 60, 100),
        "train": (0, 80, 100),
        "motorcycle": (0, 0, 230),
        "bicycle": (119, 11, 32),
    }
    num_classes = len(class_colours)
    mean_colour = (73, 83, 72)  # of the training images, 0..255
    table = label_table(
        dict.fromkeys([*range(34), LICENCE_PLATE], IGNORE) | {label: train for train, label in enumerate(LABEL_IDS)}
    )

    def __init__(
        self,
        root: str | Path,
        split: str,
        transform: Transform | None = None,
        cache: str | Path | None = None,
        max_pixels: int | None = None,
    ):
        super().__init__(Path(root), self.list_pairs(root, split), transform, cache, max_pixels)

    @staticmethod
    def list_pairs(root: str | Path, split: str) -> Pairs:
        """The split's files; raises as pair_files does."""
        return pair_files(
            Path(root, "leftImg8bit", split),
            Path(root, "gtFine", split),
            hint="--dataroot is Cityscapes' folder, which holds leftImg8bit/ and gtFine/",
            image_pattern="*_leftImg8bit.png",
            label_suffix="_gtFine_labelIds.png",
        )
