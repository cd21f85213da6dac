"""COCO20/80 (photographs of COCO 2017, pixel maps of COCO-Stuff): 20 known classes, the other 60 things unknown."""

import hashlib
import os
from functools import partial
from pathlib import Path

from data.decoding import MAX_PIXELS
from data.files import LabelledImages, label_table, read_labels
from data.pairs import Pairs, pair_files
from data.transforms import Transform
from data.workers import map_in_processes
from errors import MissingFile, WrongInput
from labels import IGNORE, OUTLIER

FOLDERS = {"training": "train2017", "validation": "val2017", "validation_known": "val2017"}
KNOWN_ONLY = ("training", "validation_known")
RULES = {  # of the label maps whose photographs a split holds
    "validation": "at least one pixel of a thing, known or unknown",
} | dict.fromkeys(KNOWN_ONLY, "at least one pixel of a known class and none of an unknown thing")
HINT = "--dataroot is COCO's folder, which holds images/ and COCO-Stuff's labels/ and labels.txt"

# Ids as labels.txt has them; a pixel's value is its id - 1. Things are 1..91, stuff follows.
REMOVED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)  # things without an annotation
THING_IDS = tuple(number for number in range(1, 92) if number not in REMOVED_IDS)
KNOWN_IDS = (1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19, 20, 21, 44, 62, 63, 64, 67, 72)
LAST_ID = 182
UNLABELED = 255  # a pixel's value


class COCO20(LabelledImages):
    """Samples (image uint8 (3, H, W), labels uint8 (H, W), name); what `transform` returns besides stands before name.

    split        training: photographs with at least one pixel of a known class and none of an unknown thing (20,581 of
                 train2017), in which OUTLIER would be IGNORE; validation: those with at least one pixel of a thing
                 (4,952 of val2017); validation_known: those of val2017 that follow the training rule
    workers      processes that scan the label maps for these, once; 0: this one
    list_folder  where the list that the scan makes is kept if the data's folder cannot be written; made when needed
    cache        a folder for decoded copies of the files (see data/cache.py)

    The list is ROOT/coco20_SPLIT.txt. It is scanned anew when number or names of the label maps changed; delete it
    when only their content did.

    Raises FileNotFoundError: a folder or labels.txt is missing, a photograph or label map is alone; ValueError: no
    such split, labels.txt of another data set, a label map that cannot be read, no photograph that fits.
    """

    image_modes = ("RGB", "L")  # some of its photographs are black and white
    class_colours = {  # Pascal VOC's, of the same twenty; in the order of the class ids
        "person": (192, 128, 128),
        "bicycle": (0, 128, 0),
        "car": (128, 128, 128),
        "motorcycle": (64, 128, 128),
        "airplane": (128, 0, 0),
        "bus": (0, 128, 128),
        "train": (128, 192, 0),
        "boat": (0, 0, 128),
        "bird": (128, 128, 0),
        "cat": (64, 0, 0),
        "dog": (64, 0, 128),
        "horse": (192, 0, 128),
        "sheep": (128, 64, 0),
        "cow": (64, 128, 0),
        "bottle": (128, 0, 128),
        "chair": (192, 0, 0),
        "couch": (0, 192, 0),
        "potted plant": (0, 64, 0),
        "dining table": (192, 128, 0),
        "tv": (0, 64, 128),
    }
    num_classes = len(class_colours)
    mean_colour = (123, 116, 103)  # of ImageNet, 0..255
    table = label_table(
        dict.fromkeys([*range(LAST_ID), UNLABELED], IGNORE)
        | {number - 1: OUTLIER for number in THING_IDS}
        | {number - 1: label for label, number in enumerate(KNOWN_IDS)}
    )

    def __init__(
        self,
        root: str | Path,
        split: str,
        transform: Transform | None = None,
        workers: int = 0,
        list_folder: str | Path | None = None,
        cache: str | Path | None = None,
        max_pixels: int | None = None,
    ):
        root, pairs = Path(root), self.list_pairs(root, split)
        check_names(root / "labels.txt")
        folders = [root] if list_folder is None else [root, Path(list_folder)]
        maps = root / "labels" / FOLDERS[split]
        fitting = set(fitting_maps(maps, [path for _, path in pairs], split, workers, folders, max_pixels))
        super().__init__(root, [pair for pair in pairs if pair[1] in fitting], transform, cache, max_pixels)
        if split in KNOWN_ONLY:
            self.table = self.table.masked_fill(self.table == OUTLIER, IGNORE)

    @staticmethod
    def list_pairs(root: str | Path, split: str) -> Pairs:
        """All photographs of the split's folder with their label maps, those that do not fit its rule included.

        raises  ValueError for another split, and as pair_files does
        """
        if split not in FOLDERS:
            raise WrongInput(f"COCO20 has no split {split!r}; choose one of {', '.join(FOLDERS)}")
        folder = FOLDERS[split]
        return pair_files(Path(root, "images", folder), Path(root, "labels", folder), HINT, image_pattern="*.jpg")


def check_names(path: Path) -> None:
    """Compare the known classes with labels.txt, lines of "id: name"; raises as COCO20 does."""
    if not path.is_file():
        raise MissingFile(f"no file {path}, COCO-Stuff's ids and names; {HINT}")
    ids = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        number, _, name = line.partition(":")
        if number.strip().isdecimal():
            ids[name.strip()] = int(number)
    for name, number in zip(COCO20.class_colours, KNOWN_IDS, strict=True):
        if ids.get(name) != number:
            found = f"says '{ids[name]}: {name}'" if name in ids else f"does not name {name!r}"
            raise WrongInput(
                f"{path} {found}; expected '{number}: {name}': take COCO-Stuff's labels.txt, and its label maps"
            )


def fitting_maps(
    root: Path, maps: list[Path], split: str, workers: int, folders: list[Path], max_pixels: int | None = None
) -> list[Path]:
    """Those of the label maps below root that fit the split: from a list in one of the folders, else by a scan.

    The scan's list is kept in the first of the folders that can be written.
    """
    names = [path.relative_to(root).as_posix() for path in maps]
    files = [folder / f"coco20_{split}.txt" for folder in folders]
    for file in files:
        listed = read_list(file, names, split)
        if listed is not None:
            return [root / name for name in listed]
    fits = scan(maps, split, workers, max_pixels)
    listed = [name for name, fit in zip(names, fits, strict=True) if fit]
    if not listed:
        raise WrongInput(
            f"none of the {len(maps)} label maps under {root} holds {RULES[split]}; "
            "a pixel's value must be COCO-Stuff's id - 1"
        )
    write_list(files, list_text(listed, names, split))
    return [root / name for name in listed]


def list_text(listed: list[str], names: list[str], split: str) -> str:
    """The list file: a line that says what it is and of which label maps (`names`), then those that fit."""
    digest = hashlib.sha256("\n".join([*names, "", *listed]).encode(errors="surrogateescape")).hexdigest()
    rule = f"{len(listed)} of {len(names)} label maps, which hold {RULES[split]}"
    return "\n".join([f"# COCO20, {split}: {rule}; sha256 of all names and these: {digest}", *listed, ""])


def read_list(file: Path, names: list[str], split: str) -> list[str] | None:
    """The names of the label maps that fit; None where there is no list, or one that is damaged or of other maps."""
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    listed = text.splitlines()[1:]
    if text == list_text(listed, names, split):
        return listed
    print(f"{file} is damaged or of other label maps than the {len(names)} there are: it is not used")
    return None


def write_list(files: list[Path], text: str) -> None:
    """Write the first of the files that can be written, whole or not at all."""
    for file in files:
        part = file.with_name(f"{file.name}.{os.getpid()}.part")  # each process of a run may scan
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(text, encoding="utf-8", errors="surrogateescape")
            os.replace(part, file)
        except OSError as error:
            print(f"{file} cannot be written ({error.strerror})")
        else:
            print(f"the list of photographs is kept in {file}")
            return
        finally:
            if part.is_file():
                part.unlink()
    print(f"the label maps will be scanned again next time: make {files[0].parent} writable to keep the list")


def scan(maps: list[Path], split: str, workers: int, max_pixels: int | None = None) -> list[bool]:
    """Whether each label map fits the split."""
    print(f"scanning {len(maps)} label maps for the {split} photographs of COCO20")
    find = partial(things_in, max_pixels=max_pixels or MAX_PIXELS)
    found = map_in_processes(find, maps, workers, work="scan", title="scanning")
    return [fits_split(known, unknown, split) for known, unknown in found]


def fits_split(known: bool, unknown: bool, split: str) -> bool:
    """Whether a label map with pixels of known classes, or with unknown things, fits the split; in words: RULES."""
    return known and not unknown if split in KNOWN_ONLY else known or unknown


def things_in(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[bool, bool] | Exception:
    """Whether a label map has pixels of known classes, and of unknown things.

    An error of the file is returned, so that it is raised in the main process, without another's traceback.
    """
    try:
        labels = read_labels(path, COCO20.table, max_pixels).numpy()  # NumPy: see map_in_processes
    except (OSError, ValueError) as error:
        return error
    return bool((labels < COCO20.num_classes).any()), bool((labels == OUTLIER).any())
