"""evaluate_ood.py on the data sets of benchmarks."""

import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image

import evaluate_ood
from data import IGNORE, OUTLIER, AnomalyTrack, ObstacleTrack, RoadAnomaly
from losses import hybrid_score
from metrics.components import ComponentMetrics
from models import ladder_densenet121, load_weights
from tests.support.layouts import boxes, large_frames, noise, track, write
from tests.support.networks import save_random_weights

SIZE = HEIGHT, WIDTH = 12, 20
MAPS = [boxes(number, 1, 255, SIZE) for number in range(3)]


@pytest.mark.parametrize(("name", "fewest", "found"), [("anomaly-track", 500, 100), ("obstacle-track", 50, 10)])
def test_evaluate_ood_counts_the_components_of_each_track_from_its_size_on(name, fewest, found):
    sizes = evaluate_ood.BENCHMARKS[name].component_sizes
    labels, scores = np.zeros((80, 80), np.uint8), np.zeros((80, 80), np.float32)
    # Of each kind one that is just large enough, and one that is a pixel short.
    for row, pixels in ((0, found), (20, found - 1)):
        labels.ravel()[80 * row : 80 * row + pixels] = OUTLIER
    for row, pixels in ((40, fewest), (60, fewest - 1)):
        scores.ravel()[80 * row : 80 * row + pixels] = 1
    components = ComponentMetrics(0.5, **sizes)
    components.update(scores, labels)
    figures = components.compute()
    assert (figures["true_components"], figures["predicted_components"]) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "opened"),
    [("road-anomaly", RoadAnomaly), ("anomaly-track", AnomalyTrack), ("obstacle-track", ObstacleTrack)],
)
def test_evaluate_ood_gives_pooled_figures_and_those_of_components(in_tmp, name, opened):
    save_random_weights(in_tmp / "w.pth", hybrid=True, num_classes=19)
    root = large_frames(in_tmp / "data", name)
    flags = f"--dataroot {root} --dataset {name} --folder out --params w.pth --network ldn121 --pictures 0 --workers 0"
    results = evaluate_ood.main(flags.split())

    model = load_weights(ladder_densenet121(19), in_tmp / "w.pth").eval()
    scores, labels = [], []
    for image, truth_map, _ in (opened(root)[index] for index in range(2)):
        with torch.no_grad():
            scores.append(hybrid_score(*model(image[None] / 255))[0].numpy())
        labels.append(truth_map.numpy())
    counted = np.stack(labels) != IGNORE
    truths, pooled = np.stack(labels)[counted] == OUTLIER, np.stack(scores)[counted]
    figures = results["figures"]["pooled"]["hybrid"]
    assert figures["AP"] == pytest.approx(sklearn.metrics.average_precision_score(truths, pooled), rel=1e-3)
    if name == "road-anomaly":
        assert "components" not in results["figures"]
        return
    precision, recall, thresholds = sklearn.metrics.precision_recall_curve(truths, pooled)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    components = results["figures"]["components"]["hybrid"]
    assert components["pixel_F1"] == pytest.approx(f1.max(), rel=1e-3)
    assert components["threshold"] == pytest.approx(thresholds[f1[:-1].argmax()], rel=1e-3, abs=1e-3)
    expected = ComponentMetrics(components["threshold"], **opened.component_sizes)
    for score_map, label_map in zip(scores, labels, strict=True):
        expected.update(score_map, label_map)
    expected = expected.compute()
    assert components["true_components"] == expected["true_components"] == 2
    for key in ("sIoU", "PPV", "F1"):
        assert components[key] == figures[key] == pytest.approx(expected[key], rel=2e-2, abs=2e-2, nan_ok=True)
    assert "sIoU %" in (in_tmp / "out" / "table.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["anomaly-track", "obstacle-track"])
def test_without_outliers_what_is_defined_is_given_and_the_rest_left_empty(name, in_tmp, capsys):
    root = track(in_tmp / "track", MAPS, "png")
    for path in root.glob("labels_masks/*_semantic.png"):
        write(path, 255 * np.asarray(Image.open(path)).clip(0, 1))  # outliers written as 255, which is ignored
    save_random_weights("ldn.pth", hybrid=True, num_classes=19)
    command = (
        f"--dataroot {root} --dataset {name} --folder out --params ldn.pth --network ldn121 --workers 0 --pictures 2"
    )
    evaluate_ood.main([*command.split(), "--device", "cpu"])
    assert f"note: no label map of {root} has an outlier pixel" in capsys.readouterr().out
    results = json.loads(Path("out/results.json").read_text())
    figures = results["figures"]["pooled"]["hybrid"]
    assert [figures[key] for key in ("AP", "AUROC", "FPR95", "threshold95", "sIoU", "PPV", "F1")] == [None] * 7
    pixels = results["figures"]["pixels"]
    assert figures["inlier_pixels"] == pixels["inlier"] > 0 == pixels["outlier"]
    assert results["figures"]["components"]["hybrid"]["true_components"] == 0
    assert "nan" not in Path("out/table.md").read_text().lower()


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [12, 20, 7])
def test_weights_of_any_number_of_classes_are_tried_on_a_benchmark(num_classes, in_tmp):
    root = track(in_tmp / "track", MAPS, "png")
    save_random_weights("ldn.pth", hybrid=True, num_classes=num_classes)
    command = f"--dataroot {root} --dataset anomaly-track --folder out --params ldn.pth --network ldn121 --workers 0"
    results = evaluate_ood.main([*command.split(), "--device", "cpu", "--pictures", "2"])
    model = load_weights(ladder_densenet121(num_classes), "ldn.pth").eval().to(memory_format=torch.channels_last)
    scores, truths = [], []
    for number in range(3):
        image = torch.from_numpy(noise(*SIZE, number)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            scores.append(hybrid_score(*model(image.contiguous(memory_format=torch.channels_last))).flatten().numpy())
        truths.append(MAPS[number].ravel())
    scores, truths = np.concatenate(scores), np.concatenate(truths)
    expected = sklearn.metrics.average_precision_score(truths[truths < 255], scores[truths < 255])
    assert results["figures"]["pooled"]["hybrid"]["AP"] == pytest.approx(expected, abs=1e-6)
    assert Path("out/index.html").exists()
