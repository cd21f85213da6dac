"""Train Segmenter on COCO20's twenty known classes (closed set; Hybrid Open-set Segmentation, TPAMI 2024).

    python segmenter_coco20.py --dataroot COCO_DATAROOT --exp_name EXP_NAME

Numbers: recipes.yaml, block segmenter_coco20. Expected result: README.md.
"""

from dataclasses import dataclass

import torch

from data import COCO20, train_transform
from engine import (
    Recipe,
    SlidingWindows,
    Step,
    add_fixed_flags,
    argument_parser,
    closed_set_figures,
    fit,
    main_process_first,
    require_positive,
    run_script,
    start_run,
)
from losses import closed_set_loss, pixel_counts
from models import load_imagenet_vit, segmenter

IMAGENET_WEIGHTS = "vit_base_p16_384.pth"


@dataclass(frozen=True, kw_only=True)
class SegmenterRecipe(Recipe):
    heads: int
    window: int
    window_stride: int

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "heads", "window", "window_stride")


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="COCO, the folder with images/, labels/ and labels.txt")
    parser.add_argument(
        "--init", default=IMAGENET_WEIGHTS, help=f"ImageNet ViT to start from, or none (default {IMAGENET_WEIGHTS})"
    )
    add_fixed_flags(parser, COCO20.num_classes, "coco20")
    args, recipe, run = start_run(parser, SegmenterRecipe, __file__, argv)

    model = segmenter(COCO20.num_classes, hybrid=False, heads=recipe.heads, checkpointing=recipe.checkpointing)
    if args.init != "none":
        load_imagenet_vit(model, args.init)
    model.to(run.device)
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, fused=True)
    windows = SlidingWindows(model, recipe.window, recipe.window_stride, at_a_time=8, enlarge=True)

    lists = {"workers": run.workers, "list_folder": run.folder.parent, "cache": args.cache}
    transform = train_transform(recipe.crop_size, recipe.scale, COCO20.mean_colour)
    with main_process_first():  # it scans the label maps and keeps lists of them
        train_set = COCO20(args.dataroot, "training", transform, **lists)
        val_set = COCO20(args.dataroot, "validation", **lists)

    def loss(model, images, labels, counts):
        return closed_set_loss(model(images), labels, counts)

    def count_pixels(images, labels):
        return pixel_counts(labels)

    def validate(model):
        return closed_set_figures(windows, val_set, COCO20.num_classes, run)

    state = {"model": model, "optimizer": optimizer}
    return fit(Step(loss, counts=count_pixels, fixed=True), state, train_set, recipe, run, validate, best="mIoU")


if __name__ == "__main__":
    run_script(main)
