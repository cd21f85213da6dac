"""Fine-tune DeepLabV3+ on Cityscapes with ADE20K patches as negatives (DenseHybrid, ECCV 2022).

    python dlv3_cityscapes_finetune.py --dataroot CITY_DATAROOT --neg_dataroot ADE_DATAROOT --exp_name EXP_NAME

Numbers: recipes.yaml, block dlv3_cityscapes_finetune.
"""

import torch

from data import Cityscapes, WithFixedNegatives, WithNegatives, paste, train_transform
from engine import add_fixed_flags, argument_parser, fit, require_two_images_per_forward, run_script, start_run
from methods import RealNegativesRecipe, add_negative_flags, hybrid_step, hybrid_validation, real_negatives
from models import NVIDIA_SOURCE, NVIDIA_WEIGHTS, deeplabv3plus, load_weights


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="Cityscapes, the folder with leftImg8bit/ and gtFine/")
    add_negative_flags(parser)
    parser.add_argument(
        "--init", default=NVIDIA_WEIGHTS, help=f"weights to start from, or none (default {NVIDIA_WEIGHTS})"
    )
    add_fixed_flags(parser, Cityscapes.num_classes, "cityscapes")
    args, recipe, run = start_run(parser, RealNegativesRecipe, __file__, argv)

    # Known streets, and a source of patches of unknown things.
    transform = train_transform(recipe.crop_size, recipe.scale, Cityscapes.mean_colour)
    train_set = Cityscapes(args.dataroot, "train", transform, args.cache, args.max_pixels)
    val_set = Cityscapes(args.dataroot, "val", cache=args.cache, max_pixels=args.max_pixels)
    negatives = real_negatives(args, recipe)

    # NVIDIA's closed-set model with a new head for P(d_out | x).
    require_two_images_per_forward(len(train_set), recipe, run)
    model = deeplabv3plus(Cityscapes.num_classes, checkpointing=run.checkpointing)
    if args.init != "none":
        load_weights(model, args.init, new=("logits_ood.",), source=NVIDIA_SOURCE)
    model.to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), recipe.lr, eps=recipe.adam_eps, fused=True)

    state = {"model": model, "optimizer": optimizer}
    validate = hybrid_validation(val_set, WithFixedNegatives(val_set, negatives), run)
    return fit(hybrid_step(recipe, paste), state, WithNegatives(train_set, negatives), recipe, run, validate, best="AP")


if __name__ == "__main__":
    run_script(main)
