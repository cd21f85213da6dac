"""Fine-tune Segmenter on COCO20 with ADE20K patches as negatives (Hybrid Open-set Segmentation, TPAMI 2024).

    python segmenter_coco20_finetune.py --dataroot COCO_DATAROOT --model TRAINED_MODEL --neg_dataset [ADE_DATAROOT] \\
        --exp_name EXP_NAME

Numbers: recipes.yaml, block segmenter_coco20_finetune.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from data import COCO20, WithFixedNegatives, WithNegatives, paste, train_transform
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
from methods import (
    RealNegativesRecipe,
    SegmenterRecipe,
    add_negative_flags,
    hybrid_step,
    hybrid_validation,
    real_negatives,
)
from models import hybrid_segmenter

ADE20K_FOLDER = "datasets/ADEChallengeData2016"


@dataclass(frozen=True, kw_only=True)
class SegmenterNegativesRecipe(SegmenterRecipe, RealNegativesRecipe):
    dataset_head: Annotated[str, "decoder, the release's second mask transformer, or linear, a light one"]
    negatives_per_image: Annotated[int, "patches that are pasted into one image"]
    rare_below: Annotated[int, "label ids with fewer pixels than this in the patch may be pasted"]

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "negatives_per_image", "rare_below")


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="COCO, the folder with images/, labels/ and labels.txt")
    parser.add_argument("--model", required=True, help="weights to start from: a closed-set or a hybrid Segmenter")
    add_negative_flags(parser).add_argument(
        "--neg_dataset",
        nargs="?",
        const=ADE20K_FOLDER,
        dest="neg_dataroot",
        help=f"the same under its older name; without a folder {ADE20K_FOLDER}",
    )
    add_fixed_flags(parser, COCO20.num_classes, "coco20")
    args, recipe, run = start_run(parser, SegmenterNegativesRecipe, __file__, argv)

    # A closed-set model with a new head for P(d_out | x).
    model = hybrid_segmenter(args.model, COCO20.num_classes, recipe.heads, recipe.dataset_head, run.checkpointing)
    model.to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), recipe.lr, eps=recipe.adam_eps, fused=True)
    windows = SlidingWindows(model, recipe.window, recipe.window_stride, at_a_time=8, enlarge=True)

    # Photographs of known things, and a source of patches of unknown ones.
    lists = {"workers": run.workers, "list_folder": run.folder.parent}
    lists |= {"cache": args.cache, "max_pixels": args.max_pixels}
    transform = train_transform(recipe.crop_size, recipe.scale, COCO20.mean_colour, with_content=True)
    with main_process_first():  # it scans the label maps and keeps lists of them
        train_set = COCO20(args.dataroot, "training", transform, **lists)
        val_set = COCO20(args.dataroot, "validation", **lists)
        known_val_set = COCO20(args.dataroot, "validation_known", **lists)
    negatives = real_negatives(args, recipe, recipe.rare_below)
    pasted_train_set = WithNegatives(train_set, negatives, recipe.negatives_per_image)
    pasted_val_set = WithFixedNegatives(known_val_set, negatives, recipe.negatives_per_image)

    state = {"model": model, "optimizer": optimizer}
    validate = hybrid_validation(val_set, pasted_val_set, run, windows)
    return fit(hybrid_step(recipe, paste), state, pasted_train_set, recipe, run, validate, best="AP")


if __name__ == "__main__":
    run_script(main)
