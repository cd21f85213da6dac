"""Training steps, frames and the flow on a GPU beside the plain PyTorch way: the same weights and images, in turns.

    python benchmarks/gpu.py [--rows ldn_step ...] [--columns plain tf32 ...] [--quick] [--json FILE]
    python benchmarks/gpu.py --device cpu --shrink 16 --batch 2    # a trial without a GPU; its times mean nothing

plain     PyTorch as it comes: eager, default layout (NCHW), TF32 in convolutions and not in matrix products, Adam's
          default implementation, negatives pasted and the loss computed as they read, each term brought to the host in
          each step. LDN-121 computes in the backward pass again what the release's does (see training_step.py), which
          of the original's networks is the one that checkpoints. The flow is the transcription, plain_denseflow.py.
float32, tf32, bfloat16
          ours with that --precision; tf32 is the default of our scripts on a GPU
compiled  ours with --precision bfloat16 --compile

A training step is forward pass, DenseHybrid loss, backward pass and Adam's update on a batch that is on the device:
paste, Step and Update as fit runs them, without the loader. A frame goes through models.fast_inference as in the
evaluations. The flow's patches are sampled with gradients, and a backward pass follows.

A time is the median of --rounds times --passes passes by the GPU's clock, the sides in turns; memory is the peak of
PyTorch's tensors in a pass, weights included, other sides left out. `differs` is how far the first output (the loss's
terms, the logits, the patches) is from the plain side's, in parts of the largest magnitude. A side that fails is
reported, and the others run.
"""

import gc
import statistics
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # run by its path, a script sees its own folder only

from benchmarks import plain_denseflow
from benchmarks.denseflow import make_flow
from benchmarks.inference import lived_in
from benchmarks.sides import MIB, benchmark_parser, column_table, in_turns, machine, write_table
from benchmarks.training_step import always_checkpointing
from data import paste
from engine import Step, run_script
from engine.device import start_process
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

WARM_UP = 5  # untimed passes of a side: our fourth step is recorded, and replayed from then on
PLAIN, COMPILED = "plain", "compiled"
COLUMNS = (PLAIN, "float32", "tf32", "bfloat16", COMPILED)
DEFAULT = {"cuda": "tf32", "cpu": "float32"}  # of our scripts


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
            model = lived_in(self.network(self.num_classes))
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
SLOW = {("dlv3_step", "float32"), ("dlv3_frame", "float32")}  # left out with --quick


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

    step = Step(loss, paste, lambda images, labels: pixel_counts(labels), fixed=True)
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


def tensors_of(output: dict[str, Tensor | float] | tuple[Tensor, ...] | Tensor) -> list[Tensor]:
    if isinstance(output, dict):
        return [torch.tensor([float(value) for value in output.values()])]
    return [part.float().cpu() for part in (output if isinstance(output, tuple) else (output,))]


def difference(output: list[Tensor], expected: list[Tensor]) -> float:
    """The largest, in parts of the largest magnitude"""
    pairs = zip(output, expected, strict=True)
    return max(((found - right).abs().max() / right.abs().max()).item() for found, right in pairs)


def rest(side: Callable) -> None:
    """Let go of the memory that a side keeps between its passes, such as a recorded step's."""
    getattr(side, "rest", lambda: None)()


def tidy(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measured(row, columns: list[str], sizes: Sizes, device: torch.device, rounds: int, passes: int) -> dict[str, dict]:
    """A cell of the table by column."""
    cells, sides, outputs = {}, {}, {}
    cuda = device.type == "cuda"
    for column in columns:
        tidy(device)
        held = torch.cuda.memory_allocated(device) if cuda else 0  # by the other sides
        try:
            use_precision(column, device)
            side = row.make(column, sizes, device)
            torch.manual_seed(1)
            outputs[column] = tensors_of(side())
            if cuda:
                torch.cuda.reset_peak_memory_stats(device)
            for _ in range(WARM_UP - 1):
                side()
            peak = torch.cuda.max_memory_allocated(device) - held if cuda else None
        except Exception as error:  # the other sides are worth having
            traceback.print_exc()
            cells[column], side = failed_cell(error), None
            continue
        rest(side)
        sides[column], side = side, None
        cells[column] = {"peak_mib": None if peak is None else peak / MIB}

    def before(column: str) -> None:
        for side in sides.values():
            rest(side)
        tidy(device)
        use_precision(column, device)
        for _ in range(WARM_UP if hasattr(sides[column], "rest") else 1):  # what rested is recorded anew
            sides[column]()

    for column, times in in_turns(sides, rounds, device, passes, before).items():
        cell = cells[column]
        cell |= {"ms": 1e3 * statistics.median(times), "smallest_ms": 1e3 * min(times), "largest_ms": 1e3 * max(times)}
        if PLAIN in outputs and column != PLAIN:
            cell["difference"] = difference(outputs[column], outputs[PLAIN])
        memory = "" if cell["peak_mib"] is None else f" ({cell['peak_mib']:,.0f})"
        cell["text"] = f"{cell['ms']:.4g}{memory}"
    return cells


def failed_cell(error: Exception) -> dict:
    return {"failed": f"{type(error).__name__}: {error}", "text": "failed"}


def report(cells: dict[str, dict]) -> None:
    for column, cell in cells.items():
        if "ms" in cell:
            spread = f"({cell['smallest_ms']:.4g} to {cell['largest_ms']:.4g})"
            memory = "" if cell["peak_mib"] is None else f"{cell['peak_mib']:10,.0f} MiB"
            differs = f"   differs by {cell['difference']:.0e}" if "difference" in cell else ""
            print(f"  {column:<10}{cell['ms']:10.4g} ms {spread:<26}{memory}{differs}", flush=True)
        else:
            print(f"  {column:<10}failed: {cell['failed'].splitlines()[0]}", flush=True)


def main():
    parser = benchmark_parser(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, metavar="COLUMN")
    parser.add_argument("--quick", action="store_true", help="leave out true float32 of DeepLabV3+")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--passes", type=int, default=6, help="of each side in a round")
    parser.add_argument("--shrink", type=int, default=1, help="divide all sides of images by this, for a trial")
    parser.add_argument("--batch", type=int, help="images in a batch, for a trial")
    args = parser.parse_args()
    device, sizes = start_process(args.device), Sizes(args.shrink, args.batch)
    usual = COLUMNS if device.type == "cuda" else (PLAIN, "float32", "bfloat16")
    columns = [column for column in COLUMNS if column in (args.columns or usual)]

    setting = f"{machine(device)}; {args.rounds} times {args.passes} passes a side"
    print(f"{setting}\n")
    torch.ones(1, 1, device=device) @ torch.ones(1, 1, device=device)  # cuBLAS's workspace is no side's own
    rows = []
    for name in args.rows:
        row = ROWS[name]
        asked = [column for column in columns if column in row.columns]
        if args.quick:
            asked = [column for column in asked if (name, column) not in SLOW]
        if not asked:
            continue
        print(row.what(sizes), flush=True)
        try:
            cells = measured(row, asked, sizes, device, args.rounds, args.passes)
        except Exception as error:  # the other rows are worth having
            traceback.print_exc()
            cells = dict.fromkeys(asked, failed_cell(error))
        report(cells)
        rows.append({"what": row.what(sizes), "cells": cells})
        write_table(args.json, "gpu", setting, rows)  # what is measured is kept, whatever happens to the next row
    print("\n" + "\n".join(column_table(rows, columns, PLAIN, DEFAULT[device.type])))
    if any("failed" in cell for row in rows for cell in row["cells"].values()):
        sys.exit("error: not all sides ran")


if __name__ == "__main__":
    run_script(main)
