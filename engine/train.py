"""The training loop: epochs, schedule, validation, and what a run says where it cannot go on.

A run writes into its folder: recipe.yaml, log.jsonl (each step's loss terms, each epoch's figures, speed and memory),
TensorBoard events, pictures/epoch_NNN.png, last.pt after each epoch, best.pth and final.pth (plain state_dicts), and
final_NAME.pth of other networks in the state.
"""

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from engine import checkpoint
from engine.checkpoint import Progress
from engine.loader import Samples, batches, batches_on_device, sample_seed, to_device, training_loader
from engine.log import Clock, Number, RunLog, StepNumbers, TakenStep, print_epoch
from engine.precision import Precision
from engine.processes import average_buffers, broadcast, is_main_process, progress_bar, rank, same_buffers, world_size
from engine.recipe import Recipe
from engine.record import begin_record, continue_record, run_folder
from engine.run import Run
from engine.step import Step, Update, smallest_part
from engine.windows import check_sides
from errors import NotFinite, OutOfMemory, WrongInput

MAIN = "optimizer"  # in the state: it follows the recipe's schedule, and its learning rate is logged as lr


def fit(
    steps: Callable | Step | dict[str, Callable | Step],
    state: dict[str, Any],
    dataset: Samples,
    recipe: Recipe,
    run: Run,
    validate: Callable[[nn.Module], dict[str, float]],
    best: str,
    fractions: bool = True,
    lower_is_better: bool = False,
    save_picture: Callable[[nn.Module, Path], None] | None = None,
) -> dict[str, float]:
    """Train state["model"] for recipe.epochs and return the last validation figures.

    steps         a Step, or just its loss: (model, *tensors of a batch) -> loss terms by name, ready to sum. Where a
                  batch is used more than once: {name of an optimizer in the state: its step}, taken in this order
    state         the model, the optimizer and whatever else has a state_dict to go into the checkpoints. "optimizer"
                  follows the recipe's schedule; learning rate schedules of torch in it are stepped once an epoch
    dataset       samples (image, labels, ..., name), see engine.loader
    validate      the model in eval mode -> figures by name; `best` names the one that chooses best.pth
    fractions     whether the figures are fractions, which are shown as percent
    save_picture  (model in eval mode, path): of how far it is, after every validation

    A run stopped at any moment goes on with --resume from its last.pt and ends with the same weights on a CPU. Of
    several processes (torchrun) each takes its share of every batch and of the validation; process 0 writes.
    Images are float32 in 0..1 on the device. A run may go on with another number of processes. Raises WrongInput for
    sizes that do not fit together and for a last.pt that does not fit, NotFinite for a loss that is not finite,
    OutOfMemory, and what reading a sample raises.
    """
    check_sizes(state["model"], len(dataset), recipe, run)
    model, loader = prepare(state["model"], run), loader_of(dataset, recipe, run)
    state = state | {"schedule": make_schedule(state[MAIN], recipe)}
    updates = make_updates(steps if isinstance(steps, dict) else {MAIN: steps}, state, run)
    state |= {f"{name}_scaler": update.scaler for name, update in updates.items() if update.scaler.is_enabled()}
    with run_folder(run), memory_explained(recipe, run):
        progress = begin(state, dataset, run)
        with contextlib.closing(RunLog(run, progress.step)) as log, interrupt_explained(progress, recipe, run):
            for epoch in range(progress.epoch, recipe.epochs):
                clock, before, figures = Clock(run.device), progress.step, None
                begin_epoch(loader, epoch, run)
                progress.step = train_epoch(updates, state, loader, recipe, run, log, before)
                end_epoch(state)
                clock.training_ends(images=min((progress.step - before) * recipe.batch_size, len(dataset)))
                if (epoch + 1) % run.validate_every == 0 or epoch + 1 == recipe.epochs:
                    prepare_validation(model, updates, loader, recipe, run)
                    picture = run.folder / "pictures" / f"epoch_{epoch + 1:03d}.png"
                    figures = validated(model, validate, save_picture, picture, log)
                log.epoch(epoch, progress.step, figures, cost := clock.cost())
                print_epoch(f"epoch {epoch + 1}/{recipe.epochs}", figures, fractions, cost)
                progress.epoch = epoch + 1
                if figures is not None and progress.improves(figures, best, lower_is_better):
                    save_weights(model, run.folder / "best.pth")
                checkpoint.save_run(state, progress, run, len(dataset))
            save_final_weights(state, run.folder)
    print(f"finished: {run.folder}/final.pth, and {best_of(progress, best)}")
    return progress.figures


# The parts of a run


def check_sizes(model: nn.Module, images: int, recipe: Recipe, run: Run) -> None:
    """Raises WrongInput, before any work, for what such a run cannot be made of."""
    if images < recipe.batch_size:
        raise WrongInput(f"{images} training images are fewer than batch_size {recipe.batch_size}; lower it")
    smallest_part(images, recipe, run.accumulation)
    check_sides(model, "crop_size", recipe.crop_size, recipe.crop_size)
    if run.compile and run.checkpointing:
        raise WrongInput(
            "--compile and --checkpointing true do not go together: the parts that are computed again would not be "
            "compiled. Leave one of them out; --accumulation saves memory beside --compile, too"
        )


def prepare(model: nn.Module, run: Run) -> nn.Module:
    """The model as the run lays it out; its parameters stay the same objects."""
    model.to(memory_format=run.precision.memory_format)
    if run.sync_batchnorm:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, but for a model that is a BatchNorm itself
    return model


def loader_of(dataset: Samples, recipe: Recipe, run: Run) -> DataLoader:
    return training_loader(
        dataset, run.seed, recipe.batch_size, recipe.drop_last, run.workers, run.device, rank(), world_size()
    )


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


def make_updates(steps: dict[str, Callable | Step], state: dict[str, Any], run: Run) -> dict[str, Update]:
    """An Update for each step, by the name of its optimizer in the state."""
    model = state["model"]
    given: Any = torch.compile(model, dynamic=False) if run.compile else model  # crops are of one size
    return {
        name: Update(
            step if isinstance(step, Step) else Step(step),
            given,
            networks_of(state),
            state[name],
            run.accumulation,
            run.device,
            run.precision,
            run.graphs and not run.compile,
        )
        for name, step in steps.items()
    }


def networks_of(state: dict[str, Any]) -> list[nn.Module]:
    return [part for part in state.values() if isinstance(part, nn.Module)]


def begin(state: dict[str, Any], dataset: Samples, run: Run) -> Progress:
    """Where the run begins: at its last.pt, which is loaded into the state, or at nothing; recipe.yaml says so."""
    resumed = broadcast(run.resume and checkpoint.can_be_resumed(run.folder))
    progress = checkpoint.restore_run(state, run, len(dataset)) if resumed else Progress()
    if is_main_process():
        if resumed:
            continue_record(run, dataset, progress.epoch)
        else:
            begin_record(run, dataset)
    return progress


# An epoch


def begin_epoch(loader: DataLoader, epoch: int, run: Run) -> None:
    """What the steps draw is a function of the seed, the epoch and the process."""
    loader.sampler.epoch = epoch  # type: ignore[attr-defined]  # an EpochSampler
    torch.manual_seed(sample_seed(run.seed, epoch, rank(), world_size()))


def end_epoch(state: dict[str, Any]) -> None:
    for part in state.values():
        if isinstance(part, lr_scheduler.LRScheduler):
            step_schedule(part)
    for network in networks_of(state):
        same_buffers(network)


def train_epoch(
    updates: dict[str, Update],
    state: dict[str, Any],
    loader: DataLoader,
    recipe: Recipe,
    run: Run,
    log: RunLog,
    steps_done: int,
) -> int:
    """One pass over the loader; returns the number of steps done since the start of the run."""
    state["model"].train()
    epoch = loader.sampler.epoch  # type: ignore[attr-defined]
    with progress_bar(len(loader), f"epoch {epoch + 1}/{recipe.epochs}") as bar:
        taken = StepNumbers([*updates], run.device, log, epoch, bar)
        for tensors, files in batches_on_device(loader, run.device, run.precision.memory_format):
            steps_done += 1
            rates = {"lr" if name == MAIN else f"{name}/lr": learning_rate(state[name]) for name in updates}
            taken.put(TakenStep(steps_done, files, rates), update_on(tensors, updates, steps_done, log))
            bar.update()
        taken.take(everything=True)
    for name, count in taken.left_out.items():
        if count == len(loader) and is_main_process():
            tqdm.write(f"note: {name} took none of the epoch's {count} steps, for its float16 gradients overflowed")
    return steps_done


def update_on(tensors: list[Tensor], updates: dict[str, Update], step: int, log: RunLog) -> dict[Number, Tensor]:
    """Each update's step on a batch, in turn; their numbers, still on the device."""
    numbers: dict[Number, Tensor] = {}
    for name, update in updates.items():
        try:
            terms = update.gradients(tensors)
        except FloatingPointError as error:
            so_far = {term: number.item() for (kind, term), number in numbers.items() if kind == "term"}
            raise NotFinite(
                f"{error}; terms of step {step} so far: {so_far}, of the step before: {log.terms}"
            ) from error
        numbers |= {Number("term", term): number for term, number in terms.items()}
        numbers |= {Number(kind, name): number for kind, number in update.apply().items()}
    return numbers


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    return optimizer.param_groups[-1]["lr"]


# Validation


def prepare_validation(
    model: nn.Module, updates: dict[str, Update], loader: DataLoader, recipe: Recipe, run: Run
) -> None:
    for update in updates.values():
        update.forget()  # a validation needs the memory
    if recipe.statistics_batches:
        estimate_statistics(model, loader, recipe.statistics_batches, run.device, run.precision)
    model.eval()


def validated(
    model: nn.Module,
    validate: Callable[[nn.Module], dict[str, float]],
    save_picture: Callable[[nn.Module, Path], None] | None,
    picture: Path,
    log: RunLog,
) -> dict[str, float]:
    """The figures that process 0 has, in every process; the picture is saved."""
    try:
        figures = broadcast(validate(model))
        if save_picture and is_main_process():
            save_picture(model, picture)
    except FloatingPointError as error:
        raise NotFinite(f"{error}; terms of the last step: {log.terms}") from error
    return figures


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


# What is written, and what is said at the end


def save_weights(network: nn.Module, path: Path) -> None:
    """Written by process 0, which has what the others have."""
    if is_main_process():
        checkpoint.save(network.state_dict(), path)


def save_final_weights(state: dict[str, Any], folder: Path) -> None:
    state["model"].eval()
    for name, part in state.items():
        if isinstance(part, nn.Module):
            save_weights(part, folder / ("final.pth" if name == "model" else f"final_{name}.pth"))


def best_of(progress: Progress, best: str) -> str:
    if progress.best > -math.inf:
        return f"best.pth with {best} {abs(progress.best):.4f}"
    return f"no best.pth, for {best} was never defined on the validation frames"


@contextlib.contextmanager
def memory_explained(recipe: Recipe, run: Run) -> Iterator[None]:
    """Where a GPU's memory does not suffice, an error that names the ways to train with less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        share = recipe.batch_size // world_size()
        finer = next((n for n in range(run.accumulation + 1, share + 1) if share % n == 0), None)
        raise OutOfMemory(
            f"{run.device} has not enough memory for {share // run.accumulation} crops of {recipe.crop_size} pixels "
            f"at once ({str(error).splitlines()[0]}): the same training takes less with --checkpointing true, "
            "--no_graphs, "
            + (f"--accumulation {finer}, " if finer else "")
            + "or more GPUs (torchrun --nproc_per_node N); another one with --precision bfloat16, a smaller "
            "--batch_size or --crop_size"
        ) from error


@contextlib.contextmanager
def interrupt_explained(progress: Progress, recipe: Recipe, run: Run) -> Iterator[None]:
    """Ctrl-C ends the script with how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        again = run.record["command"] + ("" if run.resume else " --resume")
        print(f"\nstopped after {progress.epoch} of {recipe.epochs} epochs; go on with: {again}")
        raise SystemExit(130) from None
