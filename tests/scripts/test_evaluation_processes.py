"""Evaluations by several processes: what one process would write, to the last bit."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.evaluate import Frame, evaluated_frames
from engine.evaluation import FrameRanking
from engine.processes import gather_merged
from labels import OUTLIER
from metrics import ConfusionMatrix
from tests.support import shared_evaluations
from tests.support.layouts import coco_scenes, large_frames
from tests.support.networks import save_random_weights, small_segmenter
from tests.support.samples import average_precision, frames_of_every_kind
from tests.support.several import torchrun
from tests.support.stand_ins import put_in_place

PROJECT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SCRIPTS = ("evaluate_ood", "evaluate_osr_sh", "evaluate_osr_coco", "evaluate_closed_set")


@pytest.fixture(scope="module")
def commands(street_hazards, random_weights, tmp_path_factory):
    """Scripts and flags by the folder that each writes; one has fewer frames than there are processes"""
    root = tmp_path_factory.mktemp("data")
    save_random_weights(root / "streets.pth", hybrid=True, num_classes=19)
    torch.manual_seed(0)
    torch.save(small_segmenter(20).state_dict(), root / "coco.pth")
    for name in ("track", "one_frame"):
        large_frames(root / name, "anomaly-track")
    for path in (root / "one_frame").rglob("f1*"):
        path.unlink()
    streets, hybrid = str(street_hazards), str(random_weights["hybrid"])
    track = ["--params", str(root / "streets.pth"), "--network", "ldn121", "--dataset", "anomaly-track"]
    flags = {
        "ood": ["evaluate_ood", "--dataroot", streets, "--dataset", "street-hazards", "--params", hybrid, "--pooled",
                "--scores", "hybrid", "entropy", "--pictures", "3"],
        "track": ["evaluate_ood", "--dataroot", str(root / "track"), *track],
        "one_frame": ["evaluate_ood", "--dataroot", str(root / "one_frame"), *track, "--bounded"],
        "osr_sh": ["evaluate_osr_sh", "--dataroot", streets, "--model", hybrid],
        "osr_coco": ["evaluate_osr_coco", "--dataroot", str(coco_scenes(root / "coco")), "--model",
                     str(root / "coco.pth"), "--window", "32", "--window_stride", "20"],
        "closed_set": ["evaluate_closed_set", "--dataroot", streets, "--dataset", "street-hazards", "--params", hybrid],
    }  # fmt: skip
    return {name: [*words, "--folder", name, "--device", "cpu", "--workers", "0"] for name, words in flags.items()}


@pytest.fixture(scope="module")
def alone(commands, tmp_path_factory):
    """Where one process wrote its results"""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("alone"))
        put_in_place(patch, {"models.segmenter": small_segmenter})
        torch.set_num_threads(1)  # as the processes have: sums over pixels are rounded otherwise with more
        for script, *flags in commands.values():
            importlib.import_module(script).main(flags)
        torch.set_num_threads(threads)
        return Path.cwd()


@pytest.fixture(scope="module")
def together(commands, tmp_path_factory):
    """Where two processes wrote theirs, and what they printed"""
    folder = tmp_path_factory.mktemp("together")
    printed, code = torchrun(Path(shared_evaluations.__file__), json.dumps([*commands.values()]), cwd=folder)
    assert code == 0, printed
    return folder, printed


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ood", "track", "one_frame", "osr_sh", "osr_coco", "closed_set"])
def test_two_processes_write_what_one_does(name, alone, together):
    folder, _ = together
    ours, theirs = (json.loads((root / name / "results.json").read_text()) for root in (folder, alone))
    assert (ours["record"].pop("processes"), theirs["record"].pop("processes")) == (2, 1)
    launched, alone_command = (results["record"].pop("command").split() for results in (ours, theirs))
    assert launched[:3] == ["torchrun", "--nproc_per_node", "2"] and launched[3:] == alone_command[1:]
    for results in (ours, theirs):
        assert results["record"].pop("peak_memory_bytes") > 0
    assert list(ours) == list(theirs) and ours == theirs
    assert [image["name"] for image in ours["images"]] == [image["name"] for image in theirs["images"]]
    expected = {"ood": 5, "track": 2, "one_frame": 1, "osr_sh": 3 + 2, "osr_coco": 6, "closed_set": 0}
    assert len(ours["images"]) == expected[name]
    files = sorted(path.name for path in (alone / name).iterdir())
    assert files == sorted(path.name for path in (folder / name).iterdir())
    assert name == "closed_set" or {"pictures.png", "pictures_best_worst.png", "curves.png", "index.html"} <= {*files}
    launcher = b"torchrun \\\n    --nproc_per_node 2 "  # in the page's command, with a flag a line
    for file in {*files} - {"results.json"}:
        content = (folder / name / file).read_bytes().replace(launcher, b"python ")
        assert content == (alone / name / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.processes
def test_one_of_two_processes_talks(commands, together):
    folder, printed = together
    for name in commands:
        assert printed.count(f"written: {name}/results.json") == 1
    assert len([*folder.rglob("results.json")]) == len(commands)


@pytest.mark.slow
@pytest.mark.processes
def test_a_validation_has_the_same_figures_in_every_process(together):
    folder, _ = together
    first, second = (json.loads((folder / f"figures_{process}.json").read_text()) for process in (0, 1))
    assert first == second == json.loads(json.dumps(shared_evaluations.figures()))
    assert 0 < first[0]["mIoU"] < 1 and 0 < first[1]["AP"] < 1


@pytest.mark.processes
@pytest.mark.slow
def test_a_broken_file_ends_all_processes_and_is_named(street_hazards, random_weights, tmp_path):
    world = tmp_path / "world"
    for path in street_hazards.rglob("*.png"):
        copy = world / path.relative_to(street_hazards)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    broken = sorted((world / "train" / "images" / "validation").rglob("*.png"))[1]  # in the share of process 1
    Image.open(broken).convert("L").save(broken)
    flags = f"--dataroot {world} --dataset street-hazards --folder out --device cpu --workers 1"
    flags = [*flags.split(), "--params", random_weights["hybrid"]]
    printed, code = torchrun(PROJECT / "evaluate_closed_set.py", *flags, cwd=tmp_path)
    assert code and f"error (process 1 of 2): {broken} is stored as a greyscale image" in printed
    assert 'evaluate_closed_set.py", line' not in printed and not (tmp_path / "out").exists()


# One process


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 8])
def test_every_frame_is_in_one_share_in_order(processes, monkeypatch):
    numbers = []
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    for process in range(processes):
        monkeypatch.setenv("RANK", str(process))
        share = list(evaluated_frames(shared_evaluations.Colours(), shared_evaluations.Drawn(), CPU))
        assert [frame.name for frame in share] == [f"frame {frame.number}" for frame in share]
        assert [frame.number for frame in share] == sorted(frame.number for frame in share)
        assert len(share) in (5 // processes, 5 // processes + 1)
        numbers += [frame.number for frame in share]
    assert sorted(numbers) == [0, 1, 2, 3, 4]


def test_one_process_keeps_its_own_counts():
    counts = ConfusionMatrix(2).update(np.array([0, 1, 1]), np.array([0, 1, 0]))
    assert gather_merged(counts) is counts and counts.matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("keep", [0, 1, 3, 50])
@pytest.mark.parametrize("shares", [2, 3])
def test_rankings_of_shares_become_the_ranking_of_all(shares, keep):
    frames = list(frames_of_every_kind(20))
    whole, parts = FrameRanking(keep), [FrameRanking(keep) for _ in range(shares)]
    for number, (frame, scores) in enumerate(frames):
        ap = average_precision(frame, scores)
        whole.add(frame, scores, ap)
        parts[number % shares].add(frame, scores, ap)
    ranking = parts[-1]
    for part in parts[:-1]:
        assert ranking.merge(part) is ranking
    assert list(ranking.ap.items()) == list(whole.ap.items()) and len(ranking.ap) == 20
    ours, theirs = ranking.captioned(), whole.captioned()
    assert list(ours) == list(theirs) and len(ours) == min(2 * keep, 15)
    for picture, expected in zip(ours.values(), theirs.values(), strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(picture, expected, strict=True))


def test_of_equal_frames_the_earlier_is_ranked_first_whichever_came_first():
    (third, scores), (eighth, _) = [pair for pair in frames_of_every_kind(9) if pair[0].number in (3, 8)]
    ranking = FrameRanking(1)
    ranking.add(eighth, (eighth.labels > 100).float(), ap=1.0)
    ranking.add(third, scores, ap=1.0)
    assert re.match("best 1: frame 3, AP 100.00 %", *ranking.captioned())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ood", "osr_sh", "osr_coco", "closed_set"])
def test_the_precision_and_the_fast_network_reach_the_evaluation(name, commands, monkeypatch, tmp_path):
    script, *flags = commands[name]
    script, asked, copies, types = importlib.import_module(script), [], [], []

    def evaluated(model, dataset, device, workers=0, title="", precision="float32"):
        asked.append((model, precision))
        labels = torch.tensor([[[0, 1, OUTLIER, OUTLIER]]])
        yield Frame(0, "a frame", torch.rand(1, 3, 1, 4), labels, torch.rand(1, 12, 1, 4), torch.rand(1, 2, 1, 4))

    def fast(model, dtype, memory_format):
        copies.append(torch.nn.Identity())
        types.append(dtype)
        return copies[-1]

    monkeypatch.chdir(tmp_path)
    put_in_place(monkeypatch, {"models.segmenter": small_segmenter})
    monkeypatch.setattr(script, "evaluated_frames", evaluated)
    monkeypatch.setattr(script, "fast_inference", fast)
    for more in ([], ["--precision", "bfloat16"]):
        script.main([*flags, "--pictures", "0", *more] if name != "closed_set" else [*flags, *more])
    passes = 4 if name == "osr_sh" else 1  # two towns, for their thresholds and for the figures
    assert [precision.name for _, precision in asked] == ["float32"] * passes + ["bfloat16"] * passes
    assert types == [torch.float32, torch.bfloat16]
    for model, precision in asked:
        assert copies[precision.name == "bfloat16"] in model.modules()


@pytest.mark.slow
def test_bounded_figures_are_as_far_off_as_the_table_says_at_most(commands, alone, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _, *flags = commands["one_frame"]
    flags.remove("--bounded")
    exact = importlib.import_module("evaluate_ood").main(flags)["figures"]["pooled"]["hybrid"]
    bounded = json.loads((alone / "one_frame" / "results.json").read_text())["figures"]["pooled"]["hybrid"]
    errors = {name: bounded[f"{name}_error"] for name in ("AP", "AUROC", "FPR95")}
    assert all(abs(bounded[name] - exact[name]) <= error < 1e-3 for name, error in errors.items())
    header, _, row = (alone / "one_frame" / "table.md").read_text().splitlines()[2:5]
    assert "largest error, % points" in header and "_error" not in header
    assert row.split("|")[-2].strip() == f"{100 * max(errors.values()):.4f}"
    assert "further off" not in Path("one_frame/table.md").read_text() and "AP_error" not in exact
