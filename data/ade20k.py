"""ADE20K (ADEChallengeData2016): photographs with label maps of ids 0..150, a source of negatives."""

from pathlib import Path

from data.files import LabelledImages, label_table
from data.pairs import Pairs, pair_files


class ADE20K(LabelledImages):
    """Samples (image uint8 (3, H, W), ids uint8 (H, W) of 0..150, name); 0 is unlabeled, an id like any other here."""

    image_modes = ("RGB", "L")  # a few of its photographs are black and white
    mean_colour = (107, 117, 120)  # 0..255
    table = label_table({label: label for label in range(151)})

    def __init__(
        self,
        root: str | Path,
        split: str = "training",
        cache: str | Path | None = None,
        max_pixels: int | None = None,
    ):
        super().__init__(Path(root), self.list_pairs(root, split), cache=cache, max_pixels=max_pixels)

    @staticmethod
    def list_pairs(root: str | Path, split: str = "training") -> Pairs:
        """The split's files; raises as pair_files does."""
        return pair_files(
            Path(root, "images", split),
            Path(root, "annotations", split),
            hint="--neg_dataroot is the folder ADEChallengeData2016, which holds images/ and annotations/",
            image_pattern="*.jpg",
        )
