"""Fine-tune LDN-121 on StreetHazards with ADE20K patches as negatives (DenseHybrid, ECCV 2022).

    python ldn_streethazards_finetune.py --dataroot SH_DATAROOT --neg_dataroot ADE_DATAROOT --exp_name EXP_NAME \\
        --model MODEL_INIT

Numbers: recipes.yaml, block ldn_streethazards_finetune. Expected result: README.md.
"""

from dataclasses import dataclass

import torch

from data import (
    MaskedPatches,
    StreetHazards,
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
    require,
    require_two_at_once,
    run_script,
    start_run,
)
from losses import dense_hybrid_loss, hybrid_score, pixel_counts
from methods import RealNegativesRecipe, add_negative_flags, photographs_of_negatives
from models import backbone_slower, ladder_densenet121, load_weights


@dataclass(frozen=True, kw_only=True)
class LadderRecipe(RealNegativesRecipe):
    backbone_lr_factor: float

    def __post_init__(self):
        super().__post_init__()
        require(
            0 < self.backbone_lr_factor <= 1, f"backbone_lr_factor {self.backbone_lr_factor} must be over 0, at most 1"
        )


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="StreetHazards, the folder with train/ and test/")
    add_negative_flags(parser)
    parser.add_argument("--model", required=True, help="weights to start from: a closed-set or a hybrid LDN-121")
    add_fixed_flags(parser, StreetHazards.num_classes, "street-hazards")
    args, recipe, run = start_run(parser, LadderRecipe, __file__, argv)

    # Known streets, and a source of patches of unknown things.
    transform = train_transform(recipe.crop_size, recipe.scale, StreetHazards.mean_colour)
    train_set = StreetHazards(args.dataroot, "training", transform, args.cache)
    photographs = photographs_of_negatives(
        args.neg_dataroot, args.neg_images, args.neg_masks, args.neg_leave_out, args.cache, args.max_pixels
    )
    sizes = recipe.negative_resize, recipe.negative_size, recipe.negative_scale
    negatives = MaskedPatches(photographs, *sizes, leave_out=args.neg_leave_out, antialias=recipe.negative_antialias)
    val_set = StreetHazards(args.dataroot, "validation", cache=args.cache)
    pasted_val_set = WithFixedNegatives(val_set, negatives)

    # A closed-set model with a new head for P(d_out | x).
    require_two_at_once(len(train_set), recipe)
    model = ladder_densenet121(StreetHazards.num_classes, checkpointing=recipe.checkpointing)
    load_weights(model, args.model, new=("logits_ood.",)).to(run.device)
    optimizer = torch.optim.Adam(
        backbone_slower(model, recipe.lr, recipe.backbone_lr_factor), eps=recipe.adam_eps, fused=True
    )

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
        return figures | closed_set_figures(model, val_set, StreetHazards.num_classes, run)

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
