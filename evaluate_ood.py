"""Evaluate anomaly detection pixel by pixel (DenseHybrid, ECCV 2022): AP, AUROC and FPR at TPR 95 %.

    python evaluate_ood.py --dataroot DATAROOT --dataset DATASET --folder OUTPUT_DIR --params WEIGHTS_FILE

DATASET is lf or static (Fishyscapes), road-anomaly, anomaly-track or obstacle-track (SegmentMeIfYouCan): the pixels of
all images pooled; or street-hazards: the mean over the test images of each image's figures; images without an outlier
pixel are left out and counted. The tracks also get sIoU, PPV and F1 of connected components, at the threshold of the
best F1 of pixels. With torchrun --nproc_per_node N in the place of python, N GPUs share the images.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch.utils.data import Dataset

from data import (
    COCO20,
    AnomalyTrack,
    Cityscapes,
    FishyscapesStatic,
    LostAndFound,
    ObstacleTrack,
    RoadAnomaly,
    StreetHazards,
)
from engine import (
    ReportedFrames,
    SlidingWindows,
    evaluated_frames,
    evenly_spread,
    has_outliers,
    run_script,
    script_parser,
    start_evaluation,
)
from engine.anomaly import FIGURES, anomaly_calibration, anomaly_results, anomaly_tables, component_figures
from engine.curves import distribution_of
from engine.flags import Parser, add_benchmark_flags, add_pictures_flag, add_tile_flags
from engine.processes import gather_merged, is_main_process
from engine.report import Report, published_tables, write_evaluation
from engine.results import evaluation_results
from losses import CLASS_SCORES, DATASET_SCORES, anomaly_score
from methods.evaluation import chosen_scores
from metrics import AnomalyMetrics, BoundedAnomalyMetrics
from models import OF_WHOLE_IMAGES, fast_inference, open_network


@dataclass(frozen=True)
class Benchmark:
    """A data set, the classes that its network knows, and how its figures are taken."""

    title: str
    open: Callable[..., Dataset]  # of its folder and max_pixels
    known: type  # the data set that the network was trained on
    network: str
    pooled: bool
    truth_colours: dict | None = None  # where the truth says only inlier or outlier
    component_sizes: dict | None = None  # where connected components are evaluated, too


NOT_POOLED = (
    "The figures here are means over images, for which no scores are kept. With --pooled the evaluation keeps them "
    "(4 bytes a pixel and score), and the curves and histograms of all pixels stand here."
)
NO_OUTLIERS = (
    "note: no label map of {dataroot} has an outlier pixel, so that AP and all that needs outliers stay empty. The "
    "value of outliers is the benchmark's own, such as 1; 255 is ignored"
)
INLIERS = {"inlier": (90, 90, 90)}
BENCHMARKS = {
    "lf": Benchmark("Fishyscapes Lost & Found", LostAndFound, Cityscapes, "deeplabv3plus", True, INLIERS),
    "static": Benchmark("Fishyscapes Static", FishyscapesStatic, Cityscapes, "deeplabv3plus", True, INLIERS),
    "road-anomaly": Benchmark("RoadAnomaly", RoadAnomaly, Cityscapes, "deeplabv3plus", True, INLIERS),
    "anomaly-track": Benchmark(
        "SegmentMeIfYouCan AnomalyTrack, validation",
        AnomalyTrack,
        Cityscapes,
        "deeplabv3plus",
        True,
        INLIERS,
        AnomalyTrack.component_sizes,
    ),
    "obstacle-track": Benchmark(
        "SegmentMeIfYouCan ObstacleTrack, validation",
        ObstacleTrack,
        Cityscapes,
        "deeplabv3plus",
        True,
        INLIERS,
        ObstacleTrack.component_sizes,
    ),
    "street-hazards": Benchmark(
        "StreetHazards test", lambda root, **read: StreetHazards(root, "test", **read), StreetHazards, "ldn121", False
    ),
}


def main(argv=None):
    """The results, as docs/files.md has them; of several processes, process 0 has them, and the others None."""
    args, evaluation = start_evaluation(parser_of_flags(), "params", __file__, argv)
    device, precision = evaluation.device, evaluation.precision

    benchmark = BENCHMARKS[args.dataset]
    network = args.network or benchmark.network
    model = open_network(args.params, network)
    names = chosen_scores(args.scores, model.hybrid)
    num_classes = model.num_classes
    model = fast_inference(model.to(device), precision.dtype, precision.memory_format)
    if args.tile is not None:
        model = SlidingWindows(model, args.tile, args.tile - args.tile_overlap)
    test_set = benchmark.open(args.dataroot, max_pixels=args.max_pixels)
    if not has_outliers(test_set):
        print(NO_OUTLIERS.format(dataroot=args.dataroot))
    record = evaluation.record(len(test_set))

    frames = ReportedFrames(names, args.pictures, evenly_spread(args.pictures, len(test_set)))
    pool = BoundedAnomalyMetrics if args.bounded else AnomalyMetrics
    pooled = {name: pool() for name in names} if benchmark.pooled or args.pooled or args.bounded else {}
    maps = {name: [] for name in names}
    for frame in evaluated_frames(model, test_set, device, args.workers, precision=precision):
        scores = {name: anomaly_score(name, frame.class_logits, frame.dataset_logits) for name in names}
        for name, of_frame in frames.add(frame, scores).items():
            if args.bounded:
                pooled[name].update(scores[name], frame.labels)
            elif pooled:
                pooled[name].merge(of_frame)  # the same scores, not kept twice
            if benchmark.component_sizes:  # some dozens of frames, 4 bytes a pixel
                maps[name].append((scores[name][0].cpu().numpy(), frame.labels[0].numpy()))
    frames, pooled = gather_merged(frames), {name: gather_merged(metrics) for name, metrics in pooled.items()}
    sizes = benchmark.component_sizes
    components = {name: component_figures(pooled[name], maps[name], sizes) for name in names} if sizes else {}
    record["peak_memory_bytes"] = evaluation.peak_memory()
    if not is_main_process():
        return None

    figures = anomaly_results(frames, pooled, components, mean=not benchmark.pooled)
    ours = figures["pooled" if benchmark.pooled else "mean_of_images"]
    tables = anomaly_tables(benchmark.title, figures, len(test_set))
    tables |= published_tables(args.dataset, ours, len(test_set))
    calibration = anomaly_calibration(frames, figures)
    results = evaluation_results(record, args.dataset, network, figures, tables, calibration, frames.images)
    distributions = {name: distribution_of(each, figures=figures["pooled"][name]) for name, each in pooled.items()}
    headline = {name: ours[names[0]][name] for name in FIGURES}
    title = f"{benchmark.title}, {'pixels pooled' if benchmark.pooled else 'mean over images'}"
    report = Report(title, headline, frames, *colours_of(num_classes, benchmark), distributions, NOT_POOLED)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in figures["pixels"].items())
    peak = record["peak_memory_bytes"] / 2**30
    write_evaluation(args.folder, results, report)
    print(f"scored {len(test_set)} images, pixels: {counts}; peak memory {peak:.2f} GiB")
    return results


def parser_of_flags() -> Parser:
    parser = script_parser(__doc__)
    usual = "ldn121 for street-hazards, deeplabv3plus for the others"
    add_benchmark_flags(parser, list(BENCHMARKS), OF_WHOLE_IMAGES, usual)
    parser.add_argument(
        "--scores",
        nargs="+",
        choices=["all", *DATASET_SCORES, *CLASS_SCORES],
        metavar="SCORE",
        help=f"from one forward pass per image: all, {', '.join([*DATASET_SCORES, *CLASS_SCORES])} "
        "(default: hybrid; all that need no dataset head for closed-set weights)",
    )
    parser.add_argument(
        "--pooled", action="store_true", help="street-hazards: also over all pixels, 4 bytes a pixel and score"
    )
    parser.add_argument(
        "--bounded",
        action="store_true",
        help="pool pixels in 96 MiB a score, however many there are; the figures then say how far off they can be "
        "(connected components still take 4 bytes a pixel and score)",
    )
    add_tile_flags(parser)
    add_pictures_flag(parser)
    return parser


def colours_of(num_classes: int, benchmark: Benchmark) -> tuple[dict, dict | None]:
    """Colours of the predicted classes, by name, and those of the truth where its labels are not these classes."""
    known = benchmark.known
    if num_classes == known.num_classes:
        return known.class_colours, benchmark.truth_colours
    truth = benchmark.truth_colours or known.class_colours
    for other in (Cityscapes, StreetHazards, COCO20):
        if num_classes == other.num_classes:
            return other.class_colours, truth
    return {
        f"class {number}": (97 * number % 256, 57 * number % 256, 157 * number % 256) for number in range(num_classes)
    }, truth


if __name__ == "__main__":
    run_script(main)
