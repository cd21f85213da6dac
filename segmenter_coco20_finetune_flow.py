"""Fine-tune Segmenter on COCO20 with negatives that a flow draws (Hybrid Open-set Segmentation, TPAMI 2024).

    python segmenter_coco20_finetune_flow.py --dataroot COCO_DATAROOT --model TRAINED_MODEL \\
        --flow_state TRAINED_FLOW --exp_name EXP_NAME

The flow is trained along: its samples are pasted as negatives, and it learns to draw at the border of the known.
Numbers: recipes.yaml, block segmenter_coco20_finetune_flow. Expected result: README.md.
"""

from dataclasses import dataclass

import torch

from data import (
    COCO20,
    OUTLIER,
    WithFixedNegatives,
    cut_out,
    draw_patch_size,
    paste_at_random,
    train_transform,
    whole_patches,
)
from engine import (
    SlidingWindows,
    Step,
    add_fixed_flags,
    anomaly_figures,
    argument_parser,
    closed_set_figures,
    fit,
    main_process_first,
    require_positive,
    run_script,
    start_run,
)
from losses import dense_hybrid_loss, hybrid_score, pixel_counts, synthetic_negatives_loss
from methods import FLOW_SOURCE, FlowRecipe, trained_along
from models import SEGMENTER_DATASET_HEADS, denseflow_25_6, frozen, load_weights, segmenter


@dataclass(frozen=True, kw_only=True)
class SegmenterFlowRecipe(FlowRecipe):
    heads: int
    dataset_head: str
    window: int
    window_stride: int
    patches_per_image: int

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "heads", "window", "window_stride", "patches_per_image")


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="COCO, the folder with images/, labels/ and labels.txt")
    parser.add_argument("--model", required=True, help="weights to start from: a closed-set or a hybrid Segmenter")
    parser.add_argument("--flow_state", required=True, help="weights of the flow, or none to start it from scratch")
    add_fixed_flags(parser, COCO20.num_classes, "coco20")
    args, recipe, run = start_run(parser, SegmenterFlowRecipe, __file__, argv)

    # A closed-set model with a new head for P(d_out | x).
    model = segmenter(
        COCO20.num_classes, heads=recipe.heads, dataset_head=recipe.dataset_head, checkpointing=recipe.checkpointing
    )
    load_weights(model, args.model, new=(SEGMENTER_DATASET_HEADS[recipe.dataset_head],)).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), recipe.lr, eps=recipe.adam_eps, fused=True)
    windows = SlidingWindows(model, recipe.window, recipe.window_stride, at_a_time=8, enlarge=True)

    # The flow that draws the negatives; those of the validation are its first ones.
    flow = denseflow_25_6(recipe.flow_checkpointing)
    if args.flow_state != "none":
        load_weights(flow, args.flow_state, source=FLOW_SOURCE)
    flow_state, draw = trained_along(flow.to(run.device), args.flow_state, recipe, run)
    with torch.no_grad():
        drawn = [flow.sample(1, *draw_patch_size(recipe.patch_sides))[0] for _ in range(recipe.validation_patches)]

    # Photographs of known things.
    lists = {"workers": run.workers, "list_folder": run.folder.parent, "cache": args.cache}
    transform = train_transform(recipe.crop_size, recipe.scale, COCO20.mean_colour, with_content=True)
    with main_process_first():  # it scans the label maps and keeps lists of them
        train_set = COCO20(args.dataroot, "training", transform, **lists)
        val_set = COCO20(args.dataroot, "validation", **lists)
        known_val_set = COCO20(args.dataroot, "validation_known", **lists)
    pasted_val_set = WithFixedNegatives(known_val_set, whole_patches(drawn), recipe.patches_per_image)

    @torch.no_grad()
    def paste_drawn(images, labels, content):
        patches = (
            flow.sample(recipe.patches_per_image * len(images), *draw_patch_size(recipe.patch_sides), check=False) / 255
        )
        return paste_at_random(images, labels, patches, content)[:2]

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

    def flow_loss(model, images, labels, content):
        patches = flow.sample(len(images), *draw_patch_size(recipe.patch_sides), check=False) / 255
        pasted, pasted_labels, corners = paste_at_random(images, labels, patches, content)
        with frozen(model):
            class_logits, _ = model(pasted)
        covered = cut_out(images, corners, patches.shape[2:])
        return synthetic_negatives_loss(
            class_logits,
            pasted_labels == OUTLIER,
            flow.log_prob(covered),
            patches,
            divergence_weight=recipe.divergence_weight,
            bits_weight=recipe.bits_weight,
        )

    def validate(model):
        figures = anomaly_figures(windows, pasted_val_set, hybrid_score, run)
        return figures | closed_set_figures(windows, val_set, COCO20.num_classes, run)

    state = {"model": model, "optimizer": optimizer} | flow_state
    steps = {"optimizer": Step(loss, paste_drawn, count_pixels, fixed=True), "flow_optimizer": Step(flow_loss)}
    best = "mIoU" if args.flow_state == "none" else "AP"  # on the noise of an untrained flow an AP says nothing
    return fit(steps, state, train_set, recipe, run, validate, best=best, draw=draw)


if __name__ == "__main__":
    run_script(main)
