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
    FlowRecipe,
    SlidingWindows,
    add_fixed_flags,
    anomaly_figures,
    argument_parser,
    closed_set_figures,
    fit,
    run_script,
    same_noise,
    save_samples,
    sha256,
    start_run,
)
from losses import dense_hybrid_loss, hybrid_score, synthetic_negatives_loss
from models import SEGMENTER_DATASET_HEADS, denseflow_25_6, frozen, load_weights, segmenter


@dataclass(frozen=True, kw_only=True)
class SegmenterFlowRecipe(FlowRecipe):
    heads: int
    dataset_head: str
    window: int
    window_stride: int
    patches_per_image: int


def main(argv=None):
    parser = argument_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="COCO, the folder with images/, labels/ and labels.txt")
    parser.add_argument("--model", required=True, help="weights to start from: a closed-set or a hybrid Segmenter")
    parser.add_argument("--flow_state", required=True, help="weights of the flow, or none to start it from scratch")
    add_fixed_flags(parser, COCO20.num_classes, "coco20")
    args, recipe, run = start_run(parser, SegmenterFlowRecipe, __file__, argv)

    # A closed-set model with a new head for P(d_out | x).
    model = segmenter(COCO20.num_classes, heads=recipe.heads, dataset_head=recipe.dataset_head)
    load_weights(model, args.model, new=(SEGMENTER_DATASET_HEADS[recipe.dataset_head],)).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), recipe.lr, eps=recipe.adam_eps)
    windows = SlidingWindows(model, recipe.window, recipe.window_stride, at_a_time=8, enlarge=True)

    # The flow that draws the negatives; those of the validation are its first ones.
    flow, flow_lr = denseflow_25_6(recipe.flow_checkpointing), recipe.flow_lr_scratch
    if args.flow_state != "none":
        load_weights(
            flow, args.flow_state, source="--flow_state takes a file of train_denseflow.py, a released one, or none"
        )
        run.record["flow_state"] = sha256(args.flow_state)  # the validation's negatives depend on it: --resume compares
        flow_lr = recipe.flow_lr_pretrained
    flow.to(run.device)
    flow_optimizer = torch.optim.Adamax(flow.parameters(), flow_lr, eps=recipe.flow_eps)
    flow_schedule = torch.optim.lr_scheduler.ExponentialLR(flow_optimizer, recipe.flow_lr_decay)
    with torch.no_grad():
        drawn = [flow.sample(1, *draw_patch_size(recipe.patch_sides))[0] for _ in range(recipe.validation_patches)]

    # Photographs of known things.
    lists = {"workers": run.workers, "list_folder": run.folder.parent}
    transform = train_transform(recipe.crop_size, recipe.scale, COCO20.mean_colour, with_content=True)
    train_set = COCO20(args.dataroot, "training", transform, **lists)
    val_set = COCO20(args.dataroot, "validation", **lists)
    known_val_set = COCO20(args.dataroot, "validation_known", **lists)
    pasted_val_set = WithFixedNegatives(known_val_set, whole_patches(drawn), recipe.patches_per_image)

    def step(model, images, labels, content):
        with torch.no_grad():
            count = recipe.patches_per_image * len(images)
            patches = flow.sample(count, *draw_patch_size(recipe.patch_sides)) / 255
        images, labels, _ = paste_at_random(images, labels, patches, content)
        return dense_hybrid_loss(
            *model(images),
            labels,
            beta=recipe.beta,
            ignored_are_inliers=recipe.ignored_are_inliers,
            likelihood_margin=recipe.likelihood_margin,
        )

    def flow_step(model, images, labels, content):
        patches = flow.sample(len(images), *draw_patch_size(recipe.patch_sides)) / 255
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
        figures = anomaly_figures(windows, pasted_val_set, hybrid_score, run.device, run.workers)
        return figures | closed_set_figures(windows, val_set, COCO20.num_classes, run.device, run.workers)

    @torch.no_grad()
    def draw(model, path):
        with same_noise(run.device):
            save_samples(path, flow.sample(8, recipe.patch_sides[1], recipe.patch_sides[1]), columns=4)

    state = {
        "model": model,
        "optimizer": optimizer,
        "flow": flow,
        "flow_optimizer": flow_optimizer,
        "flow_schedule": flow_schedule,
    }
    steps = {"optimizer": step, "flow_optimizer": flow_step}
    return fit(steps, state, train_set, recipe, run, validate, best="AP", draw=draw)


if __name__ == "__main__":
    run_script(main)
