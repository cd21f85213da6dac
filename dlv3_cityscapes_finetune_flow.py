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
    FlowRecipe,
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
    train_set, val_set = Cityscapes(args.dataroot, "train", transform), Cityscapes(args.dataroot, "val")

    # NVIDIA's closed-set model with a new head for P(d_out | x).
    if recipe.batch_size == 1 or (len(train_set) % recipe.batch_size == 1 and not recipe.drop_last):
        raise ValueError(
            f"{len(train_set)} images in batches of {recipe.batch_size} leave a batch of one, and DeepLabV3+ trains on "
            "two at least: set --drop_last true or another --batch_size"
        )
    model = deeplabv3plus(Cityscapes.num_classes)
    if args.init != "none":
        load_weights(model, args.init, new=("logits_ood.",), source=NVIDIA_SOURCE)
    model.to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), recipe.lr, eps=recipe.adam_eps)

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
    pasted_val_set = WithFixedNegatives(val_set, whole_patches(drawn))

    def step(model, images, labels):
        with torch.no_grad():
            patches = flow.sample(len(images), *draw_patch_size(recipe.patch_sides)) / 255
        images, labels, _ = paste_at_random(images, labels, patches)
        return dense_hybrid_loss(
            *model(images),
            labels,
            beta=recipe.beta,
            ignored_are_inliers=recipe.ignored_are_inliers,
            likelihood_margin=recipe.likelihood_margin,
        )

    def flow_step(model, images, labels):
        patches = flow.sample(len(images), *draw_patch_size(recipe.patch_sides)) / 255
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
        figures = anomaly_figures(model, pasted_val_set, hybrid_score, run.device, run.workers)
        return figures | closed_set_figures(model, val_set, Cityscapes.num_classes, run.device, run.workers)

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
