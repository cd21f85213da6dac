"""Evaluate what a network makes of its known classes: mIoU on the validation frames of the data it was trained on.

    python evaluate_closed_set.py --dataroot DATAROOT --dataset DATASET --folder OUTPUT_DIR --params WEIGHTS_FILE

DATASET is cityscapes, street-hazards or coco20. The dataset head, where the weights have one, changes nothing here.
With torchrun --nproc_per_node N in the place of python, N GPUs share the images.
"""

from data import COCO20, Cityscapes, StreetHazards
from engine import SlidingWindows, evaluated_frames, predicted_classes, run_script, script_parser, start_evaluation
from engine.flags import add_benchmark_flags
from engine.processes import gather_merged, is_main_process, main_process_first
from engine.report import published_tables, write_evaluation
from engine.results import evaluation_results
from methods.evaluation import add_heads_flag
from metrics import ConfusionMatrix, classes_averaged
from models import NETWORKS, fast_inference, open_network

DATASETS = {  # data set -> how it is opened, its usual network
    "cityscapes": (lambda args: Cityscapes(args.dataroot, "val", max_pixels=args.max_pixels), "deeplabv3plus"),
    "street-hazards": (lambda args: StreetHazards(args.dataroot, "validation", max_pixels=args.max_pixels), "ldn121"),
    "coco20": (
        lambda args: COCO20(
            args.dataroot, "validation", workers=args.workers, list_folder=args.folder, max_pixels=args.max_pixels
        ),
        "segmenter",
    ),
}


def main(argv=None):
    """The results, as docs/files.md has them; of several processes, process 0 has them, and the others None."""
    parser = script_parser(__doc__)
    usual = "deeplabv3plus, ldn121, segmenter in the data sets' order"
    add_benchmark_flags(parser, list(DATASETS), list(NETWORKS), usual)
    add_heads_flag(parser)
    args, evaluation = start_evaluation(parser, "params", __file__, argv)
    device, precision = evaluation.device, evaluation.precision

    open_dataset, usual_network = DATASETS[args.dataset]
    with main_process_first():
        dataset = open_dataset(args)
    network = args.network or usual_network
    model = open_network(args.params, network, dataset.num_classes, args.heads)
    model = fast_inference(model.to(device), precision.dtype, precision.memory_format)
    if NETWORKS[network].window:
        model = SlidingWindows(model, *NETWORKS[network].window, at_a_time=8, enlarge=True)
    record = evaluation.record(len(dataset))

    confusion = ConfusionMatrix(dataset.num_classes)
    for frame in evaluated_frames(model, dataset, device, args.workers, precision=precision):
        confusion.update(predicted_classes(frame.class_logits), frame.labels)
    confusion = gather_merged(confusion)
    record["peak_memory_bytes"] = evaluation.peak_memory()
    if not is_main_process():
        return None
    iou = dict(zip(dataset.class_colours, confusion.iou().tolist(), strict=True))
    figures = {"mIoU": confusion.miou(), "mIoU_classes": classes_averaged(confusion.iou()), "iou": iou}
    rows = [["class", "IoU %"], *map(list, iou.items())]
    rows.append([f"mean of {figures['mIoU_classes']} classes", figures["mIoU"]])
    tables = {f"{args.dataset}, closed set, {len(dataset)} validation frames": rows}
    if args.dataset == "cityscapes":
        tables |= published_tables("cityscapes", {"argmax": figures}, len(dataset))
    results = evaluation_results(record, args.dataset, network, figures, tables)
    write_evaluation(args.folder, results)
    return results


if __name__ == "__main__":
    run_script(main)
