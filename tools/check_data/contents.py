"""What the files of a split say together: their number, their labels, and what these most likely mean."""

from collections import Counter
from collections.abc import Iterable

from data import COCO20, IGNORE, OUTLIER
from data.coco import REMOVED_IDS, RULES, fits_split
from data.files import UNKNOWN_VALUE, ranges
from tools.check_data.problems import Problem
from tools.check_data.sources import CHOSEN, SOURCES, ImagesAndMaps


def count_problems(title: str, images: int, published: int | None) -> Iterable[Problem]:
    if published and images != published:
        why = (
            "is the download complete, and all of it unpacked?"
            if images < published
            else "is something else among them?"
        )
        yield Problem("warning", f"{title}: {images:,} images with label map; {published:,} are published: {why}")


def is_chosen(pixels: dict[int, int], title: str) -> bool:
    """Whether COCO20 takes a photograph into a split, by its pixels of each stored value."""
    table = COCO20.table
    labels = {int(table[value]) for value in pixels if 0 <= value < len(table)}
    known = any(0 <= label < COCO20.num_classes for label in labels)
    return fits_split(known, OUTLIER in labels, title)


def chosen_problems(title: str, count: int) -> Iterable[Problem]:
    if not count:
        yield Problem(
            "error", f"{title}: no label map holds {RULES[title]}; a pixel's value must be COCO-Stuff's id - 1"
        )
    elif count != CHOSEN[title]:
        yield Problem(
            "warning", f"{title}: {count:,} photographs are chosen by their labels; {CHOSEN[title]:,} are published"
        )


def label_pixels(name: str, pixels: Counter) -> dict[str, dict]:
    """{label: {"stored", "pixels", "share"}} of all labels that the data set has, the share among valid values."""
    table = SOURCES[name].dataset.table.tolist()
    classes = list(getattr(SOURCES[name].dataset, "class_colours", ()))
    stored = {}
    for value, label in enumerate(table):
        if label != UNKNOWN_VALUE:
            stored.setdefault(label, []).append(value)
    total = sum(pixels[value] for values in stored.values() for value in values)
    labels = {}
    for label, values in sorted(stored.items()):
        title = {OUTLIER: "outlier", IGNORE: "ignored"}.get(label, f"id {label}" if len(stored) > 100 else "inlier")
        count = sum(pixels[value] for value in values)
        share = count / total if total else 0.0
        title = classes[label] if label < len(classes) else title
        labels[title] = {"stored": ranges(values), "pixels": count, "share": share}
    return labels


def value_advice(name: str, values: set[int]) -> str:
    """What wrong values most often mean in this data set."""
    if name == "street-hazards" and 0 in values and max(values) <= 13:
        return ". These begin at 0: another project took 1 off each; take the original maps"
    if name == "road-anomaly" and 1 in values:
        return ". In RoadAnomaly's own files the outlier is 2; 1 is Fishyscapes' and SegmentMeIfYouCan's: store it as 2"
    if name in ("static", "anomaly-track", "obstacle-track") and 2 in values:
        return ". 2 is ignored in Lost & Found and the outlier in RoadAnomaly: is it the right --dataset?"
    if name == "ade20k":
        return ". Take ADEChallengeData2016, not the full ADE20K, and maps in which unlabeled is 0"
    if name == "coco20":
        return ". A pixel's value is COCO-Stuff's id - 1: take the maps of stuffthingmaps_trainval2017.zip"
    return ". Many values in between come from resizing with interpolation: take the original maps"


def content_problems(
    name: str, title: str, pixels: Counter, report: dict, pairs: ImagesAndMaps, valid: bool
) -> Iterable[Problem]:
    """What the files say only together; `valid`: whether all values were ones that the data set has."""
    labels, values = report["labels"], set(pixels)
    known = sum(part["pixels"] for label, part in labels.items() if label not in ("outlier", "ignored"))
    if not known:
        yield Problem("error", f"{title}: no pixel of a known class in any label map; are they the right ones?")
    if name == "cityscapes" and not values & set(range(19, 34)):
        yield Problem(
            "error",
            f"{title}: the label maps hold {ranges(sorted(values))} and none of 19-33 (traffic light, vegetation, sky, "
            "person, car): these are train ids under the name labelIds; unpack gtFine_trainvaltest.zip again",
        )
    if name == "lf" and 1 not in values and 2 in values:
        yield Problem(
            "error",
            f"{title}: no label map holds 1 (outlier) but some hold 2, which is ignored in Lost & Found; in "
            "RoadAnomaly's maps 2 is the outlier: --dataset road-anomaly, or store it as 1",
        )
    elif SOURCES[name].splits[title].evaluated and not report["outlier_pixels"] and valid:
        advice = "; 255 is read as ignored: store the outliers as 1" if 255 in values and name != "coco20" else ""
        yield Problem("error", f"{title}: no outlier pixel in any label map, so there is nothing to find{advice}")
    if name == "lf" and 255 in values and 1 in values:
        yield Problem("note", f"{title}: 255 is read as ignored, as 2 is")
    if name == "coco20" and values & {number - 1 for number in REMOVED_IDS}:
        yield Problem(
            "warning", f"{title}: pixels of ids that COCO removed; are values ids where they should be ids - 1?"
        )
    if name == "street-hazards":
        yield from street_hazards_problems(title, report["outlier_pixels"], pairs)
    if title in ("training", "train") and name != "ade20k":
        never = [label for label, part in labels.items() if not part["pixels"] and label not in ("outlier", "ignored")]
        if never and known:
            yield Problem("warning", f"{title}: classes without a pixel, which cannot be learnt: {', '.join(never)}")


def street_hazards_problems(title: str, outlier_pixels: int, pairs: ImagesAndMaps) -> Iterable[Problem]:
    if title != "test" and outlier_pixels:
        yield Problem("warning", f"{title}: {outlier_pixels:,} pixels of anomalies, of which there should be none")
    if title == "test":
        towns = {town for image, _ in pairs for town in image.parts if town in ("t5", "t6")}
        for town in sorted({"t5", "t6"} - towns):
            yield Problem("warning", f"test: no frame of town {town}, which evaluate_osr_sh.py needs")
