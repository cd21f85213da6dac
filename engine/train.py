"""The training loop: epochs, schedule, logs, checkpoints and resume."""

import contextlib
import itertools
import json
import math
import shlex
import signal
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from engine import checkpoint
from engine.evaluate import without_nan
from engine.loader import batches, batches_on_device, sample_seed, to_device, training_loader
from engine.precision import Precision
from engine.processes import average_buffers, from_process_0, progress_bar, rank, same_buffers, world_size
from engine.readings import Readings
from engine.recipe import Recipe
from engine.run import Run, check_same_recipe, compare_files, flat_recipe, open_folder, peak_memory, write_record
from engine.step import Step, Update, smallest_part
from engine.windows import check_sides
from errors import MissingFile, NotFinite, OutOfMemory, UnusableFile, WrongInput

OLDER = "last.pt.1"  # the checkpoint before last.pt
SMALLEST_SCALE = 1.0  # of a float16 loss; it begins at 65536 and is halved where gradients overflow


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
              follows the recipe's schedule; other learning rate schedules in the state are stepped once an epoch
    dataset   samples (image, labels, ..., name), see engine.loader
    validate  the model in eval mode -> figures by name; `best` names the one that chooses best.pth. They are
              fractions, shown as percent, but for those named in lower_is_better, which have units of their own
    draw      (model in eval mode, path): a picture of how far it is, after every validation

    Writes into run.folder: recipe.yaml, log.jsonl (each step's loss terms, each epoch's figures, speed and memory),
    TensorBoard events, pictures/epoch_NNN.png, last.pt after each epoch, best.pth and final.pth (plain state_dicts),
    final_NAME.pth of other networks in the state. A run stopped at any moment goes on with --resume from its last.pt
    and ends with the same weights on a CPU.

    Of several processes (torchrun) each takes its share of every batch and of the validation; process 0 writes. What
    the steps draw is a function of the seed, the epoch and the process. A run may go on with another number of them.

    Raises ValueError for fewer samples than a batch and crops smaller than the network takes, FileExistsError where
    another process trains in run.folder, FloatingPointError for a loss that is not finite, MemoryError where a GPU's
    memory does not suffice.
    """
    if len(dataset) < recipe.batch_size:
        raise WrongInput(f"{len(dataset)} training images are fewer than batch_size {recipe.batch_size}; lower it")
    smallest_part(len(dataset), recipe)
    check_sides(state["model"], "crop_size", recipe.crop_size, recipe.crop_size)
    if run.compile and recipe.checkpointing:
        raise WrongInput(
            "--compile and --checkpointing true do not go together: the parts that are computed again would not be "
            "compiled. Leave one of them out; --accumulation saves memory beside --compile, too"
        )
    steps = steps if isinstance(steps, dict) else {"optimizer": steps}
    model = state["model"].to(memory_format=run.precision.memory_format)
    if recipe.sync_batchnorm:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, but for a model that is a BatchNorm itself
    state = state | {"schedule": make_schedule(state["optimizer"], recipe)}
    schedules = [part for part in state.values() if isinstance(part, lr_scheduler.LRScheduler)]
    networks = [part for part in state.values() if isinstance(part, nn.Module)]
    loader = training_loader(
        dataset, run.seed, recipe.batch_size, recipe.drop_last, run.workers, run.device, rank(), world_size()
    )
    progress = {"epoch": 0, "step": 0, "best": -math.inf, "figures": {}}
    given = torch.compile(model, dynamic=False) if run.compile else model  # crops are of one size
    updates = {
        name: Update(
            step if isinstance(step, Step) else Step(step),
            given,
            networks,
            state[name],
            recipe,
            run.device,
            run.precision,
            run.graphs and not run.compile,
        )
        for name, step in steps.items()
    }
    state |= {f"{name}_scaler": update.scaler for name, update in updates.items() if update.scaler.is_enabled()}
    lock = None if rank() else open_folder(run)
    if from_process_0(run.resume and any((run.folder / name).exists() for name in ("last.pt", OLDER))):
        progress = restore(state, run, len(dataset))
        if not rank():
            compare_files(run, dataset, progress["epoch"])
    elif not rank():
        compare_files(run, dataset, 0)
        write_record(run.folder, run.record)
    log = RunLog(run, progress["step"])

    try:
        for epoch in range(progress["epoch"], recipe.epochs):
            clock, before = Clock(run.device), progress["step"]
            loader.sampler.epoch = epoch
            torch.manual_seed(sample_seed(run.seed, epoch, rank(), world_size()))
            progress["step"] = train_epoch(updates, state, loader, recipe, run, log, before)
            for schedule in schedules:
                step_schedule(schedule)
            for network in networks:
                same_buffers(network)
            clock.training_ends(images=min((progress["step"] - before) * recipe.batch_size, len(dataset)))
            figures = None
            if (epoch + 1) % run.validate_every == 0 or epoch + 1 == recipe.epochs:
                for update in updates.values():
                    update.forget()  # a validation needs the memory
                if recipe.statistics_batches:
                    estimate_statistics(model, loader, recipe.statistics_batches, run.device, run.precision)
                model.eval()
                try:
                    figures = from_process_0(validate(model))
                    if draw and not rank():
                        draw(model, run.folder / "pictures" / f"epoch_{epoch + 1:03d}.png")
                except FloatingPointError as error:
                    raise NotFinite(f"{error}; terms of the last step: {log.terms}") from error
            cost = clock.cost()
            message = epoch_message(figures, lower_is_better, cost)
            log.epoch(epoch, recipe.epochs, progress["step"], figures, cost, message)
            progress["epoch"] = epoch + 1
            if figures is not None:
                progress["figures"] = figures
                merit = -figures[best] if best in lower_is_better else figures[best]
                if merit > progress["best"]:
                    progress["best"] = merit
                    save(model.state_dict(), run.folder / "best.pth")
            content = everything(state, progress, run, len(dataset))
            save(content, run.folder / "last.pt", kept=run.folder / OLDER)
        model.eval()
        for name, part in state.items():
            if isinstance(part, nn.Module):
                save(part.state_dict(), run.folder / ("final.pth" if part is model else f"final_{name}.pth"))
    except torch.OutOfMemoryError as error:
        share = recipe.batch_size // world_size()
        finer = next((n for n in range(recipe.accumulation + 1, share + 1) if share % n == 0), None)
        raise OutOfMemory(
            f"{run.device} has not enough memory for {share // recipe.accumulation} crops of {recipe.crop_size} pixels "
            f"at once ({str(error).splitlines()[0]}): the same training takes less with --checkpointing true, "
            "--no_graphs, "
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
        if lock is not None:
            lock.release()
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
    epoch, readings = loader.sampler.epoch, Readings(run.device)
    left_out = dict.fromkeys(updates, 0)  # steps, for float16 gradients that overflowed

    def note(step: TakenStep, numbers: dict[str, float]) -> None:
        rates, terms = dict(step.rates), {}
        for name, number in numbers.items():
            kind, _, key = name.rpartition("/")
            if key == "taken":
                left_out[kind] += not number
            else:
                (rates if key == "scale" else terms)[name] = number
        if any(name.endswith("/scale") and rate < SMALLEST_SCALE for name, rate in rates.items()):
            raise NotFinite(
                "gradients are not finite in float16, however small the loss is scaled: take --precision bfloat16 or "
                "float32, or a lower learning rate"
            )
        before = log.terms
        log.step(epoch, step.number, rates, terms)
        if not all(math.isfinite(term) for term in terms.values()):
            raise NotFinite(
                f"the loss is not finite in step {step.number}: {terms}; terms of the step before: {before}; files of "
                f"the batch: {', '.join(step.files)}. Lower the learning rate (of a flow that draws the negatives, its "
                "own) or the weight of the term that ran away; for the likelihood term there is likelihood_margin. "
                "Where only the class term is not finite, a label may be none of the classes: see tools.check_data"
            )
        bar.set_postfix({name: f"{value:.3f}" for name, value in terms.items()}, refresh=False)

    with progress_bar(len(loader), f"epoch {epoch + 1}/{recipe.epochs}") as bar:
        for tensors, files in batches_on_device(loader, run.device, run.precision.memory_format):
            steps_done += 1
            numbers: dict[str, Tensor] = {}
            rates = {f"{name}/lr".removeprefix("optimizer/"): learning_rate(state[name]) for name in updates}
            for name, update in updates.items():
                try:
                    numbers |= update.gradients(tensors)
                except FloatingPointError as error:
                    so_far = {name: number.item() for name, number in numbers.items()}
                    raise NotFinite(
                        f"{error}; terms of step {steps_done} so far: {so_far}, of the step before: {log.terms}"
                    ) from error
                numbers |= {f"{name}/{key}": number for key, number in update.apply().items()}
            readings.put(TakenStep(steps_done, files, rates), numbers)
            for step in readings.ready():
                note(*step)
            bar.update()
        for step in readings.ready(everything=True):
            note(*step)
    for name, count in left_out.items():
        if count == len(loader) and not rank():
            tqdm.write(f"note: {name} took none of the epoch's {count} steps, for its float16 gradients overflowed")
    return steps_done


class TakenStep(NamedTuple):
    """A step whose numbers are still on the device."""

    number: int
    files: list[str]
    rates: dict[str, float]


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


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    return optimizer.param_groups[-1]["lr"]


def epoch_message(figures: dict[str, float] | None, lower_is_better: Collection[str], cost: dict[str, float]) -> str:
    """Fractions as percent, other figures as they are, and what the epoch took."""
    parts = [
        f"{name} {value:.3f}" if name in lower_is_better else f"{name} {100 * value:.1f} %"
        for name, value in (figures or {}).items()
    ]
    parts += [f"{cost['seconds']:.0f} s"] + [f"validation {cost['validation_seconds']:.0f} s"] * (figures is not None)
    parts += [f"{cost['images_per_second']:.1f} images/s", f"{cost['peak_memory_mib']:,.0f} MiB"]
    return "  ".join(parts)


def step_schedule(schedule: lr_scheduler.LRScheduler) -> None:
    """One epoch on. Torch warns where the optimizer took no step yet, as in float16, where the log says so itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)` before")
        schedule.step()


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe) -> lr_scheduler.LRScheduler:
    """Stepped once an epoch; each group starts from its own learning rate."""
    if recipe.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs, eta_min=recipe.lr_min)
    if recipe.schedule == "poly":
        return lr_scheduler.PolynomialLR(optimizer, total_iters=recipe.epochs, power=0.9)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


@torch.no_grad()
def estimate_statistics(
    model: nn.Module, loader: DataLoader, count: int, device: torch.device, precision: Precision
) -> None:
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
        [images] = to_device(tensors[:1], device, precision.memory_format)
        with precision.autocast(device):
            model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    average_buffers(norms, ("running_mean", "running_var"))


def everything(state: dict[str, Any], progress: dict[str, Any], run: Run, samples: int) -> dict[str, Any]:
    """All that the run needs to go on."""
    parts = {name: part.state_dict() for name, part in state.items()}
    tensors = {name: checkpoint.count_tensors(part) for name, part in parts.items()}  # see restore
    recipe = flat_recipe(run.record)
    return parts | {"progress": progress, "samples": samples, "recipe": recipe, "tensors": tensors}


def save(content: dict[str, Any], path: Path, kept: Path | None = None) -> None:
    """Written by process 0, which has what the others have."""
    if not rank():
        checkpoint.save(content, path, kept)


def restore(state: dict[str, Any], run: Run, samples: int) -> dict[str, Any]:
    """Load last.pt into the state; returns the progress.

    Raises WrongInput where the file is damaged, of another recipe or does not fit the state, which is then untouched.
    """
    path = run.folder / "last.pt"
    if not path.exists():
        lost = f"process {rank()} does not see {path}; all processes need the same logs/"
        raise MissingFile(lost if rank() else f"no {path}. {way_out(run.folder)}")
    try:
        saved = checkpoint.load(path)
    except WrongInput as error:
        raise WrongInput(f"{error}. {way_out(run.folder)}") from error
    # A run may go on in another precision, with a scaler or without.
    parts = {
        name: part
        for name, part in state.items()
        if not (isinstance(part, torch.amp.GradScaler) and isinstance(saved, dict) and name not in saved)
    }
    problem = content_problem(parts, saved)
    if problem is None:
        check_same_recipe(
            {key: value for key, value in saved["recipe"].items() if key != "flow_state"}, run
        )  # of older
        problem = checkpoint.parts_problem(parts, saved, saved.get("tensors", {}))
    if problem:
        raise WrongInput(f"{path} does not fit this run: {problem}. {way_out(run.folder)}")
    if saved["samples"] != samples:
        raise WrongInput(
            f"{path} was trained on {saved['samples']} images, there are {samples} now; resume on the same data"
        )
    for name, part in parts.items():
        part.load_state_dict(saved[name])
        if isinstance(part, torch.optim.Optimizer):
            lay_out_as_weights(part)
    return saved["progress"]


def lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Moments lie in memory as their weights do: fused optimizers go through both by address.

    A checkpoint has them as they lay in its run, which may have had another precision or device.
    """
    for weight, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                moments[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def content_problem(parts: dict[str, Any], saved: Any) -> str | None:
    """Whether a checkpoint holds what `everything` puts into it, by kind."""
    if not isinstance(saved, dict):
        return "it holds no parts of a run"
    kinds = {"progress": dict, "samples": int, "recipe": dict, "tensors": dict}
    saved = {"tensors": {}} | saved  # older files have none
    missing = [key for key in (*parts, *kinds) if key not in saved]
    if missing:
        return f"it has no {missing[0]}"
    wrong = [key for key, kind in kinds.items() if not isinstance(saved[key], kind)]
    if not wrong:
        numbers = {"epoch": int, "step": int, "best": (int, float), "figures": dict}
        wrong = [key for key, kind in numbers.items() if not isinstance(saved["progress"].get(key), kind)]
    return f"its {wrong[0]} is not sound" if wrong else None


def way_out(folder: Path) -> str:
    """How to go on where last.pt cannot be used."""
    older = folder / OLDER
    try:
        epochs = checkpoint.load(older)["progress"]["epoch"]
    except (OSError, ValueError, TypeError, KeyError):
        return f"No older one is whole beside it: start a new run under another --exp_name, from {folder}/best.pth"
    return (
        f"The one before it is whole, of {epochs} epochs: put it in its place and resume again: "
        f"mv {shlex.quote(str(older))} {shlex.quote(str(folder / 'last.pt'))}"
    )


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
            kept = [
                line
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
                if logged_step(line) <= steps_done
            ]
            checkpoint.write_whole("".join(line + "\n" for line in kept).encode(), path)
        # Written line by line, so that a killed run keeps its log.
        self.file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        self.events = SummaryWriter(run.folder, purge_step=steps_done + 1)

    def write(self, line: dict) -> None:
        try:
            self.file.write(json.dumps(without_nan(line), allow_nan=False) + "\n")
        except OSError as error:
            told = f"could not write {self.file.name} ({error.strerror}); make room, then go on with --resume"
            raise UnusableFile(error.errno, told) from error

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

    def epoch(
        self,
        epoch: int,
        epochs: int,
        step: int,
        figures: dict[str, float] | None,
        cost: dict[str, float],
        message: str,
    ) -> None:
        """figures  of the validation, None where the epoch had none"""
        if not self.writes:
            return
        validation = {} if figures is None else {"validation": figures}
        self.write({"epoch": epoch + 1, "step": step, **validation, **cost})
        with interrupts_held_back():
            for name, value in (figures or {}).items():
                self.events.add_scalar(f"validation/{name}", value, step)
            for name, value in cost.items():
                self.events.add_scalar(f"cost/{name}", value, step)
        tqdm.write(f"epoch {epoch + 1}/{epochs}  {message}")

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
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the line that a killed run was writing
        return math.inf
