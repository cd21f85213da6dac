"""Train LDN-121 on StreetHazards' twelve known classes (closed set; DenseHybrid, ECCV 2022).

    python ldn_streethazards.py --dataroot SH_DATAROOT --exp_name EXP_NAME

Numbers: recipes.yaml, block ldn_streethazards. Expected result: README.md.
"""

from dataclasses import dataclass

import torch

from data import StreetHazards, train_transform
from engine import (
    Recipe,
    Step,
    add_fixed_flags,
    argument_parser,
    closed_set_figures,
    fit,
    main_process_first,
    require,
    require_positive,
    require_two_at_once,
    run_script,
    start_run,
)
from losses import closed_set_loss, pixel_counts
from models import backbone_slower, ladder_densenet121, load_imagenet_densenet121


@dataclass(frozen=True, kw_only=True)
class ClosedSetRecipe(Recipe):
    adam_eps: float
    backbone_lr_factor: float

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "adam_eps")
        require(
            0 < self.backbone_lr_factor <= 1, f"backbone_lr_factor {self.backbone_lr_factor} must be over 0, at most 1"
        )


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="StreetHazards, the folder with train/ and test/")
    parser.add_argument(
        "--init",
        default="imagenet",
        metavar="imagenet|none|FILE",
        help="the backbone's first weights: downloaded by torchvision, random, or torchvision's file",
    )
    add_fixed_flags(parser, StreetHazards.num_classes, "street-hazards")
    args, recipe, run = start_run(parser, ClosedSetRecipe, __file__, argv)

    transform = train_transform(recipe.crop_size, recipe.scale, StreetHazards.mean_colour)
    train_set = StreetHazards(args.dataroot, "training", transform, args.cache)
    val_set = StreetHazards(args.dataroot, "validation", cache=args.cache)

    require_two_at_once(len(train_set), recipe)
    model = ladder_densenet121(StreetHazards.num_classes, hybrid=False, checkpointing=recipe.checkpointing)
    if args.init != "none":
        with main_process_first():  # it downloads the file, where it is not there yet
            load_imagenet_densenet121(model, None if args.init == "imagenet" else args.init)
    model.to(run.device)
    optimizer = torch.optim.Adam(
        backbone_slower(model, recipe.lr, recipe.backbone_lr_factor), eps=recipe.adam_eps, fused=True
    )

    def loss(model, images, labels, counts):
        return closed_set_loss(model(images), labels, counts)

    def count_pixels(images, labels):
        return pixel_counts(labels)

    def validate(model):
        return closed_set_figures(model, val_set, StreetHazards.num_classes, run)

    state = {"model": model, "optimizer": optimizer}
    return fit(Step(loss, counts=count_pixels, fixed=True), state, train_set, recipe, run, validate, best="mIoU")


if __name__ == "__main__":
    run_script(main)
