"""Evaluate what a network makes of its known classes: mIoU on the validation frames of the data it was trained on.

    python evaluate_closed_set.py --dataroot DATAROOT --dataset DATASET --folder OUTPUT_DIR --params WEIGHTS_FILE

DATASET is cityscapes, street-hazards or coco20. The dataset head, where the weights have one, changes nothing here.
With torchrun --nproc_per_node N in the place of python, N GPUs share the images.
"""

from pathlib import Path

from data import COCO20, Cityscapes, StreetHazards
from engine import (
    SlidingWindows,
    choose_precision,
    evaluated_frames,
    run_script,
    script_parser,
    start_process,
    write_results,
)
from engine.evaluate import predicted_classes
from engine.files import require_writable
from engine.flags import add_heads_flag
from engine.processes import gather_merged, is_main_process, main_process_first
from engine.report import evaluation_record, published_tables, require_same_weights
from metrics import ConfusionMatrix, classes_averaged
from models import (
    deeplabv3plus,
    fast_inference,
    has_dataset_head,
    ladder_densenet121,
    load_network,
    segmenter,
    segmenter_dataset_head,
    segmenter_heads,
)

DATASETS = {  # data set -> how it is opened, its usual network
    "cityscapes": (lambda args: Cityscapes(args.dataroot, "val", max_pixels=args.max_pixels), "deeplabv3plus"),
    "street-hazards": (lambda args: StreetHazards(args.dataroot, "validation", max_pixels=args.max_pixels), "ldn121"),
    "coco20": (
        lambda args: COCO20(
            args.dataroot,
            "validation",
            workers=args.workers,
            list_folder=args.folder,
            max_pixels=args.max_pixels,
        ),
        "segmenter",
    ),
}


def main(argv=None):
    """The results, as results.json has them; of several processes, process 0 has them, and the others None."""
    parser = script_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="the data set's folder")
    parser.add_argument("--dataset", required=True, choices=list(DATASETS))
    parser.add_argument("--folder", required=True, type=Path, help="where results.json and table.md go")
    parser.add_argument("--params", required=True, help="weights, closed-set or hybrid")
    parser.add_argument(
        "--network",
        choices=["deeplabv3plus", "ldn121", "segmenter"],
        help="whose weights they are (default: deeplabv3plus, ldn121, segmenter in the data sets' order)",
    )
    add_heads_flag(parser)
    args = parser.parse_args(argv)
    device = start_process(args.device, several_processes=True)
    precision = choose_precision(args.precision, device)
    require_writable(args.folder, "--folder")
    require_same_weights(args.folder, args.params)

    open_dataset, network = DATASETS[args.dataset]
    with main_process_first():
        dataset = open_dataset(args)
    num_classes, network = dataset.num_classes, args.network or network
    if network == "segmenter":
        head = segmenter_dataset_head(args.params)
        heads = args.heads or segmenter_heads(args.params)
        model = load_network(lambda: segmenter(num_classes, bool(head), heads, head or "decoder"), args.params)
        model = SlidingWindows(model, window=512, stride=320, at_a_time=8, enlarge=True)
    else:
        build = {"deeplabv3plus": deeplabv3plus, "ldn121": ladder_densenet121}[network]
        model = load_network(lambda: build(num_classes, has_dataset_head(args.params)), args.params)
    record = evaluation_record(__file__, argv, args.dataroot, len(dataset), args.params, device, precision)

    confusion = ConfusionMatrix(num_classes)
    model = fast_inference(model.to(device), precision.dtype, precision.memory_format)
    for frame in evaluated_frames(model, dataset, device, args.workers, precision=precision):
        confusion.update(predicted_classes(frame.class_logits), frame.labels)
    confusion = gather_merged(confusion)
    if not is_main_process():
        return None
    iou = confusion.iou()
    results = {
        "dataset": args.dataset,
        "network": network,
        "mIoU": confusion.miou(),
        "mIoU_classes": classes_averaged(iou),
        "iou": dict(zip(dataset.class_colours, iou.tolist(), strict=True)),
        "record": record,
    }
    rows = [["class", "IoU %"], *map(list, results["iou"].items())]
    rows.append([f"mean of {results['mIoU_classes']} classes", results["mIoU"]])
    tables = {f"{args.dataset}, closed set, {len(dataset)} validation frames": rows}
    if args.dataset == "cityscapes":
        tables |= published_tables("cityscapes", {"argmax": results})
    write_results(args.folder, results, tables)
    return results


if __name__ == "__main__":
    run_script(main)
