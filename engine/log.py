"""What a run says of itself: log.jsonl, TensorBoard events, and a line for each epoch on the terminal."""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from engine.device import peak_memory
from engine.files import write_whole
from engine.processes import is_main_process
from engine.readings import Readings
from engine.results import without_nan
from engine.run import Run
from errors import NotFinite, UnusableFile

SMALLEST_SCALE = 1.0  # of a float16 loss; it begins at 65536 and is halved where gradients overflow


class RunLog:
    """log.jsonl and TensorBoard events; what was logged after the last checkpoint is dropped when a run goes on.

    Of several processes, process 0 writes.
    """

    def __init__(self, run: Run, steps_done: int):
        self.terms: dict[str, float] = {}  # of the last step
        self.writes = is_main_process()
        if not self.writes:
            return
        path = run.folder / "log.jsonl"
        if path.exists():
            kept = [
                line
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
                if logged_step(line) <= steps_done
            ]
            write_whole("".join(line + "\n" for line in kept).encode(), path)
        # Written line by line, so that a killed run keeps its log.
        self.file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        self.events = SummaryWriter(run.folder, purge_step=steps_done + 1)

    def write(self, line: dict) -> None:
        try:
            self.file.write(json.dumps(without_nan(line), allow_nan=False) + "\n")
        except OSError as error:
            message = f"could not write {self.file.name} ({error.strerror}); make room, then go on with --resume"
            raise UnusableFile(error.errno, message) from error

    def step(self, epoch: int, step: int, rates: dict[str, float], terms: dict[str, float]) -> None:
        self.terms = terms
        if not self.writes:
            return
        self.write({"epoch": epoch + 1, "step": step, **rates, **terms})
        self.add_scalars({f"loss/{name}": value for name, value in terms.items()} | rates, step)

    def epoch(self, epoch: int, step: int, figures: dict[str, float] | None, cost: dict[str, float]) -> None:
        """figures  of the validation, None where the epoch had none"""
        if not self.writes:
            return
        validation = {} if figures is None else {"validation": figures}
        self.write({"epoch": epoch + 1, "step": step, **validation, **cost})
        numbers = {f"validation/{name}": value for name, value in (figures or {}).items()}
        self.add_scalars(numbers | {f"cost/{name}": value for name, value in cost.items()}, step)

    def add_scalars(self, numbers: dict[str, float], step: int) -> None:
        with interrupts_held_back():
            for name, value in numbers.items():
                self.events.add_scalar(name, value, step)

    def close(self) -> None:
        if not self.writes:
            return
        with contextlib.suppress(OSError):  # the error about a full disk came when the line was written
            self.file.close()
        with contextlib.suppress(OSError):
            self.events.close()


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Ctrl-C takes effect at the end: one that hits the queue of TensorBoard's writer makes closing it wait minutes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived = []
    handler = signal.signal(signal.SIGINT, lambda *interrupt: arrived.append(interrupt))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if arrived and callable(handler):
        handler(*arrived[0])


def logged_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the line that a killed run was writing
        return math.inf


class TakenStep(NamedTuple):
    """A step whose numbers are still on the device."""

    number: int
    files: list[str]
    rates: dict[str, float]


class Number(NamedTuple):
    """What a number of a step is."""

    kind: str  # "term" of the loss; of an optimizer in float16 "scale" of its loss, and "taken", whether it stepped
    name: str  # of the term or the optimizer


class StepNumbers:
    """The numbers of an epoch's steps: logged as they come from the device, and refused where they are not finite."""

    def __init__(self, optimizers: list[str], device: torch.device, log: RunLog, epoch: int, bar: tqdm):
        self.readings, self.log, self.epoch, self.bar = Readings(device), log, epoch, bar
        self.left_out = dict.fromkeys(optimizers, 0)  # steps, for float16 gradients that overflowed

    def put(self, step: TakenStep, numbers: dict[Number, Tensor]) -> None:
        self.readings.put(step, numbers)
        self.take()

    def take(self, everything: bool = False) -> None:
        """Those that have come; everything: all, waited for."""
        for step, numbers in self.readings.ready(everything):
            self.check(step, numbers)

    def check(self, step: TakenStep, numbers: dict[Number, float]) -> None:
        terms = {name: number for (kind, name), number in numbers.items() if kind == "term"}
        scales = {name: number for (kind, name), number in numbers.items() if kind == "scale"}
        for (kind, name), number in numbers.items():
            if kind == "taken":
                self.left_out[name] += not number
        if any(scale < SMALLEST_SCALE for scale in scales.values()):
            raise NotFinite(
                "gradients are not finite in float16, however small the loss is scaled: take --precision bfloat16 or "
                "float32, or a lower learning rate"
            )
        before = self.log.terms
        rates = step.rates | {f"{name}/scale": scale for name, scale in scales.items()}
        self.log.step(self.epoch, step.number, rates, terms)
        if not all(math.isfinite(term) for term in terms.values()):
            raise NotFinite(
                f"the loss is not finite in step {step.number}: {terms}; terms of the step before: {before}; files of "
                f"the batch: {', '.join(step.files)}. Lower the learning rate (of a flow that draws the negatives, its "
                "own) or the weight of the term that ran away; for the likelihood term there is likelihood_margin. "
                "Where only the class term is not finite, a label may be none of the classes: see tools.check_data"
            )
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in terms.items()}, refresh=False)


class Clock:
    """What an epoch costs: seconds, images a second, and the most memory that the run has taken so far."""

    def __init__(self, device: torch.device):
        self.device, self.started = device, time.monotonic()

    def training_ends(self, images: int) -> None:
        """images  that all processes together have trained on"""
        self.images, self.trained = images, time.monotonic()

    def cost(self) -> dict[str, float]:
        now = time.monotonic()
        return {
            "seconds": now - self.started,
            "validation_seconds": now - self.trained,
            "images_per_second": self.images / (self.trained - self.started),
            "peak_memory_mib": peak_memory(self.device) / 2**20,
        }


def print_epoch(title: str, figures: dict[str, float] | None, fractions: bool, cost: dict[str, float]) -> None:
    """The figures, fractions as percent and others as they are, and what the epoch took; process 0 prints."""
    if not is_main_process():
        return
    parts = [
        f"{name} {100 * value:.1f} %" if fractions else f"{name} {value:.3f}" for name, value in (figures or {}).items()
    ]
    parts += [f"{cost['seconds']:.0f} s"] + [f"validation {cost['validation_seconds']:.0f} s"] * (figures is not None)
    parts += [f"{cost['images_per_second']:.1f} images/s", f"{cost['peak_memory_mib']:,.0f} MiB"]
    tqdm.write("  ".join([title, *parts]))
