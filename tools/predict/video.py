"""Predictions of a video, frame by frame, and the video of their overlays."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from engine.pictures import heat_range
from errors import WrongInput
from tools.predict.drawing import Drawing
from tools.predict.folder import fingerprint, sizes_of
from tools.predict.network import Predictor
from tools.predict.pictures import progress

VIDEO_ENDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def import_ffmpeg(path: Path):
    try:
        import imageio_ffmpeg
    except ImportError:
        raise WrongInput(
            f"{path} is a video, and the package that reads them is missing: pip install -r requirements/video.txt"
        ) from None
    return imageio_ffmpeg


def video_lines(
    ffmpeg, predict: Predictor, inputs: dict[str, Path], files: Callable, drawing: Drawing
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
                    overlay, facts = drawing.frame(image[0].numpy(), classes, scores)
                    writer.send(overlay)
                    yield {"name": name, "status": "frame", "frame": number, "at_seconds": number / fps} | facts
                    number, unknown = number + 1, unknown + (facts["unknown_share"] or 0)
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
