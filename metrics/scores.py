"""Scores of pixels, as arrays: what is counted of a frame, and the pooled scores of many frames, sorted once."""

import numpy as np
import torch

from errors import WrongInput
from labels import IGNORE, OUTLIER

LARGE = 1 << 26  # bytes; above the 32 MiB up to which glibc may keep what is freed


def as_array(values) -> np.ndarray:
    """A tensor or array as a NumPy array; narrow floats, of which NumPy lacks some, become float32"""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        if values.is_floating_point() and values.dtype != torch.float64:
            values = values.float()
        values = values.numpy()
    return np.asarray(values)


def counted_scores(scores, labels) -> tuple[np.ndarray, np.ndarray, int]:
    """The scores of inliers and of outliers as arrays of their own, and the number of ignored pixels

    scores, labels  as AnomalyMetrics.update takes them
    returns         float64 if the scores came so, else float32
    raises          ValueError: other shapes, NaN on a counted pixel, labels of a type too narrow for OUTLIER
    """
    scores, labels = as_array(scores), as_array(labels)
    if scores.shape != labels.shape:
        raise WrongInput(f"scores have shape {scores.shape} but labels {labels.shape}; each label needs one score")
    if labels.dtype in (np.bool_, np.int8):
        raise WrongInput(f"labels of type {labels.dtype} cannot hold OUTLIER = {OUTLIER}; use uint8 or wider")
    outlier = labels == OUTLIER
    inlier = (labels != IGNORE) & ~outlier
    dtype = np.float64 if scores.dtype.type is np.float64 else np.float32
    inliers, outliers = (scores[kind].astype(dtype, copy=False) for kind in (inlier, outlier))
    nans = np.count_nonzero(np.isnan(inliers)) + np.count_nonzero(np.isnan(outliers))
    if nans:
        raise WrongInput(f"{nans} of {scores.size} scores are NaN and cannot be ranked; check the model's outputs")
    return inliers, outliers, labels.size - inliers.size - outliers.size


def sorted_on_gpu(scores: torch.Tensor, labels) -> tuple[np.ndarray, np.ndarray, int]:
    """What counted_scores gives, ascending, of scores on a GPU, which sorts them in a hundredth of a CPU's time"""
    labels = torch.as_tensor(labels).to(scores.device, non_blocking=True)
    if scores.shape != labels.shape or labels.dtype in (torch.bool, torch.int8):
        return counted_scores(scores, labels)  # which says what is wrong
    scores = scores.detach() if scores.dtype is torch.float64 else scores.detach().float()
    outlier = labels == OUTLIER
    kinds = [scores[kind].sort().values for kind in ((labels != IGNORE) & ~outlier, outlier)]
    if any(kind.isnan().any() for kind in kinds):
        return counted_scores(scores, labels)
    inliers, outliers = (kind.cpu().numpy() for kind in kinds)
    return inliers, outliers, labels.numel() - inliers.size - outliers.size


class Scores:
    """The pooled scores of many frames in arrays, made one sorted array when asked for.

    Small arrays are joined as soon as they add up to LARGE bytes: a large array's memory goes back to the system when
    it is freed, that of many small ones often does not, and joining them all at once would take theirs twice.
    """

    def __init__(self) -> None:
        self.large: list[np.ndarray] = []
        self.small: list[np.ndarray] = []
        self.small_bytes = 0
        self.is_sorted = True
        self.gpu: torch.device | None = None  # that the scores came from, to sort them all

    def add(self, scores: np.ndarray, is_sorted: bool = False) -> None:
        if scores.size:
            self.is_sorted = is_sorted and not self.arrays
            self.small.append(scores)
            self.small_bytes += scores.nbytes
        if self.small_bytes >= LARGE:
            self.large.append(joined(self.small))
            self.small_bytes = 0

    def take_over(self, other: "Scores") -> None:
        if other.arrays:
            self.is_sorted = other.is_sorted and not self.arrays
        self.large.extend(other.large)  # shared: sorting one in place does no harm, as its order carries nothing
        self.small.extend(other.small)
        self.small_bytes += other.small_bytes
        self.gpu = self.gpu or other.gpu
        if self.small_bytes >= LARGE:
            self.large.append(joined(self.small))
            self.small_bytes = 0

    def sorted(self) -> np.ndarray:
        if not self.is_sorted:
            everything, self.large, self.small, self.small_bytes = self.arrays, [], [], 0
            self.large = [joined(everything)]
            sort(self.large[0], self.gpu)
            self.is_sorted = True
        return self.arrays[0] if self.arrays else np.empty(0, np.float32)

    @property
    def arrays(self) -> list[np.ndarray]:
        return self.large + self.small

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


def sort(scores: np.ndarray, gpu: torch.device | None) -> None:
    """In place; on the GPU where there is one with the memory for it"""
    try:
        if gpu is not None:
            scores[:] = torch.from_numpy(scores).to(gpu).sort().values.cpu().numpy()
            return
    except torch.OutOfMemoryError:
        pass
    scores.sort()


def joined(arrays: list[np.ndarray]) -> np.ndarray:
    """One array of all, and the list empty: each is freed once it is copied"""
    if len(arrays) == 1:
        return arrays.pop()
    together = np.empty(sum(array.size for array in arrays), np.result_type(*{array.dtype for array in arrays}))
    end = together.size
    while arrays:  # pages of `together` take memory only once written
        array = arrays.pop()
        together[end - array.size : end] = array
        end -= array.size
    return together
