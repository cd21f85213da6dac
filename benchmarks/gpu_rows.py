"""What benchmarks/gpu.py measures: training steps, frames and samples of the flow, ours and the plain PyTorch way."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import plain_denseflow
from benchmarks.denseflow import make_flow
from benchmarks.inference import randomise_norms
from benchmarks.training_step import always_checkpointing
from data import paste
from engine import Step
from engine.loader import to_device
from engine.precision import Precision, choose_precision
from engine.readings import Readings
from engine.recipe import Recipe, read_recipe
from engine.step import Update
from labels import IGNORE, OUTLIER
from ldn_streethazards_finetune import LadderNegativesRecipe
from losses import dense_hybrid_loss, pixel_counts
from methods import LadderRecipe, RealNegativesRecipe
from models import backbone_slower, deeplabv3plus, fast_inference, ladder_densenet121, segmenter
from segmenter_coco20_finetune import SegmenterNegativesRecipe

PLAIN, COMPILED = "plain", "compiled"
COLUMNS = (PLAIN, "float32", "tf32", "bfloat16", COMPILED)


@dataclass(frozen=True)
class TrainingStep:
    """A step of a fine-tuning of the recipe's numbers."""

    title: str
    script: str
    recipe_type: type[Recipe]
    network: Callable[..., nn.Module]
    num_classes: int
    checkpointing: bool = False
    plainly: Callable[[nn.Module], nn.Module] = nn.Module.train  # what the plain side does to the network
    columns: tuple[str, ...] = COLUMNS

    def recipe(self, sizes: "Sizes") -> Recipe:
        given, _ = read_recipe(self.script, self.recipe_type, {})
        changed = {"batch_size": sizes.batch or given.batch_size}
        changed |= {key: sizes.shrunk(getattr(given, key)) for key in ("crop_size", "negative_size")}
        return read_recipe(self.script, self.recipe_type, changed)[0]

    def what(self, sizes: "Sizes") -> str:
        recipe = self.recipe(sizes)
        return f"{self.title}, {recipe.batch_size} crops of {recipe.crop_size}"

    def make(self, column: str, sizes: "Sizes", device: torch.device) -> Callable[[], dict[str, Tensor | float]]:
        """A function that trains one step and returns the loss's terms."""
        recipe = self.recipe(sizes)
        batch = made_batch(recipe, self.num_classes)
        torch.manual_seed(0)
        with device:
            model = self.network(self.num_classes, checkpointing=self.checkpointing and column != PLAIN).train()
        if column == PLAIN:
            return plain_step(self.plainly(model), parameter_groups(model, recipe), recipe, batch, device)
        return our_step(model, recipe, batch, column, device)


@dataclass(frozen=True)
class Frame:
    """One image through a hybrid network in eval mode."""

    title: str
    network: Callable[..., nn.Module]
    num_classes: int
    height: int
    width: int
    columns: tuple[str, ...] = COLUMNS[:-1]

    def what(self, sizes: "Sizes") -> str:
        return f"{self.title} of {sizes.shrunk(self.width)}x{sizes.shrunk(self.height)}"

    def make(self, column: str, sizes: "Sizes", device: torch.device) -> Callable[[], tuple[Tensor, Tensor]]:
        torch.manual_seed(0)
        with device:
            model = randomise_norms(self.network(self.num_classes))
            image = torch.rand(1, 3, sizes.shrunk(self.height), sizes.shrunk(self.width))
        if column == PLAIN:
            return torch.no_grad()(partial(model, image))
        precision = use_precision(column, device)
        fast = fast_inference(model, precision.dtype, precision.memory_format)
        image = image.to(memory_format=precision.memory_format)

        @torch.inference_mode()
        def forward() -> tuple[Tensor, Tensor]:
            with precision.autocast(device):
                class_logits, dataset_logits = fast(image)
            return class_logits.float(), dataset_logits.float()

        return forward


@dataclass(frozen=True)
class FlowSample:
    """Patches sampled from DenseFlow-25-6 with gradients, and the backward pass."""

    patches: int
    side: int
    columns: tuple[str, ...] = COLUMNS[:-1]

    def what(self, sizes: "Sizes") -> str:
        side = 8 * max(1, self.side // sizes.shrink // 8)
        return f"DenseFlow, {sizes.batch or self.patches} patches of {side} sampled, with the backward pass"

    def make(self, column: str, sizes: "Sizes", device: torch.device) -> Callable[[], Tensor]:
        flow = make_flow(device)
        weights = dict(flow.named_parameters())
        patches, side = sizes.batch or self.patches, 8 * max(1, self.side // sizes.shrink // 8)
        precision = use_precision(column, device)

        def draw() -> Tensor:
            if column == PLAIN:
                return plain_denseflow.sample(weights, patches, side, side)
            with precision.autocast(device):
                return flow.sample(patches, side, side, check=False)  # as in a training step

        def sample() -> Tensor:
            flow.zero_grad()
            drawn = draw()
            drawn.mean().backward()
            return drawn.detach()

        return sample


@dataclass(frozen=True)
class Sizes:
    """Smaller ones for a trial: all sides are divided by `shrink`, batches hold `batch` images where it says so."""

    shrink: int = 1
    batch: int | None = None

    def shrunk(self, side: int) -> int:
        return max(1, side // self.shrink)


ldn = partial(
    TrainingStep,
    script="ldn_streethazards_finetune",
    recipe_type=LadderNegativesRecipe,
    network=ladder_densenet121,
    num_classes=12,
    plainly=always_checkpointing,
)
ROWS = {
    "ldn_step": ldn("LDN-121, training step"),
    "ldn_step_checkpointing": ldn(
        "LDN-121, training step with checkpointing",
        checkpointing=True,
        columns=COLUMNS[:-1],  # scripts refuse --compile with it
    ),
    "dlv3_step": TrainingStep(
        "DeepLabV3+, training step", "dlv3_cityscapes_finetune", RealNegativesRecipe, deeplabv3plus, 19
    ),
    "segmenter_step": TrainingStep(
        "Segmenter, training step", "segmenter_coco20_finetune", SegmenterNegativesRecipe, segmenter, 20
    ),
    "dlv3_frame": Frame("DeepLabV3+, a frame", deeplabv3plus, 19, 1024, 2048),
    "ldn_frame": Frame("LDN-121, a frame", ladder_densenet121, 12, 720, 1280),
    "segmenter_window": Frame("Segmenter, a window", segmenter, 20, 512, 512),
    "flow_sample": FlowSample(16, 112),
}


def made_batch(recipe: Recipe, num_classes: int) -> list[Tensor]:
    """What the loader gives for a batch: images, labels, patches, masks, corners."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randint, generator=generator)
    batch, crop, side = recipe.batch_size, recipe.crop_size, recipe.negative_size
    count = getattr(recipe, "negatives_per_image", 1)
    several = (count,) if count > 1 else ()
    images = draw(256, (batch, 3, crop, crop), dtype=torch.uint8)
    labels = draw(num_classes, (batch, crop, crop), dtype=torch.uint8)
    labels[:, -crop // 8 :] = IGNORE
    patches = draw(256, (batch, *several, 3, side, side), dtype=torch.uint8)
    masks = torch.ones(side, side, dtype=torch.bool).triu().expand(batch, *several, side, side).contiguous()
    corners = draw(crop - side + 1, (batch, *several, 2))
    return [images, labels, patches, masks, corners]


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """As the scripts give them to Adam."""
    if isinstance(recipe, LadderRecipe):
        return backbone_slower(model, recipe.lr, recipe.backbone_lr_factor)
    return [{"params": list(model.parameters()), "lr": recipe.lr}]


def our_step(
    model: nn.Module, recipe: Recipe, batch: list[Tensor], column: str, device: torch.device
) -> Callable[[], dict[str, Tensor]]:
    precision = use_precision(column, device)
    model.to(memory_format=precision.memory_format)
    optimizer = torch.optim.Adam(parameter_groups(model, recipe), eps=recipe.adam_eps, fused=True)
    tensors = to_device(batch, device, precision.memory_format)

    def loss(model: nn.Module, images: Tensor, labels: Tensor, counts: dict) -> dict[str, Tensor]:
        return dense_hybrid_loss(*model(images), labels, beta=recipe.beta, counts=counts)

    step = Step(loss, paste, lambda _images, labels: pixel_counts(labels), fixed=True)
    given = torch.compile(model, dynamic=False) if column == COMPILED else model
    graphs = column != COMPILED
    update, readings = Update(step, given, [model], optimizer, 1, device, precision, graphs), Readings(device)

    def train() -> dict[str, Tensor]:
        terms = update.gradients(tensors)
        update.apply()
        readings.put(None, terms)
        for _ in readings.ready():
            pass
        return terms

    train.rest = update.forget
    return train


def plain_step(
    model: nn.Module, groups: list[dict], recipe: Recipe, batch: list[Tensor], device: torch.device
) -> Callable[[], dict[str, float]]:
    images, labels, patches, masks, corners = batch
    images, patches = (tensor.to(device).float() / 255 for tensor in (images, patches))
    labels, masks = labels.to(device).long(), masks.to(device)
    optimizer = torch.optim.Adam(groups, eps=recipe.adam_eps)

    def train() -> dict[str, float]:
        pasted, pasted_labels = plain_paste(images, labels, patches, masks, corners)
        terms = plain_loss(*model(pasted), pasted_labels, recipe.beta)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        return {name: term.item() for name, term in terms.items()}

    return train


def plain_paste(
    images: Tensor, labels: Tensor, patches: Tensor, masks: Tensor, corners: Tensor
) -> tuple[Tensor, Tensor]:
    """As data.paste, image by image."""
    images, labels = images.clone(), labels.clone()
    if patches.dim() == 4:
        patches, masks, corners = patches[:, None], masks[:, None], corners[:, None]
    for image, label, *placed in zip(images, labels, patches, masks, corners.tolist(), strict=True):
        for patch, mask, (row, column) in zip(*placed, strict=True):
            place = (..., slice(row, row + mask.shape[0]), slice(column, column + mask.shape[1]))
            image[place] = torch.where(mask, patch, image[place])
            label[place].masked_fill_(mask, OUTLIER)
    return images, labels


def plain_loss(class_logits: Tensor, dataset_logits: Tensor, labels: Tensor, beta: float) -> dict[str, Tensor]:
    """As losses.dense_hybrid_loss, from means over masked pixels."""
    outlier = labels == OUTLIER
    known, membership = labels.clone(), outlier.long()
    known[outlier] = IGNORE
    membership[labels == IGNORE] = IGNORE
    return {
        "class": F.cross_entropy(class_logits, known, ignore_index=IGNORE),
        "likelihood": beta * class_logits.logsumexp(1)[outlier].mean(),
        "dataset": 10 * beta * F.cross_entropy(dataset_logits, membership, ignore_index=IGNORE),
    }


def use_precision(column: str, device: torch.device) -> Precision | None:
    """A column's precision, set for this process: call it before the column's passes. The plain side has none."""
    if column != PLAIN:
        return choose_precision("bfloat16" if column == COMPILED else column, device)
    torch.backends.cuda.matmul.fp32_precision = "ieee"  # as PyTorch has it by default
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    return None
