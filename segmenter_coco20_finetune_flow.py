"""Fine-tune Segmenter on COCO20 with negatives that a flow draws (Hybrid Open-set Segmentation, TPAMI 2024).

    python segmenter_coco20_finetune_flow.py --dataroot COCO_DATAROOT --model TRAINED_MODEL \\
        --flow_state TRAINED_FLOW --exp_name EXP_NAME

The flow is trained along: its samples are pasted as negatives, and it learns to draw at the border of the known.
Numbers: recipes.yaml, block segmenter_coco20_finetune_flow.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from data import COCO20, WithFixedNegatives, train_transform
from engine import (
    SlidingWindows,
    add_fixed_flags,
    argument_parser,
    fit,
    main_process_first,
    require_positive,
    run_script,
    start_run,
)
from methods import FlowNegatives, FlowRecipe, SegmenterRecipe, add_flow_flags, hybrid_step, hybrid_validation
from models import hybrid_segmenter


@dataclass(frozen=True, kw_only=True)
class SegmenterFlowRecipe(SegmenterRecipe, FlowRecipe):
    dataset_head: Annotated[str, "decoder, the release's second mask transformer, or linear, a light one"]
    patches_per_image: Annotated[int, "patches of the flow that are pasted into one image"]

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "patches_per_image")


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="COCO, the folder with images/, labels/ and labels.txt")
    parser.add_argument("--model", required=True, help="weights to start from: a closed-set or a hybrid Segmenter")
    add_flow_flags(parser)
    add_fixed_flags(parser, COCO20.num_classes, "coco20")
    args, recipe, run = start_run(parser, SegmenterFlowRecipe, __file__, argv)

    # A closed-set model with a new head for P(d_out | x).
    model = hybrid_segmenter(args.model, COCO20.num_classes, recipe.heads, recipe.dataset_head, run.checkpointing)
    model.to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), recipe.lr, eps=recipe.adam_eps, fused=True)
    windows = SlidingWindows(model, recipe.window, recipe.window_stride, at_a_time=8, enlarge=True)

    # The flow that draws the negatives.
    flow = FlowNegatives(args.flow_state, recipe, run, args.flow_checkpointing, recipe.patches_per_image)

    # Photographs of known things; the negatives of the validation are the flow's first ones.
    lists = {"workers": run.workers, "list_folder": run.folder.parent}
    lists |= {"cache": args.cache, "max_pixels": args.max_pixels}
    transform = train_transform(recipe.crop_size, recipe.scale, COCO20.mean_colour, with_content=True)
    with main_process_first():  # it scans the label maps and keeps lists of them
        train_set = COCO20(args.dataroot, "training", transform, **lists)
        val_set = COCO20(args.dataroot, "validation", **lists)
        known_val_set = COCO20(args.dataroot, "validation_known", **lists)
    pasted_val_set = WithFixedNegatives(known_val_set, flow.validation_patches(), recipe.patches_per_image)

    state = {"model": model, "optimizer": optimizer} | flow.state
    steps = {"optimizer": hybrid_step(recipe, flow.paste), "flow_optimizer": flow.step}
    validate = hybrid_validation(val_set, pasted_val_set, run, windows)
    return fit(steps, state, train_set, recipe, run, validate, best=flow.best, save_picture=flow.save_picture)


if __name__ == "__main__":
    run_script(main)
