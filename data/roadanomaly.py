"""RoadAnomaly (Lis et al., ICCV 2019): photographs of roads with animals, rocks and the like.

Labels are 0 for an inlier of whatever class, and OUTLIER.
"""

from pathlib import Path

from data.files import LabelledImages, label_table
from data.pairs import Pairs, pair_files
from labels import OUTLIER


class RoadAnomaly(LabelledImages):
    """Samples (image uint8 (3, H, W), labels uint8 (H, W), name): NAME.jpg with NAME.labels/labels_semantic.png.

    Stored labels are 0 inlier, 2 outlier, and nothing else. Raises FileNotFoundError: no folder, no image, an image
    without label map or a label map without image.
    """

    table = label_table({0: 0, 2: OUTLIER})

    def __init__(self, root: str | Path, cache: str | Path | None = None, max_pixels: int | None = None):
        super().__init__(Path(root), self.list_pairs(root), cache=cache, max_pixels=max_pixels)

    @staticmethod
    def list_pairs(root: str | Path) -> Pairs:
        """Its files; raises as pair_files does."""
        return pair_files(
            Path(root, "frames"),
            Path(root, "frames"),
            hint="--dataroot is RoadAnomaly, which holds frames/NAME.jpg and frames/NAME.labels/labels_semantic.png",
            image_pattern="*.jpg",
            label_suffix=".labels/labels_semantic.png",
        )
