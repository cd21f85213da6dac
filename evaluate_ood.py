"""Evaluate anomaly detection pixel by pixel (DenseHybrid, ECCV 2022): AP, AUROC and FPR at TPR 95 %.

    python evaluate_ood.py --dataroot DATAROOT --dataset street-hazards --folder OUTPUT_DIR --params WEIGHTS_FILE

StreetHazards' protocol is the mean over the test images of each image's figures; images without an outlier pixel are
left out and counted. --pooled adds the figures over the pixels of all images taken together.
"""

from pathlib import Path

from data import StreetHazards
from engine import (
    choose_device,
    evaluated_frames,
    evenly_spread,
    picture_of,
    run_script,
    save_pictures,
    script_parser,
    write_results,
)
from losses import CLASS_SCORES, DATASET_SCORES, anomaly_score
from metrics import AnomalyMetrics, mean_of_images
from models import has_dataset_head, ladder_densenet121, load_weights

FIGURES = ("AP", "AUROC", "FPR95")


def main(argv=None):
    parser = script_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="StreetHazards, the folder with train/ and test/")
    parser.add_argument("--dataset", required=True, choices=["street-hazards"])
    parser.add_argument("--folder", required=True, type=Path, help="where results.json, table.md and pictures go")
    parser.add_argument("--params", required=True, help="weights of an LDN-121, closed-set or hybrid")
    parser.add_argument(
        "--scores",
        nargs="+",
        choices=["all", *DATASET_SCORES, *CLASS_SCORES],
        metavar="SCORE",
        help=f"from one forward pass per image: all, {', '.join([*DATASET_SCORES, *CLASS_SCORES])} "
        "(default: hybrid; all that need no dataset head for closed-set weights)",
    )
    parser.add_argument("--pooled", action="store_true", help="also over all pixels: 4 bytes a pixel and score")
    parser.add_argument("--pictures", type=int, default=6, help="frames in pictures.png; 0: no picture (default 6)")
    args = parser.parse_args(argv)
    device = choose_device(args.device)

    test_set = StreetHazards(args.dataroot, "test")
    hybrid = has_dataset_head(args.params)
    model = load_weights(ladder_densenet121(StreetHazards.num_classes, hybrid), args.params).to(device)
    names = score_names(args.scores, hybrid)

    frames, figures_by_frame, shown = [], {name: [] for name in names}, []
    pooled = {name: AnomalyMetrics() for name in names}
    drawn = evenly_spread(args.pictures, len(test_set))
    for number, frame in enumerate(evaluated_frames(model, test_set, device, args.workers)):
        frames.append(frame.name)
        for name in names:
            scores = anomaly_score(name, frame.class_logits, frame.dataset_logits)
            figures_by_frame[name].append(AnomalyMetrics().update(scores, frame.labels).compute())
            if args.pooled:
                pooled[name].update(scores, frame.labels)
            if name == names[0] and number in drawn:
                shown.append(picture_of(frame, scores))

    means = {name: mean_of_images(figures_by_frame[name]) for name in names}
    tables = {f"StreetHazards test, {told_images(means[names[0]])}": figure_table(means)}
    results = {
        "dataset": args.dataset,
        "weights": args.params,
        "pixels": {
            kind: sum(image[f"{kind}_pixels"] for image in figures_by_frame[names[0]])
            for kind in ("inlier", "outlier", "ignored")
        },
        "mean_of_images": means,
        "images": [
            {"name": frame, **{name: figures_by_frame[name][number] for name in names}}
            for number, frame in enumerate(frames)
        ],
    }
    if args.pooled:
        results["pooled"] = {name: pooled[name].compute() for name in names}
        tables["StreetHazards test, all pixels of all images together"] = figure_table(results["pooled"])
    write_results(args.folder, results, tables)
    print("pixels scored: " + ", ".join(f"{count:,} {kind}" for kind, count in results["pixels"].items()))
    if shown:
        save_pictures(args.folder / "pictures.png", shown, StreetHazards.class_colours, names[0])
    return results


def score_names(asked: list[str] | None, hybrid: bool) -> list[str]:
    """The scores to evaluate, each once; "energy" and "generative" are the same and asked for by either name."""
    possible = [*(DATASET_SCORES if hybrid else ()), *(name for name in CLASS_SCORES if name != "energy")]
    if asked is None:
        return ["hybrid"] if hybrid else possible
    names = possible if "all" in asked else list(dict.fromkeys(asked))
    missing = [name for name in names if name in DATASET_SCORES and not hybrid]
    if missing:
        raise ValueError(
            f"--scores {' '.join(missing)}: these weights have no dataset head (logits_ood); "
            f"scores that need none: {', '.join(CLASS_SCORES)}"
        )
    return names


def told_images(mean: dict) -> str:
    return (
        f"mean over {mean['images']} images ({mean['images_without_outliers']} without outliers left out, "
        f"{mean['images_without_inliers']} without inliers)"
    )


def figure_table(figures: dict[str, dict]) -> list[list]:
    return [
        ["score", *(f"{name} %" for name in FIGURES)],
        *([score, *(figure[name] for name in FIGURES)] for score, figure in figures.items()),
    ]


if __name__ == "__main__":
    run_script(main)
