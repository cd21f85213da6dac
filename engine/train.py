"""The training loop: epochs, schedule, logs, checkpoints and resume."""

import contextlib
import itertools
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from engine import checkpoint
from engine.loader import batches, sample_seed, to_device, training_loader
from engine.processes import average_buffers, from_process_0, progress_bar, rank, same_buffers, world_size
from engine.recipe import Recipe
from engine.run import Run, check_same_recipe, flat_recipe
from engine.step import Step, Update, smallest_part


def fit(
    steps: Callable | Step | dict[str, Callable | Step],
    state: dict[str, Any],
    dataset: Dataset,
    recipe: Recipe,
    run: Run,
    validate: Callable[[nn.Module], dict[str, float]],
    best: str,
    lower_is_better: Collection[str] = (),
    draw: Callable[[nn.Module, Path], None] | None = None,
) -> dict[str, float]:
    """Train state["model"] for recipe.epochs and return the last validation figures.

    steps     a Step, or just its loss: (model, *tensors of a batch) -> loss terms by name, ready to sum; images float32
              in 0..1. Where a batch is used more than once: {name of an optimizer in the state: its step}, taken in
              this order
    state     the model, the optimizer and whatever else has a state_dict to go into the checkpoints. "optimizer"
              follows the recipe's schedule; other schedules in the state are stepped once an epoch
    dataset   samples (image, labels, ..., name), see engine.loader
    validate  the model in eval mode -> figures by name; `best` names the one that chooses best.pth. They are
              fractions, shown as percent, but for those named in lower_is_better, which have units of their own
    draw      (model in eval mode, path): a picture of how far it is, after every epoch

    Writes into run.folder: recipe.yaml, log.jsonl (each step's loss terms, each epoch's figures), TensorBoard
    events, pictures/epoch_NNN.png, last.pt after each epoch, best.pth and final.pth (plain state_dicts),
    final_NAME.pth of other networks in the state. A run stopped at any moment goes on with --resume from its last.pt
    and ends with the same weights on a CPU.

    Of several processes (torchrun) each takes its share of every batch and of the validation; process 0 writes. What
    the steps draw is a function of the seed, the epoch and the process. A run may go on with another number of them.

    Raises ValueError for fewer samples than a batch, FloatingPointError for a loss that is not finite, MemoryError
    where a GPU's memory does not suffice.
    """
    if len(dataset) < recipe.batch_size:
        raise ValueError(f"{len(dataset)} training images are fewer than batch_size {recipe.batch_size}; lower it")
    smallest_part(len(dataset), recipe)
    steps = steps if isinstance(steps, dict) else {"optimizer": steps}
    model = state["model"].to(memory_format=torch.channels_last)
    if recipe.sync_batchnorm:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, but for a model that is a BatchNorm itself
    state = state | {"schedule": make_schedule(state["optimizer"], recipe)}
    schedules = [part for name, part in state.items() if name.endswith("schedule")]
    networks = [part for part in state.values() if isinstance(part, nn.Module)]
    loader = training_loader(
        dataset, run.seed, recipe.batch_size, recipe.drop_last, run.workers, run.device, rank(), world_size()
    )
    progress = {"epoch": 0, "step": 0, "best": -math.inf, "figures": {}}
    given = torch.compile(model) if run.compile else model
    updates = {
        name: Update(step if isinstance(step, Step) else Step(step), given, networks, state[name], recipe, run.device)
        for name, step in steps.items()
    }
    state |= {f"{name}_scaler": update.scaler for name, update in updates.items() if update.scaler.is_enabled()}
    if from_process_0(run.resume and (run.folder / "last.pt").exists()):
        progress = restore(state, run, len(dataset))
    elif not rank():
        run.folder.mkdir(parents=True, exist_ok=run.resume)
        checkpoint.write_whole(yaml.safe_dump(run.record, sort_keys=False).encode(), run.folder / "recipe.yaml")
    log = RunLog(run, progress["step"])

    try:
        for epoch in range(progress["epoch"], recipe.epochs):
            started = time.monotonic()
            loader.sampler.epoch = epoch
            torch.manual_seed(sample_seed(run.seed, epoch, rank(), world_size()))
            progress["step"] = train_epoch(updates, state, loader, recipe, run, log, progress["step"])
            for schedule in schedules:
                schedule.step()
            for network in networks:
                same_buffers(network)
            if recipe.statistics_batches:
                estimate_statistics(model, loader, recipe.statistics_batches, run.device)
            model.eval()
            try:
                figures = from_process_0(validate(model))
                if draw and not rank():
                    draw(model, run.folder / "pictures" / f"epoch_{epoch + 1:03d}.png")
            except FloatingPointError as error:
                raise FloatingPointError(f"{error}; terms of the last step: {log.terms}") from error
            told = told_figures(figures, lower_is_better)
            log.epoch(epoch, recipe.epochs, progress["step"], figures, told, time.monotonic() - started)
            progress |= {"epoch": epoch + 1, "figures": figures}
            merit = -figures[best] if best in lower_is_better else figures[best]
            if merit > progress["best"]:
                progress["best"] = merit
                save(model.state_dict(), run.folder / "best.pth")
            save(everything(state, progress, run, len(dataset)), run.folder / "last.pt")
        model.eval()
        for name, part in state.items():
            if isinstance(part, nn.Module):
                save(part.state_dict(), run.folder / ("final.pth" if part is model else f"final_{name}.pth"))
    except torch.OutOfMemoryError as error:
        share = recipe.batch_size // world_size()
        finer = next((n for n in range(recipe.accumulation + 1, share + 1) if share % n == 0), None)
        raise MemoryError(
            f"{run.device} has not enough memory for {share // recipe.accumulation} crops of {recipe.crop_size} pixels "
            f"at once ({str(error).splitlines()[0]}): the same training takes less with --checkpointing true, "
            + (f"--accumulation {finer}, " if finer else "")
            + "or more GPUs (torchrun --nproc_per_node N); another one with --precision bfloat16, a smaller "
            "--batch_size or --crop_size"
        ) from error
    except KeyboardInterrupt:
        done = f"after {progress['epoch']} of {recipe.epochs} epochs"
        again = run.record["command"] + ("" if run.resume else " --resume")
        print(f"\nstopped {done}; go on with: {again}")
        raise SystemExit(130) from None
    finally:
        log.close()
    if progress["best"] > -math.inf:
        told = f"best.pth with {best} {abs(progress['best']):.4f}"
    else:
        told = f"no best.pth, for {best} was never defined on the validation frames"
    print(f"finished: {run.folder}/final.pth, and {told}")
    return progress["figures"]


def train_epoch(
    updates: dict[str, Update],
    state: dict[str, Any],
    loader: DataLoader,
    recipe: Recipe,
    run: Run,
    log: "RunLog",
    steps_done: int,
) -> int:
    """One pass over the loader; returns the number of steps done since the start of the run."""
    state["model"].train()
    skipped: dict[str, int] = {}
    with progress_bar(len(loader), f"epoch {loader.sampler.epoch + 1}/{recipe.epochs}") as bar:
        for tensors, names in batches(loader):
            tensors = to_device(tensors, run.device)
            values, steps_done = {}, steps_done + 1
            rates = {f"{name}/lr".removeprefix("optimizer/"): learning_rate(state[name]) for name in updates}
            for name, update in updates.items():
                try:
                    values |= update.gradients(tensors)
                except FloatingPointError as error:
                    told = f"{error}; terms of step {steps_done} so far: {values}, of the step before: {log.terms}"
                    raise FloatingPointError(told) from error
                if not all(math.isfinite(value) for value in values.values()):
                    log.step(loader.sampler.epoch, steps_done, rates, values)
                    raise FloatingPointError(
                        f"the loss is not finite in step {steps_done}: {values}; files of the batch: "
                        f"{', '.join(names)}. Lower the learning rate or the weight of the term that ran away; for the "
                        "likelihood term there is likelihood_margin"
                    )
                taken = update.apply()
                if update.scaler.is_enabled():
                    rates[f"{name}/scale"] = update.scaler.get_scale()
                skipped[name] = skipped.get(name, 0) + (not taken)
            log.step(loader.sampler.epoch, steps_done, rates, values)
            bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
            bar.update()
    for name, count in skipped.items():
        if count == len(loader) and not rank():
            tqdm.write(f"note: {name} took none of the epoch's {count} steps, for its float16 gradients overflowed")
    return steps_done


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    return optimizer.param_groups[-1]["lr"]


def told_figures(figures: dict[str, float], lower_is_better: Collection[str]) -> str:
    """Fractions as percent, the others as they are."""
    return "  ".join(
        f"{name} {value:.3f}" if name in lower_is_better else f"{name} {100 * value:.1f} %"
        for name, value in figures.items()
    )


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> lr_scheduler.LRScheduler:
    """Stepped once an epoch; each group starts from its own learning rate."""
    if recipe.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs, eta_min=recipe.lr_min)
    if recipe.schedule == "poly":
        return lr_scheduler.PolynomialLR(optimizer, total_iters=recipe.epochs, power=0.9)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


@torch.no_grad()
def estimate_statistics(model: nn.Module, loader: DataLoader, count: int, device: torch.device) -> None:
    """Replace BatchNorm's running statistics by the mean over the images of the epoch's first `count` batches.

    Of several processes, by the mean over theirs.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all that is seen
    model.train()
    for tensors, _ in itertools.islice(batches(loader), count):
        model(to_device(tensors[:1], device)[0])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    average_buffers(norms, ("running_mean", "running_var"))


def everything(state: dict[str, Any], progress: dict[str, Any], run: Run, samples: int) -> dict[str, Any]:
    """All that the run needs to go on."""
    parts = {name: part.state_dict() for name, part in state.items()}
    return parts | {"progress": progress, "samples": samples, "recipe": flat_recipe(run.record)}


def save(content: dict[str, Any], path: Path) -> None:
    """Written by process 0, which has what the others have."""
    if not rank():
        checkpoint.save(content, path)


def restore(state: dict[str, Any], run: Run, samples: int) -> dict[str, Any]:
    """Load last.pt into the state; returns the progress."""
    path = run.folder / "last.pt"
    if not path.exists():
        raise FileNotFoundError(f"process {rank()} does not see {path}; all processes need the same logs/")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    check_same_recipe(saved["recipe"], flat_recipe(run.record), run.folder)
    if saved["samples"] != samples:
        raise ValueError(
            f"{path} was trained on {saved['samples']} images, there are {samples} now; resume on the same data"
        )
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return saved["progress"]


class RunLog:
    """log.jsonl and TensorBoard events; what was logged after the last checkpoint is dropped when a run goes on.

    Of several processes, process 0 writes.
    """

    def __init__(self, run: Run, steps_done: int):
        self.terms: dict[str, float] = {}  # of the last step
        self.writes = not rank()
        if not self.writes:
            return
        path = run.folder / "log.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if logged_step(line) <= steps_done]
            checkpoint.write_whole("".join(line + "\n" for line in kept).encode(), path)
        # Written line by line, so that a killed run keeps its log.
        self.file = open(path, "a", buffering=1)  # noqa: SIM115
        self.events = SummaryWriter(run.folder, purge_step=steps_done + 1)

    def write(self, line: dict) -> None:
        try:
            self.file.write(json.dumps(line) + "\n")
        except OSError as error:
            told = f"could not write {self.file.name} ({error.strerror}); make room, then go on with --resume"
            raise OSError(error.errno, told) from error

    def step(self, epoch: int, step: int, rates: dict[str, float], terms: dict[str, float]) -> None:
        self.terms = terms
        if not self.writes:
            return
        self.write({"epoch": epoch + 1, "step": step, **rates, **terms})
        with interrupts_held_back():
            for name, value in terms.items():
                self.events.add_scalar(f"loss/{name}", value, step)
            for name, value in rates.items():
                self.events.add_scalar(name, value, step)

    def epoch(self, epoch: int, epochs: int, step: int, figures: dict[str, float], told: str, seconds: float) -> None:
        if not self.writes:
            return
        self.write({"epoch": epoch + 1, "step": step, "validation": figures, "seconds": seconds})
        with interrupts_held_back():
            for name, value in figures.items():
                self.events.add_scalar(f"validation/{name}", value, step)
        tqdm.write(f"epoch {epoch + 1}/{epochs}  {told}  {seconds:.0f} s")

    def close(self) -> None:
        if not self.writes:
            return
        with contextlib.suppress(OSError):  # a full disk was told of when the line was written
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
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # the line that a killed run was writing
        return math.inf
