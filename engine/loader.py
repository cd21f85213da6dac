"""Feeding samples to the device: seeded sample by sample, sharded over processes, with errors kept readable."""

import contextlib
import errno
import signal
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from errors import LostProcess, OutOfMemory, message_of

SHARED_MEMORY = (
    "/dev/shm has no room for what loader processes hand over ({reason}): take --workers 0, or give a container more "
    "of it, such as with docker run --shm-size 8g"
)
OUT_OF_SHARED_MEMORY = (
    "unable to allocate shared memory",
    "unable to open shared memory object",
    "unable to mmap",
    "unable to write to file </torch_",
    "killed by signal: Bus error",
)


class Samples(Protocol):
    """A data set of samples (image, labels, ..., name), whose length is known."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class SeededSamples(Dataset):
    """Samples by (epoch, index), whose randomness is a function of (seed, epoch, index) alone.

    torch's generator is seeded for the sample and put back as it was. An error that a file causes, and no mistake in
    the code, is returned instead of raised, so that it reaches the main process as it is.
    """

    def __init__(self, dataset: Samples, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, place: tuple[int, int]) -> tuple | Exception:
        epoch, index = place
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: without loader processes it would seed the GPU's generator too.
            torch.default_generator.manual_seed(sample_seed(self.seed, epoch, index))
            try:
                return self.dataset[index]
            except Exception as error:
                if message_of(error) is None:
                    raise
                return error


class EpochSampler(Sampler):
    """The places (epoch, index) of one epoch in a shuffled order, each process its own share of it.

    `epoch` is set before each epoch; the order is a function of (seed, epoch), and so are the first `count` places
    of it, which are dealt out to the processes in turn.
    """

    def __init__(self, length: int, seed: int, count: int, process: int = 0, processes: int = 1):
        self.length, self.seed, self.share = length, seed, range(process, count, processes)
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.share)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(sample_seed(self.seed, self.epoch, self.length))
        order = torch.randperm(self.length, generator=generator).tolist()
        for place in self.share:
            yield self.epoch, order[place]


def sample_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def training_loader(
    dataset: Samples,
    seed: int,
    batch_size: int,
    drop_last: bool,
    workers: int,
    device: torch.device,
    process: int,
    processes: int,
) -> DataLoader:
    """Each process's share of shuffled batches of batch_size; drop_last leaves an incomplete one out.

    Set `.sampler.epoch` before each epoch. The processes together see the batches that one alone would see.
    """
    count = len(dataset) - len(dataset) % batch_size if drop_last else len(dataset)
    return DataLoader(
        SeededSamples(dataset, seed),
        batch_size // processes,
        sampler=EpochSampler(len(dataset), seed, count, process, processes),
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_interrupts_to_the_main_process,
        generator=torch.Generator(),  # its own, so that making an iterator draws nothing from the training's
    )


def evaluation_loader(
    dataset: Samples, workers: int, device: torch.device, batch_size: int = 1, process: int = 0, processes: int = 1
) -> DataLoader:
    """A process's share of the samples in their order, each once; one at a time, for frames may differ in size."""
    return DataLoader(
        SeededSamples(dataset, seed=0),
        batch_size,
        sampler=[(0, index) for index in range(process, len(dataset), processes)],
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_interrupts_to_the_main_process,
        generator=torch.Generator(),
    )


def batches(loader: DataLoader) -> Iterator[tuple[list[Tensor], list[str]]]:
    """(tensors, names) of each batch; raises what a sample's file raised, and a clear error for a dead worker."""
    try:
        with dead_worker_explained():
            iterator = iter(loader)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOSYS) or error.filename is not None:
            raise
        raise OutOfMemory(SHARED_MEMORY.format(reason=error.strerror)) from error  # for the processes' semaphores
    while True:
        with dead_worker_explained():
            try:
                batch = next(iterator)
            except StopIteration:
                return
        if isinstance(batch, Exception):
            raise batch
        *tensors, names = batch
        yield tensors, names


@contextlib.contextmanager
def dead_worker_explained() -> Iterator[None]:
    """A clear error for a dead loader process, and for too little memory to hand its samples over in.

    torch raises the former wherever the main process is just then.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        lines = said.strip().splitlines()
        if any(words in said for words in OUT_OF_SHARED_MEMORY):  # in a loader process or in this one
            raise OutOfMemory(SHARED_MEMORY.format(reason=lines[-1].removeprefix("RuntimeError: "))) from error
        if not said.startswith("DataLoader worker"):  # "Caught ... in DataLoader worker" is a worker's own error
            raise
        raise LostProcess(
            f"a loader process died ({lines[0]}); most often memory or /dev/shm ran out: lower --workers"
        ) from error


def collate(samples: list) -> list | Exception:
    errors = [sample for sample in samples if isinstance(sample, Exception)]
    return errors[0] if errors else default_collate(samples)


def to_device(
    tensors: list[Tensor], device: torch.device, memory_format: torch.memory_format = torch.channels_last
) -> list[Tensor]:
    """Pixels travel as uint8: images (B, 3, H, W) become float32 in 0..1 on the device, label maps (B, H, W) int64.

    n patches for each image, (B, n, 3, h, w), become floats as well, and masks stay bool. Places, int64, stay where
    they are: the host reads them, and would have to wait for a GPU.

    memory_format  of the images
    """
    moved = []
    for tensor in tensors:
        if tensor.dtype == torch.int64:
            moved.append(tensor)
            continue
        tensor = tensor.to(device, non_blocking=True)
        if tensor.dtype == torch.uint8 and tensor.dim() == 4:
            tensor = tensor.to(torch.float32, memory_format=memory_format) / 255
        elif tensor.dtype == torch.uint8 and tensor.dim() == 5:
            tensor = tensor.float() / 255
        elif tensor.dtype == torch.uint8:
            tensor = tensor.long()
        moved.append(tensor)
    return moved


def batches_on_device(
    loader: DataLoader, device: torch.device, memory_format: torch.memory_format
) -> Iterator[tuple[list[Tensor], list[str]]]:
    """`batches` through `to_device`; to a GPU in a stream of its own, while it still computes the steps before."""
    uploads = torch.cuda.Stream(device) if device.type == "cuda" else None
    for tensors, names in batches(loader):
        if uploads is None:
            yield to_device(tensors, device, memory_format), names
            continue
        with torch.cuda.stream(uploads):
            moved = to_device(tensors, device, memory_format)
        current = torch.cuda.current_stream(device)
        current.wait_stream(uploads)
        for tensor in moved:
            if tensor.is_cuda:
                tensor.record_stream(current)  # its memory is free once the step's work on it is done
        yield moved, names


@contextlib.contextmanager
def same_noise(device: torch.device) -> Iterator[None]:
    """What is drawn inside is the same at every visit, and takes nothing from the training's random numbers."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def leave_interrupts_to_the_main_process(_worker: int) -> None:
    """Also, a batch that the interrupted main process did not fetch to its end is no error to print."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    show = sys.excepthook
    sys.excepthook = lambda kind, *error: None if issubclass(kind, (ConnectionError, EOFError)) else show(kind, *error)
