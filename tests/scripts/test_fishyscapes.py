"""Cityscapes, Fishyscapes and the DeepLabV3+ experiment, the script on a narrow trunk."""

import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch

import dlv3_cityscapes_finetune
import evaluate_ood
from data import IGNORE, OUTLIER, Cityscapes, FishyscapesStatic, LostAndFound
from engine import SlidingWindows
from engine.windows import window_starts
from losses import hybrid_score
from models import deeplabv3plus, ladder_densenet121, load_weights
from tests.support.layouts import boxes, cityscapes, lost_and_found, static, write
from tests.support.networks import thin_trunk

SIZE = HEIGHT, WIDTH = 40, 64


def maps(ignored=2, outlier=1):
    return [boxes(number, outlier, ignored, SIZE) for number in range(3)]


@pytest.fixture
def narrow():
    with thin_trunk():
        yield


def test_cityscapes_label_ids_become_the_nineteen_train_ids(tmp_path):
    image, labels, name = Cityscapes(cityscapes(tmp_path, 1, SIZE), "train")[0]
    # Transcribed from the data set's table of labels: id -> train id.
    train_ids = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
                 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
    expected = [train_ids.get(pixel % 34, IGNORE) for pixel in range(HEIGHT * WIDTH)]
    assert labels.flatten().tolist() == expected
    assert name == "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png"
    assert image.shape == (3, HEIGHT, WIDTH) and len(Cityscapes.class_colours) == 19


@pytest.mark.parametrize("ignored", [2, 255])
@pytest.mark.parametrize("folder", ["food", "t5", "ood/leftImg8bit/images"])
def test_lost_and_found_takes_both_ways_to_mark_ignored_pixels_wherever_it_lies(tmp_path, ignored, folder):
    samples = LostAndFound(lost_and_found(tmp_path / folder, maps(ignored)))
    assert len(samples) == 3
    for number, (_, labels, _) in enumerate(samples[index] for index in range(3)):
        stored = maps(255)[number]
        assert np.array_equal(labels.numpy(), np.where(stored == 1, OUTLIER, stored))


def test_images_that_fishyscapes_does_not_label_are_left_out_of_lost_and_found(tmp_path):
    root = lost_and_found(tmp_path, maps())
    assert len([*root.glob("leftImg8bit/val/01/*")]) == 4
    assert len(LostAndFound(root)) == 3
    (root / "leftImg8bit/val/01/00_000000_leftImg8bit.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"00_000000_ood_segmentation\.png has no image"):
        LostAndFound(root)


def test_maps_of_roadanomaly_are_refused_in_lost_and_found_mode(tmp_path):
    with pytest.raises(ValueError, match="in RoadAnomaly's maps 2 is the outlier"):
        LostAndFound(lost_and_found(tmp_path, maps(ignored=0, outlier=2)))


def test_static_pairs_photographs_with_their_maps(tmp_path):
    samples = FishyscapesStatic(static(tmp_path, maps(255)))
    assert [name for _, _, name in (samples[index] for index in range(3))] == [
        f"000{n}_street_rgb.jpg" for n in range(3)
    ]
    assert samples[0][1].unique().tolist() == [0, OUTLIER, IGNORE]
    write(tmp_path / "0000_street_labels.png", np.full((HEIGHT, WIDTH), 2, np.uint8))
    with pytest.raises(ValueError, match=r"0000_street_labels.png holds label value 2.* values are 0-1, 255"):
        samples[0]


def finetune_flags(root, ade20k, *flags):
    sizes = "--epochs 1 --batch_size 2 --crop_size 32 --negative_resize 48 --negative_size 24 --workers 0 --device cpu"
    command = ["--dataroot", str(root), "--neg_dataroot", str(ade20k), "--exp_name", "fine", *sizes.split()]
    return [*command, *flags]


def test_deeplab_is_fine_tuned_from_nvidias_file_and_scored_on_fishyscapes(narrow, ade20k, in_tmp):
    torch.manual_seed(0)
    closed = deeplabv3plus(19, hybrid=False).state_dict()
    wrapped = {"state_dict": {f"module.{key}": value for key, value in closed.items()}}
    torch.save(wrapped, "cityscapes_cv0_wideresnet38_nosdcaug.pth")  # where the release reads it
    root = cityscapes(in_tmp / "city", 4, SIZE)
    figures = dlv3_cityscapes_finetune.main(finetune_flags(root, ade20k, "--negative_scale", "0.5", "1"))
    assert set(figures) == {"AP", "FPR95", "mIoU"} and 0 < figures["AP"] < 1
    # In the layout of the evaluation: another one rounds otherwise, which reorders pixels of nearly equal score.
    model = load_weights(deeplabv3plus(19), "logs/fine/final.pth").eval().to(memory_format=torch.channels_last)
    kernel = "mod2.block1.convs.conv1.weight"
    assert not torch.equal(model.state_dict()[kernel], closed[kernel])

    for name, folder in (
        ("lf", lost_and_found(in_tmp / "lf", maps())),
        ("static", static(in_tmp / "static", maps(255))),
    ):
        command = f"--dataroot {folder} --dataset {name} --folder out_{name} --params logs/fine/final.pth"
        results = evaluate_ood.main([*command.split(), "--workers", "0", "--device", "cpu"])
        scores, outlier = [], []
        for image, labels, _ in (evaluate_ood.BENCHMARKS[name].open(folder)[index] for index in range(3)):
            with torch.no_grad():
                batch = (image[None].float() / 255).contiguous(memory_format=torch.channels_last)
                score = hybrid_score(*model(batch))[0]
            scores.append(score[labels != IGNORE].numpy())
            outlier.append((labels[labels != IGNORE] == OUTLIER).numpy())
        slow = sklearn.metrics.average_precision_score(np.concatenate(outlier), np.concatenate(scores))
        assert results["pooled"]["hybrid"]["AP"] == pytest.approx(slow, abs=1e-3)
        assert results["pixels"] == {"inlier": 3 * (HEIGHT * WIDTH - 400), "outlier": 600, "ignored": 600}
        assert json.loads(Path(f"out_{name}/results.json").read_text())["network"] == "deeplabv3plus"
        assert Path(f"out_{name}/pictures.png").exists()


def test_a_missing_weight_file_is_an_error_that_names_its_source(ade20k, in_tmp):
    with pytest.raises(FileNotFoundError, match=r"1CKB7gpcPLgDLA7LuFJc46rYcNzF3aWzH"):
        dlv3_cityscapes_finetune.main(finetune_flags(cityscapes(in_tmp / "city", 2, SIZE), ade20k))
    assert not Path("logs").exists()


def test_a_last_batch_of_one_image_is_refused_before_the_training(narrow, ade20k, in_tmp):
    root = cityscapes(in_tmp / "city", 3, SIZE)
    with pytest.raises(ValueError, match="--drop_last true"):
        dlv3_cityscapes_finetune.main(finetune_flags(root, ade20k, "--init", "none"))
    dlv3_cityscapes_finetune.main(finetune_flags(root, ade20k, "--init", "none", "--drop_last", "true"))


def test_the_19_class_ldn_is_scored_on_lost_and_found_when_named(in_tmp):
    torch.save(ladder_densenet121(19).state_dict(), "ldn.pth")
    command = (
        f"--dataroot {lost_and_found(in_tmp / 'lf', maps())} --dataset lf --folder out --params ldn.pth --workers 0"
    )
    with pytest.raises(ValueError, match="does not fit deeplabv3plus"):
        evaluate_ood.main([*command.split(), "--pictures", "0"])
    assert evaluate_ood.main([*command.split(), "--network", "ldn121"])["network"] == "ldn121"


def test_one_window_over_the_whole_image_is_the_image():
    network = torch.nn.Conv2d(3, 4, 3, padding=1)
    images = torch.rand(2, 3, 20, 30)
    assert torch.equal(SlidingWindows(network, 30, 10)(images), network(images))


def test_windows_average_what_overlaps():
    class Position(torch.nn.Module):
        """Two outputs: each pixel's column inside its window, and ones"""

        def forward(self, images):
            columns = torch.arange(images.shape[3], dtype=torch.float32).expand(1, 1, *images.shape[2:])
            return columns, torch.ones_like(columns)

    columns, ones = SlidingWindows(Position(), 4, 3)(torch.zeros(1, 3, 1, 6))
    # Windows at columns 0 and 2, both of 4: by hand.
    assert columns.flatten().tolist() == [0, 1, (2 + 0) / 2, (3 + 1) / 2, 2, 3]
    assert torch.equal(ones, torch.ones(1, 1, 1, 6))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 31, 100])
@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 5), (16, 1)])
def test_windows_cover_every_pixel_and_end_flush(length, window, stride):
    starts = window_starts(length, window, stride)
    covered = {pixel for start in starts for pixel in range(start, min(start + window, length))}
    assert covered == set(range(length))
    assert starts == sorted(set(starts)) and starts[-1] == max(0, length - window)


def test_windows_with_gaps_are_refused():
    with pytest.raises(ValueError, match="stride"):
        SlidingWindows(torch.nn.Identity(), 8, 9)
