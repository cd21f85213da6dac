"""Fine-tune DeepLabV3+ on Cityscapes with ADE20K patches as negatives (DenseHybrid, ECCV 2022).

    python dlv3_cityscapes_finetune.py --dataroot CITY_DATAROOT --neg_dataroot ADE_DATAROOT --exp_name EXP_NAME

Numbers: recipes.yaml, block dlv3_cityscapes_finetune. Expected result: README.md.
"""

import torch

from data import (
    Cityscapes,
    MaskedPatches,
    WithFixedNegatives,
    WithNegatives,
    paste,
    train_transform,
)
from engine import (
    Step,
    add_fixed_flags,
    anomaly_figures,
    argument_parser,
    closed_set_figures,
    fit,
    require_two_at_once,
    run_script,
    start_run,
)
from losses import dense_hybrid_loss, hybrid_score, pixel_counts
from methods import RealNegativesRecipe, add_negative_flags, photographs_of_negatives
from models import deeplabv3plus, load_weights

NVIDIA_WEIGHTS = "cityscapes_cv0_wideresnet38_nosdcaug.pth"
NVIDIA_SOURCE = (
    "NVIDIA's Cityscapes weights are at drive.google.com/file/d/1CKB7gpcPLgDLA7LuFJc46rYcNzF3aWzH/view: "
    "put them into the working directory, or give their place with --init FILE"
)


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
    train_set = Cityscapes(args.dataroot, "train", transform, args.cache)
    photographs = photographs_of_negatives(
        args.neg_dataroot, args.neg_images, args.neg_masks, args.neg_leave_out, args.cache, args.max_pixels
    )
    sizes = recipe.negative_resize, recipe.negative_size, recipe.negative_scale
    negatives = MaskedPatches(photographs, *sizes, leave_out=args.neg_leave_out, antialias=recipe.negative_antialias)
    val_set = Cityscapes(args.dataroot, "val", cache=args.cache)
    pasted_val_set = WithFixedNegatives(val_set, negatives)

    # NVIDIA's closed-set model with a new head for P(d_out | x).
    require_two_at_once(len(train_set), recipe)
    model = deeplabv3plus(Cityscapes.num_classes, checkpointing=recipe.checkpointing)
    if args.init != "none":
        load_weights(model, args.init, new=("logits_ood.",), source=NVIDIA_SOURCE)
    model.to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), recipe.lr, eps=recipe.adam_eps, fused=True)

    def loss(model, images, labels, counts):
        return dense_hybrid_loss(
            *model(images),
            labels,
            beta=recipe.beta,
            counts=counts,
            ignored_are_inliers=recipe.ignored_are_inliers,
            likelihood_margin=recipe.likelihood_margin,
        )

    def count_pixels(images, labels):
        return pixel_counts(labels, recipe.ignored_are_inliers)

    def validate(model):
        figures = anomaly_figures(model, pasted_val_set, hybrid_score, run)
        return figures | closed_set_figures(model, val_set, Cityscapes.num_classes, run)

    state = {"model": model, "optimizer": optimizer}
    return fit(
        Step(loss, paste, count_pixels, fixed=True),
        state,
        WithNegatives(train_set, negatives),
        recipe,
        run,
        validate,
        best="AP",
    )


if __name__ == "__main__":
    run_script(main)
