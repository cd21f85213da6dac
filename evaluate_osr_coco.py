"""Evaluate open-set segmentation on COCO20/80 (Hybrid Open-set Segmentation, TPAMI 2024): open-mIoU.

    python evaluate_osr_coco.py --dataroot COCO_DATAROOT --model WEIGHTS_FILE

A pixel is "unknown" where its score reaches the threshold, else its most probable class. The threshold finds 95 % of
the outlier pixels of the validation photographs themselves, at full resolution, as in the release. The network slides
over a photograph in windows, and the score takes the averaged logits; the release takes their softmax for logits,
which --released_scoring restores. With torchrun --nproc_per_node N in the place of python, N GPUs share the images.
"""

import math
from pathlib import Path

import numpy as np

from data import COCO20, IGNORE
from engine import (
    ReportedFrames,
    SlidingWindows,
    evaluated_frames,
    evenly_spread,
    has_outliers,
    predicted_classes,
    run_script,
    script_parser,
    start_evaluation,
)
from engine.curves import distribution_of
from engine.flags import whole_number
from engine.open_set import open_set_figures, open_set_headline, open_set_table
from engine.processes import broadcast, gather_merged, is_main_process, main_process_first
from engine.report import Report, published_tables, write_evaluation
from engine.results import Calibration, evaluation_results
from losses import anomaly_score
from methods.evaluation import add_heads_flag, add_open_set_flags, chosen_score
from metrics import AnomalyMetrics, ConfusionMatrix
from models import NETWORKS, ReleasedScoring, fast_inference, open_network

NO_OUTLIERS = (
    "note: no pixel of an unknown thing in {dataroot}, so that no threshold can be taken from it: AP and all that "
    "needs outliers, and the open-set figures, stay empty"
)
WINDOW, WINDOW_STRIDE = NETWORKS["segmenter"].window
K = COCO20.num_classes


def main(argv=None):
    """The results, as docs/files.md has them; of several processes, process 0 has them, and the others None."""
    parser = script_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="COCO, the folder with images/, labels/ and labels.txt")
    parser.add_argument("--model", required=True, help="weights of a Segmenter, closed-set or hybrid")
    parser.add_argument("--released_scoring", action="store_true", help="probabilities in the place of logits")
    add_heads_flag(parser)
    side = whole_number(1)
    parser.add_argument("--window", type=side, default=WINDOW, help=f"side of the windows (default {WINDOW})")
    parser.add_argument(
        "--window_stride", type=side, default=WINDOW_STRIDE, help=f"pixels between windows (default {WINDOW_STRIDE})"
    )
    add_open_set_flags(parser, Path("results", "evaluate_osr_coco"))
    args, evaluation = start_evaluation(parser, "model", __file__, argv)
    device, precision = evaluation.device, evaluation.precision

    network = open_network(args.model, "segmenter", K, args.heads)
    score = chosen_score(args.score, network.hybrid, args.model)
    network = fast_inference(network.to(device), precision.dtype, precision.memory_format)
    model = SlidingWindows(network, args.window, args.window_stride, at_a_time=8, enlarge=True)
    if args.released_scoring:
        model = ReleasedScoring(model)
    with main_process_first():
        read = {"workers": args.workers, "list_folder": args.folder, "max_pixels": args.max_pixels}
        dataset = COCO20(args.dataroot, "validation", **read)
    if not has_outliers(dataset):
        print(NO_OUTLIERS.format(dataroot=args.dataroot))
    record = evaluation.record(len(dataset))

    # One pass: what the threshold decides on is kept, 6 bytes for each pixel of a thing.
    anomaly, closed, opened = AnomalyMetrics(), ConfusionMatrix(K), ConfusionMatrix(K)
    frames, kept = ReportedFrames([score], args.pictures, evenly_spread(args.pictures, len(dataset))), []
    for frame in evaluated_frames(model, dataset, device, args.workers, precision=precision):
        scores = anomaly_score(score, frame.class_logits, frame.dataset_logits)
        prediction = predicted_classes(frame.class_logits)
        closed.update(prediction, frame.labels)
        anomaly.merge(frames.add(frame, {score: scores})[score])  # the same scores, not kept twice
        kept.append(labelled_pixels(scores, prediction, frame.labels))

    anomaly = gather_merged(anomaly)
    threshold = broadcast(None if not is_main_process() else anomaly.threshold(args.tpr))
    for scores, prediction, labels in [] if math.isnan(threshold) else kept:
        opened.update(opened_at(threshold, scores, prediction), labels)
    closed, opened, frames = gather_merged(closed), gather_merged(opened), gather_merged(frames)
    record["peak_memory_bytes"] = evaluation.peak_memory()
    if not is_main_process():
        return None

    if not math.isnan(threshold):
        frames.redraw(lambda each: each._replace(open_prediction=opened_at(threshold, each.scores, each.prediction)))
    pixels = anomaly.compute()
    figures = open_set_figures(closed, opened) | pixels | {"threshold": threshold, "images": len(dataset)}
    scored = "probabilities in the place of logits, as released" if args.released_scoring else "logits"
    title = (
        f"COCO20/80 validation, {score} score of {scored}; threshold at TPR {args.tpr:g} on the same photographs, "
        "at full resolution"
    )
    tables = {title: open_set_table(figures)} | published_tables("coco20", {score: figures}, len(dataset))
    calibration = Calibration(threshold, args.tpr, frames.heat_range(score), scored.split()[0])
    results = evaluation_results(record, "coco20", "segmenter", figures, tables, {score: calibration}, frames.images)
    distributions = {score: distribution_of(anomaly, args.tpr, pixels)}
    headline = open_set_headline(figures)
    report = Report("COCO20/80 validation, open set", headline, frames, COCO20.class_colours, None, distributions)
    write_evaluation(args.folder, results, report)
    return results


def opened_at(threshold: float, scores: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The predicted classes, or K, unknown, where the score reaches the threshold."""
    return np.where(scores >= threshold, K, prediction)


def labelled_pixels(scores, prediction, labels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores float32, predicted classes uint8 and labels uint8 of all pixels but ignored ones, flat."""
    counted = labels != IGNORE
    return tuple(
        values[counted].cpu().numpy().astype(kind)
        for values, kind in ((scores, np.float32), (prediction, np.uint8), (labels, np.uint8))
    )


if __name__ == "__main__":
    run_script(main)
