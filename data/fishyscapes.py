"""Fishyscapes (Blum et al., IJCV 2021): Lost & Found and Static, street scenes with unknown objects.

Labels are 0 for an inlier of whatever class, OUTLIER and IGNORE.
"""

from pathlib import Path

from data.decoding import MAX_PIXELS
from data.files import LabelledImages, label_table, read_labels
from data.pairs import Pairs, pair_files
from errors import WrongInput
from labels import IGNORE, OUTLIER

STORED = label_table({value: value for value in (0, 1, 2, 255)})  # Lost & Found's values as they are


class LostAndFound(LabelledImages):
    """Samples (image uint8 (3, H, W), labels uint8 (H, W), name) of Fishyscapes Lost & Found.

    Stored labels are 0 inlier, 1 outlier, 2 or 255 ignored. Images without a label map are left out: the folder of
    images is Lost & Found's own, of which Fishyscapes labels a part. Raises ValueError where no map holds an
    outlier and some hold a 2: such maps are RoadAnomaly's, in which 2 is the outlier.
    """

    table = label_table({0: 0, 1: OUTLIER, 2: IGNORE, 255: IGNORE})

    def __init__(self, root: str | Path, cache: str | Path | None = None, max_pixels: int | None = None):
        pairs = self.list_pairs(root)
        limit = max_pixels or MAX_PIXELS
        found = {value for _, path in pairs for value in read_labels(path, STORED, limit).unique().tolist()}
        if 1 not in found and 2 in found:
            raise WrongInput(
                f"no label map under {Path(root, 'ood')} holds 1 (outlier) but some hold 2, which is 'ignored' in "
                "Lost & Found; in RoadAnomaly's maps 2 is the outlier: store these as 1 first"
            )
        super().__init__(Path(root), pairs, cache=cache, max_pixels=max_pixels)

    @staticmethod
    def list_pairs(root: str | Path) -> Pairs:
        """Its files, of which none is opened; raises as pair_files does."""
        return pair_files(
            Path(root, "leftImg8bit"),
            Path(root, "ood"),
            hint="--dataroot is Fishyscapes Lost & Found, which holds leftImg8bit/ and ood/",
            image_pattern="*_leftImg8bit.png",
            label_suffix="_ood_segmentation.png",
            every_image=False,
        )


class FishyscapesStatic(LabelledImages):
    """Samples (image uint8 (3, H, W), labels uint8 (H, W), name) of Fishyscapes Static: *_rgb.jpg with *_labels.png."""

    table = label_table({0: 0, 1: OUTLIER, 255: IGNORE})

    def __init__(self, root: str | Path, cache: str | Path | None = None, max_pixels: int | None = None):
        super().__init__(Path(root), self.list_pairs(root), cache=cache, max_pixels=max_pixels)

    @staticmethod
    def list_pairs(root: str | Path) -> Pairs:
        """Its files; raises as pair_files does."""
        return pair_files(
            Path(root),
            Path(root),
            hint="--dataroot is Fishyscapes Static, which holds NAME_rgb.jpg and NAME_labels.png",
            image_pattern="*_rgb.jpg",
            label_suffix="_labels.png",
        )
