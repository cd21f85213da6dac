"""DeepLabV3+ fine-tuned on Cityscapes and scored on Fishyscapes; the trunk is thin."""

import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch

import dlv3_cityscapes_finetune
import evaluate_ood
from data import IGNORE, OUTLIER
from losses import hybrid_score
from models import deeplabv3plus, ladder_densenet121, load_weights
from tests.support.layouts import boxes, cityscapes, lost_and_found, static
from tests.support.networks import thin_trunk


def maps(ignored=2, outlier=1):
    return [boxes(number, outlier, ignored, SIZE) for number in range(3)]


SIZE = HEIGHT, WIDTH = 40, 64


@pytest.fixture
def narrow():
    with thin_trunk():
        yield


def finetune_flags(root, ade20k, *flags):
    sizes = "--epochs 1 --batch_size 2 --crop_size 32 --negative_resize 48 --negative_size 24 --workers 0 --device cpu"
    command = ["--dataroot", str(root), "--neg_dataroot", str(ade20k), "--exp_name", "fine", *sizes.split()]
    return [*command, *flags]


@pytest.mark.slow
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
        assert results["figures"]["pooled"]["hybrid"]["AP"] == pytest.approx(slow, abs=1e-3)
        assert results["figures"]["pixels"] == {"inlier": 3 * (HEIGHT * WIDTH - 400), "outlier": 600, "ignored": 600}
        assert json.loads(Path(f"out_{name}/results.json").read_text())["network"] == "deeplabv3plus"
        assert Path(f"out_{name}/pictures.png").exists()


@pytest.mark.slow
def test_a_missing_weight_file_is_an_error_that_names_its_source(ade20k, in_tmp):
    with pytest.raises(FileNotFoundError, match=r"1CKB7gpcPLgDLA7LuFJc46rYcNzF3aWzH"):
        dlv3_cityscapes_finetune.main(finetune_flags(cityscapes(in_tmp / "city", 2, SIZE), ade20k))
    assert not Path("logs").exists()


@pytest.mark.slow
def test_a_last_batch_of_one_image_is_refused_before_the_training(narrow, ade20k, in_tmp):
    root = cityscapes(in_tmp / "city", 3, SIZE)
    with pytest.raises(ValueError, match="--drop_last true"):
        dlv3_cityscapes_finetune.main(finetune_flags(root, ade20k, "--init", "none"))
    dlv3_cityscapes_finetune.main(finetune_flags(root, ade20k, "--init", "none", "--drop_last", "true"))


@pytest.mark.slow
def test_the_19_class_ldn_is_scored_on_lost_and_found_when_named(in_tmp):
    torch.save(ladder_densenet121(19).state_dict(), "ldn.pth")
    command = (
        f"--dataroot {lost_and_found(in_tmp / 'lf', maps())} --dataset lf --folder out --params ldn.pth --workers 0"
    )
    with pytest.raises(ValueError, match="does not fit deeplabv3plus"):
        evaluate_ood.main([*command.split(), "--pictures", "0"])
    assert evaluate_ood.main([*command.split(), "--network", "ldn121"])["network"] == "ldn121"
