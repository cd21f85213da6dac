"""Whether a folder of score maps fits its images, and whether larger scores mark the outliers."""

from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from data import AnomalyTrack, FishyscapesStatic, ImageFolder, LostAndFound
from data.files import read_labels
from data.smiyc import LABEL_ENDING
from errors import MissingFile
from metrics import AnomalyMetrics
from tools.export_scores.maps import DTYPES, HALF_MAX, SETTINGS, map_problem, read_map, size_of


def check(benchmark: str, folder: Path, images: ImageFolder, files: list[str]) -> dict:
    """Compare a folder of score maps with the images; all problems are listed, and any ends with exit code 1."""
    if not folder.is_dir():
        raise MissingFile(f"no folder {folder}; --check is what --folder was when the score maps were written")
    problems, dtype = [], DTYPES[benchmark]
    whole = {}
    bar = tqdm(list(zip(images.paths, files, strict=True)), "checking", leave=False, dynamic_ncols=True, disable=None)
    for path, name in bar:
        wrong = map_problem(folder / name, size_of(path, images.max_pixels), dtype)
        if wrong:
            problems.append(f"{name} of {path.name} {wrong}")
            continue
        whole[path] = folder / name
        scores = read_map(folder / name)
        if scores.min() == scores.max():
            problems.append(f"{name} of {path.name} holds one value everywhere, {scores.flat[0]:.6g}")
        elif dtype == np.float16 and np.abs(scores).max() == HALF_MAX:
            problems.append(f"{name} of {path.name} reaches float16's end, {HALF_MAX:.0f}: larger scores were cut off")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    problems += [f"{name} belongs to no image" for name in sorted(there - {*files, SETTINGS})]

    sense = "not checked: no label maps at hand"
    figures = AnomalyMetrics()
    for path, scores in whole.items():
        label_map = label_map_of(path.absolute(), benchmark)
        if label_map is None:
            continue
        try:
            figures.update(read_map(scores).astype(np.float32), read_labels(*label_map, images.max_pixels))
        except ValueError as error:  # a map that is damaged or of another size, which says nothing of the others
            problems.append(f"the label map of {path.name} cannot be used: {error}")
    auroc = figures.compute()["AUROC"]
    if auroc == auroc:
        sense = f"AUROC {100 * auroc:.2f} where label maps are at hand"
        if auroc < 0.5:
            problems.append(
                f"smaller scores mark the outliers ({sense}); larger must be more anomalous: is a sign wrong?"
            )
    print(f"{len(files)} frames, {len(problems)} problems; larger is more anomalous: {sense}")
    for problem in problems:
        print(f"  - {problem}")
    if problems:
        raise SystemExit(1)
    return {"frames": len(files), "AUROC": auroc}


def label_map_of(image: Path, benchmark: str) -> tuple[Path, Tensor] | None:
    """Where an image's label map lies in the data set's own folder, and its table for read_labels; None: nowhere."""
    if benchmark == "smiyc":
        found = image.parent.parent / "labels_masks" / (image.stem + LABEL_ENDING), AnomalyTrack.table
    elif image.name.endswith("_rgb.jpg"):
        found = image.with_name(image.name.removesuffix("_rgb.jpg") + "_labels.png"), FishyscapesStatic.table
    elif image.name.endswith("_leftImg8bit.png") and "leftImg8bit" in image.parts:
        at = len(image.parts) - 1 - image.parts[::-1].index("leftImg8bit")
        folder = Path(*image.parts[:at], "ood", *image.parts[at + 1 : -1])
        found = folder / (image.name.removesuffix("_leftImg8bit.png") + "_ood_segmentation.png"), LostAndFound.table
    else:
        return None
    return found if found[0].is_file() else None
