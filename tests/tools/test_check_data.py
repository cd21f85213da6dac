"""Data roots in order and broken ones: what check_data says of each."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import COCO20, ImageFolder, LostAndFound
from tests.support.layouts import LABELLED, LAYOUTS, SIZE, labels_of, make, noise, write
from tools.check_data import CHOSEN, SOURCES, check
from tools.check_data.__main__ import main
from tools.check_data.problems import summary

HEIGHT, WIDTH = SIZE


def one_label_map(name, root):
    pairs = next(iter(SOURCES[name].splits.values())).pairs(root)
    return pairs[0]


def errors(name, root, **how):
    return [group["kind"] for group in check(name, root, **how)["errors"]]


def contents(root):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))}


# Data in order


@pytest.mark.parametrize("name", LAYOUTS)
def test_data_in_order_can_be_used_and_nothing_is_written(name, tmp_path):
    root = make(name, tmp_path / "images" / "labels ood")
    before = contents(tmp_path)
    for quick in (False, True):
        results = check(name, root, quick=quick)
        assert results["usable"] and not results["errors"]
        assert contents(tmp_path) == before
        assert list(results["splits"]) == list(SOURCES[name].splits)
        for report in results["splits"].values():
            assert report["sizes"] == {f"{WIDTH}x{HEIGHT}": report["images"]}
            assert ("labels" in report) == (not quick and name != "images")


def test_pixels_are_counted_by_label(tmp_path):
    root = tmp_path / "data"
    write(root / "0_rgb.jpg", noise(*SIZE))
    stored = np.zeros((HEIGHT, WIDTH), np.uint8)
    stored[0, :4], stored[5, :8] = 1, 255
    write(root / "0_labels.png", stored)
    report = check("static", root)["splits"]["all"]
    assert report["outlier_pixels"] == 4
    assert report["stored_values"] == {"0": 180, "1": 4, "255": 8}
    assert report["labels"]["ignored"] == {"stored": "255", "pixels": 8, "share": 8 / 192}
    assert report["labels"]["inlier"]["share"] == 180 / 192


def test_classes_have_their_names(tmp_path):
    labelled = check("street-hazards", make("street-hazards", tmp_path))["splits"]["test"]["labels"]
    assert [label["stored"] for label in labelled.values()] == ["1", "2", "3", *map(str, range(5, 15)), "4"]
    assert list(labelled)[3:5] == ["person", "pole"] and list(labelled)[-2:] == ["outlier", "ignored"]


def test_coco_photographs_are_chosen_as_the_data_set_does(tmp_path):
    results = check("coco20", make("coco20", tmp_path))
    for split in ("training", "validation"):
        assert results["splits"][split]["chosen_images"] == len(COCO20(tmp_path, split))
        assert results["splits"][split]["images"] == 3
    assert results["splits"]["training"]["outlier_pixels"] == 0 < results["splits"]["validation"]["outlier_pixels"]


def test_pairs_and_modes_that_are_taken_are_the_data_sets_own(tmp_path):
    lost = make("lf", tmp_path / "lf")
    assert SOURCES["lf"].splits["all"].pairs(lost) == LostAndFound(lost).pairs
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F"):
        root = tmp_path / mode.replace(";", "")
        write(root / "whole.png", noise(*SIZE))
        picture_of_mode = Image.new(mode, (8, 8))
        picture_of_mode.save(root / ("a.tif" if mode in ("CMYK", "F") else "a.png"))
        results = check("images", root)
        assert results["usable"] and len(ImageFolder(root)) == 2 - len(results["warnings"]), mode
        assert bool(results["warnings"]) == (mode == "F")


@pytest.mark.slow
@pytest.mark.processes
def test_several_processes_find_the_same(tmp_path):
    root = make("street-hazards", tmp_path)
    write(root / "train/annotations/training/t1/0.png", labels_of(0))
    assert check("street-hazards", root, workers=2) == check("street-hazards", root)


def test_numbers_that_differ_from_the_published_ones_are_a_warning(tmp_path):
    results = check("lf", make("lf", tmp_path))
    (warning,) = results["warnings"]
    assert warning["kind"].startswith("all: 2 images with label map; 100 are published: is the download complete")
    assert results["usable"]
    published = {name: [split.published for split in source.splits.values()] for name, source in SOURCES.items()}
    assert published == {
        "street-hazards": [5125, 1031, 1500],
        "cityscapes": [2975, 500],
        "lf": [100],
        "static": [30],
        "ade20k": [20210],
        "coco20": [118287, 5000],
        "anomaly-track": [10],
        "obstacle-track": [30],
        "road-anomaly": [60],
        "images": [None],
    }
    assert CHOSEN == {"training": 20581, "validation": 4952}


# Folders


@pytest.mark.parametrize("name", LABELLED)
def test_a_root_too_high_or_too_low_is_told_with_the_right_one(name, tmp_path):
    root = make(name, tmp_path / "archive" / "data")
    for wrong, where in ((root / "any" / "thing", "up"), (tmp_path, "down")):
        wrong.mkdir(parents=True, exist_ok=True)
        (told,) = errors(name, wrong)
        assert told == f"{wrong} is not the data set's folder, which lies further {where}: give --dataroot {root}"


@pytest.mark.parametrize("name, inner", [
    ("street-hazards", "train"), ("street-hazards", "test/images"), ("cityscapes", "leftImg8bit"),
    ("cityscapes", "gtFine/train"), ("lf", "ood"), ("ade20k", "images"), ("ade20k", "images/training"),
    ("coco20", "images"), ("anomaly-track", "images"), ("road-anomaly", "frames"),
])  # fmt: skip
def test_a_folder_of_the_data_set_itself_is_too_low(name, inner, tmp_path):
    root = make(name, tmp_path / "data")
    (told,) = errors(name, root / inner)
    assert told.endswith(f"which lies further up: give --dataroot {root}")


def test_no_folder_and_a_foreign_one_are_told(tmp_path):
    assert errors("lf", tmp_path / "nowhere") == [
        f"there is no folder {tmp_path / 'nowhere'}; give the data set's folder as --dataroot"
    ]
    (tmp_path / "music").mkdir()
    (told,) = errors("cityscapes", tmp_path)
    assert "it should hold leftImg8bit or gtFine, and it holds music/; give the folder that" in told


def test_a_folder_without_images_is_told(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    (told,) = errors("images", tmp_path)
    assert told.startswith("no image (.jpg, ")


LABEL_FOLDERS = {
    "street-hazards": ("train/annotations", "they come in the same archives"),
    "cityscapes": ("gtFine", "unpack Cityscapes' gtFine_trainvaltest.zip beside leftImg8bit/"),
    "lf": ("ood", "ood/ is Fishyscapes' own download"),
    "ade20k": ("annotations", "ADEChallengeData2016.zip"),
    "coco20": ("labels", "stuffthingmaps_trainval2017.zip into labels/"),
    "anomaly-track": ("labels_masks", "in the download of the data set, labels_masks/"),
}


@pytest.mark.parametrize("name", LABEL_FOLDERS)
def test_images_without_the_folder_of_their_labels_are_told_where_these_are(name, tmp_path):
    folder, advice = LABEL_FOLDERS[name]
    shutil.rmtree(make(name, tmp_path) / folder)
    told = errors(name, tmp_path)
    assert told and all(f"no folder {tmp_path / folder}" in kind for kind in told)
    assert all("the label maps are missing: " in kind and advice in kind for kind in told)


@pytest.mark.parametrize("name", LABELLED)
def test_label_maps_that_were_not_unpacked_are_told(name, tmp_path):
    make(name, tmp_path)
    for source_split in SOURCES[name].splits.values():
        for _, path in source_split.pairs(tmp_path):
            path.unlink()
    told = errors(name, tmp_path)
    assert len(told) == len(SOURCES[name].splits)
    assert all(SOURCES[name].get_labels in kind for kind in told)


def test_images_that_were_not_unpacked_are_told(tmp_path):
    shutil.rmtree(make("cityscapes", tmp_path) / "leftImg8bit")
    told = errors("cityscapes", tmp_path)
    assert all("the images are missing: unpack them" in kind for kind in told) and len(told) == 2


def test_a_split_that_is_not_there_can_be_left_out(tmp_path):
    shutil.rmtree(make("street-hazards", tmp_path) / "train")
    first, second = errors("street-hazards", tmp_path)
    assert "the split training is not there: no folder " in first and "--splits validation test" in first
    assert "the split validation is not there" in second
    assert check("street-hazards", tmp_path, ["test"])["usable"]


def test_images_with_another_ending_are_told(tmp_path):
    root = make("ade20k", tmp_path)
    shutil.rmtree(root / "annotations/training")
    (root / "annotations/training").mkdir()
    for path in list((root / "images/training").iterdir()):
        path.rename(path.with_suffix(".WebP"))
    (told,) = errors("ade20k", root)
    assert told.startswith("no *.jpg under ") and told.endswith("files that are there: 2 .WebP")


def test_every_file_alone_is_listed(tmp_path):
    root = make("street-hazards", tmp_path)
    for number in range(2, 9):
        write(root / f"train/images/training/t1/{number}.png", noise(*SIZE))
    (root / "train/images/training/t1/0.png").unlink()
    results = check("street-hazards", root)
    without_labels, without_image = results["errors"]
    assert without_labels["kind"].startswith("training: images without label map")
    assert [text.split(":")[0] for text in without_labels["examples"]] == [
        f"train/images/training/t1/{number}.png" for number in range(2, 9)
    ]
    assert without_image["examples"] == ["train/annotations/training/t1/0.png"]
    told = summary(results)
    assert "(7 files)" in told and "and 2 more" in told and "t1/7.png" not in told


def test_every_label_map_of_a_track_without_its_one_image_is_listed(tmp_path):
    root = make("obstacle-track", tmp_path)
    write(root / "images/validation1.png", noise(*SIZE))
    write(root / "labels_masks/validation7_labels_semantic.png", labels_of(0, 1))
    (group,) = check("obstacle-track", root)["errors"]
    assert "label maps without their image" in group["kind"]
    assert [Path(text).name[:11] for text in group["examples"]] == ["validation1", "validation7"]


def test_train_ids_beside_the_images_are_recognised(tmp_path):
    root = make("cityscapes", tmp_path)
    for path in list(root.rglob("*_labelIds.png")):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    told = errors("cityscapes", root)
    assert len(told) == 2
    assert (
        "only *_labelTrainIds.png where *_labelIds.png is read; unpack Cityscapes' gtFine_trainvaltest.zip" in told[0]
    )


def test_a_test_part_of_cityscapes_without_labels_does_no_harm(tmp_path):
    write(make("cityscapes", tmp_path) / "leftImg8bit/test/bonn/bonn_0_19_leftImg8bit.png", noise(*SIZE))
    assert check("cityscapes", tmp_path)["usable"]


def test_what_file_managers_leave_behind_is_recognised(tmp_path):
    root = make("static", tmp_path)
    (root / "Thumbs.db").write_bytes(b"x")
    results = check("static", root)
    assert results["usable"] and results["notes"][0]["kind"].startswith("Thumbs.db is left by a file manager")
    (root / "._0000_a_rgb.jpg").write_bytes(b"x")
    (root / "._0000_a_labels.png").write_bytes(b"x")
    (root / "._0001_a_labels.png").write_bytes(b"x")
    results = check("static", root)
    assert results["usable"] and results["splits"]["all"]["images"] == 2
    (group,) = [group for group in results["notes"] if group["kind"].startswith("hidden, or a system's")]
    assert group["examples"] == ["._0000_a_labels.png", "._0000_a_rgb.jpg", "._0001_a_labels.png"]
    assert check("images", root)["usable"]


def test_labels_txt_of_another_data_set_is_told(tmp_path):
    root = make("coco20", tmp_path)
    (root / "labels.txt").write_text("1: aeroplane\n")
    (told,) = errors("coco20", root)
    assert "labels.txt does not name 'person'; expected '1: person'" in told


# Files


@pytest.mark.parametrize("name", LABELLED)
def test_a_file_that_is_cut_short_is_listed_with_all_others(name, tmp_path):
    for path in one_label_map(name, make(name, tmp_path)):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
        (group,) = check(name, tmp_path, [next(iter(SOURCES[name].splits))])["errors"]
        assert group["kind"].startswith("files that cannot be read as images: cut short")
        assert len(group["examples"]) == 1 and group["examples"][0].startswith(f"{path.relative_to(tmp_path)}: ")
        path.write_bytes(whole)


def test_an_empty_file_and_a_web_page_are_found_by_their_headers(tmp_path):
    root = make("images", tmp_path)
    (root / "a.jpg").write_bytes(b"")
    (root / "deep/c.png").write_bytes(b"<html>")
    (group,) = check("images", root, quick=True)["errors"]
    assert group["examples"][0] == "a.jpg: the file is empty"
    assert group["examples"][1].startswith("deep/c.png: cannot identify image file") and len(group["examples"]) == 2


@pytest.mark.parametrize("name", LABELLED)
def test_label_maps_in_colour_are_recognised(name, tmp_path):
    _, path = one_label_map(name, make(name, tmp_path))
    write(path, noise(*SIZE))
    for quick in (False, True):
        told = errors(name, tmp_path, quick=quick)
        assert told[0].startswith(
            "label maps saved in colour; a label map has one value per pixel: take the original files"
        )


@pytest.mark.parametrize("quick", [False, True])
def test_a_label_map_with_three_equal_channels_is_read_and_noted(quick, tmp_path):
    root = make("static", tmp_path)
    plain = check("static", root)["splits"]["all"]["stored_values"]
    _, path = one_label_map("static", root)
    write(path, np.repeat(labels_of(0, 1, 255)[..., None], 3, axis=-1))
    results = check("static", root, quick=quick)
    assert results["usable"] and "read by value since all channels agree" in results["notes"][0]["kind"]
    assert quick or results["splits"]["all"]["stored_values"] == plain
    write(path, np.repeat(labels_of(0, 1, 7)[..., None], 3, axis=-1))
    assert not check("static", root, quick=quick)["usable"]


def test_a_jpeg_is_no_label_map_by_whatever_name(tmp_path):
    _, path = one_label_map("ade20k", make("ade20k", tmp_path))
    blurred = io.BytesIO()
    Image.fromarray(labels_of(0, 150)).save(blurred, "JPEG")
    path.write_bytes(blurred.getvalue())
    (told,) = errors("ade20k", tmp_path)
    assert told.startswith("label maps saved as JPEG, which blurs the values, whatever the file is called")
    path.rename(path.with_suffix(".jpg"))
    (told,) = errors("ade20k", tmp_path)
    assert "the label map is a JPEG, which blurs the values; take the original PNG file" in told


@pytest.mark.parametrize("name", LABELLED)
def test_image_and_label_map_of_two_sizes_are_told(name, tmp_path):
    image, path = one_label_map(name, make(name, tmp_path))
    write(path, np.asarray(Image.open(path)).T)
    (group,) = check(name, tmp_path, quick=True)["errors"]
    assert group["kind"].startswith("image and label map are of two sizes; take both from the original archives")
    expected = f"{image.relative_to(tmp_path)} {WIDTH}x{HEIGHT} and {HEIGHT}x{WIDTH} (one of the two is turned)"
    assert group["examples"] == [expected]


def test_a_label_map_among_the_images_is_told(tmp_path):
    image, _ = one_label_map("street-hazards", make("street-hazards", tmp_path))
    write(image, labels_of(1))
    (group,) = check("street-hazards", tmp_path)["errors"]
    assert "images that are not RGB or RGBA; convert them, or take out label maps that lie among them" in group["kind"]
    assert group["examples"] == ["train/images/training/t1/0.png is a greyscale image (mode L)"]


# Label values


@pytest.mark.parametrize("name, values, words", [
    ("street-hazards", (0, 1, 13), "These begin at 0: another project took 1 off each"),
    ("street-hazards", (1, 100, 255), "its values are 1-14. Many values in between come from resizing"),
    ("cityscapes", (7, 26, 40), "its values are 0-33, 255"),
    ("lf", (0, 1, 3), "its values are 0-2, 255"),
    ("static", (0, 1, 2), "2 is ignored in Lost & Found and the outlier in RoadAnomaly: is it the right --dataset?"),
    ("ade20k", (0, 255), "Take ADEChallengeData2016, not the full ADE20K"),
    ("coco20", (0, 200), "A pixel's value is COCO-Stuff's id - 1"),
    ("anomaly-track", (0, 1, 2), "is it the right --dataset?"),
    ("road-anomaly", (0, 1), "In RoadAnomaly's own files the outlier is 2"),
])  # fmt: skip
def test_values_that_the_data_set_does_not_have_are_told_with_what_they_mean(name, values, words, tmp_path):
    split = next(iter(SOURCES[name].splits))
    make(name, tmp_path)
    for _, path in SOURCES[name].splits[split].pairs(tmp_path):
        write(path, labels_of(*values))
    groups = check(name, tmp_path)["errors"]
    group = groups[0]
    assert "label values that the data set does not have" in group["kind"] and words in group["kind"]
    assert len(group["examples"]) == len(SOURCES[name].splits[split].pairs(tmp_path))
    assert len(groups) == 1


def test_train_ids_under_the_name_of_label_ids_are_recognised(tmp_path):
    make("cityscapes", tmp_path)
    for path in tmp_path.rglob("*_labelIds.png"):
        write(path, labels_of(*range(19), 255))
    told = errors("cityscapes", tmp_path)
    assert len(told) == 2
    assert all("these are train ids under the name labelIds; unpack gtFine_trainvaltest.zip" in kind for kind in told)


def test_lost_and_found_may_have_255_and_is_told_from_road_anomaly(tmp_path):
    make("lf", tmp_path)
    maps = sorted(tmp_path.rglob("*_ood_segmentation.png"))
    for path in maps:
        write(path, labels_of(0, 1, 255))
    results = check("lf", tmp_path)
    assert results["usable"] and "255 is read as ignored" in results["notes"][0]["kind"]
    for path in maps:
        write(path, labels_of(0, 255))
    (told,) = errors("lf", tmp_path)
    assert "no outlier pixel in any label map" in told and "255 is read as ignored: store the outliers as 1" in told
    for path in maps:
        write(path, labels_of(0, 2))
    (told,) = errors("lf", tmp_path)
    assert "in RoadAnomaly's maps 2 is the outlier: --dataset road-anomaly" in told


@pytest.mark.parametrize("name", ["street-hazards", "static", "anomaly-track", "road-anomaly", "coco20"])
def test_a_test_set_without_an_outlier_is_told(name, tmp_path):
    split = list(SOURCES[name].splits)[-1]
    make(name, tmp_path)
    for _, path in SOURCES[name].splits[split].pairs(tmp_path):
        write(path, labels_of({"street-hazards": 8}.get(name, 0)))
    (told,) = errors(name, tmp_path, splits=[split])
    assert f"{split}: no outlier pixel in any label map, so there is nothing to find" in told


def test_a_split_without_a_known_pixel_is_told(tmp_path):
    make("cityscapes", tmp_path)
    for path in (tmp_path / "gtFine/train").rglob("*_labelIds.png"):
        write(path, labels_of(0, 29, 30))
    (told,) = errors("cityscapes", tmp_path)
    assert told.startswith("train: no pixel of a known class in any label map")


def test_coco_photographs_of_which_none_fits_are_told(tmp_path):
    make("coco20", tmp_path)
    for path in (tmp_path / "labels/train2017").iterdir():
        write(path, labels_of(0, 7))
    (told,) = errors("coco20", tmp_path)
    assert told.startswith("training: no label map holds at least one pixel of a known class and none of an unknown")


def test_ids_where_ids_less_one_should_be_are_suspected(tmp_path):
    make("coco20", tmp_path)
    write(tmp_path / "labels/val2017/000000000000.png", labels_of(0, 11))
    warnings = [group["kind"] for group in check("coco20", tmp_path)["warnings"]]
    assert any("are values ids where they should be ids - 1?" in kind for kind in warnings)


def test_anomalies_in_training_a_missing_town_and_classes_that_never_occur_are_warnings(tmp_path):
    make("street-hazards", tmp_path)
    for path in (tmp_path / "train/annotations/training").rglob("*.png"):
        write(path, labels_of(*range(1, 11), 14))
    for kind in ("images", "annotations"):
        shutil.rmtree(tmp_path / "test" / kind / "test/t6")
    results = check("street-hazards", tmp_path)
    told = "\n".join(group["kind"] for group in results["warnings"])
    assert results["usable"]
    assert "pixels of anomalies, of which there should be none" in told
    assert "test: no frame of town t6, which evaluate_osr_sh.py needs" in told
    assert "training: classes without a pixel, which cannot be learnt: car, wall, traffic sign" in told


# As a user runs it


def run(name, root, *flags):
    return main(["--dataset", name, "--dataroot", str(root), "--workers", "0", *flags])


def test_all_problems_are_told_in_one_go_and_end_with_exit_code_1(tmp_path, capsys):
    root = make("street-hazards", tmp_path)
    maps = sorted((root / "test/annotations").rglob("*.png"))
    maps[0].write_bytes(b"")
    write(maps[1], labels_of(0))
    write(maps[2], noise(*SIZE))
    (root / "train/images/training/t1/0.png").unlink()
    with pytest.raises(SystemExit) as ended:
        run("street-hazards", root)
    assert ended.value.code == 1
    told = capsys.readouterr().out
    for words in ("cannot be read as images", "label values that", "saved in colour", "without their image"):
        assert words in told
    assert f"street-hazards in {root} CANNOT be used: 4 errors, 3 warnings" in told


def test_results_and_table_are_written_where_asked(tmp_path, capsys):
    for name in LAYOUTS:
        root, out = make(name, tmp_path / name), tmp_path / "out" / name
        results = run(name, root, "--folder", str(out))
        assert results["usable"] and sorted(path.name for path in out.iterdir()) == ["check_data.json", "check_data.md"]
        assert f"{name} in {root} can be used: " in capsys.readouterr().out
        assert f"{name}: what is there" in (out / "check_data.md").read_text()


def test_nothing_is_written_into_the_data(tmp_path, capsys):
    root = make("static", tmp_path)
    with pytest.raises(SystemExit) as ended:
        run("static", root, "--folder", str(root / "report"))
    assert ended.value.code == 1 and "lies in --dataroot" in capsys.readouterr().err


def test_a_split_that_is_none_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run("cityscapes", tmp_path, "--splits", "test")
    assert ended.value.code == 1 and "cityscapes has no split test: train, val" in capsys.readouterr().err


REAL = {
    "street-hazards": "street_hazards",
    "cityscapes": "cityscapes",
    "lf": "fishyscapes_lf",
    "static": "fishyscapes_static",
    "ade20k": "ade20k",
    "coco20": "coco20",
    "images": "ade20k",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_folders_can_be_used(name, tmp_path):
    whole = Path(os.environ.get("DENSEHYBRID_DATA", ""), REAL[name]).resolve()
    if not os.environ.get("DENSEHYBRID_DATA") or not whole.is_dir():
        pytest.skip(f"the environment variable DENSEHYBRID_DATA names no folder of real data with {REAL[name]}")
    root = tmp_path / "data"
    shutil.copytree(whole, root, copy_function=os.symlink)  # so that what were written would be seen, and do no harm
    before = sorted(root.rglob("*"))
    results = check(name, root)
    assert results["usable"], summary(results)
    assert all(report["images"] > 0 for report in results["splits"].values())
    assert sorted(root.rglob("*")) == before
