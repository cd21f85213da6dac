"""SegmentMeIfYouCan (Chan et al., NeurIPS 2021): AnomalyTrack and ObstacleTrack, unknown objects on and off the road.

Labels are 0 for an inlier of whatever class, OUTLIER and IGNORE.
"""

from pathlib import Path

from data.files import LabelledImages, label_table
from data.listing import files_below, say_left_out
from data.pairs import PairProblem, Pairs, UnpairedFiles, by_key, no_file_problems
from labels import IGNORE, OUTLIER

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
LABEL_ENDING = "_labels_semantic.png"


class AnomalyTrack(LabelledImages):
    """Samples (image uint8 (3, H, W), labels uint8 (H, W), name) of images/NAME.jpg, .png or .webp.

    Stored labels are 0 inlier, 1 outlier, 255 ignored, in labels_masks/NAME_labels_semantic.png. Images without a
    label map are left out: the labels of the test part are not released, those of the validation part are.
    Raises FileNotFoundError: no folder, no label map, a label map without image or with more than one.
    """

    table = label_table({0: 0, 1: OUTLIER, 255: IGNORE})
    component_sizes = {"min_predicted": 500, "min_true": 100}  # pixels; the benchmark's, for ComponentMetrics

    def __init__(self, root: str | Path, cache: str | Path | None = None, max_pixels: int | None = None):
        super().__init__(Path(root), self.list_pairs(root), cache=cache, max_pixels=max_pixels)

    @classmethod
    def list_pairs(cls, root: str | Path) -> Pairs:
        """Its files; raises UnpairedFiles, and OSError for a folder that cannot be read."""
        hint = f"--dataroot is SegmentMeIfYouCan's dataset_{cls.__name__}, which holds images/ and labels_masks/"
        return pair_any_ending(Path(root, "images"), Path(root, "labels_masks"), hint)


class ObstacleTrack(AnomalyTrack):
    """As AnomalyTrack; all but the road is ignored, and obstacles are small."""

    component_sizes = {"min_predicted": 50, "min_true": 10}


def pair_any_ending(images: Path, label_maps: Path, hint: str) -> Pairs:
    """Sorted pairs (image, label map); not by pair_files, since an image may have any of several endings.

    hint    how the user names this folder, for the errors
    raises  as pair_files does
    """
    problems = [
        PairProblem("no folder", folder, f"no folder {folder}; {hint}")
        for folder in (images, label_maps)
        if not folder.is_dir()
    ]
    if problems:
        raise UnpairedFiles(problems, [])
    image_files, label_files = files_below(images, IMAGE_ENDINGS), files_below(label_maps, (LABEL_ENDING,))
    for root, listing in ((images, image_files), (label_maps, label_files)):
        say_left_out(root, listing.left_out())
        problems += no_file_problems(listing)
    found, pairs = by_key(images, image_files.files, IMAGE_ENDINGS), []
    for name, label_map_files in by_key(label_maps, label_files.files, (LABEL_ENDING,)).items():
        same, label_map = found.get(name, []), label_map_files[0]
        if len(same) == 1:
            pairs.append((same[0], label_map))
        else:
            message = f"{label_map} has {len(same)} images {name}.jpg, .png or .webp under {images}; one each is needed"
            problems.append(PairProblem("label alone", label_map, message))
    if not label_files.files:
        problems.append(PairProblem("no label", label_maps, f"no *{LABEL_ENDING} under {label_maps}; {hint}"))
    if problems:
        raise UnpairedFiles(problems, pairs)
    return pairs
