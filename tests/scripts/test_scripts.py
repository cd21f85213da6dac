"""Each script for real, on a world drawn for the occasion."""

import contextlib
import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchvision
import yaml
from PIL import Image

import evaluate_closed_set
import evaluate_ood
import evaluate_osr_sh
import ldn_streethazards
import ldn_streethazards_finetune
from data import StreetHazards
from engine import run_script
from labels import IGNORE, OUTLIER
from losses import hybrid_score
from models import ladder_densenet121, load_weights
from tests.support.layouts import STREET_SIZE
from tests.support.networks import save_random_weights
from tests.support.stand_ins import put_in_place
from tests.support.tiny import log_of

PROJECT = Path(__file__).resolve().parents[2]
SMALL = ["--device", "cpu", "--workers", "0", "--epochs", "1", "--batch_size", "2", "--crop_size", "32"]
SMALL_HYBRID = [*SMALL, "--negative_size", "24", "--negative_resize", "32"]
SCORES = ("hybrid", "discriminative", "generative", "max_softmax", "max_logit", "entropy")
K = 12
HEIGHT, WIDTH = STREET_SIZE


def closed_set_flags(street_hazards, *flags):
    return ["--dataroot", str(street_hazards), "--exp_name", "closed", *SMALL, "--init", "none", *flags]


def hybrid_flags(street_hazards, ade20k, weights, *flags):
    return ["--dataroot", str(street_hazards), "--neg_dataroot", str(ade20k), "--exp_name", "hybrid",
            "--model", str(weights), *SMALL_HYBRID, *flags]  # fmt: skip


def ood_flags(street_hazards, weights, *flags):
    return ["--dataroot", str(street_hazards), "--dataset", "street-hazards", "--folder", "out",
            "--params", str(weights), "--device", "cpu", "--workers", "0", *flags]  # fmt: skip


def osr_flags(street_hazards, weights, *flags):
    return ["--dataroot", str(street_hazards), "--model", str(weights), "--device", "cpu", "--workers", "0", *flags]


@pytest.fixture(scope="session")
def closed_run(street_hazards, tmp_path_factory):
    """logs/closed of a closed-set training of one epoch"""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("closed"))
        ldn_streethazards.main(closed_set_flags(street_hazards))
        return Path("logs/closed").resolve()


@pytest.fixture(scope="session")
def hybrid_run(street_hazards, ade20k, closed_run, tmp_path_factory):
    """logs/hybrid of a fine-tuning of one epoch"""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("hybrid"))
        ldn_streethazards_finetune.main(hybrid_flags(street_hazards, ade20k, closed_run / "final.pth"))
        return Path("logs/hybrid").resolve()


@pytest.fixture
def own_world(street_hazards, tmp_path):
    """A copy of the world that a test may spoil"""
    return shutil.copytree(street_hazards, tmp_path / "own_world")


def frames_of(street_hazards, split="test"):
    """(image float (1, 3, H, W), stored label values (H, W)) by name, read here without the project's data room"""
    frames, test = {}, street_hazards / "test"
    for path in sorted((test / "images").rglob("*.png")):
        if split in ("test", path.parent.name):
            image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255
            labels = np.array(Image.open(test / "annotations" / path.relative_to(test / "images")))
            frames[str(path.relative_to(street_hazards))] = image, labels
    return frames


def evaluated(*flags):
    """What evaluate_ood writes down"""
    evaluate_ood.main(ood_flags(*flags))
    return json.loads(Path("out/results.json").read_text())


def logits_of(weights, image, hybrid=True):
    # In the layout of the evaluation: another one rounds otherwise, which reorders pixels of nearly equal score.
    model = ladder_densenet121(K, hybrid).eval().to(memory_format=torch.channels_last)
    model.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        return model(image.contiguous(memory_format=torch.channels_last))


def hybrid_score_by_hand(class_logits, dataset_logits):
    outlier = torch.softmax(dataset_logits.double(), 1)[:, 1].log()
    return (outlier - class_logits.double().exp().sum(1).log()).numpy()[0]


# Training


@pytest.mark.slow
def test_closed_set_training_ends_with_weights_that_load_strictly(closed_run, street_hazards):
    ladder_densenet121(K, hybrid=False).load_state_dict(torch.load(closed_run / "final.pth", weights_only=True))
    load_weights(ladder_densenet121(K, hybrid=False), closed_run / "last.pt")  # a checkpoint is a weight file, too
    steps = [line for line in log_of(closed_run) if "class" in line]
    assert len(steps) == 5 and all(math.isfinite(line["class"]) for line in steps)
    assert log_of(closed_run)[-1]["validation"].keys() == {"mIoU"}
    recipe = yaml.safe_load((closed_run / "recipe.yaml").read_text())
    assert recipe["recipe"]["changed"] == {"epochs": 1, "batch_size": 2, "crop_size": 32}
    assert recipe["command"].startswith(f"python ldn_streethazards.py --dataroot {street_hazards} --exp_name closed")


@pytest.mark.slow
def test_the_logged_miou_of_validation_is_that_of_the_final_weights(closed_run, street_hazards):
    truth, prediction = [], []
    for image, labels, _ in StreetHazards(street_hazards, "validation"):
        found = logits_of(closed_run / "final.pth", image[None] / 255, hybrid=False)[0].argmax(0)
        truth.append(labels[labels < K])
        prediction.append(found[labels < K])
    truth, prediction = torch.cat(truth).numpy(), torch.cat(prediction).numpy()
    slow = [np.sum((truth == k) & (prediction == k)) / np.sum((truth == k) | (prediction == k))
            for k in range(K) if np.any((truth == k) | (prediction == k))]  # fmt: skip
    assert log_of(closed_run)[-1]["validation"]["mIoU"] == pytest.approx(np.mean(slow), abs=1e-3)


@pytest.mark.slow
def test_fine_tuning_starts_from_closed_set_weights_and_ends_with_hybrid_ones(closed_run, hybrid_run):
    before, after = (torch.load(run / "final.pth", weights_only=True) for run in (closed_run, hybrid_run))
    ladder_densenet121(K).load_state_dict(after)
    assert {key for key in after if key not in before} == {key for key in after if key.startswith("logits_ood.")}
    assert any(key.startswith("logits_ood.") for key in after)
    weight = "backbone.features.conv0.weight"
    assert 0 < (before[weight] - after[weight]).abs().max() < 1e-4  # five steps at 2.5e-6 from where it started
    steps = [line for line in log_of(hybrid_run) if "class" in line]
    assert len(steps) == 5
    for line in steps:
        assert all(math.isfinite(line[term]) for term in ("class", "likelihood", "dataset")) and line["dataset"] > 0
    assert log_of(hybrid_run)[-1]["validation"].keys() == {"AP", "FPR95", "mIoU"}


@pytest.mark.slow
def test_fine_tuning_goes_on_from_hybrid_weights(hybrid_run, street_hazards, ade20k, in_tmp):
    figures = ldn_streethazards_finetune.main(hybrid_flags(street_hazards, ade20k, hybrid_run / "final.pth"))
    assert 0 <= figures["AP"] <= 1
    before, after = (torch.load(run / "final.pth", weights_only=True) for run in (hybrid_run, Path("logs/hybrid")))
    assert (before["logits_ood.conv.weight"] - after["logits_ood.conv.weight"]).abs().max() < 1e-3


@pytest.mark.slow
def test_resuming_a_finished_training_changes_nothing(closed_run, street_hazards, in_tmp):
    shutil.copytree(closed_run, "logs/closed")
    ldn_streethazards.main(closed_set_flags(street_hazards, "--resume"))
    before, after = (torch.load(run / "final.pth", weights_only=True) for run in (closed_run, Path("logs/closed")))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert log_of(closed_run) == log_of(Path("logs/closed"))


@pytest.mark.slow
def test_a_run_goes_on_with_the_weights_data_and_negatives_that_it_began_with(
    closed_run, hybrid_run, street_hazards, ade20k, own_world, in_tmp
):
    run = Path(shutil.copytree(hybrid_run, "logs/hybrid"))
    other_weights, renamed = shutil.copy(hybrid_run / "final.pth", "other.pth"), in_tmp / "renamed"
    shutil.copytree(ade20k, renamed)
    for folder in ("images", "annotations"):
        first = min((renamed / folder / "training").iterdir())
        first.rename(first.with_stem("renamed"))
    one_more = Path(own_world, "train", "images", "training")
    frame = min(one_more.rglob("*.png"))
    for path in (frame, own_world / "train" / "annotations" / frame.relative_to(own_world / "train" / "images")):
        path.rename(path.with_stem("renamed"))

    def resume(world, negatives, weights, *flags):
        ldn_streethazards_finetune.main(hybrid_flags(world, negatives, weights, "--resume", *flags))

    given = street_hazards, ade20k, closed_run / "final.pth"
    digest = hashlib.sha256(Path(other_weights).read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=rf"other inputs: model was .* and is 'other\.pth, SHA-256 {digest[:12]}'"):
        resume(*given[:2], other_weights)
    for others in ((street_hazards, renamed), (own_world, ade20k)):
        with pytest.raises(
            ValueError, match=r"other inputs: training_files was '14 files, SHA-256 .*' and is '14 files"
        ):
            resume(*others, given[2])
    with pytest.raises(ValueError, match=r"other inputs: neg_dataroot was .* and is 'not given'; neg_images was"):
        flags = hybrid_flags(*given, "--resume")
        ldn_streethazards_finetune.main([word.replace("--neg_dataroot", "--neg_images") for word in flags])
    before = yaml.safe_load((run / "recipe.yaml").read_text())

    moved = shutil.copytree(ade20k, in_tmp / "moved"), shutil.copy(given[2], "moved.pth")
    resume(street_hazards, *moved)  # the same files at other places
    moved_on = yaml.safe_load((run / "recipe.yaml").read_text())
    assert [each["after_epoch"] for each in moved_on.pop("resumed")] == [1] and moved_on == before
    resume(street_hazards, renamed, other_weights, "--other_inputs")
    after = yaml.safe_load((run / "recipe.yaml").read_text())
    assert after["inputs_before"] == [{"until_epoch": 1, **before["inputs"]}]
    assert after["inputs"]["model"] == {"file": "other.pth", "sha256": digest}
    resume(street_hazards, renamed, other_weights)  # which is now what it goes on with
    with pytest.raises(ValueError, match="other inputs: model"):
        resume(*given)


@pytest.mark.slow
def test_more_epochs_are_another_run_that_begins_with_the_weights_of_the_first(
    closed_run, hybrid_run, street_hazards, ade20k, in_tmp
):
    shutil.copytree(hybrid_run, "logs/hybrid")
    flags = hybrid_flags(street_hazards, ade20k, closed_run / "final.pth", "--resume", "--epochs", "2")
    with pytest.raises(ValueError, match=r"epochs was 1 and is 2; .*: --model logs/hybrid/final\.pth"):
        ldn_streethazards_finetune.main(flags)
    shutil.copytree(closed_run, "logs/closed")
    flags = closed_set_flags(street_hazards)
    with pytest.raises(ValueError, match=r"epochs was 1 and is 2; .*: --init logs/closed/final\.pth"):
        ldn_streethazards.main([*flags, "--resume", "--epochs", "2"])
    flags[flags.index("closed")], flags[flags.index("none")] = "further", "logs/closed/final.pth"
    ldn_streethazards.main([*flags, "--lr", "1e-12", "--lr_min", "0"])
    before, after = (torch.load(Path("logs", name, "final.pth"), weights_only=True) for name in ("closed", "further"))
    weights = [key for key in before if key.endswith(("weight", "bias"))]
    assert max((before[key] - after[key]).abs().max() for key in weights) < 1e-6


@pytest.mark.slow
def test_the_optimizer_and_every_flag_of_the_original_reach_the_run(street_hazards, ade20k, random_weights, in_tmp):
    flags = ["--lr", "1e-4", "--lr_min", "1e-6", "--beta", "0.1", "--num_classes", "12", "--dataset", "street-hazards",
             "--ignored_are_inliers", "true", "--likelihood_margin", "-5", "--batch_size", "10"]  # fmt: skip
    ldn_streethazards_finetune.main(hybrid_flags(street_hazards, ade20k, random_weights["closed"], *flags))
    groups = torch.load("logs/hybrid/last.pt", weights_only=True)["optimizer"]["param_groups"]
    assert [group["initial_lr"] for group in groups] == pytest.approx([2.5e-5, 1e-4])
    assert [group["lr"] for group in groups] == pytest.approx([1e-6, 1e-6])
    assert [group["eps"] for group in groups] == [1e-7, 1e-7]
    recipe = yaml.safe_load(Path("logs/hybrid/recipe.yaml").read_text())["recipe"]["changed"]
    assert (recipe["beta"], recipe["ignored_are_inliers"], recipe["likelihood_margin"]) == (0.1, True, -5)


def test_the_flags_of_the_original_may_say_what_the_script_does_anyway(street_hazards, in_tmp):
    flags = ["--num_classes", "12", "--dataset", "street-hazards", "--batch_size", "11"]
    with pytest.raises(ValueError, match="10 training images are fewer than batch_size 11"):
        ldn_streethazards.main(closed_set_flags(street_hazards, *flags))
    assert not Path("logs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["norm1", "norm.1"])
def test_training_starts_from_a_file_of_torchvisions_weights(norm, street_hazards, in_tmp):
    torch.manual_seed(3)
    weights = torchvision.models.densenet121(weights=None).state_dict()
    if norm == "norm.1":  # how torchvision's published file spells them
        weights = {
            key.replace("norm1", "norm.1").replace("norm2", "norm.2")
            .replace("conv1", "conv.1").replace("conv2", "conv.2") if "denselayer" in key else key: value
            for key, value in weights.items() if "batches_tracked" not in key
        }  # fmt: skip
    torch.save(weights, "densenet121.pth")
    flags = ["--init", "densenet121.pth", "--lr", "1e-9", "--lr_min", "0", "--batch_size", "10"]
    ldn_streethazards.main(closed_set_flags(street_hazards, *flags))
    trained = torch.load("logs/closed/final.pth", weights_only=True)
    for key in ("features.conv0.weight", "features.denseblock4.denselayer16.conv2.weight"):
        spelling = key if norm == "norm1" else key.replace("conv2", "conv.2")
        torch.testing.assert_close(trained[f"backbone.{key}"], weights[spelling], rtol=0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_folder_is_named_and_leaves_no_run(split, own_world, random_weights, in_tmp):
    shutil.rmtree(own_world / split)
    with pytest.raises(FileNotFoundError, match=rf"no folder .*own_world/{split}/.*--dataroot"):
        if split == "train":
            ldn_streethazards.main(closed_set_flags(own_world))
        else:
            evaluate_ood.main(ood_flags(own_world, random_weights["hybrid"]))
    assert not Path("logs").exists() and not Path("out").exists()


def test_the_file_of_imagenet_is_downloaded_by_process_0_alone(street_hazards, in_tmp, monkeypatch):
    events = []

    @contextlib.contextmanager
    def first():
        events.append("process 0 first")
        yield
        events.append("then the others")

    instead = {
        "engine.main_process_first": first,
        "models.load_imagenet_densenet121": lambda *where: events.append("file"),
        "engine.fit": lambda *training, **best: None,
    }
    put_in_place(monkeypatch, instead)
    ldn_streethazards.main(closed_set_flags(street_hazards, "--init", "imagenet"))
    assert events == ["process 0 first", "file", "then the others"]


def test_a_missing_folder_of_negatives_is_named_and_leaves_no_run(street_hazards, random_weights, in_tmp):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere/images/training; --neg_dataroot"):
        ldn_streethazards_finetune.main(hybrid_flags(street_hazards, "nowhere", random_weights["closed"]))
    assert not Path("logs").exists()


def test_a_greyscale_image_in_the_training_set_is_named(own_world, in_tmp):
    path = sorted((own_world / "train" / "images" / "training").rglob("*.png"))[3]
    Image.open(path).convert("L").save(path)
    with pytest.raises(SystemExit) as ending:
        run_script(lambda: ldn_streethazards.main(closed_set_flags(own_world)))
    assert ending.value.code.startswith(f"error: {path} is stored as a greyscale image (mode L)")


@pytest.mark.processes
@pytest.mark.slow
def test_a_training_stopped_by_ctrl_c_names_the_command_that_goes_on(street_hazards, in_tmp):
    argv = closed_set_flags(street_hazards, "--workers", "2", "--epochs", "50")
    with open("output.txt", "w") as output:
        process = subprocess.Popen([sys.executable, PROJECT / "ldn_streethazards.py", *argv], stdout=output,
                                   stderr=output, start_new_session=True)  # fmt: skip
    log = Path("logs/closed/log.jsonl")
    while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 2):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader processes too
    assert process.wait(60) == 130
    printed = Path("output.txt").read_text()
    assert "Traceback" not in printed
    line = next(line for line in printed.splitlines() if "--resume" in line)
    told, command = line.split("; go on with: ")
    assert told.startswith("stopped after ") and told.endswith(" of 50 epochs")
    assert shlex.split(command) == ["python", str(PROJECT / "ldn_streethazards.py"), *argv, "--resume"]


# Anomaly detection


@pytest.mark.slow
def test_every_score_of_every_frame_is_evaluated(hybrid_run, street_hazards, in_tmp, capsys):
    weights = hybrid_run / "final.pth"
    written = evaluated(street_hazards, weights, "--scores", "all", "--pooled")
    frames = frames_of(street_hazards)
    assert [image["name"] for image in written["images"]] == list(frames) and len(frames) == 5
    slow, pooled = [], []
    for name, (image, stored) in frames.items():
        logits, counted = logits_of(weights, image), stored != 4  # 4 is ignored, 14 an anomaly
        # Rounded to float32, as scores are kept, pixels change places; so the score is checked in float64 by itself.
        scores = hybrid_score(*logits)[0].numpy()
        np.testing.assert_allclose(scores, hybrid_score_by_hand(*logits), rtol=1e-5, atol=1e-6)
        figures = next(image for image in written["images"] if image["name"] == name)
        ap = sklearn.metrics.average_precision_score(stored[counted] == 14, scores[counted])
        auroc = sklearn.metrics.roc_auc_score(stored[counted] == 14, scores[counted])
        assert figures["hybrid"]["AP"] == pytest.approx(ap, abs=1e-4)
        assert figures["hybrid"]["AUROC"] == pytest.approx(auroc, abs=1e-4)
        assert figures["hybrid"]["outlier_pixels"] == np.sum(stored == 14)
        assert figures["hybrid"]["ignored_pixels"] == np.sum(stored == 4)
        slow.append(ap)
        pooled.append((stored[counted] == 14, scores[counted]))
    assert written["figures"]["mean_of_images"]["hybrid"]["AP"] == pytest.approx(np.mean(slow), abs=1e-4)
    together = sklearn.metrics.average_precision_score(*(np.concatenate(part) for part in zip(*pooled, strict=True)))
    assert written["figures"]["pooled"]["hybrid"]["AP"] == pytest.approx(together, abs=1e-4)

    assert tuple(written["figures"]["mean_of_images"]) == tuple(written["figures"]["pooled"]) == SCORES
    for figures in (written["figures"]["mean_of_images"], written["figures"]["pooled"], *written["images"]):
        for score in SCORES:
            assert all(0 <= figures[score][figure] <= 1 for figure in ("AP", "AUROC", "FPR95"))
    assert written["figures"]["mean_of_images"]["hybrid"]["images"] == 5
    assert sum(written["figures"]["pixels"].values()) == 5 * WIDTH * HEIGHT

    table = Path("out/table.md").read_text()
    ap = written["figures"]["mean_of_images"]["hybrid"]["AP"]
    assert f"{100 * ap:.2f}" in table and all(score in table for score in SCORES) and table in capsys.readouterr().out
    with Image.open("out/pictures.png") as sheet:
        assert sheet.size[0] > 4 * 320


@pytest.mark.slow
def test_a_frame_without_outliers_is_left_out_of_the_mean_and_counted(own_world, random_weights, in_tmp):
    path = own_world / "test" / "annotations" / "test" / "t5" / "0000.png"
    labels = np.array(Image.open(path))
    Image.fromarray(np.where(labels == 14, 8, labels)).save(path)
    results = evaluated(own_world, random_weights["hybrid"], "--pictures", "0")
    mean, each = results["figures"]["mean_of_images"]["hybrid"], [image["hybrid"]["AP"] for image in results["images"]]
    assert (mean["images"], mean["images_without_outliers"]) == (4, 1)
    assert each[0] is None and mean["AP"] == pytest.approx(np.mean(each[1:]))
    assert "mean over 4 images (1 without outliers left out" in Path("out/table.md").read_text()
    assert not Path("out/pictures.png").exists()


@pytest.mark.slow
def test_the_score_of_hybrid_weights_is_the_hybrid_score(random_weights, street_hazards, in_tmp):
    results = evaluated(street_hazards, random_weights["hybrid"], "--pictures", "0")
    assert list(results["figures"]["mean_of_images"]) == ["hybrid"] and "pooled" not in results["figures"]


@pytest.mark.slow
def test_closed_set_weights_get_the_scores_that_need_no_dataset_head(closed_run, street_hazards, in_tmp):
    results = evaluated(street_hazards, closed_run / "final.pth", "--pictures", "2")
    assert list(results["figures"]["mean_of_images"]) == ["generative", "max_softmax", "max_logit", "entropy"]
    name, (image, stored) = next(iter(frames_of(street_hazards).items()))
    logits = logits_of(closed_run / "final.pth", image, hybrid=False)[0].double()
    expected = {
        "generative": -logits.exp().sum(0).log(), "max_softmax": 1 - logits.softmax(0).amax(0),
        "max_logit": -logits.amax(0), "entropy": -(logits.softmax(0) * logits.softmax(0).log()).sum(0),
    }  # fmt: skip
    assert results["images"][0]["name"] == name
    for score, scores in expected.items():
        slow = sklearn.metrics.roc_auc_score(stored[stored != 4] == 14, scores.numpy()[stored != 4])
        assert results["images"][0][score]["AUROC"] == pytest.approx(slow, abs=1e-4), score


@pytest.mark.slow
@pytest.mark.parametrize("score", ["hybrid", "discriminative"])
def test_a_score_that_the_weights_cannot_give_is_refused(score, random_weights, street_hazards, in_tmp):
    with pytest.raises(ValueError, match=rf"{score}.*no dataset head.*max_logit"):
        evaluate_ood.main(ood_flags(street_hazards, random_weights["closed"], "--scores", score))
    with pytest.raises(ValueError, match=rf"{score}.*dataset head.*max_logit"):
        evaluate_osr_sh.main(osr_flags(street_hazards, random_weights["closed"], "--score", score))
    assert not Path("out").exists() and not Path("results").exists()


def test_a_score_that_the_weights_cannot_give_is_refused_before_the_data_are_looked_for(random_weights, in_tmp):
    with pytest.raises(ValueError, match=r"--score hybrid: .* has no dataset head"):
        evaluate_osr_sh.main(osr_flags("nowhere", random_weights["closed"], "--score", "hybrid"))


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_every_script(value, street_hazards, ade20k, random_weights, in_tmp):
    weights = torch.load(random_weights["hybrid"], weights_only=True)
    weights["logits.conv.weight"][3, 2] = value
    torch.save(weights, "nan.pth")
    for main, flags in (
        (evaluate_ood.main, ood_flags(street_hazards, "nan.pth")),
        (evaluate_osr_sh.main, osr_flags(street_hazards, "nan.pth")),
        (ldn_streethazards_finetune.main, hybrid_flags(street_hazards, ade20k, "nan.pth")),
        (evaluate_closed_set.main, ["--dataroot", str(street_hazards), "--dataset", "street-hazards", "--folder", "out",
                                    "--params", "nan.pth", "--device", "cpu", "--workers", "0"]),
    ):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"nan\.pth holds 1 values of logits\.conv\.weight that are NaN or infinite"
        ):
            main(flags)
    assert not Path("logs").exists()


@pytest.mark.slow
def test_results_of_other_weights_are_not_replaced(street_hazards, random_weights, in_tmp):
    evaluate_osr_sh.main(osr_flags(street_hazards, random_weights["hybrid"], "--pictures", "0"))
    results = Path("results/evaluate_osr_sh/results.json")
    before = results.read_bytes()
    evaluate_osr_sh.main(
        osr_flags(street_hazards, shutil.copy(random_weights["hybrid"], "same.pth"), "--pictures", "0")
    )
    assert json.loads(results.read_text())["weights"] == "same.pth"
    before = results.read_bytes()
    told = r"results/evaluate_osr_sh holds the results of other weights, same\.pth; give a --folder"
    for main, flags in (
        (evaluate_osr_sh.main, osr_flags(street_hazards, random_weights["closed"])),
        (evaluate_ood.main, ood_flags(street_hazards, random_weights["closed"], "--folder", str(results.parent))),
        (evaluate_closed_set.main, ["--dataroot", str(street_hazards), "--dataset", "street-hazards", "--folder",
                                    str(results.parent), "--params", str(random_weights["closed"])]),
    ):  # fmt: skip
        with pytest.raises(FileExistsError, match=told):
            main(flags)
    assert results.read_bytes() == before


def test_a_town_without_outliers_is_told_before_the_network_runs(
    own_world, random_weights, in_tmp, monkeypatch, capsys
):
    for path in (own_world / "test" / "annotations" / "test" / "t6").rglob("*.png"):
        Image.fromarray(np.ones_like(np.array(Image.open(path)))).save(path)

    def network(*_):
        assert "note: town t6 has no outlier pixel, so that no threshold" in capsys.readouterr().out
        raise Stopped

    monkeypatch.setattr(evaluate_osr_sh, "evaluated_frames", network)
    with pytest.raises(Stopped):
        evaluate_osr_sh.main(osr_flags(own_world, random_weights["hybrid"]))


class Stopped(Exception):
    pass


@pytest.mark.slow
def test_wrong_weights_are_refused(street_hazards, ade20k, in_tmp):
    torch.save({"weight": torch.ones(3)}, "wrong.pth")
    save_random_weights("cityscapes.pth", hybrid=True, num_classes=19)
    Path("text.pth").write_text("no weights")
    message = {"wrong.pth": "does not fit (LadderDenseNet|ldn121)",
               "cityscapes.pth": r"\(19, 128, 1, 1\) instead of \(12,",
               "text.pth": "cannot be read as a weight file"}  # fmt: skip
    for path in message:
        for main, flags in (
            (evaluate_ood.main, ood_flags(street_hazards, path)),
            (evaluate_osr_sh.main, osr_flags(street_hazards, path)),
            (ldn_streethazards_finetune.main, hybrid_flags(street_hazards, ade20k, path)),
        ):
            if (main, path) == (evaluate_ood.main, "cityscapes.pth"):
                continue  # whose number of classes does not matter
            with pytest.raises(ValueError, match=rf"{path} .*{message[path]}|{path} {message[path]}"):
                main(flags)
    with pytest.raises(FileNotFoundError, match=r"no weight file nowhere\.pth"):
        evaluate_ood.main(ood_flags(street_hazards, "nowhere.pth"))
    assert not Path("logs").exists()


# Open-set segmentation


def half(values):
    """Every second pixel's upper left neighbour for labels; the mean of each two by two for scores"""
    if values.dtype.kind == "f":
        return values.reshape(HEIGHT // 2, 2, WIDTH // 2, 2).mean((1, 3))
    return values[::2, ::2]


def slow_open_miou(predictions, truths):
    """Over the known classes; outliers (truth K) predicted as known and known pixels predicted K are errors"""
    ious = []
    for k in range(K):
        hits = union = 0
        for prediction, truth in zip(predictions, truths, strict=True):
            for predicted, true in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
                if true != IGNORE:
                    hits += predicted == true == k
                    union += k in (predicted, true)
        if union:
            ious.append(hits / union)
    return sum(ious) / len(ious)


INTERNAL = np.array([IGNORE, 0, 1, 2, IGNORE, *range(3, K), K])  # by stored value; K here for the anomaly


@pytest.mark.slow
def test_open_set_figures_are_those_of_a_slow_count_with_thresholds_from_the_other_town(
    hybrid_run, street_hazards, in_tmp
):
    weights = hybrid_run / "final.pth"
    results = evaluate_osr_sh.main(osr_flags(street_hazards, weights))
    written = json.loads(Path("results/evaluate_osr_sh/results.json").read_text())
    figures = written["figures"]
    predictions, scores, truths, thresholds = {}, {}, {}, {}
    for town in ("t5", "t6"):
        frames = frames_of(street_hazards, town).values()
        logits = [logits_of(weights, image) for image, _ in frames]
        predictions[town] = [class_logits[0].argmax(0).numpy() for class_logits, _ in logits]
        scores[town] = [hybrid_score_by_hand(*both) for both in logits]
        truths[town] = [INTERNAL[stored] for _, stored in frames]
        outliers = np.concatenate([half(s)[half(t) == K] for s, t in zip(scores[town], truths[town], strict=True)])
        found = [threshold for threshold in outliers if np.mean(outliers >= threshold) >= 0.95]
        thresholds[town] = max(found)
    for town, other in (("t5", "t6"), ("t6", "t5")):
        threshold = figures[town]["threshold"]
        assert threshold == pytest.approx(thresholds[other], abs=1e-4)
        assert thresholds[town] != pytest.approx(thresholds[other], abs=1e-3)
        opened = [np.where(s.astype(np.float32) >= np.float32(threshold), K, p)
                  for p, s in zip(predictions[town], scores[town], strict=True)]  # fmt: skip
        assert figures[town]["open_mIoU"] == pytest.approx(slow_open_miou(opened, truths[town]), abs=2e-3)
        known = [np.where(truth == K, IGNORE, truth) for truth in truths[town]]
        assert figures[town]["mIoU"] == pytest.approx(slow_open_miou(predictions[town], known), abs=2e-3)
        assert figures[town]["gap"] == pytest.approx(figures[town]["mIoU"] - figures[town]["open_mIoU"])
    assert (figures["t5"]["images"], figures["t6"]["images"], figures["total"]["images"]) == (3, 2, 5)
    for figure in ("mIoU", "open_mIoU", "gap", "mIoU_with_unknown"):
        weighted = (3 * figures["t5"][figure] + 2 * figures["t6"][figure]) / 5
        assert figures["total"][figure] == pytest.approx(weighted)
    assert list(written["calibration"]) == ["hybrid"] and written["calibration"]["hybrid"]["tpr"] == 0.95
    assert results["figures"]["total"] == figures["total"]

    table = Path("results/evaluate_osr_sh/table.md").read_text()
    assert "half resolution" in table and "TPR 0.95" in table
    rows = {row.split("|")[1].strip(): row for row in table.splitlines() if row.startswith("| t")}
    for town in ("t5", "t6", "total"):
        assert f" {100 * figures[town]['open_mIoU']:.2f} " in rows[town]


@pytest.mark.slow
def test_a_town_is_found_by_its_own_folder_whatever_the_path_to_it(own_world, random_weights, tmp_path, in_tmp):
    straight = evaluate_osr_sh.main(osr_flags(own_world, random_weights["hybrid"]))
    innocent = shutil.move(own_world, tmp_path / "t5_images_ood" / "t6")
    again = evaluate_osr_sh.main(osr_flags(innocent, random_weights["hybrid"]))
    assert again["figures"] == straight["figures"] and again["figures"].keys() == {"t5", "t6", "total"}


@pytest.mark.slow
def test_another_share_of_outliers_moves_the_threshold(random_weights, street_hazards, in_tmp):
    most, half_of_them = (
        evaluate_osr_sh.main(osr_flags(street_hazards, random_weights["hybrid"], "--tpr", tpr, "--folder", f"at_{tpr}"))
        for tpr in ("0.95", "0.5")
    )
    assert most["figures"]["t5"]["threshold"] < half_of_them["figures"]["t5"]["threshold"]
    assert most["figures"]["t5"]["mIoU"] == half_of_them["figures"]["t5"]["mIoU"]
    assert "TPR 0.5 " in Path("at_0.5/table.md").read_text()


@pytest.mark.slow
def test_open_set_evaluation_of_closed_set_weights_takes_the_largest_logit(random_weights, street_hazards, in_tmp):
    assert list(evaluate_osr_sh.main(osr_flags(street_hazards, random_weights["closed"]))["calibration"]) == [
        "max_logit"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("without", [["t6"], ["t5", "t6"]])
def test_a_town_without_outliers_leaves_the_other_towns_open_set_figures_empty(
    without, own_world, random_weights, in_tmp, capsys
):
    flags = osr_flags(own_world, random_weights["hybrid"], "--pictures", "4")
    whole = evaluate_osr_sh.main(flags)["figures"]
    for town in without:
        for path in (own_world / "test" / "annotations" / "test" / town).iterdir():
            labels = np.array(Image.open(path))
            Image.fromarray(np.where(labels == 14, 4, labels)).save(path)  # ignored
    capsys.readouterr()
    evaluate_osr_sh.main(flags)
    said, other = capsys.readouterr().out, {"t5": "t6", "t6": "t5"}
    results = json.loads(Path("results/evaluate_osr_sh/results.json").read_text())
    assert results["calibration"]["hybrid"]["threshold"] is None
    results = results["figures"]
    for town in ("t5", "t6"):
        assert (f"note: town {town} has no outlier pixel, so that no" in said) == (town in without)
        assert said.count(f"note: town {town} ") == (town in without)  # once, and not again of the halved maps
        empty = other[town] in without
        for key in ("open_mIoU", "mIoU_with_unknown", "gap", "threshold"):
            assert (results[town][key] is None) == empty, (town, key)
        assert results[town]["mIoU"] == whole[town]["mIoU"] and results[town]["images"] == whole[town]["images"]
    assert results["total"]["mIoU"] == whole["total"]["mIoU"]
    assert [results["total"][key] for key in ("open_mIoU", "gap", "mIoU_with_unknown")] == [None] * 3
    assert "nan" not in Path("results/evaluate_osr_sh/table.md").read_text()
    assert Path("results/evaluate_osr_sh/index.html").exists() and Path("results/evaluate_osr_sh/pictures.png").exists()


# Real pictures


@pytest.mark.slow
@pytest.mark.skipif("DENSEHYBRID_DATA" not in os.environ, reason="DENSEHYBRID_DATA names no folder of real pictures")
def test_real_frames_are_scored(random_weights, in_tmp):
    whole, part = Path(os.environ["DENSEHYBRID_DATA"], "street_hazards").resolve(), Path("part").resolve()
    for town in ("t5", "t6"):
        for path in sorted((whole / "test" / "images" / "test" / town).glob("*.png"))[:2]:
            for kind in ("images", "annotations"):
                (part / "test" / kind / "test" / town).mkdir(parents=True, exist_ok=True)
                source = whole / "test" / kind / "test" / town / path.name
                (part / "test" / kind / "test" / town / path.name).symlink_to(source)
    results = evaluated(part, random_weights["closed"])
    assert len(results["images"]) == 4 and results["figures"]["pixels"]["outlier"] > 0
    labels = [labels for _, labels, _ in StreetHazards(part, "test")]
    assert results["figures"]["pixels"]["outlier"] == sum(int((frame == OUTLIER).sum()) for frame in labels)
    name, (image, stored) = next(iter(frames_of(part).items()))
    scores = -logits_of(random_weights["closed"], image, hybrid=False)[0].amax(0).numpy()
    slow = sklearn.metrics.average_precision_score(stored[stored != 4] == 14, scores[stored != 4])
    assert results["images"][0]["name"] == name
    assert results["images"][0]["max_logit"]["AP"] == pytest.approx(slow, abs=1e-4)
    assert Path("out/pictures.png").exists()
