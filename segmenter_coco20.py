"""Train Segmenter on COCO20's twenty known classes (closed set; Hybrid Open-set Segmentation, TPAMI 2024).

    python segmenter_coco20.py --dataroot COCO_DATAROOT --exp_name EXP_NAME

Numbers: recipes.yaml, block segmenter_coco20.
"""

import torch

from data import COCO20, train_transform
from engine import SlidingWindows, add_fixed_flags, argument_parser, fit, main_process_first, run_script, start_run
from methods import SegmenterRecipe, closed_set_step, closed_set_validation
from models import load_imagenet_vit, segmenter

IMAGENET_WEIGHTS = "vit_base_p16_384.pth"


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="COCO, the folder with images/, labels/ and labels.txt")
    parser.add_argument(
        "--init", default=IMAGENET_WEIGHTS, help=f"ImageNet ViT to start from, or none (default {IMAGENET_WEIGHTS})"
    )
    add_fixed_flags(parser, COCO20.num_classes, "coco20")
    args, recipe, run = start_run(parser, SegmenterRecipe, __file__, argv)

    # A network of which only the encoder is trained already.
    model = segmenter(COCO20.num_classes, hybrid=False, heads=recipe.heads, checkpointing=run.checkpointing)
    if args.init != "none":
        load_imagenet_vit(model, args.init)
    model.to(run.device)
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, fused=True)
    windows = SlidingWindows(model, recipe.window, recipe.window_stride, at_a_time=8, enlarge=True)

    # Photographs of known things.
    lists = {"workers": run.workers, "list_folder": run.folder.parent}
    lists |= {"cache": args.cache, "max_pixels": args.max_pixels}
    transform = train_transform(recipe.crop_size, recipe.scale, COCO20.mean_colour)
    with main_process_first():  # it scans the label maps and keeps lists of them
        train_set = COCO20(args.dataroot, "training", transform, **lists)
        val_set = COCO20(args.dataroot, "validation", **lists)

    state = {"model": model, "optimizer": optimizer}
    validate = closed_set_validation(val_set, run, windows)
    return fit(closed_set_step(), state, train_set, recipe, run, validate, best="mIoU")


if __name__ == "__main__":
    run_script(main)
