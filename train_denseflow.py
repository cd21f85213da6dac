"""Train DenseFlow, the source of synthetic negatives, on crops of any images.

    python train_denseflow.py --images FOLDER --exp_name EXP_NAME
    python train_denseflow.py --dataset cityscapes --dataroot CITY_DATAROOT --exp_name EXP_NAME

Its logs/EXP_NAME/final.pth is the --flow_state of the scripts *_finetune_flow.py. Train it on images without unknown
things: it learns what the known looks like. Every twentieth image is kept for validation; its figure is bits per
dimension, of which images of pure noise have 8. Numbers: recipes.yaml, block train_denseflow.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch.utils.data import Subset

from data import COCO20, Cityscapes, ImageFolder, StreetHazards, filled_transform
from engine import (
    Recipe,
    argument_parser,
    fit,
    main_process_first,
    require_positive,
    run_script,
    start_run,
)
from errors import WrongInput
from methods import Warmup, likelihood_step, likelihood_validation, samples_picture
from models import denseflow_25_6, load_weights

DATASETS = {
    "cityscapes": lambda root, transform, _run, read: Cityscapes(root, "train", transform, **read),
    "street-hazards": lambda root, transform, _run, read: StreetHazards(root, "training", transform, **read),
    "coco20": lambda root, transform, run, read: COCO20(
        root, "training", transform, run.workers, run.folder.parent, **read
    ),
}
HELD_OUT = 20  # one image in so many is kept for validation


@dataclass(frozen=True, kw_only=True)
class FlowTraining(Recipe):
    adamax_eps: Annotated[float, "epsilon of Adamax"]
    warmup_steps: Annotated[int, "steps over which lr rises to its value"]
    validation_images: Annotated[int, "at most so many are scored"]
    sampled_images: Annotated[int, "images sampled for each epoch's picture"]

    def __post_init__(self):
        super().__post_init__()
        if self.crop_size % 8:
            raise WrongInput(f"crop_size {self.crop_size} must be a multiple of 8 for a flow")
        require_positive(self, "adamax_eps", "validation_images", "sampled_images")
        if self.statistics_batches:
            raise WrongInput("statistics_batches must be 0: a flow has no BatchNorm")
        if self.warmup_steps < 0:
            raise WrongInput(f"warmup_steps must not be negative: {self.warmup_steps}")
        if self.warmup_steps and self.lr_min:
            raise WrongInput(f"lr_min {self.lr_min} must be 0 where there are warmup_steps")


def main(argv=None):
    parser = argument_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", help="a folder with images, at any depth")
    source.add_argument("--dataset", choices=list(DATASETS), help="train on the training images of this data set")
    parser.add_argument("--dataroot", help="the data set's folder")
    parser.add_argument("--flow_state", default="none", help="weights to start from (default none)")
    args, recipe, run = start_run(parser, FlowTraining, __file__, argv)
    if run.sync_batchnorm:
        raise WrongInput("sync_batchnorm must be false: a flow has no BatchNorm")
    if bool(args.dataset) != bool(args.dataroot):
        parser.error("--dataset and --dataroot go together")

    transform = filled_transform(recipe.crop_size, recipe.scale)
    read = {"cache": args.cache, "max_pixels": args.max_pixels}
    if args.dataset:
        with main_process_first():  # it may scan the data set and keep a list of it
            images = DATASETS[args.dataset](args.dataroot, transform, run, read)
    else:
        images = ImageFolder(args.images, transform, **read)
    held_out = range(0, len(images), HELD_OUT)
    train_set = Subset(images, sorted({*range(len(images))} - {*held_out}))
    val_set = Subset(images, held_out[: recipe.validation_images])

    if len(train_set) < recipe.batch_size:
        raise WrongInput(
            f"{len(images)} images, of which {len(held_out)} are kept for validation, leave {len(train_set)}, fewer "
            f"than batch_size {recipe.batch_size}; give more images, or lower it"
        )
    steps = recipe.epochs * (len(train_set) // recipe.batch_size)
    if steps <= recipe.warmup_steps:
        raise WrongInput(
            f"warmup_steps {recipe.warmup_steps} are not over when the training is, after {steps} steps: lower them, "
            "or set more epochs or a smaller batch_size"
        )

    flow = denseflow_25_6(run.checkpointing)
    if args.flow_state != "none":
        load_weights(flow, args.flow_state)
    flow.to(run.device)
    optimizer = torch.optim.Adamax(flow.parameters(), recipe.lr, eps=recipe.adamax_eps)
    state = {"model": flow, "optimizer": optimizer}
    if recipe.warmup_steps:
        state["warmup"] = Warmup(optimizer, recipe.warmup_steps)

    validate = likelihood_validation(val_set, recipe.batch_size, run)
    if not run.resume:
        print(f"before training: {validate(flow.eval())['bits_per_dimension']:.3f} bits per dimension")
    figures = {"best": "bits_per_dimension", "fractions": False, "lower_is_better": True}
    save_picture = samples_picture(recipe.sampled_images, recipe.crop_size, run)
    return fit(likelihood_step(), state, train_set, recipe, run, validate, save_picture=save_picture, **figures)


if __name__ == "__main__":
    run_script(main)
