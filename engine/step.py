"""One step of one optimizer, the same whether a batch is taken whole, in parts, or by several processes."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.graphs import Replay
from engine.precision import Precision
from engine.processes import all_reduce_sum, world_size
from engine.recipe import Recipe
from engine.run import Run
from errors import WrongInput


class Step(NamedTuple):
    """How a batch becomes a loss, in stages, so that the loss does not depend on how the batch is split.

    loss      (model, *inputs[, counts]) -> loss terms by name, ready to sum
    prepare   (*tensors of the batch) -> inputs, each with the images in its first dimension; negatives are pasted
              here. None: the inputs are the tensors
    counts    (*inputs) -> divisors of the terms by name, such as pixels, which are added up over all parts and
              processes before any loss is taken. None: the loss gets none, and its terms are means over images
    fixed     whether the loss computes the same operations whatever its inputs hold, and draws nothing on the host,
              such as the size of a patch: then a GPU may replay them, see engine.graphs
    """

    loss: Callable[..., dict[str, Tensor]]
    prepare: Callable[..., tuple[Tensor, ...]] | None = None
    counts: Callable[..., dict[str, Any]] | None = None
    fixed: bool = False


class LossModule(nn.Module):
    """A loss as a module of the networks whose weights it trains, as DistributedDataParallel wants it."""

    def __init__(self, loss: Callable[..., dict[str, Tensor]], networks: list[nn.Module]):
        super().__init__()
        self.loss, self.networks = loss, nn.ModuleList(networks)

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        return self.loss(*inputs)


class Update:
    """A step, its optimizer and the networks that it trains.

    model         what the step is given as the model
    networks      all networks of the run; those with a weight in the optimizer are trained by it
    accumulation  parts in which this process's share of a batch is taken
    scaler        scales the loss of float16 up, so that small gradients do not vanish; it does nothing otherwise
    graphs        whether a GPU may replay a step that is fixed
    """

    def __init__(
        self,
        step: Step,
        model: nn.Module,
        networks: list[nn.Module],
        optimizer: torch.optim.Optimizer,
        accumulation: int,
        device: torch.device,
        precision: Precision,
        graphs: bool = False,
    ):
        self.step, self.model, self.optimizer = step, model, optimizer
        self.device, self.precision, self.parts = device, precision, accumulation
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype is torch.float16)
        weights = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        own = [network for network in networks if any(id(weight) in weights for weight in network.parameters())]
        self.loss: LossModule | DistributedDataParallel = LossModule(step.loss, own)
        if world_size() > 1:
            # Of weights (1, C, 1, 1) all layouts are one; it warns of them.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            self.loss = DistributedDataParallel(self.loss, gradient_as_bucket_view=True)
        replays = graphs and step.fixed and device.type == "cuda" and world_size() == 1
        self.replay = Replay(self.compute, optimizer) if replays else None

    def gradients(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        """Forward and backward of a batch, this process's share of it; the terms of the whole batch, on the device."""
        with self.precision.autocast(self.device):
            inputs = self.step.prepare(*tensors) if self.step.prepare else tensors
        counts = self.step.counts(*inputs) if self.step.counts else {"images": len(inputs[0])}
        return (self.replay or self.compute)(list(inputs), all_reduce_sum(counts, self.device))

    def compute(self, inputs: list[Tensor], counts: dict[str, Any]) -> dict[str, Tensor]:
        images = len(inputs[0])
        parts = list(zip(*(tensor.tensor_split(self.parts_of(images)) for tensor in inputs), strict=True))
        self.optimizer.zero_grad(set_to_none=True)
        total: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            alone = world_size() > 1 and number < len(parts)  # gradients are exchanged once, with the last part
            with self.loss.no_sync() if alone else contextlib.nullcontext():  # type: ignore[operator]
                with self.precision.autocast(self.device):
                    if self.step.counts:
                        terms = self.loss(self.model, *part, counts)
                    else:
                        share = len(part[0]) / counts["images"]
                        terms = {name: share * term for name, term in self.loss(self.model, *part).items()}
                # The exchange takes the mean over processes, where the sum is meant.
                self.scaler.scale(world_size() * sum(terms.values())).backward()
            total = {name: total.get(name, 0) + term.detach() for name, term in terms.items()}
        return all_reduce_sum(total, self.device)

    def forget(self) -> None:
        """Let go of what is kept from step to step: gradients, and on a GPU the recorded pass."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.replay:
            self.replay.forget()

    def parts_of(self, images: int) -> int:
        """In how many parts this process's images are taken: as many as in the others, as SyncBatchNorm needs it."""
        if self.parts > 1 and world_size() > 1:
            images = int(all_reduce_sum({"images": images}, self.device)["images"]) // world_size()
        return min(self.parts, images)

    def apply(self) -> dict[str, Tensor]:
        """The optimizer's step along the gradients.

        It does not wait for a GPU, but in float16 with an optimizer that is not fused, such as Adamax: GradScaler asks
        there whether gradients overflowed.

        returns  of float16, what became of it, on the device: "scale", the loss's next one, and "taken", 1 or 0 where
                 the step was left out because gradients overflowed; otherwise nothing
        """
        if not self.scaler.is_enabled():
            self.optimizer.step()
            return {}
        one = torch.ones((), device=self.device)
        before = self.scaler.scale(one)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        after = self.scaler.scale(one)
        return {"scale": after, "taken": (after >= before).float()}


def smallest_part(images: int, recipe: Recipe, accumulation: int) -> int:
    """The fewest images that the network is given at once in an epoch over so many.

    Raises ValueError where a batch cannot be dealt out to all processes and parts.
    """
    share, over = divmod(recipe.batch_size, world_size())
    if over or share % accumulation:
        raise WrongInput(
            f"batch_size {recipe.batch_size} cannot be dealt out to {world_size()} processes with accumulation "
            f"{accumulation}; it must be a multiple of their product"
        )
    rest = 0 if recipe.drop_last else images % recipe.batch_size
    if 0 < rest < world_size():
        raise WrongInput(
            f"{images} images leave {rest} for the last batch, fewer than the {world_size()} processes: "
            "set --drop_last true or another --batch_size"
        )
    shares = [share, rest // world_size()] if rest else [share]
    return min(share // min(accumulation, share) for share in shares)


def require_two_images_per_forward(images: int, recipe: Recipe, run: Run) -> None:
    """For networks that normalise what is pooled over the whole crop, one value an image, by the batch.

    Raises ValueError where an epoch over so many images leaves such a network with one of them.
    """
    if smallest_part(images, recipe, run.accumulation) * (world_size() if run.sync_batchnorm else 1) < 2:
        raise WrongInput(
            f"{images} images in batches of {recipe.batch_size} leave the network one image at a time, and this one "
            "trains on two at least: set --drop_last true, a larger --batch_size, a smaller --accumulation or fewer "
            "processes"
        )
