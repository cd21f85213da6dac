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
    SlidingWindows,
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
from engine.flags import add_heads_flag, add_pictures_flag, share, whole_number
from engine.pictures import heat_range, heat_sample
from engine.processes import broadcast, gather_merged, gather_sorted, is_main_process, main_process_first
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
from models import ReleasedScoring, fast_inference, load_network, segmenter, segmenter_dataset_head, segmenter_heads

NO_OUTLIERS = (
    "note: no pixel of an unknown thing in {dataroot}, so that no threshold can be taken from it: AP and all that "
    "needs outliers, and the open-set figures, stay empty"
)


def main(argv=None):
    """The results, as results.json has them; of several processes, process 0 has them, and the others None."""
    parser = script_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="COCO, the folder with images/, labels/ and labels.txt")
    parser.add_argument("--model", required=True, help="weights of a Segmenter, closed-set or hybrid")
    parser.add_argument("--tpr", type=share, default=0.95, help="share of outlier pixels to find (default 0.95)")
    parser.add_argument(
        "--score",
        choices=[*DATASET_SCORES, *CLASS_SCORES],
        help="(default: hybrid, or max_logit for closed-set weights)",
    )
    parser.add_argument("--released_scoring", action="store_true", help="probabilities in the place of logits")
    add_heads_flag(parser)
    parser.add_argument("--window", type=whole_number(1), default=512, help="side of the windows (default 512)")
    parser.add_argument(
        "--window_stride", type=whole_number(1), default=320, help="pixels between windows (default 320)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("results", "evaluate_osr_coco"),
        help="where results.json, index.html and others go",
    )
    add_pictures_flag(parser)
    args = parser.parse_args(argv)
    device = start_process(args.device, several_processes=True)
    precision = choose_precision(args.precision, device)
    require_writable(args.folder, "--folder")
    require_same_weights(args.folder, args.model)

    head = segmenter_dataset_head(args.model)
    score_name = args.score or ("hybrid" if head else "max_logit")
    if score_name in DATASET_SCORES and not head:
        raise WrongInput(
            f"--score {score_name}: {args.model} has no dataset head; take one of {', '.join(CLASS_SCORES)}"
        )
    heads = args.heads or segmenter_heads(args.model)
    network = load_network(lambda: segmenter(COCO20.num_classes, bool(head), heads, head or "decoder"), args.model)
    network = fast_inference(network.to(device), precision.dtype, precision.memory_format)
    model = SlidingWindows(network, args.window, args.window_stride, at_a_time=8, enlarge=True)
    if args.released_scoring:
        model = ReleasedScoring(model)
    with main_process_first():
        lists = {"workers": args.workers, "list_folder": args.folder}
        dataset = COCO20(args.dataroot, "validation", **lists, max_pixels=args.max_pixels)
    if not has_outliers(dataset):
        print(NO_OUTLIERS.format(dataroot=args.dataroot))
    record = evaluation_record(__file__, argv, args.dataroot, len(dataset), args.model, device, precision)

    # One pass: what the threshold decides on is kept, 6 bytes for each pixel of a thing.
    anomaly, closed, opened = AnomalyMetrics(), *(ConfusionMatrix(COCO20.num_classes) for _ in range(2))
    kept, shown, heat, ranking = [], {}, {}, FrameRanking(math.ceil(args.pictures / 2))
    drawn = evenly_spread(args.pictures, len(dataset))
    for frame in evaluated_frames(model, dataset, device, args.workers, precision=precision):
        scores = anomaly_score(score_name, frame.class_logits, frame.dataset_logits)
        prediction = predicted_classes(frame.class_logits)
        heat[frame.number] = heat_sample(scores)
        anomaly.update(scores, frame.labels)
        closed.update(prediction, frame.labels)
        ranking.add(frame, scores)
        kept.append(labelled_pixels(scores, prediction, frame.labels))
        if frame.number in drawn:
            shown[frame.number] = picture_of(frame, scores)

    anomaly = gather_merged(anomaly)
    threshold = broadcast(anomaly.threshold(args.tpr) if is_main_process() else None)
    for scores, prediction, labels in kept if not math.isnan(threshold) else []:
        opened.update(np.where(scores >= threshold, COCO20.num_classes, prediction), labels)
    shown, heat = gather_sorted(shown), gather_sorted(heat)
    closed, opened, ranking = gather_merged(closed), gather_merged(opened), gather_merged(ranking)
    if not is_main_process():
        return None

    def with_open_prediction(picture):
        unknown = picture.scores >= threshold
        return picture._replace(open_prediction=np.where(unknown, COCO20.num_classes, picture.prediction))

    if not math.isnan(threshold):
        shown = [with_open_prediction(picture) for picture in shown]
        ranking.redraw(with_open_prediction)

    figures = closed_and_open(closed, opened) | anomaly.compute() | {"threshold": threshold, "images": len(dataset)}
    means = {"mIoU": "closed mIoU %", "open_mIoU": "open-mIoU %", "mIoU_with_unknown": "mIoU with unknown %"}
    rows = [["figure", "value", "classes"]]
    rows += [[title, figures[name], figures[f"{name}_classes"]] for name, title in means.items()]
    rows += [["gap %, closed mIoU less open-mIoU", figures["gap"], ""]]
    rows += [[f"{name} %", figures[name], ""] for name in ("AP", "AUROC", "FPR95")]
    rows += [["threshold", "" if math.isnan(threshold) else f"{threshold:.4f}", ""], ["images", len(dataset), ""]]
    rows += [[f"{kind} pixels", figures[f"{kind}_pixels"], ""] for kind in ("inlier", "outlier", "ignored")]
    scored = "probabilities in the place of logits, as released" if args.released_scoring else "logits"
    title = (
        f"COCO20/80 validation, {score_name} score of {scored}; threshold at TPR {args.tpr:g} on the same photographs, "
        "at full resolution"
    )
    results = {
        "dataset": "coco20",
        "weights": args.model,
        "score": score_name,
        "released_scoring": args.released_scoring,
        "tpr": args.tpr,
        **figures,
        "heat_range": {score_name: heat_range(heat)},
        "frame_AP": ranking.ap,
        "record": record,
    }
    tables = {title: rows} | published_tables("coco20", {score_name: figures})
    write_results(args.folder, results, tables)
    if shown:
        with figures_are_written(args.folder):
            colours = COCO20.class_colours
            save_pictures(args.folder / "pictures.png", shown, colours, score_name)
            headline = {title.removesuffix(" %"): figures[name] for name, title in means.items()}
            distributions = {score_name: distribution_of(anomaly, args.tpr)}
            title = "COCO20/80 validation, open set"
            write_report(args.folder, title, score_name, headline, tables, record, distributions, ranking, colours)
    return results


def labelled_pixels(scores, prediction, labels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores float32, predicted classes uint8 and labels uint8 of all pixels but ignored ones, flat."""
    counted = labels != IGNORE
    return tuple(
        values[counted].cpu().numpy().astype(kind)
        for values, kind in ((scores, np.float32), (prediction, np.uint8), (labels, np.uint8))
    )


def closed_and_open(closed: ConfusionMatrix, opened: ConfusionMatrix) -> dict:
    """Closed-set and open-set figures; `gap` is what the unknown costs, closed-set mIoU less open-mIoU.

    Each mean has the number of classes that it averages beside it: a class with an empty union is left out, which the
    release counts as 0 in open-mIoU. Without a threshold nothing was counted in `opened`, and all that needs it is NaN.
    """
    figures = opened.compute() | {"mIoU": closed.miou(), "mIoU_classes": classes_averaged(closed.iou())}
    return figures | {
        "gap": figures["mIoU"] - figures["open_mIoU"],
        "closed_iou": closed.iou().tolist(),
        "open_iou": opened.open_iou().tolist(),
    }


if __name__ == "__main__":
    run_script(main)
