"""Evaluate anomaly detection pixel by pixel (DenseHybrid, ECCV 2022): AP, AUROC and FPR at TPR 95 %.

    python evaluate_ood.py --dataroot DATAROOT --dataset DATASET --folder OUTPUT_DIR --params WEIGHTS_FILE

DATASET is lf or static (Fishyscapes), road-anomaly, anomaly-track or obstacle-track (SegmentMeIfYouCan): the pixels of
all images pooled; or street-hazards: the mean over the test images of each image's figures; images without an outlier
pixel are left out and counted. The tracks also get sIoU, PPV and F1 of connected components, at the threshold of the
best F1 of pixels. With torchrun --nproc_per_node N in the place of python, N GPUs share the images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    SlidingWindows,
    choose_precision,
    evaluated_frames,
    evenly_spread,
    has_outliers,
    picture_of,
    run_script,
    save_pictures,
    script_parser,
    start_process,
    write_results,
)
from engine.curves import distribution_of
from engine.device import peak_memory
from engine.files import require_writable
from engine.flags import add_pictures_flag, add_tile_flags, check_tile
from engine.pictures import heat_range, heat_sample
from engine.processes import broadcast, gather, gather_merged, gather_sorted, is_main_process
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
from metrics import AnomalyMetrics, BoundedAnomalyMetrics, ComponentMetrics, mean_of_images
from models import deeplabv3plus, fast_inference, has_dataset_head, ladder_densenet121, load_network
from models.weights import CLASS_KEYS, number_of_classes

FIGURES = ("AP", "AUROC", "FPR95")
COMPONENT_FIGURES = ("sIoU", "PPV", "F1")
NETWORKS = {"deeplabv3plus": deeplabv3plus, "ldn121": ladder_densenet121}


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
    """The results, as results.json has them; of several processes, process 0 has them, and the others None."""
    parser = script_parser(__doc__)
    parser.add_argument("--dataroot", required=True, help="the data set's folder")
    parser.add_argument("--dataset", required=True, choices=list(BENCHMARKS))
    parser.add_argument("--folder", required=True, type=Path, help="where results.json, index.html and others go")
    parser.add_argument("--params", required=True, help="weights, closed-set or hybrid")
    parser.add_argument(
        "--network",
        choices=list(NETWORKS),
        help="whose weights they are (default: ldn121 for street-hazards, deeplabv3plus for the others)",
    )
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
    args = parser.parse_args(argv)
    check_tile(parser, args)
    device = start_process(args.device, several_processes=True)
    precision = choose_precision(args.precision, device)
    require_writable(args.folder, "--folder")
    require_same_weights(args.folder, args.params)

    benchmark = BENCHMARKS[args.dataset]
    network = args.network or benchmark.network
    num_classes = number_of_classes(args.params, network) if network in CLASS_KEYS else benchmark.known.num_classes
    test_set = benchmark.open(args.dataroot, max_pixels=args.max_pixels)
    if not has_outliers(test_set):
        print(NO_OUTLIERS.format(dataroot=args.dataroot))
    hybrid = has_dataset_head(args.params)
    names = score_names(args.scores, hybrid)
    record = evaluation_record(__file__, argv, args.dataroot, len(test_set), args.params, device, precision)
    model = load_network(lambda: NETWORKS[network](num_classes, hybrid), args.params)
    model = fast_inference(model.to(device), precision.dtype, precision.memory_format)
    if args.tile is not None:
        model = SlidingWindows(model, args.tile, args.tile - args.tile_overlap)

    images, shown, heat = {}, {}, {}  # by the frame's number
    maps = {name: [] for name in names}
    ranking = FrameRanking(math.ceil(args.pictures / 2))
    pool = BoundedAnomalyMetrics if args.bounded else AnomalyMetrics
    pooled = {name: pool() for name in names} if benchmark.pooled or args.pooled or args.bounded else {}
    drawn = evenly_spread(args.pictures, len(test_set))
    for frame in evaluated_frames(model, test_set, device, args.workers, precision=precision):
        figures, heat[frame.number] = {"name": frame.name}, {}
        for name in names:
            scores = anomaly_score(name, frame.class_logits, frame.dataset_logits)
            image = AnomalyMetrics().update(scores, frame.labels)
            figures[name] = image.compute()
            heat[frame.number][name] = heat_sample(scores)
            if args.bounded:
                pooled[name].update(scores, frame.labels)
            elif pooled:
                pooled[name].merge(image)  # the same scores, not kept twice
            if benchmark.component_sizes:  # some dozens of frames, 4 bytes a pixel
                maps[name].append((scores[0].cpu().numpy(), frame.labels[0].numpy()))
            if name == names[0]:
                ranking.add(frame, scores, ap=figures[name]["AP"])
                if frame.number in drawn:
                    shown[frame.number] = picture_of(frame, scores)
        images[frame.number] = figures

    images, shown, heat = gather_sorted(images), gather_sorted(shown), gather_sorted(heat)
    ranking, pooled = gather_merged(ranking), {name: gather_merged(metrics) for name, metrics in pooled.items()}
    sizes = benchmark.component_sizes
    components = {name: component_figures(pooled[name], maps[name], sizes) for name in names} if sizes else {}
    memory = list(gather(peak_memory(device)))
    if not is_main_process():
        return None

    results = {"dataset": args.dataset, "weights": args.params, "network": network}
    tables = {}
    if pooled:
        results["pooled"] = {name: metrics.compute() for name, metrics in pooled.items()}
        tables[f"{benchmark.title}, the pixels of all {len(images)} images pooled"] = figure_table(results["pooled"])
    if components:
        results["components"] = components
        tables[f"{benchmark.title}, connected components"] = component_table(components)
        for name, figures in components.items():
            results["pooled"][name] |= {key: figures[key] for key in COMPONENT_FIGURES}
    if not benchmark.pooled:
        results["mean_of_images"] = {name: mean_of_images([image[name] for image in images]) for name in names}
        told = told_images(results["mean_of_images"][names[0]])
        tables[f"{benchmark.title}, {told}"] = figure_table(results["mean_of_images"])
    ours = results["pooled" if benchmark.pooled else "mean_of_images"]
    tables |= published_tables(args.dataset, ours)
    results["pixels"] = {
        kind: sum(image[names[0]][f"{kind}_pixels"] for image in images) for kind in ("inlier", "outlier", "ignored")
    }
    results["heat_range"] = {name: heat_range([samples[name] for samples in heat]) for name in names}
    results["peak_memory_bytes"] = max(memory)
    results["record"] = record
    write_results(args.folder, results | {"images": images}, tables)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in results["pixels"].items())
    print(f"scored {len(images)} images, pixels: {counts}; peak memory {results['peak_memory_bytes'] / 2**30:.2f} GiB")
    if shown:
        with figures_are_written(args.folder):
            colours = colours_of(num_classes, benchmark)
            save_pictures(args.folder / "pictures.png", shown, colours[0], names[0], colours[1])
            distributions = {name: distribution_of(metrics) for name, metrics in pooled.items()}
            headline = {name: ours[names[0]][name] for name in FIGURES}
            title = f"{benchmark.title}, {'pixels pooled' if benchmark.pooled else 'mean over images'}"
            evaluated = names[0], headline, tables, record, distributions, ranking
            write_report(args.folder, title, *evaluated, *colours, NOT_POOLED)
    return results


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


def score_names(asked: list[str] | None, hybrid: bool) -> list[str]:
    """The scores to evaluate, each name once; energy is another name of generative."""
    possible = [*(DATASET_SCORES if hybrid else ()), *(name for name in CLASS_SCORES if name != "energy")]
    if asked is None:
        return ["hybrid"] if hybrid else possible
    names = possible if "all" in asked else list(dict.fromkeys(asked))
    missing = [name for name in names if name in DATASET_SCORES and not hybrid]
    if missing:
        raise WrongInput(
            f"--scores {' '.join(missing)}: these weights have no dataset head (logits_ood); "
            f"scores that need none: {', '.join(CLASS_SCORES)}"
        )
    return names


def component_figures(metrics: AnomalyMetrics, maps: list[tuple], sizes: dict[str, int]) -> dict:
    """sIoU, PPV and F1 at the threshold of the best F1 of pixels, over (scores, labels) of all frames.

    Without any outlier there is no threshold, and all are NaN. Of several processes each looks at its own frames, and
    process 0 gets the figures of all.
    """
    threshold, pixel_f1 = broadcast(metrics.best_f1_threshold() if is_main_process() else None)
    if math.isnan(threshold):
        counts = {"true_components": 0, "predicted_components": math.nan}
        return dict.fromkeys(COMPONENT_FIGURES, math.nan) | counts | {"threshold": threshold, "pixel_F1": pixel_f1}
    components = ComponentMetrics(threshold, **sizes)
    for scores, labels in maps:
        components.update(scores, labels)
    return gather_merged(components).compute() | {"threshold": threshold, "pixel_F1": pixel_f1}


def component_table(figures: dict[str, dict]) -> list[list]:
    counts = ("true_components", "predicted_components")
    return [
        ["score", *(f"{name} %" for name in COMPONENT_FIGURES), "true", "predicted", "threshold", "F1 of pixels %"],
        *(
            [
                score,
                *(figure[name] for name in COMPONENT_FIGURES),
                *(figure[name] for name in counts),
                "" if math.isnan(figure["threshold"]) else f"{figure['threshold']:.4f}",
                figure["pixel_F1"],
            ]
            for score, figure in figures.items()
        ),
    ]


def told_images(mean: dict) -> str:
    return (
        f"mean over {mean['images']} images ({mean['images_without_outliers']} without outliers left out, "
        f"{mean['images_without_inliers']} without inliers)"
    )


def figure_table(figures: dict[str, dict]) -> list[list]:
    """A last column says how far off the figures of a score can be, where they are not exact."""
    rows = [["score", *(f"{name} %" for name in FIGURES)]]
    rows += [[score, *(figure[name] for name in FIGURES)] for score, figure in figures.items()]
    if any("AP_error" in figure for figure in figures.values()):
        errors = [max(figure[f"{name}_error"] for name in FIGURES) for figure in figures.values()]
        cells = ["none is further off, % points", *(f"{100 * error:.4f}" for error in errors)]
        rows = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
    return rows


if __name__ == "__main__":
    run_script(main)
