"""Predict on your own pictures (DenseHybrid, ECCV 2022; TPAMI 2024): classes, what is unknown, and the anomaly score.

    python -m tools.predict --params WEIGHTS_FILE --network NETWORK --input IMAGE_FOLDER_OR_VIDEO --folder OUTPUT_DIR

A picture DIR/NAME.jpg below the input gives OUTPUT_DIR/{closed,open,heat,overlay,score}/DIR/NAME.jpg.png, of its own
size and upright. closed and open are palette PNGs whose values are class ids; K, the number of classes, is unknown:
where the score reaches --threshold, or the threshold that an evaluation found (--calibration its results.json). A video
gives OUTPUT_DIR/overlay/NAME.mov.mp4. The same command again does what is not done yet.
"""

import contextlib
import errno
import io
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.functional import resize
from tqdm import tqdm

from data import COCO20, Cityscapes, StreetHazards
from data.decoding import MAX_PIXELS
from data.files import read_photograph
from data.images import ENDINGS
from data.listing import files_below, say_left_out, why_no_file
from engine import (
    SlidingWindows,
    batches,
    choose_precision,
    evaluation_loader,
    run_script,
    script_parser,
    start_process,
    to_device,
)
from engine.files import require_writable, sha256, write_whole
from engine.flags import add_heads_flag, add_tile_flags, check_tile, finite_number, whole_number
from engine.pictures import Drawing, heat_range
from engine.precision import Precision
from engine.results import read_results
from errors import FileInTheWay, MissingFile, UnusableFile, WrongInput
from losses import anomaly_score
from methods.scores import add_score_flag, chosen_score
from models import NETWORKS, fast_inference, open_network
from models.segmenter import WINDOW

CLASSES = {"cityscapes": Cityscapes, "street-hazards": StreetHazards, "coco20": COCO20}
USUAL_CLASSES = {"deeplabv3plus": "cityscapes", "ldn121": "street-hazards", "segmenter": "coco20"}  # of networks
SMALLEST = 32  # a side that is shorter is continued to it with its last pixel: networks halve their input five times
VIDEO_ENDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
REPORT, SETTINGS, KINDS = "report.jsonl", "settings.json", ("closed", "open", "heat", "overlay", "score")
# Bytes of memory on a CPU for each pixel that a network sees at once, at its peak: measured at 1024x1024, rounded up.
# Segmenter's windows are always of one size.
NETWORK_BYTES = {"deeplabv3plus": 1300, "ldn121": 320, "segmenter": 0}
RESULT_BYTES = 100  # for each pixel of the picture: scores, classes, pictures of them


def main(argv=None):
    parser = script_parser(__doc__)
    parser.add_argument("--params", required=True, help="weights, closed-set or hybrid")
    parser.add_argument("--network", required=True, choices=list(USUAL_CLASSES), help="whose weights they are")
    parser.add_argument(
        "--classes",
        choices=list(CLASSES),
        help="that the weights know (default: cityscapes for deeplabv3plus, street-hazards for ldn121, coco20 for "
        "segmenter)",
    )
    parser.add_argument("--input", required=True, type=Path, help="an image, a folder of images at any depth, a video")
    parser.add_argument("--folder", required=True, type=Path, help="where the results go")
    add_score_flag(parser)
    unknown = parser.add_mutually_exclusive_group()
    unknown.add_argument("--threshold", type=finite_number, help="a pixel whose score reaches it is unknown")
    unknown.add_argument("--calibration", type=Path, help="results.json of an evaluation, whose threshold is taken")
    parser.add_argument(
        "--heat_range",
        nargs=2,
        type=finite_number,
        metavar=("LOW", "HIGH"),
        help="scores that are black and pale yellow in every heat map (default: the calibration's, else 1 %% and "
        "99 %% of each picture's)",
    )
    parser.add_argument("--raw", choices=["png16", "npy", "none"], default="png16", help="score maps (default png16)")
    parser.add_argument(
        "--max_side", type=whole_number(SMALLEST), help="the network sees pictures shrunk to this longer side"
    )
    add_tile_flags(parser)
    add_heads_flag(parser)
    args = parser.parse_args(argv)
    check_tile(parser, args)
    if args.tile is not None and args.network == "segmenter":
        parser.error(f"--tile: segmenter runs in windows of {WINDOW} anyway")
    if args.heat_range and not args.heat_range[0] < args.heat_range[1]:
        parser.error(f"--heat_range {args.heat_range[0]:g} {args.heat_range[1]:g}: LOW must be below HIGH")
    args.classes = args.classes or USUAL_CLASSES[args.network]
    device, known = start_process(args.device), CLASSES[args.classes]
    precision = choose_precision(args.precision, device)
    require_writable(args.folder, "--folder")

    inputs = list_inputs(args.input, args.folder)
    is_video = args.input.suffix.lower() in VIDEO_ENDINGS and args.input.is_file()
    ffmpeg = import_ffmpeg(args.input) if is_video else None
    model, score_name = open_model(args, device, precision)
    if args.calibration is not None:
        args.threshold, calibrated = read_calibration(args.calibration, score_name, args.params)
        args.heat_range = args.heat_range or calibrated
    flags = ("network", "classes", "threshold", "heat_range", "raw", "max_side", "tile", "tile_overlap", "heads")
    settings = {"input": str(args.input.resolve()), "weights_sha256": sha256(args.params), "score": score_name}
    settings["precision"] = precision.name
    settings |= {flag: getattr(args, flag) for flag in flags}
    settings |= {"class_names": list(known.class_colours), "unknown": known.num_classes}
    earlier = open_folder(args.folder, settings)
    drawing = Drawing(known.class_colours, score_name, args.threshold, args.heat_range)
    drawing.save_legend(args.folder / "legend.png", f"{args.network}, {args.classes}, {score_name} score")

    def files(name):
        return result_files(args, name, is_video)

    done = {name for name, path in inputs.items() if is_done(earlier.get(name), path, files(name))}
    say_sizeless([line for name, line in earlier.items() if name in inputs])
    keep_lines(args.folder, done | (earlier.keys() - inputs.keys()))
    todo = {name: path for name, path in inputs.items() if name not in done}
    if args.threshold is None:
        print("neither --threshold nor --calibration: what is unknown is not decided, there are no open-set maps")
    if done:
        print(f"{len(done)} of {len(inputs)} inputs were done before")

    def predict(image):
        if device.type == "cpu":
            check_memory(*image.shape[2:], args.network, known.num_classes, args.max_side, args.tile)
        return predicted(model, score_name, image, device, precision.memory_format, args.max_side)

    if is_video:
        lines = video_lines(ffmpeg, predict, todo, files, drawing)
    else:
        lines = picture_lines(predict, todo, files, drawing, args.workers, device, args.max_pixels or MAX_PIXELS)
    failed = []
    try:
        with open(args.folder / REPORT, "a", encoding="utf-8") as report:
            for line in lines:
                report.write(json.dumps(line) + "\n")
                report.flush()
                if line["status"] == "failed":
                    failed.append(f"\n  {line['name']!r}: {line['reason']}")
    except KeyboardInterrupt:
        print(f"\nwhat is done is in {args.folder}; the same command does the rest")
        raise
    print(f"{len(todo) - len(failed)} of {len(todo)} inputs done now; results and {REPORT}: {args.folder}")
    if failed:
        more = f"\n  and {len(failed) - 20} more, see {args.folder / REPORT}" if len(failed) > 20 else ""
        told = "".join(failed[:20]) + more
        sys.exit(f"error: {len(failed)} inputs failed; the same command tries them again:{told}")


# What goes in


def list_inputs(source: Path, folder: Path) -> dict[str, Path]:
    """{name relative to the input: path}, sorted, without what lies in the output folder.

    Folders are listed as data/listing.py has it. Raises OSError for a folder that cannot be read.
    """
    if source.is_file():
        return {source.name: source}
    kind = why_no_file(source)
    if kind not in (None, "a folder"):
        raise WrongInput(f"--input {source} is {kind}; give an image, a folder of images or a video")
    if not source.is_dir():
        raise MissingFile(f"no file or folder {source}; --input is an image, a folder of images or a video")
    inside, output = source.resolve(), folder.resolve()
    if inside == output:
        raise WrongInput(
            f"--folder {folder} is the folder of the input; choose another, such as {folder / 'predicted'}"
        )
    listing = files_below(source, ENDINGS)
    say_left_out(source, listing.left_out())
    paths = sorted([*listing.files, *listing.no_files])  # of which the latter fail by themselves
    results = {place for place in {path.parent for path in paths} if place.resolve().is_relative_to(output)}
    inputs = {path.relative_to(source).as_posix(): path for path in paths if path.parent not in results}
    places = {place for path in inputs.values() for place in path.relative_to(source).parents if place.name}
    earlier = [
        place for place in sorted(places) if all((source / place / name).is_file() for name in (SETTINGS, REPORT))
    ]
    for place in earlier:
        print(f"{source / place} holds results of tools.predict, which are left out")
        inputs = {name: path for name, path in inputs.items() if place not in path.relative_to(source).parents}
    if not inputs:
        raise MissingFile(f"no image ({', '.join(ENDINGS)}) below {source}; videos are given one by one")
    return inputs


class Photographs(Dataset):
    """Samples (image uint8 (3, H, W), index, ""); of a file that cannot be read (nothing, index, the reason)."""

    def __init__(self, paths: list[Path], max_pixels: int = MAX_PIXELS):
        self.paths, self.max_pixels = paths, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        path = self.paths[index]
        try:
            return read_photograph(path, True, self.max_pixels), index, ""
        except (OSError, ValueError, MemoryError) as error:  # the others must be done
            return torch.empty(3, 0, 0, dtype=torch.uint8), index, str(error).removeprefix(f"{path} ")


def import_ffmpeg(path: Path):
    try:
        import imageio_ffmpeg
    except ImportError:
        raise WrongInput(
            f"{path} is a video, and the package that reads them is missing: pip install -r requirements/video.txt"
        ) from None
    return imageio_ffmpeg


def open_model(args, device: torch.device, precision: Precision) -> tuple[nn.Module, str]:
    """The network with its weights, for inference, and the name of the score."""
    num_classes = CLASSES[args.classes].num_classes
    expected = f"Expected by --network {args.network} --classes {args.classes}: {num_classes} classes"
    model = open_network(args.params, args.network, num_classes, args.heads, expected)
    if args.network == "segmenter":
        args.heads = model.model.encoder.heads
    score_name = chosen_score(args.score, model.hybrid, args.params)
    model = fast_inference(model.to(device), precision.dtype, precision.memory_format)
    if args.network == "segmenter":
        model = SlidingWindows(model, *NETWORKS["segmenter"].window, at_a_time=8, enlarge=True)
    elif args.tile is not None:
        model = SlidingWindows(model, args.tile, args.tile - args.tile_overlap)
    return model, score_name


def read_calibration(path: Path, score_name: str, weights: str) -> tuple[float, list[float] | None]:
    """(threshold, range of heat or None) of a score, from an evaluation's results.json."""
    results = read_results(path, "--calibration")
    calibration = results["calibration"]
    if score_name not in calibration:
        raise WrongInput(
            f"--calibration {path} has a threshold for the score {' and '.join(calibration) or 'of nothing'}, and the "
            f"score here is {score_name}: choose it with --score, or evaluate this one"
        )
    found = calibration[score_name] if isinstance(calibration[score_name], dict) else {}
    if found.get("note"):
        raise WrongInput(f"--calibration {path} has {found['note']}")
    if found.get("scores_of") != "logits":
        raise WrongInput(
            f"--calibration {path} was made with --released_scoring, whose scores are of probabilities; the scores "
            "here are of logits: evaluate without it"
        )
    threshold, heat = found.get("threshold"), found.get("heat_range")
    if not is_number(threshold):
        raise WrongInput(
            f"--calibration {path} has {threshold!r} for the threshold of {score_name}: was there no "
            "pixel of an unknown thing to take it from?"
        )
    if results["record"].get("weights_sha256") != sha256(weights):
        print(f"note: the threshold was found for {results['weights']}, the weights here, {weights}, are others")
    sound = isinstance(heat, list) and len(heat) == 2 and all(map(is_number, heat)) and heat[0] < heat[1]
    if not sound:
        print(f"note: {path} has no heat_range that can be used: heat maps span the scores of each picture")
    return float(threshold), heat if sound else None


def is_number(value) -> bool:
    """Whether a value from a JSON file is a finite number, which a float can hold."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


# The prediction


def check_memory(
    height: int, width: int, network: str, num_classes: int, max_side: int | None, tile: int | None
) -> None:
    """Raise ValueError for a picture that takes more memory than is free: the system would kill the whole run."""

    def needed(max_side: int | None, tile: int | None) -> int:
        shrinks = max_side is not None and max(height, width) > max_side
        seen = shrunk((height, width), max_side) if shrinks else [height, width]
        if network == "segmenter":
            seen = [side * max(WINDOW, min(seen)) // min(seen) for side in seen]
        at_once = math.prod(seen if tile is None else [min(side, tile) for side in seen])
        logits = 8 * (num_classes + 2) + 40  # and their sums over windows, in float32
        return NETWORK_BYTES[network] * at_once + logits * math.prod(seen) + RESULT_BYTES * height * width

    free = free_memory()
    if free is None or needed(max_side, tile) <= free:
        return
    ways = [f"--max_side 2048 (about {needed(2048, tile) / 1e9:.1f} GB)"]
    if network != "segmenter":
        ways.append(f"--tile 1024 (about {needed(max_side, 1024) / 1e9:.1f} GB)")
    raise WrongInput(
        f"its {width}x{height} pixels take about {needed(max_side, tile) / 1e9:.1f} GB of memory and "
        f"{free / 1e9:.1f} GB are free; try {' or '.join(ways)}"
    )


def free_memory() -> int | None:
    """Bytes that this process can have before the system kills one, a container's limit included; None: not known."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: there is no limit
            most, taken = (int(Path("/sys/fs/cgroup", name).read_text(encoding="utf-8")) for name in (limit, used))
            found.append(most - taken)
    return min(found, default=None)


@torch.inference_mode()
def predicted(
    model: nn.Module,
    score_name: str,
    image: Tensor,
    device: torch.device,
    memory_format: torch.memory_format,
    max_side: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """(1, 3, H, W) uint8 -> classes (H, W) uint8, scores (H, W) float32.

    From a shrunk image both come back to H, W, scores bilinearly and classes from the nearest pixel.
    Raises ValueError where scores are not finite, or memory does not suffice.
    """
    size = image.shape[2:]
    try:
        if max_side is not None and max(size) > max_side:
            image = resize(image, shrunk(size, max_side), antialias=True)
        [image] = to_device([image], device, memory_format)
        height, width = image.shape[2:]
        if min(height, width) < SMALLEST:
            image = F.pad(image, (0, max(0, SMALLEST - width), 0, max(0, SMALLEST - height)), mode="replicate")
        output = model(image)
        logits = [part[:, :, :height, :width] for part in (output if isinstance(output, tuple) else (output,))]
        scores, classes = anomaly_score(score_name, *logits), logits[0].argmax(1).byte()
        if (height, width) != size:
            scores = F.interpolate(scores[:, None], size, mode="bilinear", align_corners=False)[:, 0]
            classes = F.interpolate(classes[:, None], size, mode="nearest-exact")[:, 0]
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "DefaultCPUAllocator" not in str(error):
            raise
        raise WrongInput(f"memory does not suffice for {size[1]}x{size[0]} pixels; try --max_side or --tile") from error
    if not scores.isfinite().all():
        raise WrongInput("its scores are not finite; are these weights damaged?")
    return classes[0].cpu().numpy(), scores[0].cpu().numpy()


def shrunk(size: tuple[int, int], max_side: int) -> list[int]:
    return [max(1, round(side * max_side / max(size))) for side in size]


def picture_lines(
    predict: Callable,
    inputs: dict[str, Path],
    files: Callable,
    drawing: Drawing,
    workers: int,
    device: torch.device,
    max_pixels: int,
) -> Iterator[dict]:
    """The report's line of each picture, once its files are written.

    Loader processes read ahead, threads encode and write behind; neither by more than some pictures per worker.
    """
    loader, names = evaluation_loader(Photographs(list(inputs.values()), max_pixels), workers, device), list(inputs)
    pending: deque[Future] = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool, progress(len(names)) as bar:
        for (image, index), [reason] in batches(loader) if names else ():
            started, name = time.monotonic(), names[index]
            line = {"name": name, "file": fingerprint(inputs[name])}
            try:
                if reason:
                    raise WrongInput(reason)
                prediction = predict(image)
                pending.append(pool.submit(write_picture, line, image, *prediction, files(name), drawing, started))
            except ValueError as error:
                for path in files(name).values():  # of an earlier content of the file
                    with contextlib.suppress(OSError):
                        path.unlink()
                yield line | {"status": "failed", "reason": str(error)}
            while len(pending) > workers:
                yield pending.popleft().result()
            bar.update()
        while pending:
            yield pending.popleft().result()


def write_picture(line, image, classes, scores, files: dict[str, Path], drawing: Drawing, started: float) -> dict:
    try:
        contents, told = drawing.contents(image[0].permute(1, 2, 0).numpy(), classes, scores)
        if "score" in files and files["score"].suffix == ".npy":
            buffer = io.BytesIO()
            np.save(buffer, scores)
            contents["score"] = buffer.getvalue()
        for kind, path in files.items():
            write_or_explain(contents[kind], path)
    except MemoryError:
        return line | {"status": "failed", "reason": "memory does not suffice to draw it; try fewer --workers"}
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return line | {"status": "failed", "reason": "its name is too long for a result's"}
    size = {"width": image.shape[3], "height": image.shape[2], "bytes": sizes_of(files)}
    return line | {"status": "done"} | size | told | {"seconds": round(time.monotonic() - started, 3)}


def video_lines(
    ffmpeg, predict: Callable, inputs: dict[str, Path], files: Callable, drawing: Drawing
) -> Iterator[dict]:
    """The report's line of each frame, and one of the whole video once it is written; frames are done one by one."""
    for name, path in inputs.items():
        line, started, number, unknown = {"name": name, "file": fingerprint(path)}, time.monotonic(), 0, 0.0
        whole = files(name)["overlay"]
        part = whole.with_name(whole.name + ".part.mp4")
        whole.parent.mkdir(parents=True, exist_ok=True)
        try:
            frames = ffmpeg.read_frames(str(path))
            about = next(frames)
            size, fps = about["size"], about["fps"] or 25
            even = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]  # what the format wants
            writer = ffmpeg.write_frames(str(part), size, fps=fps, macro_block_size=1, output_params=even)
            with (
                progress(round(fps * about["duration"])) as bar,
                contextlib.closing(writer),
                contextlib.closing(frames),
            ):
                writer.send(None)
                for content in frames:
                    image = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(1, size[1], size[0], 3).copy())
                    classes, scores = predict(image.permute(0, 3, 1, 2))
                    if drawing.heat_range is None:
                        drawing = replace(drawing, heat_range=heat_range(scores))  # the first frame's, for all
                    overlay, told = drawing.frame(image[0].numpy(), classes, scores)
                    writer.send(overlay)
                    yield {"name": name, "status": "frame", "frame": number, "at_seconds": number / fps} | told
                    number, unknown = number + 1, unknown + (told["unknown_share"] or 0)
                    bar.update()
            if not number:
                raise WrongInput("it has no frame")
            os.replace(part, whole)
        except (ValueError, OSError, RuntimeError, StopIteration) as error:  # the package raises whatever ffmpeg said
            part.unlink(missing_ok=True)
            reason = (str(error).strip() or "no frame can be read").splitlines()[-1]
            yield line | {"status": "failed", "reason": f"frame {number}: {reason}"}
            continue
        share = None if drawing.threshold is None else unknown / number
        about = {"width": size[0], "height": size[1], "frames": number, "fps": fps, "unknown_share": share}
        about["bytes"] = sizes_of(files(name))
        yield line | {"status": "done"} | about | {"seconds": round(time.monotonic() - started, 3)}


def progress(total: int) -> tqdm:
    return tqdm(total=total, desc="predicting", leave=False, dynamic_ncols=True, disable=None)


# Where it goes


def result_files(args, name: str, is_video: bool) -> dict[str, Path]:
    """Where an input's results go, by kind; its name keeps its ending, so that a.jpg and a.png stay apart."""
    if is_video:
        return {"overlay": args.folder / "overlay" / f"{name}.mp4"}
    kinds = ["closed", "heat", "overlay", *(["open"] if args.threshold is not None else [])]
    files = {kind: args.folder / kind / f"{name}.png" for kind in kinds}
    if args.raw != "none":
        files["score"] = args.folder / "score" / (f"{name}.npy" if args.raw == "npy" else f"{name}.png")
    return files


def open_folder(folder: Path, settings: dict) -> dict[str, dict]:
    """The report's lines by input of an earlier run with the same settings; a new folder gets the settings.

    Raises ValueError for other settings, FileExistsError for a folder with other content at the results' places.
    """
    path = folder / SETTINGS
    if not path.exists():
        there = [name for name in (REPORT, *KINDS) if (folder / name).exists()]
        if there or (folder.exists() and not folder.is_dir()):
            raise FileInTheWay(
                f"{folder} was not made by predict, having no {SETTINGS} but {', '.join(there) or 'being a file'}; "
                "choose another --folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_or_explain(json.dumps(settings, indent=2).encode(), path)
        return {}
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise WrongInput(
            f"{path} is damaged, and with what the results beside it were made is unknown; choose another --folder"
        ) from error
    now = json.loads(json.dumps(settings))
    differences = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if differences:
        raise WrongInput(
            f"{folder} was made with other settings: {'; '.join(differences)}; "
            "give the same, or choose another --folder"
        )
    return {line["name"]: line for line in report_lines(folder) if "frame" not in line}


def report_lines(folder: Path) -> Iterator[dict]:
    """The lines of the report, but for damaged ones, such as one that was being written when the run was killed."""
    if (folder / REPORT).exists():
        with open(folder / REPORT, encoding="utf-8", errors="replace") as report:
            for text in report:
                with contextlib.suppress(json.JSONDecodeError):
                    line = json.loads(text)
                    if isinstance(line, dict) and isinstance(line.get("name"), str):
                        yield line


def keep_lines(folder: Path, names: set[str]) -> None:
    """Leave in the report only the lines of these inputs: the others are done anew."""
    kept = [json.dumps(line) + "\n" for line in report_lines(folder) if line["name"] in names]
    write_or_explain("".join(kept).encode(), folder / REPORT)


def is_done(line: dict | None, path: Path, files: dict[str, Path]) -> bool:
    """Whether an input has its line, was not changed since, and all its files are there, as large as they were.

    A line without sizes, of an older version, does not tell a whole file from one that is cut short: it is not done.
    """
    if line is None or line.get("status") != "done" or line.get("file") != fingerprint(path):
        return False
    return sizes_of(files) == line.get("bytes")


def say_sizeless(lines: list[dict]) -> None:
    """One printed line of results that are made anew because their files' sizes were not noted."""
    names = [line["name"] for line in lines if line.get("status") == "done" and "bytes" not in line]
    if names:
        print(f"{len(names)} results of an older version, which noted no sizes, are made anew (first: {names[0]!r})")


def sizes_of(files: dict[str, Path]) -> dict[str, int]:
    """Bytes of each file; 0 where there is none."""
    return {kind: path.stat().st_size if path.is_file() else 0 for kind, path in files.items()}


def fingerprint(path: Path) -> list[int] | None:
    """[bytes, time of the last change in nanoseconds] of a file; None where it is gone."""
    try:
        about = path.stat()
    except OSError:
        return None
    return [about.st_size, about.st_mtime_ns]


def write_or_explain(content: bytes, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(content, path)
    except OSError as error:
        raise UnusableFile(
            error.errno,
            f"could not write {path}: {os.strerror(error.errno)}. Make room or make the folder writable, then run the "
            "same command again: what is done is kept",
        ) from error


if __name__ == "__main__":
    run_script(main)
