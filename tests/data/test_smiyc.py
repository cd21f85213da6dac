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
from tests.conftest import save_random_weights

HEIGHT, WIDTH = 12, 20


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def truth(seed, outlier, ignored=0):
    """A label map with a box of outliers, and one of ignored pixels"""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[1 + seed : 5 + seed, 3:9] = outlier
    labels[10:] = ignored
    return labels


def smiyc(root, ending):
    for number in range(3):
        write(root / f"images/validation{number}.{ending}", picture(number))
        write(root / f"labels_masks/validation{number}_labels_semantic.png", truth(number, 1, 255))
        write(root / f"labels_masks/validation{number}_labels_semantic_color.png", picture(number))
    write(root / f"images/test0.{ending}", picture(9))  # whose labels are not released
    return root


def road_anomaly(root):
    for number in range(3):
        write(root / f"frames/zebra{number}_road.jpg", picture(number))
        write(root / f"frames/zebra{number}_road.labels/labels_semantic.png", truth(number, 2))
        write(root / f"frames/zebra{number}_road.labels/labels_semantic_color.png", picture(number))
    (root / "frame_list.json").write_text("[]")
    return root


@pytest.mark.parametrize("track", [AnomalyTrack, ObstacleTrack])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("folder", ["smiyc", "images/labels_masks.png"])
def test_a_track_pairs_the_labelled_images_wherever_it_lies(tmp_path, track, ending, folder):
    samples = track(smiyc(tmp_path / folder, ending))
    assert [samples[index][2] for index in range(len(samples))] == [f"images/validation{n}.{ending}" for n in range(3)]
    for number in range(3):
        image, labels, _ = samples[number]
        assert np.array_equal(labels.numpy(), truth(number, OUTLIER, IGNORE))
        if ending != "jpg":
            assert np.array_equal(image.permute(1, 2, 0).numpy(), picture(number))


def test_images_of_several_formats_may_lie_together(tmp_path):
    root = smiyc(tmp_path, "jpg")
    (root / "images/validation1.jpg").unlink()
    write(root / "images/validation1.png", picture(1))
    names = [name for _, _, name in (AnomalyTrack(root)[index] for index in range(3))]
    assert names == ["images/validation0.jpg", "images/validation1.png", "images/validation2.jpg"]


def test_a_label_map_without_its_one_image_is_an_error(tmp_path):
    root = smiyc(tmp_path, "webp")
    write(root / "images/validation1.jpg", picture(1))
    with pytest.raises(FileNotFoundError, match=r"validation1_labels_semantic\.png has 2 images validation1\.jpg, "):
        ObstacleTrack(root)
    for ending in ("jpg", "webp"):
        (root / f"images/validation1.{ending}").unlink()
    with pytest.raises(FileNotFoundError, match=r"validation1_labels_semantic\.png has 0 images"):
        ObstacleTrack(root)


def test_a_missing_folder_and_a_part_without_labels_are_errors_that_name_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*images; .*dataset_AnomalyTrack, which holds images/"):
        AnomalyTrack(tmp_path)
    root = smiyc(tmp_path, "png")
    for path in root.glob("labels_masks/*_semantic.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no \*_labels_semantic\.png under .*dataset_ObstacleTrack"):
        ObstacleTrack(root)


def test_other_values_are_refused_in_a_track(tmp_path):
    root = smiyc(tmp_path, "png")
    write(root / "labels_masks/validation0_labels_semantic.png", truth(0, 2, 255))
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
    samples = RoadAnomaly(road_anomaly(tmp_path / folder))
    assert [samples[index][2] for index in range(len(samples))] == [f"frames/zebra{n}_road.jpg" for n in range(3)]
    for number in range(3):
        image, labels, _ = samples[number]
        assert np.array_equal(labels.numpy(), truth(number, OUTLIER))
        assert image.shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("value", [1, 3, 255])
def test_other_values_are_refused_in_road_anomaly(tmp_path, value):
    root = road_anomaly(tmp_path)
    write(root / "frames/zebra0_road.labels/labels_semantic.png", truth(0, 2, value))
    with pytest.raises(ValueError, match=rf"holds label value {value}; this data set's values are 0, 2"):
        RoadAnomaly(root)[0]


def test_frames_and_maps_of_road_anomaly_that_are_alone_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*frames; --dataroot is RoadAnomaly"):
        RoadAnomaly(tmp_path)
    root = road_anomaly(tmp_path)
    write(root / "frames/alone.jpg", picture(5))
    with pytest.raises(FileNotFoundError, match=r"alone\.jpg has no label map"):
        RoadAnomaly(root)
    (root / "frames/alone.jpg").unlink()
    (root / "frames/zebra1_road.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"zebra1_road\.labels/labels_semantic\.png has no image"):
        RoadAnomaly(root)


def large_frames(root, track):
    """Two frames of 160x96 with one box of outliers each, in the layout of a data set of evaluate_ood.py"""
    generator = np.random.default_rng(0)
    for number in range(2):
        image = generator.integers(0, 256, (96, 160, 3), dtype=np.uint8)
        labels = np.zeros((96, 160), np.uint8)
        labels[20 : 50 + 9 * number, 40:90] = 2 if track == "road-anomaly" else 1
        image[labels > 0] //= 4
        if track == "road-anomaly":
            write(root / f"frames/f{number}.jpg", image)
            write(root / f"frames/f{number}.labels/labels_semantic.png", labels)
        else:
            labels[90:] = 255
            write(root / f"images/f{number}.png", image)
            write(root / f"labels_masks/f{number}_labels_semantic.png", labels)
    return root


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
    root = smiyc(in_tmp / "track", "png")
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
    root = smiyc(in_tmp / "track", "png")
    save_random_weights("ldn.pth", hybrid=True, num_classes=num_classes)
    command = f"--dataroot {root} --dataset anomaly-track --folder out --params ldn.pth --network ldn121 --workers 0"
    results = evaluate_ood.main([*command.split(), "--device", "cpu", "--pictures", "2"])
    model = load_weights(ladder_densenet121(num_classes), "ldn.pth").eval().to(memory_format=torch.channels_last)
    scores, truths = [], []
    for number in range(3):
        image = torch.from_numpy(picture(number)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            scores.append(hybrid_score(*model(image.contiguous(memory_format=torch.channels_last))).flatten().numpy())
        truths.append(truth(number, 1, 255).ravel())
    scores, truths = np.concatenate(scores), np.concatenate(truths)
    expected = sklearn.metrics.average_precision_score(truths[truths < 255], scores[truths < 255])
    assert results["pooled"]["hybrid"]["AP"] == pytest.approx(expected, abs=1e-6)
    assert Path("out/index.html").exists()
