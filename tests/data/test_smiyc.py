"""AnomalyTrack, ObstacleTrack and RoadAnomaly on made files in their layouts."""

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
from tests.support.layouts import boxes, large_frames, noise, road_anomaly, track, write
from tests.support.networks import save_random_weights

SIZE = HEIGHT, WIDTH = 12, 20
MAPS = [boxes(number, 1, 255, SIZE) for number in range(3)]
ROAD_MAPS = [boxes(number, 2, size=SIZE) for number in range(3)]


@pytest.mark.parametrize("dataset", [AnomalyTrack, ObstacleTrack])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("folder", ["smiyc", "images/labels_masks.png"])
def test_a_track_pairs_the_labelled_images_wherever_it_lies(tmp_path, dataset, ending, folder):
    samples = dataset(track(tmp_path / folder, MAPS, ending))
    assert [samples[index][2] for index in range(len(samples))] == [f"images/validation{n}.{ending}" for n in range(3)]
    for number in range(3):
        image, labels, _ = samples[number]
        assert np.array_equal(labels.numpy(), boxes(number, OUTLIER, IGNORE, SIZE))
        if ending != "jpg":
            assert np.array_equal(image.permute(1, 2, 0).numpy(), noise(*SIZE, number))


def test_images_of_several_formats_may_lie_together(tmp_path):
    root = track(tmp_path, MAPS, "jpg")
    (root / "images/validation1.jpg").unlink()
    write(root / "images/validation1.png", noise(*SIZE, 1))
    names = [name for _, _, name in (AnomalyTrack(root)[index] for index in range(3))]
    assert names == ["images/validation0.jpg", "images/validation1.png", "images/validation2.jpg"]


def test_a_label_map_without_its_one_image_is_an_error(tmp_path):
    root = track(tmp_path, MAPS, "webp")
    write(root / "images/validation1.jpg", noise(*SIZE, 1))
    with pytest.raises(FileNotFoundError, match=r"validation1_labels_semantic\.png has 2 images validation1\.jpg, "):
        ObstacleTrack(root)
    for ending in ("jpg", "webp"):
        (root / f"images/validation1.{ending}").unlink()
    with pytest.raises(FileNotFoundError, match=r"validation1_labels_semantic\.png has 0 images"):
        ObstacleTrack(root)


def test_a_missing_folder_and_a_part_without_labels_are_errors_that_name_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*images; .*dataset_AnomalyTrack, which holds images/"):
        AnomalyTrack(tmp_path)
    root = track(tmp_path, MAPS, "png")
    for path in root.glob("labels_masks/*_semantic.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no \*_labels_semantic\.png under .*dataset_ObstacleTrack"):
        ObstacleTrack(root)


def test_other_values_are_refused_in_a_track(tmp_path):
    root = track(tmp_path, MAPS, "png")
    write(root / "labels_masks/validation0_labels_semantic.png", boxes(0, 2, 255, SIZE))
    with pytest.raises(ValueError, match=r"validation0_labels_semantic\.png holds label value 2.* values are 0-1, 255"):
        AnomalyTrack(root)[0]


def test_a_track_says_which_components_the_benchmark_counts():
    anomalies = ComponentMetrics(0.5, **AnomalyTrack.component_sizes)
    assert (anomalies.min_predicted, anomalies.min_true) == (500, 100)
    obstacles = ComponentMetrics(0.5, **ObstacleTrack.component_sizes)
    assert (obstacles.min_predicted, obstacles.min_true) == (50, 10)


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


@pytest.mark.parametrize("folder", ["road", "frames/a.labels"])
def test_road_anomaly_pairs_each_frame_with_the_map_in_its_folder(tmp_path, folder):
    samples = RoadAnomaly(road_anomaly(tmp_path / folder, ROAD_MAPS))
    assert [samples[index][2] for index in range(len(samples))] == [f"frames/zebra{n}_road.jpg" for n in range(3)]
    for number in range(3):
        image, labels, _ = samples[number]
        assert np.array_equal(labels.numpy(), boxes(number, OUTLIER, size=SIZE))
        assert image.shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("value", [1, 3, 255])
def test_other_values_are_refused_in_road_anomaly(tmp_path, value):
    root = road_anomaly(tmp_path, ROAD_MAPS)
    write(root / "frames/zebra0_road.labels/labels_semantic.png", boxes(0, 2, value, SIZE))
    with pytest.raises(ValueError, match=rf"holds label value {value}; this data set's values are 0, 2"):
        RoadAnomaly(root)[0]


def test_frames_and_maps_of_road_anomaly_that_are_alone_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*frames; --dataroot is RoadAnomaly"):
        RoadAnomaly(tmp_path)
    root = road_anomaly(tmp_path, ROAD_MAPS)
    write(root / "frames/alone.jpg", noise(*SIZE, 5))
    with pytest.raises(FileNotFoundError, match=r"alone\.jpg has no label map"):
        RoadAnomaly(root)
    (root / "frames/alone.jpg").unlink()
    (root / "frames/zebra1_road.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"zebra1_road\.labels/labels_semantic\.png has no image"):
        RoadAnomaly(root)


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
    figures = results["pooled"]["hybrid"]
    assert figures["AP"] == pytest.approx(sklearn.metrics.average_precision_score(truths, pooled), rel=1e-3)
    if name == "road-anomaly":
        assert "components" not in results
        return
    precision, recall, thresholds = sklearn.metrics.precision_recall_curve(truths, pooled)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    components = results["components"]["hybrid"]
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
    figures = results["pooled"]["hybrid"]
    assert [figures[key] for key in ("AP", "AUROC", "FPR95", "threshold95", "sIoU", "PPV", "F1")] == [None] * 7
    assert figures["inlier_pixels"] == results["pixels"]["inlier"] > 0 == results["pixels"]["outlier"]
    assert results["components"]["hybrid"]["true_components"] == 0
    assert "nan" not in Path("out/table.md").read_text().lower()


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
    assert results["pooled"]["hybrid"]["AP"] == pytest.approx(expected, abs=1e-6)
    assert Path("out/index.html").exists()
