"""A score map as a benchmark's tools read it: its type, its file, and what is wrong with one."""

import io
from pathlib import Path

import h5py
import numpy as np

from data.decoding import MAX_PIXELS, open_image
from errors import WrongInput

DTYPES = {"smiyc": np.dtype(np.float16), "fishyscapes": np.dtype(np.float32)}
ENDINGS = {"smiyc": ".hdf5", "fishyscapes": "_anomaly.npy"}
HALF_MAX = float(np.finfo(np.float16).max)  # 65504
SETTINGS = "export.json"  # beside the maps


def stored_scores(scores: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Scores as they are stored; ValueError for those that are not finite, or too large for the type."""
    if not np.isfinite(scores).all():
        raise WrongInput(f"{name}: {(~np.isfinite(scores)).sum():,} scores are not finite; are the weights damaged?")
    if dtype == np.float16 and np.abs(scores).max() > HALF_MAX:
        raise WrongInput(
            f"{name}: scores from {scores.min():.6g} to {scores.max():.6g} do not fit float16, +-{HALF_MAX:.0f}; "
            "bring them there with --shift, the same for all frames"
        )
    return scores.astype(dtype)


def encoded(scores: np.ndarray) -> bytes:
    """The bytes of a score map's file: HDF5 for float16, NumPy's for float32."""
    buffer = io.BytesIO()
    if scores.dtype == np.float16:
        with h5py.File(buffer, "w") as file:
            file.create_dataset("value", data=scores, compression="gzip", compression_opts=4)
    else:
        np.save(buffer, scores)
    return buffer.getvalue()


def read_map(path: Path) -> np.ndarray:
    """A score map as it is stored; ValueError where it cannot be read."""
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("value"), h5py.Dataset):
                raise WrongInput(f'holds no data set "value" but {", ".join(file) or "nothing"}')
            return file["value"][()]
    except (OSError, ValueError, EOFError, KeyError, RuntimeError) as error:  # h5py's and NumPy's on damaged files
        raise WrongInput(f"cannot be read: {error}") from None


def map_problem(path: Path, size: tuple[int, int], dtype: np.dtype) -> str | None:
    """What is wrong with a score map of an image of width and height `size`; None: nothing."""
    if not path.is_file():
        return "is missing"
    try:
        scores = read_map(path)
    except ValueError as error:
        return str(error)
    if scores.dtype != dtype:
        return f"is {scores.dtype}, not {dtype}"
    if scores.shape != size[::-1]:
        return f"has shape {scores.shape}; the image's height and width are {size[::-1]}"
    if not np.isfinite(scores).all():
        return f"holds {(~np.isfinite(scores)).sum():,} values that are not finite"
    return None


def size_of(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of an image, from its header."""
    with open_image(path, decoded=False, max_pixels=max_pixels) as image:
        return image.size
