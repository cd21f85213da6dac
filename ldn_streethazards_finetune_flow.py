"""Fine-tune LDN-121 on StreetHazards with negatives that a flow draws (after Hybrid Open-set Segmentation, TPAMI 2024).

    python ldn_streethazards_finetune_flow.py --dataroot SH_DATAROOT --model MODEL_INIT --flow_state FLOW_CHECKPOINT \\
        --exp_name EXP_NAME

The flow is trained along: its samples are pasted as negatives, and it learns to draw at the border of the known.
The release has no such script: the recipe joins those of ldn_streethazards_finetune and
dlv3_cityscapes_finetune_flow. Numbers: recipes.yaml, block ldn_streethazards_finetune_flow.
"""

from dataclasses import dataclass

import torch

from data import StreetHazards, WithFixedNegatives, train_transform
from engine import add_fixed_flags, argument_parser, fit, require_two_images_per_forward, run_script, start_run
from methods import FlowNegatives, FlowRecipe, LadderRecipe, add_flow_flags, hybrid_step, hybrid_validation
from models import backbone_slower, ladder_densenet121, load_weights


@dataclass(frozen=True, kw_only=True)
class LadderFlowRecipe(LadderRecipe, FlowRecipe):
    """LDN-121's numbers, and those of the flow."""


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="StreetHazards, the folder with train/ and test/")
    parser.add_argument("--model", required=True, help="weights to start from: a closed-set or a hybrid LDN-121")
    add_flow_flags(parser)
    add_fixed_flags(parser, StreetHazards.num_classes, "street-hazards")
    args, recipe, run = start_run(parser, LadderFlowRecipe, __file__, argv)

    # Known streets.
    transform = train_transform(recipe.crop_size, recipe.scale, StreetHazards.mean_colour)
    train_set = StreetHazards(args.dataroot, "training", transform, args.cache, args.max_pixels)
    val_set = StreetHazards(args.dataroot, "validation", cache=args.cache, max_pixels=args.max_pixels)

    # A closed-set model with a new head for P(d_out | x).
    require_two_images_per_forward(len(train_set), recipe, run)
    model = ladder_densenet121(StreetHazards.num_classes, checkpointing=run.checkpointing)
    load_weights(model, args.model, new=("logits_ood.",)).to(run.device)
    optimizer = torch.optim.Adam(
        backbone_slower(model, recipe.lr, recipe.backbone_lr_factor), eps=recipe.adam_eps, fused=True
    )

    # The flow that draws the negatives; those of the validation are its first ones.
    flow = FlowNegatives(args.flow_state, recipe, run, args.flow_checkpointing)
    pasted_val_set = WithFixedNegatives(val_set, flow.validation_patches())

    state = {"model": model, "optimizer": optimizer} | flow.state
    steps = {"optimizer": hybrid_step(recipe, flow.paste), "flow_optimizer": flow.step}
    validate = hybrid_validation(val_set, pasted_val_set, run)
    return fit(steps, state, train_set, recipe, run, validate, best=flow.best, save_picture=flow.save_picture)


if __name__ == "__main__":
    run_script(main)
