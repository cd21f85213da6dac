"""Evaluate open-set segmentation on StreetHazards (Hybrid Open-set Segmentation, TPAMI 2024): open-mIoU.

    python evaluate_osr_sh.py --dataroot SH_DATAROOT --model WEIGHTS_FILE

A pixel is "unknown" where its score reaches the threshold, else its most probable class. The threshold for town t5
finds 95 % of the outlier pixels of town t6, and the other way round; it is calibrated on score maps at half
resolution and applied at full resolution, as in the release. Towns carry their true names: the released code swaps
them. The release takes a score above the threshold for unknown; here one equal to it is, too. With torchrun
--nproc_per_node N in the place of python, N GPUs share the images.
"""

import math
from pathlib import Path

import torch.nn.functional as F

from data import StreetHazards
from engine import (
    choose_precision,
    evaluated_frames,
    evenly_spread,
    has_outliers,
    picture_of,
    predicted_classes,
    run_script,
    save_pictures,
    script_parser,
    start_process,
    write_results,
)
from engine.curves import distribution_of
from engine.files import require_writable
from engine.flags import add_pictures_flag, share
from engine.pictures import heat_range, heat_sample
from engine.processes import broadcast, gather_merged, gather_sorted, is_main_process
from engine.report import (
    FrameRanking,
    evaluation_record,
    figures_are_written,
    published_tables,
    require_same_weights,
    write_report,
)
from errors import WrongInput
from losses import CLASS_SCORES, DATASET_SCORES, anomaly_score
from metrics import AnomalyMetrics, ConfusionMatrix, classes_averaged
from models import fast_inference, has_dataset_head, ladder_densenet121, load_network

NO_OUTLIERS = (
    "note: town {town} has no outlier pixel{where}, so that no threshold can be taken from it: the open-set figures of "
    "town {other}, and of both towns, stay empty"
)
TOWNS = {"t5": "t6", "t6": "t5"}  # evaluated town -> the town that its threshold comes from


def main(argv=None):
    """The results, as results.json has them; of several processes, process 0 has them, and the others None."""
    parser = script_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="StreetHazards, the folder with train/ and test/")
    parser.add_argument("--model", required=True, help="weights of an LDN-121, closed-set or hybrid")
    parser.add_argument("--tpr", type=share, default=0.95, help="share of outlier pixels to find (default 0.95)")
    parser.add_argument(
        "--score",
        choices=[*DATASET_SCORES, *CLASS_SCORES],
        help="(default: hybrid, or max_logit for closed-set weights)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("results", "evaluate_osr_sh"),
        help="where results.json, index.html and others go",
    )
    add_pictures_flag(parser)
    args = parser.parse_args(argv)
    device = start_process(args.device, several_processes=True)
    precision = choose_precision(args.precision, device)
    require_writable(args.folder, "--folder")

    hybrid = has_dataset_head(args.model)
    score_name = args.score or ("hybrid" if hybrid else "max_logit")
    if score_name in DATASET_SCORES and not hybrid:
        raise WrongInput(
            f"--score {score_name}: {args.model} has no dataset head; take one of {', '.join(CLASS_SCORES)}"
        )
    require_same_weights(args.folder, args.model)
    towns = {town: StreetHazards(args.dataroot, town, max_pixels=args.max_pixels) for town in TOWNS}
    for town, dataset in towns.items():
        if not has_outliers(dataset):
            print(NO_OUTLIERS.format(town=town, other=TOWNS[town], where=""))
    images = sum(len(dataset) for dataset in towns.values())
    record = evaluation_record(__file__, argv, args.dataroot, images, args.model, device, precision)
    model = load_network(lambda: ladder_densenet121(StreetHazards.num_classes, hybrid), args.model)
    model = fast_inference(model.to(device), precision.dtype, precision.memory_format)

    def score(frame):
        return anomaly_score(score_name, frame.class_logits, frame.dataset_logits)

    calibrated, distributions = {}, {}
    for town, dataset in towns.items():
        anomaly = AnomalyMetrics()
        for frame in evaluated_frames(model, dataset, device, args.workers, f"calibrating on {town}", precision):
            anomaly.update(*halved(score(frame), frame.labels))
        anomaly = gather_merged(anomaly)
        calibrated[town] = broadcast(anomaly.threshold(args.tpr) if is_main_process() else None)
        if math.isnan(calibrated[town]):
            print(NO_OUTLIERS.format(town=town, other=TOWNS[town], where=" at half resolution"))
        if is_main_process():
            distributions[f"{score_name}, {town} at half resolution"] = distribution_of(anomaly, args.tpr)

    shown, heat, ranking, before = {}, {}, FrameRanking(math.ceil(args.pictures / 2)), 0
    closed, opened = ({town: ConfusionMatrix(StreetHazards.num_classes) for town in towns} for _ in range(2))
    for town, dataset in towns.items():
        drawn, threshold = evenly_spread(math.ceil(args.pictures / len(towns)), len(dataset)), calibrated[TOWNS[town]]
        for frame in evaluated_frames(model, dataset, device, args.workers, f"evaluating {town}", precision):
            number = before + frame.number  # among the frames of both towns
            prediction, scores = predicted_classes(frame.class_logits), score(frame)
            heat[number] = heat_sample(scores)
            closed[town].update(prediction, frame.labels)
            if math.isnan(threshold):
                prediction = None  # of an open set there is none
            else:
                prediction[scores >= threshold] = StreetHazards.num_classes
                opened[town].update(prediction, frame.labels)
            ranking.add(frame._replace(number=number), scores, prediction)
            if frame.number in drawn:
                shown[number] = picture_of(frame, scores, prediction)
        before += len(dataset)
    shown, heat, ranking = gather_sorted(shown), gather_sorted(heat), gather_merged(ranking)
    closed, opened = ({town: gather_merged(matrix) for town, matrix in each.items()} for each in (closed, opened))
    if not is_main_process():
        return None

    figures = {
        town: town_figures(len(dataset), calibrated[TOWNS[town]], closed[town], opened[town])
        for town, dataset in towns.items()
    }
    figures["total"] = total_figures(list(figures.values()))

    means = {"mIoU": "closed mIoU %", "open_mIoU": "open-mIoU %", "mIoU_with_unknown": "mIoU with unknown %"}
    rows = [
        ["town", "images", *(cell for title in means.values() for cell in (title, "classes")), "gap %", "threshold"]
    ]
    for town, figure in figures.items():
        averaged = [cell for name in means for cell in (figure[name], figure.get(f"{name}_classes", ""))]
        threshold = figure.get("threshold", math.nan)
        threshold = "" if math.isnan(threshold) else f"{threshold:.4f}"
        rows.append([town, figure["images"], *averaged, figure["gap"], threshold])
    title = (
        f"StreetHazards open set, {score_name} score; thresholds at TPR {args.tpr:g} from the other town's scores "
        "at half resolution, applied at full; total weighted by images"
    )
    results = {"dataset": "street-hazards", "weights": args.model, "score": score_name, "tpr": args.tpr, **figures}
    results["heat_range"] = {score_name: heat_range(heat)}
    results |= {"frame_AP": ranking.ap, "record": record}
    ours = figures["total"] | {f"open_mIoU_{town}": figures[town]["open_mIoU"] for town in TOWNS}
    tables = {title: rows} | published_tables("street-hazards-open-set", {score_name: ours})
    write_results(args.folder, results, tables)
    if shown:
        with figures_are_written(args.folder):
            colours = StreetHazards.class_colours
            save_pictures(args.folder / "pictures.png", shown, colours, score_name)
            headline = {title.removesuffix(" %"): figures["total"][name] for name, title in means.items()}
            title = "StreetHazards test, open set"
            write_report(args.folder, title, score_name, headline, tables, record, distributions, ranking, colours)
    return results


def halved(scores, labels):
    """Score maps bilinearly, label maps by their nearest pixel, at half their height and width."""
    size = [max(1, side // 2) for side in scores.shape[1:]]
    labels = F.interpolate(labels[:, None].float(), size, mode="nearest")[:, 0].long()
    return F.interpolate(scores[:, None], size, mode="bilinear", align_corners=False)[:, 0], labels


def town_figures(images: int, threshold: float, closed: ConfusionMatrix, opened: ConfusionMatrix) -> dict:
    """One town's figures; `gap` is what the unknown costs, closed-set mIoU less open-mIoU.

    Each mean has the number of classes that it averages beside it: a class with an empty union is left out. Without a
    threshold, which is then NaN, nothing was counted in `opened`, and all that needs it is NaN.
    """
    figures = opened.compute() | {"mIoU": closed.miou(), "mIoU_classes": classes_averaged(closed.iou())}
    return {
        "images": images,
        **figures,
        "gap": figures["mIoU"] - figures["open_mIoU"],
        "threshold": threshold,
        "closed_iou": closed.iou().tolist(),
        "open_iou": opened.open_iou().tolist(),
    }


def total_figures(towns: list[dict]) -> dict:
    """The towns' figures weighted by their numbers of images."""
    images = sum(town["images"] for town in towns)
    mean = {
        name: sum(town["images"] * town[name] for town in towns) / images
        for name in ("mIoU", "open_mIoU", "gap", "mIoU_with_unknown")
    }
    return {"images": images} | mean


if __name__ == "__main__":
    run_script(main)
