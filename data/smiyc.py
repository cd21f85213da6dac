"""SegmentMeIfYouCan (Chan et al., NeurIPS 2021): AnomalyTrack and ObstacleTrack, unknown objects on and off the road.

Labels are 0 for an inlier of whatever class, OUTLIER and IGNORE.
"""

from pathlib import Path

from data.files import LabelledImages, label_table
from labels import IGNORE, OUTLIER

IMAGE_ENDINGS = (".jpg", ".png", ".webp")
LABEL_ENDING = "_labels_semantic.png"


class AnomalyTrack(LabelledImages):
    """Samples (image uint8 (3, H, W), labels uint8 (H, W), name) of images/NAME.jpg, .png or .webp.

    Stored labels are 0 inlier, 1 outlier, 255 ignored, in labels_masks/NAME_labels_semantic.png. Images without a
    label map are left out: the labels of the test part are not released, those of the validation part are.
    Raises FileNotFoundError: no folder, no label map, a label map without image or with more than one.
    """

    table = label_table({0: 0, 1: OUTLIER, 255: IGNORE})
    component_sizes = {"min_predicted": 500, "min_true": 100}  # pixels; the benchmark's, for ComponentMetrics

    def __init__(self, root: str | Path, cache: str | Path | None = None):
        root = Path(root)
        super().__init__(root, _pairs(root / "images", root / "labels_masks", type(self).__name__), cache=cache)


class ObstacleTrack(AnomalyTrack):
    """As AnomalyTrack; all but the road is ignored, and obstacles are small."""

    component_sizes = {"min_predicted": 50, "min_true": 10}


def _pairs(images: Path, label_maps: Path, track: str) -> list[tuple[Path, Path]]:
    """Sorted pairs (image, label map); not by pair_files, since an image may have any of several endings."""
    hint = f"--dataroot is SegmentMeIfYouCan's dataset_{track}, which holds images/ and labels_masks/"
    for folder in (images, label_maps):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; {hint}")
    pairs = []
    for label_map in sorted(label_maps.glob("*" + LABEL_ENDING)):
        name = label_map.name.removesuffix(LABEL_ENDING)
        found = [path for ending in IMAGE_ENDINGS if (path := images / (name + ending)).exists()]
        if len(found) != 1:
            raise FileNotFoundError(
                f"{label_map} has {len(found)} images {name}.jpg, .png or .webp under {images}; one each is needed"
            )
        pairs.append((found[0], label_map))
    if not pairs:
        raise FileNotFoundError(f"no *{LABEL_ENDING} under {label_maps}; {hint}")
    return pairs
