"""Fine-tune LDN-121 on StreetHazards with negatives that a flow draws (after Hybrid Open-set Segmentation, TPAMI 2024).

    python ldn_streethazards_finetune_flow.py --dataroot SH_DATAROOT --model MODEL_INIT --flow_state FLOW_CHECKPOINT \\
        --exp_name EXP_NAME

The flow is trained along: its samples are pasted as negatives, and it learns to draw at the border of the known.
The release has no such script: the recipe joins those of ldn_streethazards_finetune and
dlv3_cityscapes_finetune_flow. Numbers: recipes.yaml, block ldn_streethazards_finetune_flow.
"""

from dataclasses import dataclass

import torch

from data import (
    OUTLIER,
    StreetHazards,
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
    require,
    require_two_at_once,
    run_script,
    start_run,
)
from losses import dense_hybrid_loss, hybrid_score, pixel_counts, synthetic_negatives_loss
from methods import FLOW_SOURCE, FlowRecipe, trained_along
from models import backbone_slower, denseflow_25_6, frozen, ladder_densenet121, load_weights


@dataclass(frozen=True, kw_only=True)
class LadderFlowRecipe(FlowRecipe):
    backbone_lr_factor: float

    def __post_init__(self):
        super().__post_init__()
        require(
            0 < self.backbone_lr_factor <= 1, f"backbone_lr_factor {self.backbone_lr_factor} must be over 0, at most 1"
        )


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="StreetHazards, the folder with train/ and test/")
    parser.add_argument("--model", required=True, help="weights to start from: a closed-set or a hybrid LDN-121")
    parser.add_argument("--flow_state", required=True, help="weights of the flow, or none to start it from scratch")
    add_fixed_flags(parser, StreetHazards.num_classes, "street-hazards")
    args, recipe, run = start_run(parser, LadderFlowRecipe, __file__, argv)

    # Known streets.
    transform = train_transform(recipe.crop_size, recipe.scale, StreetHazards.mean_colour)
    train_set = StreetHazards(args.dataroot, "training", transform, args.cache)
    val_set = StreetHazards(args.dataroot, "validation", cache=args.cache)

    # A closed-set model with a new head for P(d_out | x).
    require_two_at_once(len(train_set), recipe)
    model = ladder_densenet121(StreetHazards.num_classes, checkpointing=recipe.checkpointing)
    load_weights(model, args.model, new=("logits_ood.",)).to(run.device)
    optimizer = torch.optim.Adam(
        backbone_slower(model, recipe.lr, recipe.backbone_lr_factor), eps=recipe.adam_eps, fused=True
    )

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
        return figures | closed_set_figures(model, val_set, StreetHazards.num_classes, run)

    state = {"model": model, "optimizer": optimizer} | flow_state
    steps = {"optimizer": Step(loss, paste_drawn, count_pixels, fixed=True), "flow_optimizer": Step(flow_loss)}
    best = "mIoU" if args.flow_state == "none" else "AP"  # on the noise of an untrained flow an AP says nothing
    return fit(steps, state, train_set, recipe, run, validate, best=best, draw=draw)


if __name__ == "__main__":
    run_script(main)
