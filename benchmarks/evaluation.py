"""evaluate_ood.py on Fishyscapes Lost & Found from its start to its end: seconds before, during and after the frames.

    python benchmarks/evaluation.py [--precisions tf32 bfloat16] [--frames 100] [--workers 12] [--json FILE]
    python benchmarks/evaluation.py --device cpu --network ldn121 --frames 3 --height 128 --width 256    # a trial

Images and label maps are made: PNG files of about the size of real ones, DISTINCT different ones under the names of
--frames; the weights are random. Before the frames are Python's start, the opening of data and weights, and the first
frame; they last until the last one is scored; then come the figures, the pictures and the page. The GPU's busy share is
the mean of what its driver says every tenth of a second during the frames (with the package nvidia-ml-py; else it is
left out). There is no plain side: the original's evaluation is not the same work.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

import evaluate_ood
from benchmarks.loading import made_image
from benchmarks.sides import MIB, benchmark_parser, column_table, machine, write_table
from data import Cityscapes
from models import NETWORKS, OF_WHOLE_IMAGES

DISTINCT = 4
WATCHED = "--watched"  # as the first argument: this is the process that evaluates


def write_frames(root: Path, frames: int, height: int, width: int) -> None:
    """Lost & Found as Fishyscapes lays it out, with an outlier and an ignored border in each label map."""
    images = [made_image(np.random.default_rng(number), height, width) for number in range(min(frames, DISTINCT))]
    labels = np.zeros((height, width), np.uint8)
    labels[height // 2 : height // 2 + height // 8, width // 3 : width // 2] = 1
    labels[-height // 16 :] = 255
    for folder, ending, pictures in (
        ("leftImg8bit", "leftImg8bit.png", images),
        ("ood", "ood_segmentation.png", [labels]),
    ):
        (root / folder / "val").mkdir(parents=True)
        encoded = []
        for number, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(root / f"{folder}{number}.png")
            encoded.append((root / f"{folder}{number}.png").read_bytes())
        for number in range(frames):
            (root / folder / "val" / f"{number:03}_{ending}").write_bytes(encoded[number % len(encoded)])


def watched(moments_file: str, argv: list[str]) -> None:
    """Evaluate, and write down when each frame was ready and when the last one was done with."""
    moments, evaluated_frames = [], evaluate_ood.evaluated_frames

    def frames(*args, **kwargs):
        for frame in evaluated_frames(*args, **kwargs):
            moments.append(time.time())
            yield frame
        moments.append(time.time())

    evaluate_ood.evaluated_frames = frames
    evaluate_ood.main(argv)
    Path(moments_file).write_text(json.dumps(moments))


def evaluated(flags: list[str], scratch: Path, device: torch.device) -> dict:
    """A cell of the table, of one evaluation in a process of its own."""
    folder, moments_file = scratch / "results", scratch / "moments.json"
    samples: list[tuple[float, float]] = []
    ended = threading.Event()
    started = time.time()
    sampler = threading.Thread(target=sample_use, args=(device, samples, ended))
    sampler.start()
    try:
        command = [sys.executable, __file__, WATCHED, str(moments_file), "--folder", str(folder), *flags]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    finally:
        finished = time.time()
        ended.set()
        sampler.join()
    first, *_, last = json.loads(moments_file.read_text())
    use = [share for moment, share in samples if first <= moment <= last]
    busy = mean(use) if use else None
    before, during, after = first - started, last - first, finished - last
    peak = json.loads((folder / "results.json").read_text())["record"]["peak_memory_bytes"] / MIB
    use_of_gpu = "" if busy is None else f" at {busy:.0f} %"
    return {
        "before_seconds": before,
        "during_seconds": during,
        "after_seconds": after,
        "busy_percent": busy,
        "peak_mib": peak,
        "text": f"{before:.1f} s + {during:.1f} s{use_of_gpu} + {after:.1f} s ({peak:,.0f})",
    }


def sample_use(device: torch.device, samples: list[tuple[float, float]], ended: threading.Event) -> None:
    """(moment, percent) of the GPU's use, until it has ended."""
    while device.type == "cuda" and not ended.wait(0.1):
        try:
            samples.append((time.time(), torch.cuda.utilization(device)))
        except ModuleNotFoundError:
            print("the GPU's busy share is left out: install nvidia-ml-py")
            return


def main():
    if sys.argv[1:2] == [WATCHED]:
        return watched(sys.argv[2], sys.argv[3:])
    parser = benchmark_parser(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precisions", nargs="+", metavar="PRECISION", help="default: tf32 bfloat16; on a CPU float32")
    parser.add_argument("--network", choices=OF_WHOLE_IMAGES, default="deeplabv3plus")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=12)
    args = parser.parse_args()
    device = torch.device(args.device)
    precisions = args.precisions or (["tf32", "bfloat16"] if device.type == "cuda" else ["float32"])

    setting = f"{machine(device, ('torch', 'pillow', 'imagecodecs'))}; {args.workers} workers"
    what = f"evaluate_ood.py lf, {args.frames} frames of {args.width}x{args.height}: before + during + after"
    print(f"{setting}\n")
    rows, failed = [{"what": what, "cells": {}}], []
    with tempfile.TemporaryDirectory() as folder:
        root, weights = Path(folder, "lost_and_found"), Path(folder, "weights.pth")
        write_frames(root, args.frames, args.height, args.width)
        torch.manual_seed(0)
        torch.save(NETWORKS[args.network].build(Cityscapes.num_classes).state_dict(), weights)
        given = ["--dataset", "lf", "--dataroot", str(root), "--params", str(weights), "--network", args.network]
        given += ["--device", args.device, "--workers", str(args.workers)]
        for precision in precisions:
            scratch = Path(folder, precision)
            scratch.mkdir()
            try:
                rows[0]["cells"][precision] = evaluated([*given, "--precision", precision], scratch, device)
            except subprocess.CalledProcessError:  # its own error stands above; the other precisions are worth having
                failed.append(precision)
            write_table(args.json, "evaluation", setting, rows)
    print("\n".join(column_table(rows, precisions)))
    if failed:
        sys.exit(f"error: the evaluation in {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
