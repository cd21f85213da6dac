"""Running a model over a data set."""

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.loader import Samples, batches, evaluation_loader, to_device
from engine.pictures import PICTURE_WIDTH, Picture
from engine.precision import FLOAT32, Precision
from engine.processes import broadcast, gather_merged, progress_bar, rank, world_size
from engine.run import Run
from engine.windows import check_sides
from errors import OutOfMemory
from labels import OUTLIER
from metrics import BoundedAnomalyMetrics, ConfusionMatrix


class Frame(NamedTuple):
    """One evaluated image, batch size 1."""

    number: int  # in the data set, from 0
    name: str
    image: Tensor  # (1, 3, H, W) in 0..1
    labels: Tensor  # (1, H, W) uint8, on the CPU, where figures are taken
    class_logits: Tensor  # (1, K, H, W) float32
    dataset_logits: Tensor | None  # (1, 2, H, W) float32; None for a closed-set model


def evaluated_frames(
    model: nn.Module,
    dataset: Samples,
    device: torch.device,
    workers: int = 0,
    title: str = "evaluating",
    precision: Precision = FLOAT32,
) -> Iterator[Frame]:
    """Each frame of the data set through the model once, in order, in eval mode, without gradients.

    Of several processes each has its share: every world_size()-th frame, from number rank() on. The network runs in a
    thread, one frame ahead of the one that the caller is given; on a GPU in a stream of its own.

    precision  of the forward pass; what comes out is float32
    raises     MemoryError where a GPU's memory does not suffice for a frame; what a file of the data set raises,
               after the frames before it; ValueError for a frame smaller than the network takes
    """
    model.eval().to(memory_format=precision.memory_format)
    share = range(rank(), len(dataset), world_size())
    loader = evaluation_loader(dataset, workers, device, process=rank(), processes=world_size())
    samples = ((number, names[0], tensors) for number, (tensors, names) in zip(share, batches(loader), strict=True))
    with progress_bar(len(share), title) as bar:
        for frame in one_ahead(Forward(model, device, precision), samples):
            yield frame
            bar.update()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what lies in the network's stream, which a training that goes on cannot use


class Forward:
    """(number, name, tensors of a batch) -> Frame, whole and ready for whoever made this object."""

    def __init__(self, model: nn.Module, device: torch.device, precision: Precision):
        self.model, self.device, self.precision = model, device, precision
        if device.type == "cuda":
            self.callers = torch.cuda.current_stream(device)
            self.stream = stream_of_the_network(device)
            self.stream.wait_stream(self.callers)  # what it was asked for before, such as the weights

    @torch.inference_mode()
    def __call__(self, sample: tuple[int, str, list[Tensor]]) -> Frame:
        number, name, tensors = sample
        check_sides(self.model, name, *tensors[0].shape[-2:])
        try:
            if self.device.type != "cuda":
                return Frame(number, name, *self.forward(tensors))
            torch.cuda.set_device(self.device)  # of this thread
            with torch.cuda.stream(self.stream):
                frame = Frame(number, name, *self.forward(tensors))
                self.stream.synchronize()
        except torch.OutOfMemoryError as error:
            height, width = tensors[0].shape[-2:]
            raise OutOfMemory(
                f"{self.device} has not enough memory for {name}, {width} x {height} pixels "
                f"({str(error).splitlines()[0]}): evaluate with --precision bfloat16, or with a smaller --tile or "
                "--window where the script has it; or take a GPU with more memory, on which nothing else runs"
            ) from error
        for tensor in frame:
            if isinstance(tensor, Tensor) and tensor.is_cuda:
                tensor.record_stream(self.callers)  # its memory is free once the caller's work on it is done
        return frame

    def forward(self, tensors: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Image, labels, class and dataset logits, as a Frame has them."""
        image, labels = tensors
        [image] = to_device([image], self.device, self.precision.memory_format)
        with self.precision.autocast(self.device):
            output = self.model(image)
        class_logits, dataset_logits = output if isinstance(output, tuple) else (output, None)
        return image, labels, class_logits.float(), None if dataset_logits is None else dataset_logits.float()


@functools.cache
def stream_of_the_network(device: torch.device) -> torch.cuda.Stream:
    """One for all evaluations: memory that was used in one stream is not used again in another."""
    return torch.cuda.Stream(device)


def one_ahead(function: Callable[[Any], Any], inputs: Iterable) -> Iterator:
    """function(each input) in order, computed in a thread while the caller is busy with the one before.

    Inputs are taken in the caller's thread. What an input or the function raises comes in its turn, as it is.
    """

    def submitted() -> Iterator[Future]:
        try:
            for each in inputs:
                yield thread.submit(function, each)
        except Exception as error:
            failed: Future = Future()
            failed.set_exception(error)
            yield failed

    thread = ThreadPoolExecutor(1, "network")
    try:
        for result, _ in pairwise(chain(submitted(), [Future()])):  # one is submitted before the last is waited for
            yield result.result()
    finally:
        thread.shutdown(cancel_futures=True)


def has_outliers(dataset: Samples) -> bool:
    """Whether any label map has an outlier pixel, found at the first that has one. Raises what its files raise."""
    return any((dataset[number][1] == OUTLIER).any() for number in range(len(dataset)))


def predicted_classes(class_logits: Tensor) -> Tensor:
    """(B, K, H, W) -> (B, H, W) uint8, the most probable class: one byte a pixel on the way from a GPU."""
    return class_logits.argmax(1).to(torch.uint8)


def picture_of(frame: Frame, scores: Tensor, open_prediction: Tensor | None = None) -> Picture:
    """What a picture shows of a frame, off the device; scores and open_prediction (1, H, W).

    Of a frame that is twice PICTURE_WIDTH wide or wider, only every second, third ... pixel is moved and kept.
    """
    step = max(1, frame.labels.shape[2] // PICTURE_WIDTH)
    tensors = [frame.image, frame.labels, frame.class_logits, scores, open_prediction]
    image, labels, logits, *others = (tensor[..., ::step, ::step] for tensor in tensors if tensor is not None)
    thinned = [image, labels, predicted_classes(logits), *others]
    return Picture(*(tensor[0].cpu().numpy().copy() for tensor in thinned))


def closed_set_figures(model: nn.Module, dataset: Samples, num_classes: int, run: Run) -> dict[str, float]:
    """{"mIoU": fraction} of the most probable class, over the pixels of known classes, in the run's precision.

    Of several processes each evaluates its share, and all get the figure of all frames.
    """
    confusion = ConfusionMatrix(num_classes)
    for frame in evaluated_frames(model, dataset, run.device, run.workers, "validating", run.precision):
        confusion.update(predicted_classes(frame.class_logits), frame.labels)
    return broadcast({"mIoU": gather_merged(confusion).miou()})


def anomaly_figures(model: nn.Module, dataset: Samples, score: Callable[..., Tensor], run: Run) -> dict[str, float]:
    """{"AP", "FPR95"}, fractions, of score(class_logits, dataset_logits) over the pixels of all frames.

    In the run's precision. Of several processes each evaluates its share, and all get the figures of all frames.

    For validation: in 96 MiB, however many pixels there are, where exact figures would keep 4 bytes of each in process
    0. They may be as far off as BoundedAnomalyMetrics says, a few ten-thousandths.
    """
    anomaly = BoundedAnomalyMetrics()
    for frame in evaluated_frames(model, dataset, run.device, run.workers, "validating", run.precision):
        anomaly.update(score(frame.class_logits, frame.dataset_logits), frame.labels)
    figures = broadcast(gather_merged(anomaly).compute())
    return {name: figures[name] for name in ("AP", "FPR95")}
