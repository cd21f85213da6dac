"""The folders of each data set with a few small pictures in them, and files that belong into none."""

import io
import os
import socket
import struct
import zlib

import numpy as np
from PIL import Image

SIZE = (12, 16)  # height and width of a label map, where a writer is given none
STREET_SIZE = (48, 64)  # of the frames of the fixture street_hazards
COCO_KNOWN = {"person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "airplane": 5, "bus": 6, "train": 7, "boat": 9,
              "bird": 16, "cat": 17, "dog": 18, "horse": 19, "sheep": 20, "cow": 21, "bottle": 44, "chair": 62,
              "couch": 63, "potted plant": 64, "dining table": 67, "tv": 72}  # fmt: skip
COCO_OTHERS = {"truck": 8, "traffic light": 10, "fire hydrant": 11, "stop sign": 13, "elephant": 22, "umbrella": 28,
               "wine glass": 46, "bed": 65, "toilet": 70, "laptop": 73, "book": 84, "toothbrush": 90}  # fmt: skip
COCO_FOLDERS = {"training": "train2017", "validation": "val2017", "validation_known": "val2017"}


def write(path, pixels, mode=None, **how):
    """The path of a picture, which is converted to the mode and saved without loss where its format can"""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    how = {"lossless": True} | how if path.suffix == ".webp" else how
    (image.convert(mode) if mode else image).save(path, **how)
    return path


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def labels_of(*values, size=SIZE):
    """A label map with each of the values"""
    return np.resize(np.array(values, np.uint8), size)


def boxes(number, outlier=1, ignored=0, size=SIZE):
    """A label map with a box of outliers, whose place follows the number, and one of ignored pixels below it"""
    height, width = size
    stored = np.zeros(size, np.uint8)
    top, left = height // 8 + number, width // 6
    stored[top : top + height // 4, left : left + 5 * width // 16] = outlier
    stored[3 * height // 4 :, : 5 * width // 16] = ignored
    return stored


def pair(root, image_name, label_name, stored, image=None, mode=None):
    """An image, which is of noise and as large as its label map unless it is given: the paths of both"""
    image = noise(*stored.shape[:2]) if image is None else image
    return write(root / image_name, image, mode), write(root / label_name, stored)


# Of each data set: one pair where there are many kinds of it, and the whole with as many pairs as label maps are given


def street_frame(root, split="training", name="t1/000.png", image=None, stored=None):
    part = "test" if split == "test" else "train"
    image = noise(4, 6) if image is None else image
    stored = np.full((4, 6), 2, np.uint8) if stored is None else stored
    return pair(root, f"{part}/images/{split}/{name}", f"{part}/annotations/{split}/{name}", stored, image)


def street_hazards(root):
    for split, town in (("training", "t1"), ("validation", "t3"), ("test", "t5"), ("test", "t6")):
        for number in range(2):
            stored = labels_of(1, 2, 3, *range(5, 14), 14 if split == "test" else 4)
            street_frame(root, split, f"{town}/{number}.png", noise(*SIZE, number), stored)
    return root


def cityscapes(root, images=2, size=SIZE):
    """`images` of each split, every label id in each map"""
    for split in ("train", "val"):
        for number in range(images):
            stem = f"{split}/ulm/ulm_{number:06}_000019"
            names = f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_labelIds.png"
            pair(root, *names, labels_of(*range(34), size=size), noise(*size, number))
            write(root / f"gtFine/{stem}_gtFine_color.png", noise(*size, number))
    return root


def lost_and_found(root, maps=None):
    """And one image that Fishyscapes does not label"""
    maps = [labels_of(0, 1, 2)] * 2 if maps is None else maps
    for number, stored in enumerate(maps):
        names = (
            f"leftImg8bit/val/01/0{number}_000000_leftImg8bit.png",
            f"ood/val/01/0{number}_000000_ood_segmentation.png",
        )
        pair(root, *names, stored, noise(*stored.shape, number))
    write(root / "leftImg8bit/val/01/99_000000_leftImg8bit.png", noise(*maps[0].shape, 9))
    return root


def static(root, maps=None, numbers=(0, 1, 2)):
    maps = [labels_of(0, 1, 255)] * 2 if maps is None else maps
    for number, stored in zip(numbers, maps, strict=False):
        names = f"{number:04}_street_rgb.jpg", f"{number:04}_street_labels.png"
        pair(root, *names, stored, noise(*stored.shape, number))
    return root


def track(root, maps=None, ending="jpg"):
    """AnomalyTrack or ObstacleTrack, and one image whose labels are not released"""
    maps = [labels_of(0, 1, 255)] * 2 if maps is None else maps
    for number, stored in enumerate(maps):
        names = f"images/validation{number}.{ending}", f"labels_masks/validation{number}_labels_semantic.png"
        pair(root, *names, stored, noise(*stored.shape, number))
        write(root / f"labels_masks/validation{number}_labels_semantic_color.png", noise(*stored.shape, number))
    write(root / f"images/test0.{ending}", noise(*maps[0].shape, 9))
    return root


def road_anomaly(root, maps=None):
    maps = [labels_of(0, 2)] * 2 if maps is None else maps
    for number, stored in enumerate(maps):
        stem = f"frames/zebra{number}_road"
        pair(root, f"{stem}.jpg", f"{stem}.labels/labels_semantic.png", stored, noise(*stored.shape, number))
        write(root / f"{stem}.labels/labels_semantic_color.png", noise(*stored.shape, number))
    (root / "frame_list.json").write_text("[]")
    return root


def large_frames(root, dataset):
    """Two frames of 160x96 with a darker box of outliers each, in the layout of a track or of RoadAnomaly"""
    generator = np.random.default_rng(0)
    for number in range(2):
        image = generator.integers(0, 256, (96, 160, 3), dtype=np.uint8)
        stored = np.zeros((96, 160), np.uint8)
        stored[20 : 50 + 9 * number, 40:90] = 2 if dataset == "road-anomaly" else 1
        image[stored > 0] //= 4
        if dataset == "road-anomaly":
            pair(root, f"frames/f{number}.jpg", f"frames/f{number}.labels/labels_semantic.png", stored, image)
        else:
            stored[90:] = 255
            pair(root, f"images/f{number}.png", f"labels_masks/f{number}_labels_semantic.png", stored, image)
    return root


def ade20k_photograph(root, name="a", image=None, stored=None, mode=None):
    stored = np.zeros((40, 40), np.uint8) if stored is None else stored
    return pair(root, f"images/training/{name}.jpg", f"annotations/training/{name}.png", stored, image, mode)


def ade20k(root):
    for number in range(2):
        ade20k_photograph(root, str(number), noise(*SIZE, number), labels_of(0, 7, 150))
    return root


def coco_photograph(root, split, name, stored, image=None, mode=None):
    folder = COCO_FOLDERS[split]
    return pair(root, f"images/{folder}/{name}.jpg", f"labels/{folder}/{name}.png", stored, image, mode)


def coco_names(root, changed=None):
    """labels.txt, its lines in no order that matters; `changed` gives other names by id"""
    names = {number: f"thing or stuff {number}" for number in range(183)}
    names |= {number: name for name, number in (COCO_KNOWN | COCO_OTHERS).items()} | (changed or {})
    root.mkdir(parents=True, exist_ok=True)
    (root / "labels.txt").write_text("".join(f"{number}: {name}\n" for number, name in reversed(names.items())))


def coco20(root):
    """In each split a photograph of known things, one of known and unknown ones, and one of neither"""
    coco_names(root)
    for split in ("training", "validation"):
        for number, values in enumerate(([0, 1, 255], [0, 7], [120])):
            coco_photograph(root, split, f"{number:012}", labels_of(*values), noise(*SIZE, number))
    return root


def photographs(root):
    """At two depths, one of them grey"""
    write(root / "a.jpg", noise(*SIZE))
    write(root / "deep/er/b.png", noise(*SIZE)[..., 0])
    return root


LABELLED = {  # the writers by the data sets' names in tools/check_data/sources.py
    "street-hazards": street_hazards,
    "cityscapes": cityscapes,
    "lf": lost_and_found,
    "static": static,
    "ade20k": ade20k,
    "coco20": coco20,
    "anomaly-track": track,
    "obstacle-track": track,
    "road-anomaly": road_anomaly,
}
LAYOUTS = LABELLED | {"images": photographs}


def make(name, root):
    return LAYOUTS[name](root)


# COCO with things that can be told by their colours


SKY, GRASS = 157, 124  # stuff
# Photographs by name: height, width, things from left to right, mode. Some are smaller than window and crop.
COCO_SCENES = {
    "training": {
        "known_0": (40, 56, ["person"], "RGB"),
        "known_1": (56, 40, ["car", "dog"], "RGB"),
        "known_2": (24, 36, ["tv"], "RGB"),
        "known_3": (64, 48, ["person", "tv"], "L"),
        "known_4": (20, 30, ["dog"], "RGB"),
        "known_5": (48, 48, ["car"], "RGB"),
        "known_6": (33, 47, ["person", "car"], "RGB"),
        "known_7": (30, 64, ["dog", "tv", "car"], "L"),
        "with_unknown": (40, 40, ["person", "truck"], "RGB"),
        "unknown": (40, 40, ["book"], "RGB"),
        "stuff": (40, 40, [], "RGB"),
    },
    "validation": {
        "both_0": (48, 64, ["person", "truck", "car"], "RGB"),
        "both_1": (20, 30, ["dog", "elephant"], "RGB"),
        "grey": (40, 56, ["book"], "L"),  # alone in grey: else known and unknown pixels of one grey would tie
        "known_0": (41, 37, ["car", "dog", "person"], "RGB"),
        "known_1": (26, 33, ["tv"], "RGB"),
        "stuff": (40, 40, [], "RGB"),
        "unknown": (56, 40, ["truck", "elephant"], "RGB"),
    },
}


def colour_of(number):
    """Of an id: things can be told by it"""
    return np.random.default_rng(number).integers(20, 236, 3)


def coco_scene(name, height, width, things):
    """Sky over grass, things of both sides by side across the middle, unlabeled at the right: pixels, labels"""
    ids = np.full((height, width), SKY)
    ids[height // 2 :] = GRASS
    for place, thing in enumerate(things):
        left, right = (2 + part * (width - 4) // len(things) for part in (place, place + 1))
        ids[height // 4 : 3 * height // 4 + place, left:right] = (COCO_KNOWN | COCO_OTHERS)[thing]
    stored = (ids - 1).astype(np.uint8)
    stored[:, -2:] = 255
    pixels = np.stack([colour_of(number) for number in ids.ravel()]).reshape(height, width, 3)
    pixels = pixels + np.random.default_rng(len(name)).integers(-20, 21, pixels.shape)
    return pixels.astype(np.uint8), stored


def coco_scenes(root):
    coco_names(root)
    for split, scenes in COCO_SCENES.items():
        for name, (height, width, things, mode) in scenes.items():
            pixels, stored = coco_scene(name, height, width, things)
            image_path, _ = coco_photograph(root, split, name, stored)
            write(image_path, pixels, mode, quality=95)
    return root


# What is no picture of a data set


ODD = ["a named pipe", "a socket", "a folder", "a device", "a link to nowhere"]


def make_odd(path, kind):
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as opened:
            place = os.getcwd()
            os.chdir(path.parent)  # a socket's path may not be long
            opened.bind(path.name)
            os.chdir(place)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to("nowhere")


def claiming(path, width, height):
    """A PNG file whose header claims a size that its data have not"""
    content = io.BytesIO()
    Image.fromarray(noise(*SIZE)).save(content, "PNG")
    content = bytearray(content.getvalue())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
