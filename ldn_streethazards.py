"""Train LDN-121 on StreetHazards' twelve known classes (closed set; DenseHybrid, ECCV 2022).

    python ldn_streethazards.py --dataroot SH_DATAROOT --exp_name EXP_NAME

Numbers: recipes.yaml, block ldn_streethazards.
"""

import torch

from data import StreetHazards, train_transform
from engine import (
    add_fixed_flags,
    argument_parser,
    fit,
    main_process_first,
    require_two_images_per_forward,
    run_script,
    start_run,
)
from methods import LadderRecipe, closed_set_step, closed_set_validation
from models import backbone_slower, ladder_densenet121, load_imagenet_densenet121


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="StreetHazards, the folder with train/ and test/")
    parser.add_argument(
        "--init",
        default="imagenet",
        metavar="imagenet|none|FILE",
        help="first weights: the backbone's, downloaded by torchvision or from its file; the whole network's, from a "
        "file of this script; or none, random ones",
    )
    add_fixed_flags(parser, StreetHazards.num_classes, "street-hazards")
    args, recipe, run = start_run(parser, LadderRecipe, __file__, argv)

    # Known streets.
    transform = train_transform(recipe.crop_size, recipe.scale, StreetHazards.mean_colour)
    train_set = StreetHazards(args.dataroot, "training", transform, args.cache, args.max_pixels)
    val_set = StreetHazards(args.dataroot, "validation", cache=args.cache, max_pixels=args.max_pixels)

    # A network of which only the backbone is trained already.
    require_two_images_per_forward(len(train_set), recipe, run)
    model = ladder_densenet121(StreetHazards.num_classes, hybrid=False, checkpointing=run.checkpointing)
    if args.init != "none":
        with main_process_first():  # it downloads the file, where it is not there yet
            load_imagenet_densenet121(model, None if args.init == "imagenet" else args.init)
    model.to(run.device)
    optimizer = torch.optim.Adam(
        backbone_slower(model, recipe.lr, recipe.backbone_lr_factor), eps=recipe.adam_eps, fused=True
    )

    state = {"model": model, "optimizer": optimizer}
    return fit(closed_set_step(), state, train_set, recipe, run, closed_set_validation(val_set, run), best="mIoU")


if __name__ == "__main__":
    run_script(main)
