"""Write hybrid score maps as the files that benchmarks read (DenseHybrid, ECCV 2022), and check such files.

    python -m tools.export_scores --benchmark BENCHMARK --dataroot IMAGES --folder OUT --params WEIGHTS_FILE
    python -m tools.export_scores --benchmark BENCHMARK --dataroot IMAGES --check OUT

BENCHMARK and what is written; both hold a score for each pixel of the image, larger is more anomalous:

smiyc        OUT/METHOD/DATASET/FRAME.hdf5 with a data set "value", float16 (H, W), after the public instructions of
             SegmentMeIfYouCan's repository, road-anomaly-benchmark. Not sure, look there before a submission: whether
             scores outside 0..1 are taken as they are, and that the data sets are called AnomalyTrack-all and so on.
fishyscapes  OUT/DDDD_anomaly.npy, float32 (H, W); DDDD is what the image's name begins with where all begin with
             four digits, else a running number, which export.json explains. The benchmark itself takes a model in a
             container, not files: these are for one's own comparisons.

Started again with the same settings, it goes on where it stopped. OUT/export.json holds the settings.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from data import ImageFolder
from engine import SlidingWindows, choose_precision, evaluated_frames, run_script, script_parser, start_process
from engine.files import require_writable, sha256, write_whole
from engine.flags import add_tile_flags, check_tile, finite_number, whole_number
from engine.precision import Precision
from errors import FileInTheWay, MissingFile, WrongInput
from labels import OUTLIER
from losses import hybrid_score
from models import OF_WHOLE_IMAGES, fast_inference, open_network
from tools.export_scores.check import check
from tools.export_scores.maps import DTYPES, ENDINGS, SETTINGS, encoded, map_problem, size_of, stored_scores

LABEL_MAP = re.compile(r"(_labels|_labels_semantic|_labels_semantic_color|_ood_segmentation|_gtFine_\w+)\.png$|^\._")


def main(argv=None):
    args = read_flags(argv)
    if args.folder:
        require_writable(args.folder, "--folder")
    images = images_of(args.dataroot, args.max_pixels)
    dataset = (args.dataset or benchmark_name(args.dataroot)) if args.benchmark == "smiyc" else None
    files = files_of(args.benchmark, images.paths, args.method, dataset)
    if args.check:
        return check(args.benchmark, args.check, images, files)

    device = start_process(args.device)
    precision = choose_precision(args.precision, device)
    network = open_network(args.params, args.network, args.num_classes)
    if not network.hybrid:
        raise WrongInput(f"{args.params} has no dataset head, which the hybrid score needs; give fine-tuned weights")
    model = fast_inference(network.to(device), precision.dtype, precision.memory_format)
    if args.tile is not None:
        model = SlidingWindows(model, args.tile, args.tile - args.tile_overlap)
    settings = {
        "benchmark": args.benchmark,
        "score": "hybrid, larger is more anomalous",
        "weights_sha256": sha256(args.params),
        "network": args.network,
        "num_classes": network.num_classes,
        "shift": args.shift,
        "tile": args.tile,
        "tile_overlap": args.tile_overlap if args.tile is not None else None,
        "frames": {
            name: path.relative_to(args.dataroot).as_posix() for name, path in zip(files, images.paths, strict=True)
        },
    }
    start_folder(args.folder, settings, ENDINGS[args.benchmark])
    dtype = DTYPES[args.benchmark]
    return export(model, images, args.folder, files, dtype, args.shift, args.workers, device, precision)


def read_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("--benchmark", required=True, choices=list(DTYPES))
    parser.add_argument("--dataroot", required=True, type=Path, help="the images; label maps among them are left out")
    parser.add_argument("--folder", type=Path, help="where the score maps go")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="check score maps of these images; writes nothing")
    parser.add_argument("--params", help="weights with a dataset head")
    parser.add_argument("--network", choices=OF_WHOLE_IMAGES, default="deeplabv3plus", help="(default deeplabv3plus)")
    parser.add_argument("--num_classes", type=whole_number(1, OUTLIER), help="K (default: as many as the weights have)")
    parser.add_argument("--method", default="densehybrid", help="smiyc: the method's folder (default densehybrid)")
    parser.add_argument(
        "--dataset", help="smiyc: the data set's folder (default: X-all where dataset_X is in --dataroot)"
    )
    parser.add_argument(
        "--shift",
        type=finite_number,
        default=0.0,
        help="subtracted from every score; float16 is finest around 0 (default 0)",
    )
    add_tile_flags(parser)
    args = parser.parse_args(argv)
    if (args.folder is None) == (args.check is None):
        parser.error("give either --folder, to write score maps, or --check, to check those of a folder")
    if args.folder and not args.params:
        parser.error("--folder needs --params, the weights")
    check_tile(parser, args)
    for name in (args.method, args.dataset):
        if name is not None and (name in ("", "..") or Path(name).name != name):
            parser.error(f"--method and --dataset are plain folder names, not {name!r}")
    return args


def images_of(root: Path, max_pixels: int | None = None) -> ImageFolder:
    """The images below a folder, in order, without the label maps that lie among them in some data sets."""
    # A frame that is left out or turned has no score map of its own.
    images = ImageFolder(root, max_pixels=max_pixels, as_stored=True)
    found = len(images)
    images.paths = [path for path in images.paths if not LABEL_MAP.search(path.name)]
    if not images.paths:
        raise MissingFile(f"only label maps below {root}; --dataroot is a folder with images")
    if len(images) < found:
        print(f"{found - len(images)} label maps below {root} are left out")
    return images


def benchmark_name(root: Path) -> str:
    """SegmentMeIfYouCan's name of a data set, from a folder dataset_X above the images, else the folder's name."""
    named = [part.removeprefix("dataset_") for part in root.resolve().parts if part.startswith("dataset_")]
    name = f"{named[-1]}-all" if named else root.resolve().name
    print(f"the data set's folder is {name} (another: --dataset NAME)")
    return name


def files_of(benchmark: str, paths: list[Path], method: str, dataset: str | None) -> list[str]:
    """The score maps' names below the output folder, in the order of the images."""
    if benchmark == "smiyc":
        frames = [f"{method}/{dataset}/{path.stem}" for path in paths]
    else:
        numbers = [match[1] if (match := re.match(r"(\d{4})(?!\d)", path.name)) else None for path in paths]
        if None in numbers or len(set(numbers)) < len(numbers):
            numbers = [f"{number:04d}" for number in range(len(paths))]
        frames = numbers
    twice = [frame for frame, count in Counter(frames).items() if count > 1]
    if twice:
        same = [str(path) for path, frame in zip(paths, frames, strict=True) if frame == twice[0]]
        raise WrongInput(f"{' and '.join(same)} would have one score map; give a --dataroot in which names differ")
    return [frame + ENDINGS[benchmark] for frame in frames]


def start_folder(folder: Path, settings: dict, ending: str) -> None:
    """Note the settings; refuse a folder that holds score maps of others."""
    file = folder / SETTINGS
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise WrongInput(f"{file} is damaged; remove the folder, or choose another --folder") from None
        changed = [key for key in settings if not isinstance(before, dict) or before.get(key) != settings[key]]
        if changed:
            raise WrongInput(
                f"{folder} was written with other settings ({', '.join(changed)}; see {SETTINGS}); "
                "choose another --folder, or remove this one"
            )
    elif any(folder.rglob("*" + ending)):
        raise FileInTheWay(f"{folder} holds *{ending} but no {SETTINGS} that says whose; choose another --folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(json.dumps(settings, indent=2).encode(), file)


def export(
    model: nn.Module,
    images: ImageFolder,
    folder: Path,
    files: list[str],
    dtype: np.dtype,
    shift: float,
    workers: int,
    device: torch.device,
    precision: Precision,
) -> dict:
    """Write the score maps that are not there yet.

    files    names of the images' score maps below the folder, in their order
    dtype    of the stored scores
    shift    subtracted from every score
    returns  {"frames", "written", "levels", "levels_lost"}: of frames, of maps written now, of these maps' distinct
             scores, and of those that are no longer apart once they are stored
    """
    left = [
        index
        for index, (path, name) in enumerate(zip(images.paths, files, strict=True))
        if map_problem(folder / name, size_of(path, images.max_pixels), dtype) is not None
    ]
    if len(left) < len(files):
        print(f"{len(files) - len(left)} of {len(files)} score maps are there and whole")
    levels, kept, low, high = 0, 0, np.inf, -np.inf
    frames = evaluated_frames(model, Subset(images, left), device, workers, precision=precision)
    for index, frame in zip(left, frames, strict=True):
        scores = hybrid_score(frame.class_logits, frame.dataset_logits)[0].cpu().numpy().astype(np.float32)
        stored = stored_scores(scores - np.float32(shift), dtype, frame.name)
        levels, kept = levels + len(np.unique(scores)), kept + len(np.unique(stored))
        low, high = min(low, float(stored.min())), max(high, float(stored.max()))
        path = folder / files[index]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(encoded(stored), path)
    print(f"{len(left)} score maps written to {folder}")
    if left:
        finest = float(np.spacing(dtype.type(max(abs(low), abs(high)))))
        print(f"scores from {low:.4g} to {high:.4g}, in steps of at most {finest:.2g} as {dtype}")
        print(
            f"distinct scores, summed over frames: {levels:,} computed, {kept:,} stored, "
            f"{levels - kept:,} ({1 - kept / levels:.1%}) lost by rounding to {dtype}"
        )
        if dtype == np.float16 and abs(high) > (high - low) / 2:  # for scores far from 0 a shift is worth it
            print(f"--shift {high + shift:.4g}, in a new folder, would keep the highest scores further apart")
    return {"frames": len(files), "written": len(left), "levels": levels, "levels_lost": levels - kept}


if __name__ == "__main__":
    run_script(main)
