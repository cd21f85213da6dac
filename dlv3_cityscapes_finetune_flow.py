"""Fine-tune DeepLabV3+ on Cityscapes with negatives that a flow draws (Hybrid Open-set Segmentation, TPAMI 2024).

    python dlv3_cityscapes_finetune_flow.py --dataroot CITY_DATAROOT --flow_state FLOW_CHECKPOINT --exp_name EXP_NAME

The flow is trained along: its samples are pasted as negatives, and it learns to draw at the border of the known.
Numbers: recipes.yaml, block dlv3_cityscapes_finetune_flow. Expected result: README.md.
"""

import torch

from data import (
    OUTLIER,
    Cityscapes,
    WithFixedNegatives,
    cut_out,
    draw_patch_size,
    paste_at_random,
    train_transform,
    whole_patches,
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
from losses import dense_hybrid_loss, hybrid_score, pixel_counts, synthetic_negatives_loss
from methods import FLOW_SOURCE, FlowRecipe, trained_along
from models import deeplabv3plus, denseflow_25_6, frozen, load_weights

NVIDIA_WEIGHTS = "cityscapes_cv0_wideresnet38_nosdcaug.pth"
NVIDIA_SOURCE = (
    "NVIDIA's Cityscapes weights are at drive.google.com/file/d/1CKB7gpcPLgDLA7LuFJc46rYcNzF3aWzH/view: "
    "put them into the working directory, or give their place with --init FILE"
)


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="Cityscapes, the folder with leftImg8bit/ and gtFine/")
    parser.add_argument("--flow_state", required=True, help="weights of the flow, or none to start it from scratch")
    parser.add_argument(
        "--init", default=NVIDIA_WEIGHTS, help=f"weights to start from, or none (default {NVIDIA_WEIGHTS})"
    )
    add_fixed_flags(parser, Cityscapes.num_classes, "cityscapes")
    args, recipe, run = start_run(parser, FlowRecipe, __file__, argv)

    # Known streets.
    transform = train_transform(recipe.crop_size, recipe.scale, Cityscapes.mean_colour)
    train_set, val_set = (
        Cityscapes(args.dataroot, "train", transform, args.cache),
        Cityscapes(args.dataroot, "val", cache=args.cache),
    )

    # NVIDIA's closed-set model with a new head for P(d_out | x).
    require_two_at_once(len(train_set), recipe)
    model = deeplabv3plus(Cityscapes.num_classes, checkpointing=recipe.checkpointing)
    if args.init != "none":
        load_weights(model, args.init, new=("logits_ood.",), source=NVIDIA_SOURCE)
    model.to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), recipe.lr, eps=recipe.adam_eps, fused=True)

    # The flow that draws the negatives; those of the validation are its first ones.
    flow = denseflow_25_6(recipe.flow_checkpointing)
    if args.flow_state != "none":
        load_weights(flow, args.flow_state, source=FLOW_SOURCE)
    flow_state, draw = trained_along(flow.to(run.device), args.flow_state, recipe, run)
    with torch.no_grad():
        drawn = [flow.sample(1, *draw_patch_size(recipe.patch_sides))[0] for _ in range(recipe.validation_patches)]
    pasted_val_set = WithFixedNegatives(val_set, whole_patches(drawn))

    @torch.no_grad()
    def paste_drawn(images, labels):
        patches = flow.sample(len(images), *draw_patch_size(recipe.patch_sides), check=False) / 255
        return paste_at_random(images, labels, patches)[:2]

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

    def flow_loss(model, images, labels):
        patches = flow.sample(len(images), *draw_patch_size(recipe.patch_sides), check=False) / 255
        pasted, pasted_labels, corners = paste_at_random(images, labels, patches)
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
        figures = anomaly_figures(model, pasted_val_set, hybrid_score, run)
        return figures | closed_set_figures(model, val_set, Cityscapes.num_classes, run)

    state = {"model": model, "optimizer": optimizer} | flow_state
    steps = {"optimizer": Step(loss, paste_drawn, count_pixels, fixed=True), "flow_optimizer": Step(flow_loss)}
    best = "mIoU" if args.flow_state == "none" else "AP"  # on the noise of an untrained flow an AP says nothing
    return fit(steps, state, train_set, recipe, run, validate, best=best, draw=draw)


if __name__ == "__main__":
    run_script(main)
