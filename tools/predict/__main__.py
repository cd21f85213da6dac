"""Predict on your own pictures (DenseHybrid, ECCV 2022; TPAMI 2024): classes, what is unknown, and the anomaly score.

    python -m tools.predict --params WEIGHTS_FILE --network NETWORK --input IMAGE_FOLDER_OR_VIDEO --folder OUTPUT_DIR

A picture DIR/NAME.jpg below the input gives OUTPUT_DIR/{closed,open,heat,overlay,score}/DIR/NAME.jpg.png, of its own
size and upright. closed and open are palette PNGs whose values are class ids; K, the number of classes, is unknown:
where the score reaches --threshold, or the threshold that an evaluation found (--calibration its results.json). A video
gives OUTPUT_DIR/overlay/NAME.mov.mp4. The same command again does what is not done yet.
"""

import argparse
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from data.decoding import MAX_PIXELS
from engine import choose_precision, run_script, script_parser, start_process
from engine.files import require_writable, sha256
from engine.flags import add_tile_flags, check_tile, finite_number, whole_number
from methods.evaluation import add_heads_flag, add_score_flag
from models.segmenter import WINDOW
from tools.predict.calibration import read_calibration
from tools.predict.drawing import Drawing
from tools.predict.folder import (
    REPORT,
    append_lines,
    is_done,
    keep_lines,
    open_folder,
    result_files,
    say_sizeless,
    video_files,
)
from tools.predict.inputs import list_inputs
from tools.predict.network import CLASSES, SMALLEST, USUAL_CLASSES, open_predictor
from tools.predict.pictures import picture_lines
from tools.predict.video import VIDEO_ENDINGS, import_ffmpeg, video_lines

MOST = 20  # failed inputs that are named at the end


def main(argv=None):
    args = read_flags(argv)
    classes = args.classes or USUAL_CLASSES[args.network]
    device, known = start_process(args.device), CLASSES[classes]
    precision = choose_precision(args.precision, device)
    require_writable(args.folder, "--folder")

    inputs = list_inputs(args.input, args.folder)
    is_video = args.input.suffix.lower() in VIDEO_ENDINGS and args.input.is_file()
    ffmpeg = import_ffmpeg(args.input) if is_video else None
    predictor = open_predictor(
        args.params,
        args.network,
        classes,
        args.score,
        args.heads,
        args.tile,
        args.tile_overlap,
        args.max_side,
        device,
        precision,
    )
    threshold, heat_range = args.threshold, args.heat_range
    if args.calibration is not None:
        threshold, calibrated = read_calibration(args.calibration, predictor.score_name, args.params)
        heat_range = heat_range or calibrated

    # What results depend on: a folder holds those of one setting.
    settings = {"input": str(args.input.resolve()), "weights_sha256": sha256(args.params)}
    settings |= {"score": predictor.score_name, "precision": precision.name, "network": args.network}
    settings |= {"classes": classes, "threshold": threshold, "heat_range": heat_range, "raw": args.raw}
    settings |= {"max_side": args.max_side, "tile": args.tile, "tile_overlap": args.tile_overlap}
    settings |= {"heads": predictor.heads, "class_names": list(known.class_colours), "unknown": known.num_classes}
    earlier = open_folder(args.folder, settings)
    drawing = Drawing(known.class_colours, predictor.score_name, threshold, heat_range)
    drawing.save_legend(args.folder / "legend.png", f"{args.network}, {classes}, {predictor.score_name} score")
    if is_video:
        files = partial(video_files, args.folder)
    else:
        files = partial(result_files, args.folder, raw=args.raw, opened=threshold is not None)

    done = {name for name, path in inputs.items() if is_done(earlier.get(name), path, files(name))}
    say_sizeless([line for name, line in earlier.items() if name in inputs])
    keep_lines(args.folder, done | (earlier.keys() - inputs.keys()))
    todo = {name: path for name, path in inputs.items() if name not in done}
    if threshold is None:
        print("neither --threshold nor --calibration: no pixel is called unknown, and no open-set maps are written")
    if done:
        print(f"{len(done)} of {len(inputs)} inputs were done before")
    if is_video:
        lines = video_lines(ffmpeg, predictor, todo, files, drawing)
    else:
        lines = picture_lines(predictor, todo, files, drawing, args.workers, device, args.max_pixels or MAX_PIXELS)
    write_report(args.folder, lines, len(todo))


def read_flags(argv: list[str] | None) -> argparse.Namespace:
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
    return args


def write_report(folder: Path, lines: Iterable[dict], count: int) -> None:
    """Append the lines of `count` inputs to the report as they are done; ends with exit code 1 where any failed."""
    try:
        failed = append_lines(folder, lines)
    except KeyboardInterrupt:
        print(f"\nwhat is done is in {folder}; the same command does the rest")
        raise
    print(f"{count - len(failed)} of {count} inputs done now; results and {REPORT}: {folder}")
    if failed:
        named = "".join(f"\n  {line['name']!r}: {line['reason']}" for line in failed[:MOST])
        more = f"\n  and {len(failed) - MOST} more, see {folder / REPORT}" if len(failed) > MOST else ""
        sys.exit(f"error: {len(failed)} inputs failed; the same command tries them again:{named}{more}")


if __name__ == "__main__":
    run_script(main)
