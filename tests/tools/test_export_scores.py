"""Score maps for benchmarks: what is written, read back with h5py and NumPy, and what a check finds wrong with it."""

import io
import json
import re
import shutil

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from engine import start_process
from losses import hybrid_score
from models import ladder_densenet121, load_weights
from tests.support import layouts
from tests.support.layouts import boxes, noise, write
from tools.export_scores import __main__ as export_scores
from tools.export_scores import maps

SIZE = HEIGHT, WIDTH = 48, 64
FLAGS = ["--network", "ldn121", "--device", "cpu", "--workers", "0"]


@pytest.fixture
def track(tmp_path):
    """AnomalyTrack's folders: two labelled frames and one of another size without labels"""
    root = layouts.track(tmp_path / "dataset_AnomalyTrack", [boxes(0, size=SIZE)] * 2, "png")
    write(root / "images/test0.png", noise(32, 96, 2))
    return root


@pytest.fixture
def static(tmp_path):
    return layouts.static(tmp_path / "static", [boxes(0, size=SIZE)] * 2, (0, 7))


def export(benchmark, root, folder, weights, *flags):
    arguments = ["--benchmark", benchmark, "--dataroot", str(root), "--folder", str(folder), "--params", str(weights)]
    return export_scores.main([*arguments, *FLAGS, *flags])


def check(benchmark, root, folder):
    return export_scores.main(["--benchmark", benchmark, "--dataroot", str(root), "--check", str(folder)])


def problems(benchmark, root, folder, capsys):
    """What a check that fails lists"""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        check(benchmark, root, folder)
    assert ended.value.code == 1
    return [line[4:] for line in capsys.readouterr().out.splitlines() if line.startswith("  - ")]


def expected(weights, path):
    """The hybrid score of one image, straight from the network"""
    model = load_weights(ladder_densenet121(12), weights).eval().to(start_process("cpu"))
    image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        return hybrid_score(*model(image))[0].numpy()


def write_hdf5(path, array, name="value"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file[name] = array


def made(track, folder, sign=1):
    """Score maps of the track, made by hand, that are in order"""
    frames = {}
    for path in sorted((track / "images").iterdir()):
        width, height = Image.open(path).size
        scores = np.random.default_rng(0).normal(size=(height, width)) + 3 * np.pad(
            boxes(0, size=SIZE)[:height, :width], ((0, 0), (0, width - min(width, WIDTH)))
        )
        frames[path.stem] = folder / f"method/AnomalyTrack-all/{path.stem}.hdf5"
        write_hdf5(frames[path.stem], (sign * scores).astype(np.float16))
    return frames


@pytest.fixture
def check_made(track, tmp_path, capsys):
    """The maps' files, and a function that lists what a check finds wrong with them"""
    frames = made(track, tmp_path / "out")
    arguments = ["--benchmark", "smiyc", "--dataroot", str(track / "images"), "--check", str(tmp_path / "out")]

    def found():
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            export_scores.main([*arguments, "--method", "method"])
        assert ended.value.code == 1
        return [line[4:] for line in capsys.readouterr().out.splitlines() if line.startswith("  - ")]

    return frames, found, [*arguments, "--method", "method"]


# What is written


@pytest.mark.slow
def test_smiyc_gets_a_float16_map_of_each_frame_in_the_benchmarks_tree(track, tmp_path, random_weights, capsys):
    folder, weights = tmp_path / "out", random_weights["hybrid"]
    results = export("smiyc", track / "images", folder, weights)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    frames = [f"densehybrid/AnomalyTrack-all/{name}.hdf5" for name in ("test0", "validation0", "validation1")]
    assert files == [*frames, "export.json"]
    distinct = kept = 0
    for frame in frames:
        image = next((track / "images").glob(frame.split("/")[-1].replace(".hdf5", ".png")))
        with h5py.File(folder / frame) as file:
            stored = file["value"][()]
            assert list(file) == ["value"]
        scores = expected(weights, image)
        assert stored.dtype == np.float16 and stored.shape == scores.shape
        np.testing.assert_allclose(stored, scores, rtol=2**-11, atol=1e-5)
        distinct, kept = distinct + len(set(scores.ravel().tolist())), kept + len(set(stored.ravel().tolist()))
    told = capsys.readouterr().out
    assert results["levels_lost"] == results["levels"] - kept > 0
    assert abs(results["levels"] - distinct) <= 0.02 * distinct  # channels_last rounds otherwise
    assert f"{results['levels']:,} computed, {kept:,} stored" in told


@pytest.mark.slow
def test_fishyscapes_gets_a_float32_map_by_the_frames_digits(static, tmp_path, random_weights):
    folder = tmp_path / "out"
    results = export("fishyscapes", static, folder, random_weights["hybrid"])
    assert sorted(path.name for path in folder.iterdir()) == ["0000_anomaly.npy", "0007_anomaly.npy", "export.json"]
    for digits in ("0000", "0007"):
        stored = np.load(folder / f"{digits}_anomaly.npy")
        assert stored.dtype == np.float32 and results["levels_lost"] == 0
        scores = expected(random_weights["hybrid"], static / f"{digits}_street_rgb.jpg")
        np.testing.assert_allclose(stored, scores, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_frames_without_four_digits_are_numbered_in_order_and_the_numbers_explained(tmp_path, random_weights):
    for name in ("b/0100_leftImg8bit.png", "a/0003_x.png", "a/00041_x.png"):
        write(tmp_path / "images" / name, noise(*SIZE, 1))
    export("fishyscapes", tmp_path / "images", tmp_path / "out", random_weights["hybrid"])
    assert json.loads((tmp_path / "out/export.json").read_text())["frames"] == {
        "0000_anomaly.npy": "a/0003_x.png",
        "0001_anomaly.npy": "a/00041_x.png",
        "0002_anomaly.npy": "b/0100_leftImg8bit.png",
    }


def test_two_images_with_one_map_are_refused(track, tmp_path, random_weights):
    write(track / "images/again/test0.jpg", noise(*SIZE, 3))
    with pytest.raises(ValueError, match=r"test0\.jpg and .*test0\.png would have one score map"):
        export("smiyc", track / "images", tmp_path / "out", random_weights["hybrid"])


@pytest.mark.slow
def test_what_was_written_passes_the_check(track, static, tmp_path, random_weights):
    for benchmark, root in (("smiyc", track / "images"), ("fishyscapes", static)):
        export(benchmark, root, tmp_path / benchmark, random_weights["hybrid"])
        dtype, found = maps.DTYPES[benchmark], []
        images = export_scores.images_of(root).paths
        files = export_scores.files_of(benchmark, images, "densehybrid", "AnomalyTrack-all")
        for path, name in zip(images, files, strict=True):
            found.append(maps.map_problem(tmp_path / benchmark / name, maps.size_of(path), dtype))
        assert found == [None] * len(images) and found


@pytest.mark.slow
def test_an_interrupted_export_goes_on_and_mends_what_is_damaged(track, tmp_path, random_weights, monkeypatch):
    folder, images, weights = tmp_path / "out", track / "images", random_weights["hybrid"]
    whole = tmp_path / "whole"
    export("smiyc", images, whole, weights)
    write_whole, written = export_scores.write_whole, []

    def stopped(content, path):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write_whole(content, path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(export_scores, "write_whole", stopped)
        export("smiyc", images, folder, weights)
    (first,) = folder.rglob("*.hdf5")
    assert export("smiyc", images, folder, weights)["written"] == 2
    first.write_bytes(first.read_bytes()[:200])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.hdf5")}
    assert export("smiyc", images, folder, weights)["written"] == 1
    assert [path for path in before if path.stat().st_mtime_ns != before[path]] == [first]
    for path in whole.rglob("*.hdf5"):
        assert np.array_equal(maps.read_map(path), maps.read_map(folder / path.relative_to(whole))), path
    assert export("smiyc", images, folder, weights)["written"] == 0


@pytest.mark.slow
def test_other_settings_and_foreign_files_are_refused(track, tmp_path, random_weights):
    images, weights = track / "images", random_weights["hybrid"]
    export("smiyc", images, tmp_path / "out", weights)
    with pytest.raises(ValueError, match=r"was written with other settings \(shift; see export\.json\)"):
        export("smiyc", images, tmp_path / "out", weights, "--shift", "1")
    write_hdf5(tmp_path / "foreign/a.hdf5", np.zeros(3))
    with pytest.raises(FileExistsError, match=r"holds \*\.hdf5 but no export\.json"):
        export("smiyc", images, tmp_path / "foreign", weights)


def test_weights_without_a_dataset_head_are_refused(track, tmp_path, random_weights):
    with pytest.raises(ValueError, match="has no dataset head, which the hybrid score needs"):
        export("smiyc", track / "images", tmp_path / "out", random_weights["closed"])
    assert not (tmp_path / "out").exists()


def test_label_maps_among_the_images_are_left_out(track, static, capsys):
    assert len(export_scores.images_of(track)) == 3
    assert "4 label maps below" in capsys.readouterr().out
    assert [path.name for path in export_scores.images_of(static).paths] == [
        "0000_street_rgb.jpg",
        "0007_street_rgb.jpg",
    ]


@pytest.mark.slow
def test_the_shift_is_subtracted_and_a_good_one_is_told(track, tmp_path, random_weights, capsys):
    images, weights = track / "images", random_weights["hybrid"]
    export("smiyc", images, tmp_path / "plain", weights)
    coarse = export("smiyc", images, tmp_path / "shifted", weights, "--shift", "64")
    (advice,) = re.findall(r"--shift (\S+), in a new folder", capsys.readouterr().out.split("shifted")[1])
    nearer = export("smiyc", images, tmp_path / "nearer", weights, "--shift", advice)
    assert nearer["levels_lost"] < coarse["levels_lost"]
    for path in (tmp_path / "plain").rglob("*.hdf5"):
        plain = maps.read_map(path).astype(float)
        shifted = maps.read_map(tmp_path / "shifted" / path.relative_to(tmp_path / "plain")).astype(float)
        np.testing.assert_allclose(plain - shifted, 64, atol=0.1)


# Float16


def test_scores_that_float16_cannot_hold_are_refused_and_those_it_can_are_kept():
    half, ok = np.dtype(np.float16), np.float32([[-65504, 65504, 0.1]])
    assert maps.stored_scores(ok, half, "a").tolist() == [[-65504, 65504, float(np.float16(0.1))]]
    with pytest.raises(ValueError, match=r"a: scores from -1 to 65505 do not fit float16, \+-65504; .* --shift"):
        maps.stored_scores(np.float32([[-1, 65505]]), half, "a")
    assert maps.stored_scores(np.float32([[-1, 65505]]), np.dtype(np.float32), "a")[0, 1] == 65505
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="a: 1 scores are not finite"):
            maps.stored_scores(np.float32([[0, wrong]]), half, "a")


# What a check finds


def test_maps_in_order_pass_and_their_sense_is_told(check_made, capsys):
    _, _, arguments = check_made
    assert export_scores.main(arguments)["AUROC"] > 0.9
    assert "3 frames, 0 problems; larger is more anomalous: AUROC 9" in capsys.readouterr().out


def test_without_label_maps_the_sense_is_not_checked_and_that_is_said(check_made, track, capsys):
    _, _, arguments = check_made
    (track / "labels_masks").rename(track / "elsewhere")
    export_scores.main(arguments)
    assert "larger is more anomalous: not checked: no label maps at hand" in capsys.readouterr().out


def damaged(path):
    path.write_bytes(path.read_bytes()[:20])


def of_another_size(path):
    with Image.open(path) as labels:
        labels.resize((8, 8)).save(path)


def of_another_data_set(path):
    with Image.open(path) as labels:
        Image.fromarray(np.full(labels.size[::-1], 7, np.uint8)).save(path)


@pytest.mark.parametrize("break_it", [damaged, of_another_size, of_another_data_set])
def test_one_label_map_that_cannot_be_used_switches_the_check_of_the_sense_off_for_itself_alone(
    break_it, check_made, track, tmp_path
):
    _, found, _ = check_made
    break_it(sorted((track / "labels_masks").iterdir())[0])
    (told,) = found()
    assert told.startswith("the label map of ") and " cannot be used: " in told
    made(track, tmp_path / "out", sign=-1)
    assert any(told.startswith("smaller scores mark the outliers (AUROC ") for told in found())


def test_a_label_map_without_image_leaves_the_check_of_the_sense_on(check_made, track, capsys):
    *_, arguments = check_made
    one = sorted((track / "labels_masks").iterdir())[0]
    shutil.copy(one, one.with_name("lost_labels_semantic.png"))
    assert export_scores.main(arguments)["AUROC"] > 0.9


def test_lost_and_found_with_a_damaged_label_map_is_checked_by_the_others(tmp_path, capsys):
    root, draw = tmp_path / "lf", np.random.default_rng(0)
    for number in range(3):
        for folder, name, pixels in (
            ("leftImg8bit/a", f"000{number}_leftImg8bit.png", draw.integers(0, 255, (20, 30, 3))),
            ("ood/a", f"000{number}_ood_segmentation.png", np.eye(20, 30)),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / folder / name)
        (tmp_path / "out").mkdir(exist_ok=True)
        np.save(tmp_path / f"out/000{number}_anomaly.npy", -np.eye(20, 30, dtype=np.float32))
    damaged(root / "ood/a/0001_ood_segmentation.png")
    for given in (root, root / "leftImg8bit"):
        told = problems("fishyscapes", given, tmp_path / "out", capsys)
        assert len(told) == 2 and told[0].startswith("the label map of 0001_leftImg8bit.png cannot be used: ")
        assert told[1].startswith("smaller scores mark the outliers (AUROC 0.00 ")


def test_a_wrong_sign_is_found(check_made, track, tmp_path):
    _, found, _ = check_made
    made(track, tmp_path / "out", sign=-1)
    (told,) = found()
    assert told.startswith("smaller scores mark the outliers (AUROC ")


def nothing(path):
    path.unlink()


def transposed(path):
    write_hdf5(path, maps.read_map(path).T)


def single(path):
    write_hdf5(path, maps.read_map(path).astype(np.float32))


def not_a_number(path):
    scores = maps.read_map(path)
    scores[3, 4] = np.nan
    scores[5, 6] = np.inf
    write_hdf5(path, scores)


def other_name(path):
    write_hdf5(path, maps.read_map(path), "score")


def cut_short(path):
    path.write_bytes(path.read_bytes()[:100])


def one_value(path):
    write_hdf5(path, np.full_like(maps.read_map(path), 0.5))


def saturated(path):
    scores = maps.read_map(path)
    scores[0, 0] = 65504
    write_hdf5(path, scores)


@pytest.mark.parametrize("break_it, words", [
    (nothing, "is missing"),
    (transposed, "has shape (64, 48); the image's height and width are (48, 64)"),
    (single, "is float32, not float16"),
    (not_a_number, "holds 2 values that are not finite"),
    (other_name, 'holds no data set "value" but score'),
    (cut_short, "cannot be read: "),
    (one_value, "holds one value everywhere, 0.5"),
    (saturated, "reaches float16's end, 65504"),
])  # fmt: skip
def test_a_broken_map_is_found(check_made, break_it, words):
    frames, found, _ = check_made
    break_it(frames["validation1"])
    (told,) = found()
    assert told.startswith("method/AnomalyTrack-all/validation1.hdf5 of validation1.png")
    assert words in told


def test_all_problems_are_told_and_files_too_many(check_made, tmp_path):
    frames, found, _ = check_made
    nothing(frames["test0"])
    single(frames["validation0"])
    (tmp_path / "out/method/AnomalyTrack-all/extra.hdf5").write_bytes(b"")
    told = found()
    assert len(told) == 3
    assert told[2] == "method/AnomalyTrack-all/extra.hdf5 belongs to no image"


def test_npy_maps_are_checked_as_well(static, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    scores = (boxes(0, size=SIZE) + np.linspace(0, 0.5, WIDTH)).astype(np.float32)
    for digits in ("0000", "0007"):
        np.save(folder / f"{digits}_anomaly.npy", scores)
    assert check("fishyscapes", static, folder)["AUROC"] == 1
    np.save(folder / "0007_anomaly.npy", scores.astype(np.float16))
    assert problems("fishyscapes", static, folder, capsys) == [
        "0007_anomaly.npy of 0007_street_rgb.jpg is float16, not float32"
    ]
    (folder / "0007_anomaly.npy").write_bytes(b"")
    assert (
        "0007_anomaly.npy of 0007_street_rgb.jpg cannot be read: " in problems("fishyscapes", static, folder, capsys)[0]
    )
    dangerous = io.BytesIO()
    np.save(dangerous, np.array([{}]), allow_pickle=True)
    (folder / "0007_anomaly.npy").write_bytes(dangerous.getvalue())
    assert "cannot be read: Object arrays" in problems("fishyscapes", static, folder, capsys)[0]
