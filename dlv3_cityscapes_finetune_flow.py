"""Fine-tune DeepLabV3+ on Cityscapes with negatives that a flow draws (Hybrid Open-set Segmentation, TPAMI 2024).

    python dlv3_cityscapes_finetune_flow.py --dataroot CITY_DATAROOT --flow_state FLOW_CHECKPOINT --exp_name EXP_NAME

The flow is trained along: its samples are pasted as negatives, and it learns to draw at the border of the known.
Numbers: recipes.yaml, block dlv3_cityscapes_finetune_flow.
"""

import torch

from data import Cityscapes, WithFixedNegatives, train_transform
from engine import add_fixed_flags, argument_parser, fit, require_two_images_per_forward, run_script, start_run
from methods import FlowNegatives, FlowRecipe, add_flow_flags, hybrid_step, hybrid_validation
from models import NVIDIA_SOURCE, NVIDIA_WEIGHTS, deeplabv3plus, load_weights


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="Cityscapes, the folder with leftImg8bit/ and gtFine/")
    add_flow_flags(parser)
    parser.add_argument(
        "--init", default=NVIDIA_WEIGHTS, help=f"weights to start from, or none (default {NVIDIA_WEIGHTS})"
    )
    add_fixed_flags(parser, Cityscapes.num_classes, "cityscapes")
    args, recipe, run = start_run(parser, FlowRecipe, __file__, argv)

    # Known streets.
    transform = train_transform(recipe.crop_size, recipe.scale, Cityscapes.mean_colour)
    train_set = Cityscapes(args.dataroot, "train", transform, args.cache, args.max_pixels)
    val_set = Cityscapes(args.dataroot, "val", cache=args.cache, max_pixels=args.max_pixels)

    # NVIDIA's closed-set model with a new head for P(d_out | x).
    require_two_images_per_forward(len(train_set), recipe, run)
    model = deeplabv3plus(Cityscapes.num_classes, checkpointing=run.checkpointing)
    if args.init != "none":
        load_weights(model, args.init, new=("logits_ood.",), source=NVIDIA_SOURCE)
    model.to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), recipe.lr, eps=recipe.adam_eps, fused=True)

    # The flow that draws the negatives; those of the validation are its first ones.
    flow = FlowNegatives(args.flow_state, recipe, run, args.flow_checkpointing)
    pasted_val_set = WithFixedNegatives(val_set, flow.validation_patches())

    state = {"model": model, "optimizer": optimizer} | flow.state
    steps = {"optimizer": hybrid_step(recipe, flow.paste), "flow_optimizer": flow.step}
    validate = hybrid_validation(val_set, pasted_val_set, run)
    return fit(steps, state, train_set, recipe, run, validate, best=flow.best, save_picture=flow.save_picture)


if __name__ == "__main__":
    run_script(main)
