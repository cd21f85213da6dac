"""Fine-tune LDN-121 on StreetHazards with ADE20K patches as negatives (DenseHybrid, ECCV 2022).

    python ldn_streethazards_finetune.py --dataroot SH_DATAROOT --neg_dataroot ADE_DATAROOT --exp_name EXP_NAME \\
        --model MODEL_INIT

Numbers: recipes.yaml, block ldn_streethazards_finetune.
"""

from dataclasses import dataclass

import torch

from data import StreetHazards, WithFixedNegatives, WithNegatives, paste, train_transform
from engine import add_fixed_flags, argument_parser, fit, require_two_images_per_forward, run_script, start_run
from methods import (
    LadderRecipe,
    RealNegativesRecipe,
    add_negative_flags,
    hybrid_step,
    hybrid_validation,
    real_negatives,
)
from models import backbone_slower, ladder_densenet121, load_weights


@dataclass(frozen=True, kw_only=True)
class LadderNegativesRecipe(LadderRecipe, RealNegativesRecipe):
    """LDN-121's numbers, and those of patches of photographs."""


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="StreetHazards, the folder with train/ and test/")
    add_negative_flags(parser)
    parser.add_argument("--model", required=True, help="weights to start from: a closed-set or a hybrid LDN-121")
    add_fixed_flags(parser, StreetHazards.num_classes, "street-hazards")
    args, recipe, run = start_run(parser, LadderNegativesRecipe, __file__, argv)

    # Known streets, and a source of patches of unknown things.
    transform = train_transform(recipe.crop_size, recipe.scale, StreetHazards.mean_colour)
    train_set = StreetHazards(args.dataroot, "training", transform, args.cache, args.max_pixels)
    val_set = StreetHazards(args.dataroot, "validation", cache=args.cache, max_pixels=args.max_pixels)
    negatives = real_negatives(args, recipe)

    # A closed-set model with a new head for P(d_out | x).
    require_two_images_per_forward(len(train_set), recipe, run)
    model = ladder_densenet121(StreetHazards.num_classes, checkpointing=run.checkpointing)
    load_weights(model, args.model, new=("logits_ood.",)).to(run.device)
    optimizer = torch.optim.Adam(
        backbone_slower(model, recipe.lr, recipe.backbone_lr_factor), eps=recipe.adam_eps, fused=True
    )

    state = {"model": model, "optimizer": optimizer}
    validate = hybrid_validation(val_set, WithFixedNegatives(val_set, negatives), run)
    return fit(hybrid_step(recipe, paste), state, WithNegatives(train_set, negatives), recipe, run, validate, best="AP")


if __name__ == "__main__":
    run_script(main)
