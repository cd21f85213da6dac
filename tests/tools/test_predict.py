"""tools.predict: every file against the model's own outputs, and what happens to odd inputs and interrupted runs."""

import json
import os
import shutil
import sys
import weakref
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import evaluate_ood
import evaluate_osr_coco
import evaluate_osr_sh
from data import COCO20, Cityscapes, StreetHazards
from data.files import read_photograph
from engine import SlidingWindows, run_script
from engine.pictures import UNKNOWN_COLOUR, heat_range, heat_sample
from engine.results import SCHEMA
from errors import message_of
from models import ladder_densenet121
from models.segmenter import Segmenter
from models.vit import VisionTransformer
from tests.support.layouts import claiming, coco_names, coco_photograph, labels_of, noise, write
from tests.support.networks import save_random_weights
from tests.support.stand_ins import put_in_place
from tools.predict import calibration, folder, memory, network
from tools.predict.__main__ import main
from tools.predict.drawing import score_png

K = 12
COLOURS = np.array([*StreetHazards.class_colours.values(), UNKNOWN_COLOUR])
KINDS = ("closed", "open", "heat", "overlay", "score")


def flags(weights, *more, source="in", network="ldn121"):
    return ["--params", str(weights), "--network", network, "--input", str(source), "--folder", "out",
            "--device", "cpu", "--workers", "0", *more]  # fmt: skip


def run(weights, *more, **rest):
    main(flags(weights, *more, **rest))
    return report()


def report():
    """The report's lines by input"""
    lines = [json.loads(line) for line in Path("out/report.jsonl").read_text().splitlines()]
    assert len({line["name"] for line in lines}) == len(lines)
    return {line["name"]: line for line in lines}


def draw(path, height=36, width=44, seed=0, mode="RGB"):
    return write(Path(path), noise(height, width, seed), mode)


def logits_of(weights, image, hybrid=True):
    """Of an image (H, W, 3), in the layout of the script"""
    model = ladder_densenet121(K, hybrid).eval().to(memory_format=torch.channels_last)
    model.load_state_dict(torch.load(weights, weights_only=True))
    image = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        return model(image.contiguous(memory_format=torch.channels_last))


def hybrid_by_hand(class_logits, dataset_logits):
    class_logits, dataset_logits = class_logits[0].double(), dataset_logits[0].double()
    return (dataset_logits.softmax(0)[1].log() - class_logits.exp().sum(0).log()).numpy()


def in_the_widest_gap(scores, low=0.4, high=0.6):
    """A threshold near the median, as far as can be from any score"""
    ordered = np.sort(scores, axis=None)
    ordered = ordered[int(low * ordered.size) : int(high * ordered.size)]
    gap = np.diff(ordered).argmax()
    return float((ordered[gap] + ordered[gap + 1]) / 2)


def values(path):
    """The stored numbers of a PNG"""
    with Image.open(path) as image:
        return np.array(image)


def recovered(path):
    """Scores from a 16-bit PNG, as its text chunks say"""
    with Image.open(path) as image:
        assert image.mode == "I;16"
        low, high = float(image.text["low"]), float(image.text["high"])
        return low + np.array(image).astype(float) * (high - low) / 65535, (high - low) / 131070


@pytest.fixture
def photographs(in_tmp):
    """Three pictures at two depths; the paths by name"""
    return {name: draw(f"in/{name}", seed=seed) for seed, name in enumerate(("a.png", "b/c.png", "b/d.bmp"))}


@pytest.fixture
def passes(monkeypatch):
    """The sizes of the images that went through the network"""
    sizes, whole = [], network.predicted

    def counted(model, score_name, image, *rest):
        sizes.append(tuple(image.shape[2:]))
        return whole(model, score_name, image, *rest)

    monkeypatch.setattr(network, "predicted", counted)
    return sizes


# What is written


@pytest.mark.slow
def test_every_file_is_what_the_network_says(photographs, random_weights):
    logits = {name: logits_of(random_weights["hybrid"], values(path)) for name, path in photographs.items()}
    scores = {name: hybrid_by_hand(*both) for name, both in logits.items()}
    threshold = in_the_widest_gap(np.stack(list(scores.values())))
    lines = run(random_weights["hybrid"], "--threshold", str(threshold), "--heat_range", "-15", "-2")
    assert lines.keys() == photographs.keys()
    for name, path in photographs.items():
        image, line = values(path), lines[name]
        closed, opened, heat, overlay, score = (Path(f"out/{kind}/{name}.png") for kind in KINDS)
        prediction = logits[name][0][0].argmax(0).numpy()
        unknown = scores[name] >= threshold
        assert 0.1 < unknown.mean() < 0.9
        np.testing.assert_array_equal(values(closed), prediction)
        np.testing.assert_array_equal(values(opened), np.where(unknown, K, prediction))
        for path, labels in ((closed, prediction), (opened, np.where(unknown, K, prediction))):
            with Image.open(path) as palette:
                assert palette.mode == "P"
                np.testing.assert_array_equal(np.array(palette.convert("RGB")), COLOURS[labels])
        back, step = recovered(score)
        np.testing.assert_allclose(back, scores[name], rtol=0, atol=1.01 * step + 2e-5)
        assert (line["low"], line["high"]) == pytest.approx((scores[name].min(), scores[name].max()), abs=1e-4)
        shades = 255 * matplotlib.colormaps["inferno"]((scores[name].clip(-15, -2) + 15) / 13)[..., :3]
        assert np.abs(values(heat) - shades).max() < 6  # a step of its 256 colours is at most 5
        share = np.where(unknown, 0.7, 0.4)[..., None]
        expected = (1 - share) * image + share * COLOURS[np.where(unknown, K, prediction)]
        assert np.abs(values(overlay) - expected).max() < 0.51
        assert (line["status"], line["width"], line["height"], line["heat_range"]) == ("done", 44, 36, [-15, -2])
        assert line["unknown_share"] == pytest.approx(unknown.mean()) and line["seconds"] > 0
        median = np.sort(scores[name], axis=None)[[791, 792]].mean()
        assert line["score_quantiles"]["0.5"] == pytest.approx(median, abs=1e-4)
    with Image.open("out/heat/a.png.png") as heat:
        assert heat.text["Description"] == "hybrid score: black at -15 and below, pale yellow at -2 and above, " \
                                           "in all pictures of the run"  # fmt: skip
    legend = values("out/legend.png").reshape(-1, 3)
    for colour in COLOURS:
        assert (legend == colour).all(1).sum() > 200


@pytest.mark.slow
def test_a_score_equal_to_the_threshold_is_unknown(photographs, random_weights):
    run(random_weights["hybrid"], "--raw", "npy")
    scores = np.load("out/score/a.png.npy")
    assert scores.dtype == np.float32 and scores.shape == (36, 44)
    both = logits_of(random_weights["hybrid"], values("in/a.png"))
    np.testing.assert_allclose(scores, hybrid_by_hand(*both), rtol=0, atol=2e-5)
    shutil.rmtree("out")
    run(random_weights["hybrid"], "--threshold", repr(float(scores[3, 5])), "--raw", "none")
    opened = values("out/open/a.png.png")
    assert opened[3, 5] == K and (opened == K).sum() == (scores >= scores[3, 5]).sum()
    assert not Path("out/score").exists()


@pytest.mark.slow
def test_without_a_threshold_there_is_no_open_set_and_overlays_show_heat(photographs, random_weights, capsys):
    lines = run(random_weights["closed"])
    assert not Path("out/open").exists() and lines["a.png"]["unknown_share"] is None
    assert "neither --threshold nor --calibration" in capsys.readouterr().out
    scores = -logits_of(random_weights["closed"], values("in/a.png"), hybrid=False)[0].amax(0).numpy()
    back, step = recovered("out/score/a.png.png")
    np.testing.assert_allclose(back, scores, rtol=0, atol=1.01 * step + 1e-4 * np.abs(scores).max())
    assert lines["a.png"]["heat_range"] == pytest.approx(np.quantile(scores, [0.01, 0.99]), abs=1e-4)
    expected = (values("in/a.png").astype(float) + values("out/heat/a.png.png")) / 2
    assert np.abs(values("out/overlay/a.png.png") - expected).max() < 0.51
    with Image.open("out/heat/a.png.png") as heat:
        assert "max_logit score" in heat.text["Description"] and "this picture alone" in heat.text["Description"]
    legend = values("out/legend.png").reshape(-1, 3)
    assert not (legend == UNKNOWN_COLOUR).all(1).any()


def test_equal_scores_can_be_recovered_from_a_png_too(tmp_path):
    (tmp_path / "flat.png").write_bytes(score_png(np.full((2, 3), -1.1, np.float32), "hybrid"))
    back, _ = recovered(tmp_path / "flat.png")
    np.testing.assert_array_equal(back, np.full((2, 3), np.float32(-1.1)))


@pytest.mark.slow
def test_a_smaller_side_for_the_network_leaves_results_at_the_size_of_the_input(in_tmp, random_weights, passes):
    draw("in/wide.png", 80, 96)
    lines = run(random_weights["hybrid"], "--max_side", "48", "--raw", "npy")
    small = Image.open("in/wide.png")
    image = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float()
    image = F.interpolate(image, (40, 48), mode="bilinear", antialias=True).round()
    both = logits_of(random_weights["hybrid"], image[0].permute(1, 2, 0).byte().numpy())
    scores = F.interpolate(torch.from_numpy(hybrid_by_hand(*both))[None, None], (80, 96), mode="bilinear")[0, 0]
    found = np.load("out/score/wide.png.npy")
    assert found.shape == (80, 96) and (lines["wide.png"]["width"], lines["wide.png"]["height"]) == (96, 80)
    assert np.abs(found - scores.numpy()).mean() < 0.02 * scores.std()  # rounding of pixels to bytes differs
    closed = both[0][0].argmax(0).numpy().repeat(2, 0).repeat(2, 1)
    assert (values("out/closed/wide.png.png") == closed).mean() > 0.98


@pytest.mark.slow
def test_tiles_give_the_scores_of_tiles(in_tmp, random_weights):
    draw("in/wide.png", 40, 96)
    run(random_weights["hybrid"], "--tile", "48", "--tile_overlap", "16", "--raw", "npy")
    model = ladder_densenet121(K).eval()
    model.load_state_dict(torch.load(random_weights["hybrid"], weights_only=True))
    image = torch.from_numpy(values("in/wide.png")).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        parts = [[part[..., :] for part in model(image[..., left : left + 48])] for left in (0, 32, 48)]
    for column, tiles in ((5, [0]), (40, [0, 1]), (70, [1, 2]), (90, [2])):
        both = [torch.stack([parts[tile][head][..., column - (0, 32, 48)[tile]] for tile in tiles]).mean(0)[..., None]
                for head in (0, 1)]  # fmt: skip
        expected = hybrid_by_hand(*both)[:, 0]
        np.testing.assert_allclose(np.load("out/score/wide.png.npy")[:, column], expected, atol=1e-3)


def small_segmenter(num_classes, hybrid, heads, dataset_head):
    encoder = VisionTransformer(patch=32, grid=4, width=24, depth=1, heads=3)
    return Segmenter(encoder, num_classes, hybrid, dataset_head, width=24, heads=2).eval()


@pytest.fixture
def segmenter_weights(monkeypatch, in_tmp):
    put_in_place(monkeypatch, {"models.segmenter": small_segmenter})
    torch.manual_seed(1)
    torch.save(small_segmenter(20, True, 3, "decoder").state_dict(), "segmenter.pth")
    return "segmenter.pth"


def test_segmenter_slides_over_enlarged_photographs(segmenter_weights):
    draw("in/a.jpg", 40, 50)
    run(segmenter_weights, "--raw", "npy", network="segmenter")
    model = small_segmenter(20, True, 3, "decoder")
    model.load_state_dict(torch.load(segmenter_weights, weights_only=True))
    image = torch.from_numpy(values("in/a.jpg")).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        both = SlidingWindows(model, 512, 320, enlarge=True)(image)
    np.testing.assert_allclose(np.load("out/score/a.jpg.npy"), hybrid_by_hand(*both), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(values("out/closed/a.jpg.png"), both[0][0].argmax(0).numpy())
    settings = json.loads(Path("out/settings.json").read_text())
    assert settings["class_names"] == list(COCO20.class_colours) and settings["unknown"] == 20


@pytest.mark.slow
def test_nineteen_classes_of_ldn121_are_asked_for(photographs):
    save_random_weights("smiyc.pth", hybrid=True, num_classes=19)
    with pytest.raises(ValueError, match=r"smiyc\.pth does not fit .*--classes street-hazards: 12 classes"):
        run("smiyc.pth")
    assert not Path("out").exists()
    run("smiyc.pth", "--classes", "cityscapes", "--threshold=-1e9")
    with Image.open("out/open/a.png.png") as opened:
        assert np.unique(np.array(opened)).tolist() == [19]
    with Image.open("out/closed/a.png.png") as closed:
        colours = [*Cityscapes.class_colours.values()]
        np.testing.assert_array_equal(np.array(closed.convert("RGB")), np.array(colours)[np.array(closed)])


# Runs that stop, and folders of earlier ones


@pytest.mark.slow
def test_an_interrupted_run_does_only_the_rest(photographs, random_weights, passes, monkeypatch, capsys):
    run(random_weights["hybrid"])
    whole = {path.relative_to("out"): path.read_bytes() for path in Path("out").rglob("*.png")}
    shutil.rmtree("out")
    passes.clear()
    counted = network.predicted

    def interrupted(*inputs):
        if len(passes) == 2:
            raise KeyboardInterrupt
        return counted(*inputs)

    monkeypatch.setattr(network, "predicted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(random_weights["hybrid"])
    assert "the same command does the rest" in capsys.readouterr().out
    with open("out/report.jsonl", "a") as torn:
        torn.write('{"name": "b/d.bmp", "sta')
    monkeypatch.setattr(network, "predicted", counted)
    assert run(random_weights["hybrid"]).keys() == photographs.keys() and len(passes) == 3
    assert {path.relative_to("out"): path.read_bytes() for path in Path("out").rglob("*.png")} == whole
    assert not list(Path("out").rglob("*.part"))
    run(random_weights["hybrid"])
    assert len(passes) == 3
    Path("out/heat/b/c.png.png").unlink()
    run(random_weights["hybrid"])
    assert len(passes) == 4 and Path("out/heat/b/c.png.png").exists()
    draw("in/a.png", 40, 30)
    draw("in/new.png", 10, 60)
    assert run(random_weights["hybrid"]).keys() == {*photographs, "new.png"}
    assert sorted(passes[4:]) == [(10, 60), (40, 30)]
    Path("in/a.png").unlink()
    assert "a.png" in run(random_weights["hybrid"]) and len(passes) == 6


@pytest.mark.slow
def test_other_settings_are_refused(photographs, random_weights):
    lines = run(random_weights["hybrid"], "--threshold", "1")
    for more, told in (
        (["--threshold", "2"], r"threshold was 1\.0 and is 2\.0"),
        (["--threshold", "1", "--raw", "npy"], "raw was 'png16' and is 'npy'"),
        (["--threshold", "1", "--score", "entropy"], "score was 'hybrid' and is 'entropy'"),
        (["--threshold", "1", "--max_side", "64"], "max_side was None and is 64"),
    ):
        with pytest.raises(ValueError, match=rf"^out was made with other settings: {told}; give the same"):
            run(random_weights["hybrid"], *more)
    with pytest.raises(ValueError, match="weights_sha256 was"):
        run(random_weights["closed"], "--threshold", "1")
    with pytest.raises(ValueError, match="input was"):
        run(random_weights["hybrid"], "--threshold", "1", source="in/b")
    assert report() == lines


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff\xfe"])
def test_damaged_settings_are_told_in_one_line(content, in_tmp):
    Path("out").mkdir()
    Path("out/settings.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"out/settings\.json is damaged, .*; choose another --folder") as refused:
        folder.open_folder(Path("out"), {"score": "hybrid"})
    assert message_of(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_result_that_is_empty_or_cut_short_is_done_anew(kept, photographs, random_weights, passes):
    run(random_weights["hybrid"])
    path, count = Path("out/closed/b/c.png.png"), len(passes)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with open("out/report.jsonl", "a") as torn:
        torn.write('[1]\n{"name": 3}\n{"name": "a.png"}\n')
    run(random_weights["hybrid"])
    assert path.read_bytes() == whole and len(passes) - count == 2  # that of the line without a status, too


@pytest.mark.slow
def test_results_whose_sizes_were_not_noted_are_made_anew_and_that_is_said(photographs, random_weights, passes, capsys):
    lines, report = run(random_weights["hybrid"]), Path("out/report.jsonl")
    path, count = Path("out/closed/b/c.png.png"), len(passes)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    older = [{key: value for key, value in line.items() if key != "bytes"} for line in lines.values()]
    report.write_text("".join(json.dumps(line) + "\n" for line in older))
    assert run(random_weights["hybrid"]).keys() == lines.keys()
    assert path.read_bytes() == whole and len(passes) - count == len(lines)
    told = f"{len(lines)} results of an older version, which noted no sizes, are made anew (first: "
    assert told in capsys.readouterr().out
    run(random_weights["hybrid"])
    assert "older version" not in capsys.readouterr().out and len(passes) - count == len(lines)


@pytest.mark.slow
def test_earlier_results_inside_the_input_are_no_inputs(photographs, random_weights, capsys):
    lines = run(random_weights["hybrid"])
    shutil.move("out", "in/b/earlier")
    assert run(random_weights["hybrid"]).keys() == lines.keys()
    assert "in/b/earlier holds results of tools.predict, which are left out" in capsys.readouterr().out


@pytest.mark.slow
def test_a_folder_of_other_content_is_refused(photographs, random_weights):
    draw("out/heat/mine.png")
    with pytest.raises(FileExistsError, match=r"out was not made by predict, having no settings\.json but heat"):
        run(random_weights["hybrid"])


@pytest.mark.slow
def test_a_bad_file_costs_only_its_own_line(photographs, random_weights, passes):
    whole = Path("in/a.png").read_bytes()
    Path("in/a.png").write_bytes(whole[: len(whole) // 2])
    Path("in/text.jpg").write_text("no picture")
    with pytest.raises(SystemExit) as ending:
        run_script(lambda: run(random_weights["hybrid"]))
    told = ending.value.code  # a string ends a script with code 1
    assert told.startswith("error: 2 inputs failed") and "'a.png'" in told and "'text.jpg'" in told
    lines = report()
    assert {name for name, line in lines.items() if line["status"] == "done"} == {"b/c.png", "b/d.bmp"}
    assert "cannot be read as an image" in lines["text.jpg"]["reason"]
    assert not Path("out/closed/a.png.png").exists() and Path("out/closed/b/c.png.png").exists()
    Path("in/a.png").write_bytes(whole)
    Path("in/text.jpg").unlink()
    passes.clear()
    lines = run(random_weights["hybrid"])
    assert lines["a.png"]["status"] == "done" and len(passes) == 1


@pytest.mark.slow
def test_a_file_that_became_bad_leaves_no_earlier_result(photographs, random_weights):
    run(random_weights["hybrid"])
    Path("in/a.png").write_text("no picture any more")
    with pytest.raises(SystemExit):
        run(random_weights["hybrid"])
    assert not list(Path("out").rglob("a.png.*")) and report()["a.png"]["status"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("length", [246, 251])
def test_a_name_too_long_for_a_result_costs_only_its_own_line(length, photographs, random_weights):
    draw(f"in/{length * 'x'}.png")
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"1 inputs failed(.|\n)*too long"):
            run(random_weights["hybrid"])
    assert [line["status"] for line in report().values()].count("done") == 3


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_stops_the_run_with_the_way_out(photographs, random_weights):
    Path("out").mkdir()
    run(random_weights["hybrid"])
    shutil.rmtree("out/heat")
    Path("out/heat").write_text("in the way")
    with pytest.raises(OSError, match=r"could not write out/heat/a\.png\.png.*run the same command again"):
        run(random_weights["hybrid"])


@pytest.mark.slow
def test_scores_that_are_no_numbers_are_no_result(photographs, random_weights):
    weights = torch.load(random_weights["hybrid"], weights_only=True)
    weights["logits.conv.weight"][:] = 3e38  # whose products are infinite
    torch.save(weights, "nan.pth")
    with pytest.raises(SystemExit, match="3 inputs failed"):
        run("nan.pth")
    assert all("not finite" in line["reason"] for line in report().values())


@pytest.mark.slow
def test_a_picture_that_memory_does_not_suffice_for_costs_only_its_own_line(photographs, random_weights, monkeypatch):
    def too_large(score_name, *logits):
        if logits[0].shape[3] == 45:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return scored(score_name, *logits)

    scored = network.anomaly_score
    monkeypatch.setattr(network, "anomaly_score", too_large)
    draw("in/a.png", 36, 45)
    with pytest.raises(SystemExit, match=r"1 inputs failed(.|\n)*45x36 pixels; try --max_side or --tile"):
        run(random_weights["hybrid"])
    assert [line["status"] for line in report().values()].count("done") == 2


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_no_more_than_some_predictions_are_kept(workers, in_tmp, random_weights, monkeypatch):
    for number in range(12):
        draw(f"in/{number}.png", seed=number)
    alive, most, whole = weakref.WeakValueDictionary(), [], network.predicted

    def watched(*inputs):
        classes, scores = whole(*inputs)
        alive[len(most)] = scores
        most.append(len(alive))
        return classes, scores

    monkeypatch.setattr(network, "predicted", watched)
    assert len(run(random_weights["hybrid"], "--workers", str(workers))) == 12
    assert len(most) == 12 and max(most) <= workers + 3


@pytest.mark.slow
def test_loader_processes_change_no_result(photographs, random_weights):
    Path("in/bad.png").write_text("no picture")
    results = []
    for workers in ("0", "2"):
        with pytest.raises(SystemExit, match="1 inputs failed"):
            run(random_weights["hybrid"], "--workers", workers)
        results.append({path.relative_to("out"): path.read_bytes() for path in Path("out").rglob("*.png")})
        shutil.rmtree("out")
    assert results[0] == results[1] and len(results[0]) == 1 + 4 * 3


# Odd inputs


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK"])
def test_every_kind_of_picture_becomes_colours(mode, tmp_path):
    path = draw(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"), mode=mode)
    with Image.open(path) as image:
        assert image.mode == mode
        expected = np.array(image.convert("RGB"))
    found = read_photograph(path, True).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, expected)
    if mode != "CMYK":
        original = np.random.default_rng(0).integers(0, 256, (36, 44, 3), dtype=np.uint8)
        by_hand = {"RGBA": original, "L": original @ [0.299, 0.587, 0.114]}
        if mode in by_hand:
            assert np.abs(found - by_hand[mode].reshape(36, 44, -1)).max() <= 1


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    Image.fromarray(np.array([[0, 255, 256, 40000, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert read_photograph(tmp_path / "a.png", True)[0].tolist() == [[0, 0, 1, 156, 255]]
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="32-bit"):
        read_photograph(tmp_path / "a.tif", True)


@pytest.mark.slow
def test_a_photograph_is_turned_as_its_camera_was(in_tmp, random_weights):
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:5] = 200  # sky
    for name, tag, stored in (
        ("plain", 1, upright),
        ("turned", 6, np.rot90(upright)),
        ("mirrored", 2, upright[:, ::-1]),
    ):
        exif = Image.Exif()
        exif[0x0112] = tag
        Path("in").mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(stored)).save(f"in/{name}.png", exif=exif)
        found = read_photograph(Path(f"in/{name}.png"), True).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(found, upright)
    lines = run(random_weights["hybrid"])
    assert (lines["turned.png"]["width"], lines["turned.png"]["height"]) == (30, 20)
    assert values("out/closed/turned.png.png").tolist() == values("out/closed/plain.png.png").tolist()


@pytest.mark.slow
def test_results_of_tiny_pictures_have_their_size(in_tmp, random_weights):
    sizes = {"dot.png": (1, 1), "line.png": (1, 40), "small.png": (31, 5), "just.png": (32, 32)}
    for name, size in sizes.items():
        draw(f"in/{name}", *size)
    run(random_weights["hybrid"], "--threshold", "0")
    for name, size in sizes.items():
        for kind in KINDS:
            assert values(f"out/{kind}/{name}.png").shape[:2] == size, (kind, name)
    padded = np.pad(values("in/line.png"), ((0, 31), (0, 0), (0, 0)), mode="edge")
    expected = hybrid_by_hand(*logits_of(random_weights["hybrid"], padded))[:1]
    back, step = recovered("out/score/line.png.png")
    np.testing.assert_allclose(back, expected, rtol=0, atol=1.01 * step + 1e-4)


def test_segmenter_takes_a_line_of_pixels_without_enlarging_it_endlessly(segmenter_weights):
    draw("in/line.png", 1, 60)
    assert run(segmenter_weights, network="segmenter")["line.png"]["status"] == "done"


def test_whatever_cannot_be_read_costs_only_its_own_line_and_says_what_it_is(in_tmp, random_weights, capfd):
    draw("in/a.png")
    os.mkfifo("in/pipe.jpg")
    Path("in/gone.png").symlink_to("nowhere")
    Path("in/device.png").symlink_to("/dev/zero")
    Path("in/phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    claiming(Path("in/huge.png"), 60000, 60000)
    with pytest.raises(SystemExit, match="5 inputs failed"):
        run(random_weights["hybrid"])
    reasons = {name: line.get("reason", "") for name, line in report().items()}
    assert reasons.pop("a.png") == "" and Path("out/closed/a.png.png").exists()
    for name, told in {
        "pipe.jpg": "is a named pipe, and no image file",
        "gone.png": "is a link to nowhere, where no file is",
        "device.png": "is a device, and no image file",
        "phone.heic": "is a HEIC file, which is not read here; save it as JPEG",
        "huge.png": "claims 60000x60000 pixels, more than the 250,000,000 that are read",
    }.items():
        assert reasons[name].startswith(told), name
    assert "Warning" not in capfd.readouterr().err


def test_a_pipe_is_no_input(in_tmp, random_weights):
    os.mkfifo("pipe.jpg")
    with pytest.raises(ValueError, match=r"--input pipe\.jpg is a named pipe; give an image"):
        run(random_weights["hybrid"], source="pipe.jpg")


@pytest.mark.slow
def test_the_limit_of_size_is_raised_by_its_flag_in_the_same_folder(in_tmp, random_weights):
    draw("in/a.png", 36, 44)
    with pytest.raises(SystemExit, match=r"claims 44x36 pixels, more than the 1,583 that are read; .*--max_pixels"):
        run(random_weights["hybrid"], "--max_pixels", "1583")
    assert run(random_weights["hybrid"], "--max_pixels", "1584")["a.png"]["status"] == "done"


@pytest.mark.slow
def test_results_behind_a_link_are_no_inputs(in_tmp, random_weights):
    draw("in/a.png")
    Path("in/done").symlink_to(in_tmp / "out")
    for _ in range(2):
        assert run(random_weights["hybrid"]).keys() == {"a.png"}


# What a picture takes: by hand, for a network of 12 classes that sees 1000x2000 pixels.


def gigabytes(network, seen, at_once, whole):
    return (memory.NETWORK_BYTES[network] * at_once + (8 * 14 + 40) * seen + memory.RESULT_BYTES * whole) / 1e9


def test_a_picture_that_would_not_fit_into_memory_is_told_what_it_takes(monkeypatch):
    whole = gigabytes("ldn121", 2e6, 2e6, 2e6)
    monkeypatch.setattr(memory, "free_memory", lambda: int(whole * 1e9) - 1)
    tiled, small = gigabytes("ldn121", 2e6, 1000 * 1024, 2e6), gigabytes("ldn121", 2e6, 2e6, 2e6)
    with pytest.raises(ValueError) as error:
        memory.check_memory(1000, 2000, "ldn121", 12, None, None)
    assert str(error.value) == (
        f"its 2000x1000 pixels take about {whole:.1f} GB of memory and {whole:.1f} GB are free; "
        f"try --max_side 2048 (about {small:.1f} GB) or --tile 1024 (about {tiled:.1f} GB)"
    )
    memory.check_memory(1000, 2000, "ldn121", 12, None, 1024)
    memory.check_memory(1000, 2000, "ldn121", 12, 1500, None)
    monkeypatch.setattr(memory, "free_memory", lambda: int(whole * 1e9) + 1)
    memory.check_memory(1000, 2000, "ldn121", 12, None, None)
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    memory.check_memory(10**6, 10**6, "ldn121", 12, None, None)


def test_a_strip_that_segmenter_would_enlarge_beyond_memory_is_told(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 4 * 10**9)
    memory.check_memory(400, 400, "segmenter", 20, None, None)
    with pytest.raises(ValueError, match=r"its 100000x2 pixels take about \d+\.\d GB .* try --max_side 2048"):
        memory.check_memory(2, 100000, "segmenter", 20, None, None)


@pytest.mark.slow
def test_a_picture_for_which_memory_does_not_suffice_leaves_the_others_be(photographs, random_weights, monkeypatch):
    draw("in/a.png", 36, 4000)
    monkeypatch.setattr(memory, "free_memory", lambda: 30_000_000)
    with pytest.raises(SystemExit, match=r"1 inputs failed(.|\n)*4000x36 pixels take about .* --tile 1024"):
        run(random_weights["hybrid"])
    assert [line["status"] for line in report().values()].count("done") == 2


def test_free_memory_is_no_more_than_the_machine_has():
    free = memory.free_memory()
    if free is None:
        pytest.skip("what is free is told by Linux")
    assert 0 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.slow
def test_pictures_of_one_stem_stay_apart_and_results_are_no_inputs(in_tmp, random_weights, passes, monkeypatch):
    for name, size in {"a.png": (20, 30), "a.jpg": (20, 31), "a.jpg.png": (20, 32), "A/a.PNG": (20, 33)}.items():
        draw(f"in/{name}", *size)
    monkeypatch.chdir("in")
    for _ in range(2):
        lines = run(random_weights["hybrid"], source=".")
        assert {name: line["width"] for name, line in lines.items()} == {
            "a.png": 30, "a.jpg": 31, "a.jpg.png": 32, "A/a.PNG": 33}  # fmt: skip
    assert len(passes) == 4
    for name, line in lines.items():
        assert values(f"out/closed/{name}.png").shape[1] == line["width"]
    with pytest.raises(ValueError, match=r"--folder \. is the folder of the input"):
        main(["--params", str(random_weights["hybrid"]), "--network", "ldn121", "--input", ".", "--folder", "."])


def test_a_single_picture_is_an_input(photographs, random_weights):
    assert run(random_weights["hybrid"], source="in/b/c.png").keys() == {"c.png"}
    assert Path("out/overlay/c.png.png").exists()


@pytest.mark.parametrize(
    "source, told", [("nowhere", "no file or folder nowhere"), ("empty", r"no image .* below empty")]
)
def test_an_input_that_is_none_is_named(source, told, in_tmp, random_weights):
    Path("empty").mkdir()
    with pytest.raises(FileNotFoundError, match=told):
        run(random_weights["hybrid"], source=source)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "more, told",
    [
        (["--threshold", "nan"], "--threshold: nan"),
        (["--threshold", "1", "--calibration", "x"], "not allowed with"),
        (["--heat_range", "2", "1"], "LOW must be below HIGH"),
        (["--max_side", "8"], "--max_side: 8"),
        (["--tile", "64"], "--tile_overlap 128"),
    ],
)
def test_a_wrong_command_line_is_refused(more, told, photographs, random_weights, capsys):
    with pytest.raises(SystemExit):
        run(random_weights["hybrid"], *more)
    assert told in capsys.readouterr().err and not Path("out").exists()


# Thresholds from evaluations


@pytest.mark.slow
def test_the_threshold_of_pooled_pixels_is_taken_from_evaluate_ood(street_hazards, random_weights, in_tmp, capsys):
    weights = str(random_weights["hybrid"])
    world = ["--dataroot", str(street_hazards), "--dataset", "street-hazards", "--params", weights,
             "--device", "cpu", "--workers", "0", "--pictures", "0", "--folder"]  # fmt: skip
    evaluate_ood.main([*world, "ood", "--pooled", "--scores", "hybrid", "entropy"])
    results = json.loads(Path("ood/results.json").read_text())
    for score in ("hybrid", "entropy"):
        found = calibration.read_calibration(Path("ood/results.json"), score, str(random_weights["hybrid"]))
        assert found == (
            results["figures"]["pooled"][score]["threshold95"],
            results["calibration"][score]["heat_range"],
        )
    scores = []
    for path in sorted((street_hazards / "test/images").rglob("*.png")):
        scores.append(hybrid_by_hand(*logits_of(random_weights["hybrid"], values(path))))
    low, high = np.quantile(scores, [0.005, 0.015]), np.quantile(scores, [0.985, 0.995])
    assert low[0] < results["calibration"]["hybrid"]["heat_range"][0] < low[1]
    assert high[0] < results["calibration"]["hybrid"]["heat_range"][1] < high[1]

    source = street_hazards / "test/images"
    lines = run(random_weights["hybrid"], "--calibration", "ood/results.json", source=source)
    assert "note: the threshold was found for" not in capsys.readouterr().out
    found = total = 0
    for name, line in lines.items():
        truth = values(street_hazards / "test/annotations" / name) == 14
        found, total = found + (values(f"out/open/{name}.png") == K)[truth].sum(), total + truth.sum()
        assert line["heat_range"] == results["calibration"]["hybrid"]["heat_range"]
    assert found == np.ceil(0.95 * total)
    with pytest.raises(
        ValueError, match=r"threshold for the score hybrid and entropy, and the score here is max_logit"
    ):
        run(random_weights["hybrid"], "--calibration", "ood/results.json", "--score", "max_logit", source=source)
    evaluate_ood.main([*world, "images"])
    with pytest.raises(ValueError, match=r"images/results\.json has figures of each image .*mean_of_images.*--pooled"):
        run(random_weights["hybrid"], "--calibration", "images/results.json", source=source)


@pytest.mark.slow
def test_the_lower_of_two_towns_thresholds_is_taken_from_evaluate_osr_sh(street_hazards, random_weights, in_tmp):
    results = evaluate_osr_sh.main(["--dataroot", str(street_hazards), "--model", str(random_weights["hybrid"]),
                                    "--device", "cpu", "--workers", "0", "--folder", "osr"])  # fmt: skip
    threshold, heat = calibration.read_calibration(Path("osr/results.json"), "hybrid", random_weights["hybrid"])
    assert threshold == min(results["figures"]["t5"]["threshold"], results["figures"]["t6"]["threshold"])
    assert heat == results["calibration"]["hybrid"]["heat_range"] and heat[0] < heat[1]
    with pytest.raises(ValueError, match="threshold for the score hybrid, and the score here is entropy"):
        calibration.read_calibration(Path("osr/results.json"), "entropy", random_weights["hybrid"])


@pytest.mark.slow
def test_the_threshold_is_taken_from_evaluate_osr_coco(segmenter_weights):
    coco_names(Path("coco"))
    for name, values in (("known", [0]), ("unknown", [7])):
        coco_photograph(Path("coco"), "validation", name, labels_of(*values, size=(4, 6)))
    common = [
        "--dataroot",
        "coco",
        "--model",
        segmenter_weights,
        "--device",
        "cpu",
        "--workers",
        "0",
        "--pictures",
        "0",
    ]
    results = evaluate_osr_coco.main([*common, "--folder", "osr"])
    found = calibration.read_calibration(Path("osr/results.json"), "hybrid", segmenter_weights)
    assert found == (results["figures"]["threshold"], results["calibration"]["hybrid"]["heat_range"])
    lines = run(segmenter_weights, "--calibration", "osr/results.json", source="coco/images", network="segmenter")
    assert lines["val2017/unknown.jpg"]["unknown_share"] >= 0.95
    evaluate_osr_coco.main([*common, "--folder", "released", "--released_scoring"])
    with pytest.raises(ValueError, match=r"released/results\.json was made with --released_scoring"):
        calibration.read_calibration(Path("released/results.json"), "hybrid", segmenter_weights)


def write_calibration(**found):
    """c.json, the results of an evaluation with this calibration of the hybrid score"""
    found = {"threshold": 1, "tpr": 0.95, "heat_range": [0, 1], "scores_of": "logits", "note": ""} | found
    results = {"schema": SCHEMA, "figures": {}, "tables": {}, "images": [], "weights": "other.pth",
               "calibration": {"hybrid": found}, "record": {"weights_sha256": "of others"}}  # fmt: skip
    Path("c.json").write_text(json.dumps(results))


EARLIER = r"--calibration c\.json is of an earlier version, without a schema, or no evaluation's: "


@pytest.mark.parametrize(
    "content, told",
    [
        (None, r"--calibration c\.json cannot be opened"),
        ("{", r"--calibration c\.json is no JSON file"),
        ("[1]", EARLIER),
        ('{"a": 1, "b": 2}', EARLIER),
        ('{"pooled": {"hybrid": {"threshold95": 1.5}}}', EARLIER),
        ('{"score": "hybrid", "threshold": -2.5, "weights": "other.pth"}', EARLIER),
        (
            '{"schema": 999}',
            r"c\.json is of schema 999, not 1, or no evaluation's: evaluate again",
        ),
        ('{"schema": true}', "is of schema True"),
        (f'{{"schema": {SCHEMA}, "figures": {{}}}}', "is damaged, lacking tables, calibration, images"),
        (
            f'{{"schema": {SCHEMA}, "figures": {{}}, "tables": {{}}, "calibration": {{}}, "images": [], '
            '"record": {}, "weights": "w.pth"}',
            r"c\.json has no threshold: evaluate_closed_set\.py finds none; take the results\.json of evaluate_ood",
        ),
    ],
)
def test_a_calibration_that_is_none_is_explained(content, told, in_tmp):
    if content is not None:
        Path("c.json").write_text(content)
    with pytest.raises((ValueError, OSError), match=told):
        calibration.read_calibration(Path("c.json"), "hybrid", "w.pth")


@pytest.mark.parametrize(
    ("threshold", "told"),
    [
        (None, "has None for the threshold of hybrid: was there no pixel"),
        ("1", "has '1' for the threshold of hybrid"),
        (True, "has True for the threshold of hybrid"),
        ([1], r"has \[1\] for the threshold of hybrid"),
        (10**400, "has 10+ for the threshold of hybrid"),
    ],
)
def test_a_threshold_that_is_none_is_explained(threshold, told, in_tmp):
    write_calibration(threshold=threshold)
    with pytest.raises(ValueError, match=told):
        calibration.read_calibration(Path("c.json"), "hybrid", "w.pth")
    with pytest.raises(ValueError, match="threshold for the score hybrid, and the score here is entropy"):
        calibration.read_calibration(Path("c.json"), "entropy", "w.pth")


def test_a_calibration_of_other_weights_is_taken_and_said(in_tmp, capsys):
    write_calibration(threshold=-2.5, heat_range=[-9, 3])
    Path("w.pth").touch()
    assert calibration.read_calibration(Path("c.json"), "hybrid", "w.pth") == (-2.5, [-9, 3])
    assert "found for other.pth, the weights here, w.pth, are others" in capsys.readouterr().out


@pytest.mark.parametrize(
    "heat", [[2, 1], [1, 1], [1], [1, 2, 3], [False, True], [None, 1], 7, "ab", [0, 10**400], None]
)
def test_a_range_of_heat_that_is_none_is_said_and_not_taken(heat, in_tmp, capsys):
    write_calibration(heat_range=heat)
    Path("w.pth").touch()
    assert calibration.read_calibration(Path("c.json"), "hybrid", "w.pth") == (1.0, None)
    assert "note: c.json has no heat_range that can be used" in capsys.readouterr().out


def test_a_range_of_heat_is_that_of_all_frames_by_samples_of_them():
    maps = [torch.randn(1, 300, 400) * 2 + 1, torch.randn(1, 200, 400) * 2 + 1]
    assert all(heat_sample(scores).shape == (1000,) for scores in maps)
    low, high = heat_range([heat_sample(scores) for scores in maps])
    assert (low, high) == pytest.approx((1 - 2.326 * 2, 1 + 2.326 * 2), abs=0.6)


# Videos


def test_a_video_without_its_package_names_the_command(in_tmp, random_weights, monkeypatch):
    Path("street.mp4").write_text("")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match=r"street\.mp4 is a video.*pip install -r requirements/video\.txt"):
        run(random_weights["hybrid"], source="street.mp4")
    assert not Path("out").exists()


@pytest.fixture
def video(in_tmp):
    """street.mp4 of five frames of 66x50 that grow lighter"""
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    writer = ffmpeg.write_frames("street.mp4", (66, 50), fps=10, macro_block_size=1)
    writer.send(None)
    for number in range(5):
        writer.send(np.full((50, 66, 3), 40 * number, np.uint8))
    writer.close()
    return Path("street.mp4")


def test_frames_of_a_video_are_predicted_one_by_one(video, random_weights, passes):
    main(flags(random_weights["hybrid"], "--threshold", "-100", source=video))
    lines = [json.loads(line) for line in Path("out/report.jsonl").read_text().splitlines()]
    assert [line.get("frame") for line in lines] == [0, 1, 2, 3, 4, None] and passes == [(50, 66)] * 5
    assert lines[-1]["frames"] == 5 and lines[-1]["status"] == "done" and lines[-1]["fps"] == 10
    assert lines[-1]["unknown_share"] == pytest.approx(np.mean([line["unknown_share"] for line in lines[:-1]]))
    frames = sys.modules["imageio_ffmpeg"].read_frames("out/overlay/street.mp4.mp4")
    assert next(frames)["size"] == (66, 50)
    both = logits_of(random_weights["hybrid"], np.full((50, 66, 3), 80, np.uint8))
    opened = np.where(hybrid_by_hand(*both) >= -100, K, both[0][0].argmax(0).numpy())
    share = np.where(opened == K, 0.7, 0.4)[..., None]
    shown = np.frombuffer(list(frames)[2], np.uint8).reshape(50, 66, 3)
    assert np.abs(shown - ((1 - share) * 80 + share * COLOURS[opened])).mean() < 12  # the format loses much
    main(flags(random_weights["hybrid"], "--threshold", "-100", source=video))
    assert len(passes) == 5
    assert len(Path("out/report.jsonl").read_text().splitlines()) == 6


def test_an_interrupted_video_begins_anew(video, random_weights, monkeypatch):
    whole, calls = network.predicted, []

    def interrupted(*inputs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*inputs)

    monkeypatch.setattr(network, "predicted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(flags(random_weights["hybrid"], source=video))
    assert not Path("out/overlay/street.mp4.mp4").exists()
    main(flags(random_weights["hybrid"], source=video))
    lines = [json.loads(line) for line in Path("out/report.jsonl").read_text().splitlines()]
    assert [line.get("frame") for line in lines] == [0, 1, 2, 3, 4, None]
    assert len({tuple(line["heat_range"]) for line in lines[:-1]}) == 1
    assert [path.name for path in Path("out/overlay").iterdir()] == ["street.mp4.mp4"]


def test_a_video_that_is_none_is_told(in_tmp, random_weights):
    pytest.importorskip("imageio_ffmpeg")
    Path("street.mp4").write_text("no video")
    with pytest.raises(SystemExit, match="1 inputs failed"):
        run(random_weights["hybrid"], source="street.mp4")
    assert report()["street.mp4"]["status"] == "failed" and not list(Path("out/overlay").iterdir())
