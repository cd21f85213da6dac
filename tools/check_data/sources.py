"""What is known of each data set: where its files lie, how many are published, where label maps come from."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from data import (
    ADE20K,
    COCO20,
    AnomalyTrack,
    Cityscapes,
    FishyscapesStatic,
    ImageFolder,
    LostAndFound,
    ObstacleTrack,
    RoadAnomaly,
    StreetHazards,
)

ImagesAndMaps = list[tuple[Path, Path | None]]  # the label map is None in a folder of images alone


class Split(NamedTuple):
    """A part of a data set, how many samples of it are published (None: not known for sure), and what it is for."""

    pairs: Callable[[Path], ImagesAndMaps]  # of the data set's folder; opens no file
    published: int | None
    evaluated: bool = False  # whether unknown pixels are looked for in it


class Source(NamedTuple):
    """A data set and what its folder holds."""

    dataset: type
    holds: tuple[str, ...]  # of which at least one lies in the right folder, as glob patterns
    labels: str  # the folder of the label maps, or their ending
    get_labels: str  # where the label maps come from
    splits: dict[str, Split]


def only_split(pairs: Callable[[Path], ImagesAndMaps], published: int) -> dict[str, Split]:
    return {"all": Split(pairs, published, evaluated=True)}


def track(dataset: type[AnomalyTrack] | type[ObstacleTrack], published: int) -> Source:
    """A track of SegmentMeIfYouCan."""
    return Source(
        dataset,
        ("images", "labels_masks"),
        "labels_masks",
        "they are in the download of the data set, labels_masks/, for its validation frames",
        only_split(dataset.list_pairs, published),
    )


def images_alone(root: Path) -> ImagesAndMaps:
    return [(path, None) for path in ImageFolder(root, as_stored=True).paths]


# The published numbers: StreetHazards, Cityscapes, Fishyscapes, ADE20K (ADEChallengeData2016), SegmentMeIfYouCan
# and RoadAnomaly from the data sets' papers, COCO 2017 from its own page.
SOURCES = {
    "street-hazards": Source(
        StreetHazards,
        ("train/images", "train/annotations", "test/images", "test/annotations"),
        "annotations",
        "they come in the same archives (train and test) as the images",
        {
            "training": Split(partial(StreetHazards.list_pairs, split="training"), 5125),
            "validation": Split(partial(StreetHazards.list_pairs, split="validation"), 1031),
            "test": Split(partial(StreetHazards.list_pairs, split="test"), 1500, evaluated=True),
        },
    ),
    "cityscapes": Source(
        Cityscapes,
        ("leftImg8bit", "gtFine"),
        "gtFine",
        "unpack Cityscapes' gtFine_trainvaltest.zip beside leftImg8bit/",
        {
            "train": Split(partial(Cityscapes.list_pairs, split="train"), 2975),
            "val": Split(partial(Cityscapes.list_pairs, split="val"), 500),
        },
    ),
    "lf": Source(
        LostAndFound,
        ("ood", "leftImg8bit"),
        "ood",
        "ood/ is Fishyscapes' own download and goes beside Lost & Found's leftImg8bit/",
        only_split(LostAndFound.list_pairs, 100),
    ),
    "static": Source(
        FishyscapesStatic,
        ("*_rgb.jpg", "*_labels.png"),
        "_labels.png",
        "NAME_labels.png lies beside NAME_rgb.jpg in Fishyscapes' download",
        only_split(FishyscapesStatic.list_pairs, 30),
    ),
    "ade20k": Source(
        ADE20K,
        ("images/training", "annotations/training"),
        "annotations",
        "they are in ADEChallengeData2016.zip, annotations/",
        {"training": Split(ADE20K.list_pairs, 20210)},
    ),
    "coco20": Source(
        COCO20,
        ("images/train2017", "images/val2017", "labels/train2017", "labels/val2017", "labels.txt"),
        "labels",
        "unpack COCO-Stuff's stuffthingmaps_trainval2017.zip into labels/",
        {
            "training": Split(partial(COCO20.list_pairs, split="training"), 118287),
            "validation": Split(partial(COCO20.list_pairs, split="validation"), 5000, evaluated=True),
        },
    ),
    "anomaly-track": track(AnomalyTrack, 10),
    "obstacle-track": track(ObstacleTrack, 30),
    "road-anomaly": Source(
        RoadAnomaly,
        ("frames",),
        "labels_semantic.png",
        "they are frames/NAME.labels/labels_semantic.png in the download",
        only_split(RoadAnomaly.list_pairs, 60),
    ),
    "images": Source(
        ImageFolder,
        ("*",),
        "",
        "",
        {"all": Split(images_alone, None)},
    ),
}
CHOSEN = {"training": 20581, "validation": 4952}  # of COCO's photographs, by data.coco.RULES
