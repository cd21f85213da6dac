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

from torch import nn

from data import StreetHazards
from engine import (
    Evaluation,
    ReportedFrames,
    evaluated_frames,
    evenly_spread,
    has_outliers,
    predicted_classes,
    run_script,
    script_parser,
    start_evaluation,
)
from engine.curves import Distribution, distribution_of
from engine.open_set import halved, open_set_figures, open_set_headline, total_figures, town_table
from engine.processes import broadcast, gather_merged, is_main_process
from engine.report import Report, published_tables, write_evaluation
from engine.results import Calibration, evaluation_results
from losses import anomaly_score
from methods.evaluation import add_open_set_flags, chosen_score
from metrics import AnomalyMetrics, ConfusionMatrix
from models import fast_inference, open_network

NO_OUTLIERS = (
    "note: town {town} has no outlier pixel{where}, so that no threshold can be taken from it: the open-set figures of "
    "town {other}, and of both towns, stay empty"
)
TOWNS = {"t5": "t6", "t6": "t5"}  # evaluated town -> the town that its threshold comes from
K = StreetHazards.num_classes


def main(argv=None):
    """The results, as docs/files.md has them; of several processes, process 0 has them, and the others None."""
    parser = script_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="StreetHazards, the folder with train/ and test/")
    parser.add_argument("--model", required=True, help="weights of an LDN-121, closed-set or hybrid")
    add_open_set_flags(parser, Path("results", "evaluate_osr_sh"))
    args, evaluation = start_evaluation(parser, "model", __file__, argv)
    precision = evaluation.precision

    network = open_network(args.model, "ldn121", K)
    score = chosen_score(args.score, network.hybrid, args.model)
    model = fast_inference(network.to(evaluation.device), precision.dtype, precision.memory_format)
    towns = {town: StreetHazards(args.dataroot, town, max_pixels=args.max_pixels) for town in TOWNS}
    for town in (without := [town for town in TOWNS if not has_outliers(towns[town])]):
        print(NO_OUTLIERS.format(town=town, other=TOWNS[town], where=""))
    images = sum(len(dataset) for dataset in towns.values())
    record = evaluation.record(images)

    thresholds, distributions = calibrated(model, towns, score, args.tpr, evaluation)
    for town in (town for town in TOWNS if math.isnan(thresholds[town]) and town not in without):
        print(NO_OUTLIERS.format(town=town, other=TOWNS[town], where=" at half resolution"))

    starts = {"t5": 0, "t6": len(towns["t5"])}  # of the frames' numbers
    each = math.ceil(args.pictures / len(towns))
    shown = {starts[town] + number for town in towns for number in evenly_spread(each, len(towns[town]))}
    frames = ReportedFrames([score], args.pictures, shown)
    closed, opened = ({town: ConfusionMatrix(K) for town in towns} for _ in range(2))
    for town, dataset in towns.items():
        threshold = thresholds[TOWNS[town]]
        for frame in evaluated_frames(model, dataset, evaluation.device, args.workers, f"evaluating {town}", precision):
            prediction = predicted_classes(frame.class_logits)
            scores = anomaly_score(score, frame.class_logits, frame.dataset_logits)
            closed[town].update(prediction, frame.labels)
            if math.isnan(threshold):
                prediction = None  # of an open set there is none
            else:
                prediction[scores >= threshold] = K
                opened[town].update(prediction, frame.labels)
            frames.add(frame._replace(number=starts[town] + frame.number), {score: scores}, prediction)
    frames = gather_merged(frames)
    closed, opened = ({town: gather_merged(matrix) for town, matrix in each.items()} for each in (closed, opened))
    record["peak_memory_bytes"] = evaluation.peak_memory()
    if not is_main_process():
        return None

    figures = {}
    for town, dataset in towns.items():
        figures[town] = {"images": len(dataset)} | open_set_figures(closed[town], opened[town])
        figures[town]["threshold"] = thresholds[TOWNS[town]]
    figures["total"] = total_figures(list(figures.values()))
    title = (
        f"StreetHazards open set, {score} score; thresholds at TPR {args.tpr:g} from the other town's scores "
        "at half resolution, applied at full; total weighted by images"
    )
    ours = figures["total"] | {f"open_mIoU_{town}": figures[town]["open_mIoU"] for town in TOWNS}
    tables = {title: town_table(figures)} | published_tables("street-hazards-open-set", {score: ours}, images)
    lower = math.nan if any(map(math.isnan, thresholds.values())) else min(thresholds.values())  # for both towns
    calibration = {score: Calibration(lower, args.tpr, frames.heat_range(score))}
    results = evaluation_results(record, "street-hazards", "ldn121", figures, tables, calibration, frames.images)
    headline = open_set_headline(figures["total"])
    report = Report("StreetHazards test, open set", headline, frames, StreetHazards.class_colours, None, distributions)
    write_evaluation(args.folder, results, report)
    return results


def calibrated(
    model: nn.Module, towns: dict[str, StreetHazards], score: str, tpr: float, evaluation: Evaluation
) -> tuple[dict[str, float], dict[str, Distribution]]:
    """The threshold that finds `tpr` of each town's outlier pixels, and in process 0 how its scores are distributed."""
    thresholds, distributions = {}, {}
    device, workers, precision = evaluation.device, evaluation.workers, evaluation.precision
    for town, dataset in towns.items():
        anomaly = AnomalyMetrics()
        for frame in evaluated_frames(model, dataset, device, workers, f"calibrating on {town}", precision):
            scores = anomaly_score(score, frame.class_logits, frame.dataset_logits)
            anomaly.update(*halved(scores, frame.labels))
        anomaly = gather_merged(anomaly)
        thresholds[town] = broadcast(None if not is_main_process() else anomaly.threshold(tpr))
        if is_main_process():
            distributions[f"{score}, {town} at half resolution"] = distribution_of(anomaly, tpr)
    return thresholds, distributions


if __name__ == "__main__":
    run_script(main)
