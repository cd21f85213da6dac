"""StreetHazards (CAOS benchmark, Hendrycks et al.): rendered streets, unknown objects in the two test towns."""

from pathlib import Path

from data.files import LabelledImages, label_table
from data.pairs import Pairs, pair_files
from data.transforms import Transform
from errors import WrongInput
from labels import IGNORE, OUTLIER

FOLDERS = {
    "training": ("train", "training"),
    "validation": ("train", "validation"),
    "test": ("test", "test"),
    "t5": ("test", "test/t5"),
    "t6": ("test", "test/t6"),
}


class StreetHazards(LabelledImages):
    """Samples (image uint8 (3, H, W), labels uint8 (H, W), name).

    split      training, validation, test (both test towns) or one of them: t5, t6
    transform  of image and labels, for training
    cache      a folder for decoded copies of the files (see data/cache.py)
    """

    class_colours = {  # for pictures; in the order of the class ids
        "background": (135, 180, 220),
        "building": (110, 90, 90),
        "fence": (190, 153, 110),
        "person": (220, 20, 60),
        "pole": (200, 200, 90),
        "street lines": (250, 250, 250),
        "road": (128, 64, 128),
        "sidewalk": (244, 35, 232),
        "vegetation": (60, 140, 40),
        "car": (0, 0, 160),
        "wall": (102, 102, 156),
        "traffic sign": (220, 170, 0),
    }
    num_classes = len(class_colours)
    mean_colour = (84, 88, 95)  # of the training images, 0..255
    # Stored: 1 background, 2 building, 3 fence, 4 other, 5 pedestrian ... 13 traffic sign, 14 anomaly.
    table = label_table({1: 0, 2: 1, 3: 2, 4: IGNORE} | {stored: stored - 2 for stored in range(5, 14)} | {14: OUTLIER})

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
        """The split's files; raises ValueError for another split, and as pair_files does."""
        if split not in FOLDERS:
            raise WrongInput(f"StreetHazards has no split {split!r}; choose one of {', '.join(FOLDERS)}")
        part, folder = FOLDERS[split]
        return pair_files(
            Path(root, part, "images", folder),
            Path(root, part, "annotations", folder),
            hint="--dataroot is StreetHazards' folder, which holds train/ and test/",
        )
