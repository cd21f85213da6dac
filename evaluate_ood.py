"""Evaluate anomaly detection pixel by pixel (DenseHybrid, ECCV 2022): AP, AUROC and FPR at TPR 95 %.

    python evaluate_ood.py --dataroot DATAROOT --dataset street-hazards --folder OUTPUT_DIR --params WEIGHTS_FILE

StreetHazards' protocol is the mean over the test images of each image's figures; images without an outlier pixel are
left out and counted. --pooled adds the figures over the pixels of all images taken together.
"""

from pathlib import Path

import numpy as np

from data import StreetHazards
from engine import (
    choose_device,
    class_picture,
    evaluated_frames,
    heat_picture,
    run_script,
    save_grid,
    script_parser,
    write_results,
)
from losses import CLASS_SCORES, DATASET_SCORES, anomaly_score
from metrics import AnomalyMetrics, mean_of_images
from models import has_dataset_head, ladder_densenet121, load_weights

FIGURES = ("AP", "AUROC", "FPR95")
HEAT_RANGE = (0.01, 0.99)  # of the scores in the pictures: what is black and what is pale yellow


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
    drawn = set(np.linspace(0, len(test_set) - 1, min(args.pictures, len(test_set)), dtype=int).tolist())
    for number, frame in enumerate(evaluated_frames(model, test_set, device, args.workers)):
        frames.append(frame.name)
        for name in names:
            scores = anomaly_score(name, frame.class_logits, frame.dataset_logits)
            figures_by_frame[name].append(AnomalyMetrics().update(scores, frame.labels).compute())
            if args.pooled:
                pooled[name].update(scores, frame.labels)
            if name == names[0] and number in drawn:
                shown.append(
                    (
                        frame.image[0].cpu().numpy(),
                        frame.labels[0].cpu().numpy(),
                        frame.class_logits[0].argmax(0).cpu().numpy(),
                        scores[0].cpu().numpy(),
                    )
                )

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
        save_pictures(args.folder / "pictures.png", shown, names[0])
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


def save_pictures(path: Path, shown: list[tuple], score_name: str) -> None:
    colours = StreetHazards.class_colours
    low, high = np.quantile(np.concatenate([scores.ravel() for *_, scores in shown]), HEAT_RANGE)
    rows = [
        (
            (255 * image.transpose(1, 2, 0)).astype(np.uint8),
            class_picture(labels, colours),
            class_picture(prediction, colours),
            heat_picture(scores, low, high),
        )
        for image, labels, prediction, scores in shown
    ]
    note = (
        f"{score_name} score: black at {low:.2f} and below, pale yellow at {high:.2f} and above "
        "(1 % and 99 % of the scores in these frames)"
    )
    save_grid(
        path,
        ("image", "truth", "closed-set prediction", f"{score_name} score"),
        rows,
        StreetHazards.class_names,
        colours,
        note,
    )
    print(f"pictures: {path}")


if __name__ == "__main__":
    run_script(main)
