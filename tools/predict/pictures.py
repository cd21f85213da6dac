"""Predictions of pictures, one by one, and their files."""

import contextlib
import errno
import io
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine import batches, evaluation_loader
from errors import WrongInput
from tools.predict.drawing import Drawing
from tools.predict.folder import fingerprint, sizes_of, write_or_explain
from tools.predict.inputs import Photographs
from tools.predict.network import Predictor


def picture_lines(
    predict: Predictor,
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


def write_picture(
    line: dict,
    image: Tensor,
    classes: np.ndarray,
    scores: np.ndarray,
    files: dict[str, Path],
    drawing: Drawing,
    started: float,
) -> dict:
    """The report's line of a picture, from its beginning, once the files are written.

    image    (1, 3, H, W) uint8
    started  by time.monotonic()
    """
    try:
        contents, facts = drawing.contents(image[0].permute(1, 2, 0).numpy(), classes, scores)
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
    return line | {"status": "done"} | size | facts | {"seconds": round(time.monotonic() - started, 3)}


def progress(total: int) -> tqdm:
    return tqdm(total=total, desc="predicting", leave=False, dynamic_ncols=True, disable=None)
