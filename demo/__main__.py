"""The whole way on data that is drawn here: train, fine-tune and find the unknown in a small street world.

    python -m demo [--negatives pictures|flow]

Draws the world in StreetHazards' and ADE20K's folder layouts, trains LDN-121 on its twelve classes from random
weights, fine-tunes it with negatives (patches of other pictures, or what a flow draws that is trained here, too,
and then sees no negative picture at all), evaluates anomaly detection and open-set segmentation, all with the scripts
that serve the real data, and shows a table and pictures. Some minutes on two cores. The world is drawn, so its
figures say nothing about real streets.
"""

import contextlib
import shutil
import time
from pathlib import Path

import evaluate_ood
import evaluate_osr_sh
import ldn_streethazards
import ldn_streethazards_finetune
import ldn_streethazards_finetune_flow
import train_denseflow
from demo.world import draw_negatives, draw_street_hazards
from engine import run_script, write_results
from engine.files import require_writable
from engine.flags import LARGEST_SEED, Parser, whole_number
from errors import FileInTheWay

# The sizes of the demo; all other numbers are those of recipes.yaml.
CROPS = ["--crop_size", "96", "--batch_size", "8", "--scale", "0.75", "1.5", "--statistics_batches", "30"]
CLOSED_SET = [*CROPS, "--epochs", "12", "--lr", "1e-3", "--backbone_lr_factor", "1", "--init", "none"]
FINE_TUNING = [*CROPS, "--lr", "4e-4", "--backbone_lr_factor", "1", "--beta", "0.06", "--likelihood_margin", "3"]
PICTURES = ["--epochs", "6", "--negative_resize", "96", "--negative_scale", "0.7", "2", "--negative_size", "64"]
FLOW_TRAINING = ["--epochs", "5", "--crop_size", "32", "--batch_size", "8", "--scale", "0.75", "1.5",
                 "--warmup_steps", "20"]  # fmt: skip
FLOW = ["--epochs", "2", "--patch_sides", "16", "32", "8", "--flow_lr_pretrained", "1e-4", "--validation_patches", "16"]


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo_output"), help="written anew (default demo_output)")
    parser.add_argument("--negatives", choices=["pictures", "flow"], default="pictures", help="(default pictures)")
    parser.add_argument(
        "--seed", type=whole_number(0, LARGEST_SEED), default=0, help="of the world and the training (default 0)"
    )
    args = parser.parse_args(argv)
    require_writable(args.folder, "--folder")
    started = time.monotonic()
    make_folder(args.folder)
    with contextlib.chdir(args.folder), stopped_is_explained():
        print("drawing the world", flush=True)
        draw_street_hazards("streets", training=320, validation=16, test=32, seed=args.seed)
        draw_negatives("negatives", count=100, seed=args.seed)
        world, seed = ["--dataroot", "streets"], ["--seed", str(args.seed)]

        closed = ldn_streethazards.main([*world, "--exp_name", "closed_set", *seed, *CLOSED_SET])
        start = ["--exp_name", "hybrid", "--model", "logs/closed_set/final.pth", *seed, *FINE_TUNING]
        if args.negatives == "pictures":
            hybrid = ldn_streethazards_finetune.main([*world, *start, "--neg_dataroot", "negatives", *PICTURES])
        else:
            streets = ["--dataset", "street-hazards", *world]
            train_denseflow.main([*streets, "--exp_name", "flow", *seed, *FLOW_TRAINING])
            flow = ["--flow_state", "logs/flow/final.pth"]
            hybrid = ldn_streethazards_finetune_flow.main([*world, *start, *flow, *FLOW])

        weights = "logs/hybrid/final.pth"
        pixels = ["--dataset", "street-hazards", "--pooled", "--pictures", "0"]
        closed_set = ["--folder", "baseline", "--params", "logs/closed_set/final.pth"]
        baseline = evaluate_ood.main([*world, *pixels, *closed_set])["figures"]["pooled"]
        hybrid_set = ["--folder", "scores", "--params", weights, "--scores", "all"]
        scores = evaluate_ood.main([*world, *pixels, *hybrid_set])["figures"]["pooled"]
        open_set = ["--folder", "open_set", "--pictures", "8"]
        opened = evaluate_osr_sh.main([*world, "--model", weights, *open_set])["figures"]

    rows = [["what", "closed-set training", "after fine-tuning"]]
    rows.append(["closed-set mIoU %, validation", closed["mIoU"], hybrid["mIoU"]])
    rows.append(["open-mIoU %, both test towns", "", opened["total"]["open_mIoU"]])
    for name, figures in scores.items():
        before = baseline.get(name, {}).get("AP", "")
        rows.append([f"AP % of unknown pixels, {name} score", before, figures["AP"]])
    figures = {"closed_set": closed, "hybrid": hybrid, "baseline": baseline, "scores": scores,
               "open_set": opened, "seconds": time.monotonic() - started}  # fmt: skip
    title = "The drawn world, which says nothing about real streets; scores over all pixels of the test frames"
    write_results(args.folder, figures, {title: rows}, ("demo.json", "table.md"))
    if args.negatives == "flow":
        print(f"what the flow draws, epoch by epoch: {args.folder}/logs/flow/pictures, then logs/hybrid/pictures")
    print(f"pictures: {args.folder / 'open_set' / 'pictures.png'}\ntook {figures['seconds']:.0f} seconds")
    return figures


@contextlib.contextmanager
def stopped_is_explained():
    """Ctrl-C in one of the scripts ends the demo, which has no half-way."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        print("the demo was stopped; started again it begins anew")
        raise SystemExit(130) from None


def make_folder(folder: Path) -> None:
    """An empty folder for the demo; only one that an earlier demo made is emptied."""
    marker = folder / ".made_by_demo"
    if folder.exists() and not marker.exists() and any(folder.iterdir()):
        raise FileInTheWay(f"{folder} exists and was not made by the demo; choose another --folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    marker.touch()


if __name__ == "__main__":
    run_script(main)
