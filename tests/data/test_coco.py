"""COCO20/80: labels, the photographs of a split, and the list that the scan of the label maps makes."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data.coco
from data import COCO20, train_transform
from labels import IGNORE, OUTLIER
from tests.support.layouts import COCO_FOLDERS, COCO_KNOWN, COCO_OTHERS, GRASS, SKY, coco_names, coco_photograph

CLASSES = ["person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "boat", "bird", "cat", "dog", "horse",
           "sheep", "cow", "bottle", "chair", "couch", "potted plant", "dining table", "tv"]  # fmt: skip
# COCO's own table of things by id, written out: the 20 known ones and some of the 60 others.
REMOVED = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91]
BANNER, LAST = 92, 182  # stuff, as SKY and GRASS

# Label maps by the ids they hold; None is unlabeled.
MAPS = {
    "known": [1],
    "known_and_stuff": [COCO_KNOWN["tv"], SKY, None],
    "known_and_removed": [COCO_KNOWN["boat"], 12, 91],
    "known_and_unknown": [1, COCO_OTHERS["truck"]],
    "unknown": [COCO_OTHERS["toothbrush"], GRASS],
    "stuff": [BANNER, SKY, LAST],
    "removed": REMOVED,
    "unlabeled": [None],
}
FIT = {"training": {"known", "known_and_stuff", "known_and_removed"},
       "validation": {"known", "known_and_stuff", "known_and_removed", "known_and_unknown", "unknown"},
       "validation_known": {"known", "known_and_stuff", "known_and_removed"}}  # fmt: skip


def stored(ids):
    """A label map (4, 6) that holds each of the ids, the last of them in most of its pixels"""
    values = [255 if number is None else number - 1 for number in ids]
    return np.array(values + [values[-1]] * (24 - len(values)), np.uint8).reshape(4, 6)


def photograph(root, split, name, ids, mode="RGB"):
    """A photograph and its label map: the paths of both"""
    return coco_photograph(root, split, name, stored(ids), mode=mode)


@pytest.fixture
def coco(tmp_path):
    """Photographs of every kind in both splits"""
    root = tmp_path / "coco"
    coco_names(root)
    for split in COCO_FOLDERS:
        for name, ids in MAPS.items():
            photograph(root, split, name, ids)
    return root


@pytest.fixture
def no_scan(monkeypatch):
    """No label map may be looked at any more"""

    def refuse(path, **how):
        raise AssertionError(f"{path} is scanned again")

    return lambda: monkeypatch.setattr(data.coco, "things_in", refuse)


def names_of(photographs):
    return [Path(name).stem for _, _, name in photographs]


# Labels


def test_every_stored_value_becomes_a_known_class_an_outlier_or_ignored(tmp_path):
    coco_names(tmp_path)
    _, label_path = photograph(tmp_path, "validation", "all", [1])
    values = np.array([[*range(182), 255]], np.uint8)
    Image.fromarray(values).save(label_path)
    Image.fromarray(np.zeros((1, 183, 3), np.uint8)).save(tmp_path / "images/val2017/all.jpg")
    (_, labels, name), = COCO20(tmp_path, "validation")  # fmt: skip
    assert name == "images/val2017/all.jpg"
    found = dict(zip(values[0].tolist(), labels[0].tolist(), strict=True))
    assert {found[number - 1]: known for known, number in COCO_KNOWN.items()} == dict(enumerate(CLASSES))
    assert all(found[number - 1] == OUTLIER for number in COCO_OTHERS.values())
    assert all(found[number - 1] == IGNORE for number in [*REMOVED, BANNER, GRASS, SKY, LAST])
    assert found[255] == IGNORE
    counts = [sum(label == which for label in found.values()) for which in (OUTLIER, IGNORE)]
    assert counts == [60, 183 - 80]  # of 80 things 20 are known
    assert COCO20.num_classes == 20 and list(COCO20.class_colours) == CLASSES
    assert len(set(COCO20.class_colours.values())) == 20
    assert COCO20.mean_colour == (123, 116, 103)


@pytest.mark.parametrize("value", [182, 200, 254])
def test_a_value_that_coco_does_not_have_is_refused(value, coco):
    path = coco / "labels/val2017/known.png"
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(path)
    with pytest.raises(ValueError) as error:
        COCO20(coco, "validation")
    assert f"{path} holds label value {value}; this data set's values are 0-181, 255" in str(error.value)


def test_labels_txt_with_spaces_and_an_empty_line_is_understood(coco):
    text = (coco / "labels.txt").read_text()
    (coco / "labels.txt").write_text("\n" + text.replace(": ", " :  ").replace("\n", " \r\n"))
    assert len(COCO20(coco, "training")) == 3


@pytest.mark.parametrize(
    "changed, told",
    [
        ({63: "sofa"}, "does not name 'couch'; expected '63: couch'"),
        ({63: "chair", 62: "couch"}, "says '63: chair'; expected '62: chair'"),
        ({72: "stuff", 62: "tv", 58: "chair"}, "says '58: chair'; expected '62: chair'"),
    ],
)
def test_names_that_are_not_where_coco_has_them_are_refused(changed, told, coco):
    coco_names(coco, changed)
    with pytest.raises(ValueError) as error:
        COCO20(coco, "training")
    assert f"{coco / 'labels.txt'} {told}: take COCO-Stuff's labels.txt" in str(error.value)
    assert not (coco / "coco20_training.txt").exists()


def test_a_missing_labels_txt_or_folder_is_named_with_the_flag(coco):
    (coco / "labels.txt").unlink()
    with pytest.raises(FileNotFoundError) as error:
        COCO20(coco, "validation")
    assert f"no file {coco / 'labels.txt'}" in str(error.value) and "--dataroot is COCO's folder" in str(error.value)
    with pytest.raises(FileNotFoundError) as error:
        COCO20(coco / "images", "validation")
    assert f"no folder {coco / 'images/images/val2017'}; --dataroot is COCO's folder" in str(error.value)


# Which photographs


@pytest.mark.parametrize("split", COCO_FOLDERS)
def test_a_split_holds_the_photographs_of_its_rule_in_sorted_order(split, coco):
    photographs = COCO20(str(coco), split)
    assert names_of(photographs) == sorted(FIT[split])
    for _, labels, name in photographs:
        values = set(labels.unique().tolist())
        assert (OUTLIER in values) == (split == "validation" and "unknown" in name)
        assert values & {0, 7, 19, OUTLIER}


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("split", COCO_FOLDERS)
def test_one_pixel_decides(split, kind, tmp_path):
    coco_names(tmp_path)
    photograph(tmp_path, split, "always", [1])
    photograph(tmp_path, split, kind, MAPS[kind] + [None])  # one pixel of each id, the others unlabeled
    assert names_of(COCO20(tmp_path, split)) == sorted({"always"} | FIT[split] & {kind})


def test_a_split_that_is_none_is_refused(coco):
    with pytest.raises(ValueError, match="no split 'train2017'; choose one of training, validation"):
        COCO20(coco, "train2017")


@pytest.mark.parametrize("split", ["training", "validation_known"])
def test_outliers_would_be_ignored_among_known_things(split, coco):
    photographs = COCO20(coco, split)
    _, path = photographs.pairs[0]
    Image.fromarray(stored(MAPS["known_and_unknown"])).save(path)  # changed after the scan
    assert set(photographs[0][1].unique().tolist()) == {0, IGNORE}
    everything = COCO20(coco, "validation")
    found = dict(zip(names_of(everything), (labels for _, labels, _ in everything), strict=True))
    assert set(found["known_and_unknown"].unique().tolist()) == {0, OUTLIER}


def test_known_things_of_validation_have_a_list_of_their_own(coco, no_scan):
    whole, known = COCO20(coco, "validation"), COCO20(coco, "validation_known")
    assert set(known.pairs) < set(whole.pairs) and all("val2017" in str(path) for pair in known.pairs for path in pair)
    head, *listed = (coco / "coco20_validation_known.txt").read_text().splitlines()
    assert head.startswith("# COCO20, validation_known: 3 of 8 label maps, which hold at least one pixel of a known")
    assert listed == [f"{name}.png" for name in sorted(FIT["training"])]
    no_scan()
    assert COCO20(coco, "validation_known").pairs == known.pairs
    assert COCO20(coco, "validation").pairs == whole.pairs


def test_a_grey_photograph_is_taken(tmp_path):
    coco_names(tmp_path)
    photograph(tmp_path, "training", "grey", [1], mode="L")
    (image, _, _), = COCO20(tmp_path, "training")  # fmt: skip
    assert image.shape == (3, 4, 6)
    assert image[0].equal(image[1]) and image[0].equal(image[2])
    assert image.unique().numel() > 10


def test_a_transform_sees_image_and_labels_and_its_content_is_passed_on(coco):
    photographs = COCO20(coco, "training", train_transform(8, (1.0, 1.0), COCO20.mean_colour, with_content=True))
    torch.manual_seed(0)
    image, labels, (top, left, height, width), name = photographs[0]
    assert name == "images/train2017/known.jpg"
    assert (height, width) == (4, 6)
    assert (labels[top : top + 4, left : left + 6] == 0).all() and (labels == 0).sum() == 24
    assert (image[:, labels == IGNORE] == torch.tensor([[123], [116], [103]])).all()


@pytest.mark.processes
@pytest.mark.parametrize("split", COCO_FOLDERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_of_which_nothing_fits_is_refused(split, workers, tmp_path):
    coco_names(tmp_path)
    for name in ("stuff", "removed", "unlabeled"):
        photograph(tmp_path, split, name, MAPS[name])
    with pytest.raises(ValueError) as error:
        COCO20(tmp_path, split, workers=workers)
    told = str(error.value)
    assert told.startswith(
        f"none of the 3 label maps under {tmp_path / 'labels' / COCO_FOLDERS[split]} holds at least one"
    )
    assert "a pixel's value must be COCO-Stuff's id - 1" in told
    assert not list(tmp_path.glob("coco20*"))


# The scan and its list


def test_the_list_says_what_it_is_and_is_reused(coco, no_scan, capsys):
    first = COCO20(coco, "training")
    file = coco / "coco20_training.txt"
    head, *listed = file.read_text().splitlines()
    assert head.startswith("# COCO20, training: 3 of 8 label maps, which hold at least one pixel of a known class")
    assert listed == [f"{name}.png" for name in sorted(FIT["training"])]
    assert f"scanning 8 label maps for the training photographs of COCO20\nthe list of photographs is kept in {file}" \
        in capsys.readouterr().out  # fmt: skip
    no_scan()
    assert COCO20(coco, "training").pairs == first.pairs
    assert capsys.readouterr().out == ""
    with pytest.raises(AssertionError, match="scanned again"):
        COCO20(coco, "validation")  # which has a list of its own


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_other_label_maps_are_scanned_anew(change, coco, no_scan, capsys):
    COCO20(coco, "training")
    expected = set(FIT["training"])
    if change != "removed":
        photograph(coco, "training", "another", [COCO_KNOWN["dog"]])
        expected.add("another")
    if change != "added":
        for path in coco.glob("*/train2017/known.*"):
            path.unlink()
        expected.remove("known")
    capsys.readouterr()
    assert names_of(COCO20(coco, "training")) == sorted(expected)
    count = {"added": 9, "removed": 7, "renamed": 8}[change]
    told = (
        f"{coco / 'coco20_training.txt'} is damaged or of other label maps than the {count} there are: it is not used"
    )
    assert capsys.readouterr().out.startswith(f"{told}\nscanning {count} label maps")
    no_scan()
    assert names_of(COCO20(coco, "training")) == sorted(expected)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: b"\n".join(content.splitlines()[:-1]) + b"\n",  # cut at the end of a line
        lambda content: content.replace(b"known.png", b"stuff.png", 1),  # a name of a map that there is
        lambda content: content.replace(b"training", b"validation", 1),
        lambda content: content + b"stuff.png\n",
        lambda content: os.urandom(500),
    ],
)
def test_a_damaged_list_is_made_anew(damage, coco, capsys):
    COCO20(coco, "training")
    file = coco / "coco20_training.txt"
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert names_of(COCO20(coco, "training")) == sorted(FIT["training"])
    assert f"{file} is damaged or of other label maps" in capsys.readouterr().out
    assert file.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.processes
def test_processes_find_what_one_finds(tmp_path):
    kinds = list(MAPS)
    drawn = np.random.default_rng(0).integers(len(kinds), size=300)  # several chunks for each process
    coco_names(tmp_path)
    for number, kind in enumerate(drawn):
        photograph(tmp_path, "training", f"{number:03}", MAPS[kinds[kind]])
    lists = []
    for workers in (0, 1, 3):
        photographs = COCO20(tmp_path, "training", workers=workers)
        assert [int(name) for name in names_of(photographs)] == [
            number for number, kind in enumerate(drawn) if kinds[kind] in FIT["training"]
        ]
        file = tmp_path / "coco20_training.txt"
        lists.append(file.read_bytes())
        file.unlink()
    assert lists[0] == lists[1] == lists[2]
    assert not multiprocessing.active_children()


@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_label_map_is_named_and_leaves_no_list(workers, coco):
    path = coco / "labels/train2017/stuff.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError) as error:
        COCO20(coco, "training", workers=workers, list_folder=coco / "run")
    assert f"{path} cannot be read as an image" in str(error.value)
    assert "fetch or write it again" in str(error.value)
    assert not list(coco.rglob("coco20*"))
    assert not multiprocessing.active_children()


@pytest.mark.processes
def test_a_process_that_dies_in_the_scan_is_told_as_such(coco, monkeypatch):
    monkeypatch.setattr(data.coco, "things_in", die)
    with pytest.raises(ChildProcessError, match=r"a process of the scan died.*lower --workers"):
        COCO20(coco, "training", workers=2)
    assert not list(coco.glob("coco20*"))


def die(path, **how):
    os._exit(1)


@pytest.fixture
def unwritable(coco, monkeypatch):
    """The data's folder refuses to be written, as a read-only disk does even to root"""
    write, replace = Path.write_text, os.replace

    def write_elsewhere(path, *args, **options):
        if path.parent == coco:
            raise OSError(30, "Read-only file system", str(path))
        return write(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", write_elsewhere)
    monkeypatch.setattr(os, "replace", lambda part, path: (write_elsewhere(Path(path), "") if Path(path).parent == coco
                                                           else replace(part, path)))  # fmt: skip
    return coco


def test_a_list_that_cannot_lie_beside_the_data_is_kept_in_the_folder_given(unwritable, tmp_path, no_scan, capsys):
    run = tmp_path / "logs" / "run"
    photographs = COCO20(unwritable, "training", list_folder=run)
    printed = capsys.readouterr().out
    assert f"{unwritable / 'coco20_training.txt'} cannot be written (Read-only file system)" in printed
    assert f"the list of photographs is kept in {run / 'coco20_training.txt'}" in printed
    assert [path.name for path in run.iterdir()] == ["coco20_training.txt"]
    no_scan()
    assert COCO20(unwritable, "training", list_folder=str(run)).pairs == photographs.pairs


def test_a_list_that_can_be_kept_nowhere_stops_nothing(unwritable, capsys):
    in_the_way = unwritable / "labels.txt"  # a file, where a folder would have to be
    for _ in range(2):
        assert names_of(COCO20(unwritable, "training", list_folder=in_the_way / "run")) == sorted(FIT["training"])
        printed = capsys.readouterr().out
        assert f"{in_the_way / 'run' / 'coco20_training.txt'} cannot be written (Not a directory)" in printed
        assert f"will be scanned again next time: make {unwritable} writable" in printed
    assert not list(unwritable.rglob("coco20*"))


def test_a_folder_in_the_lists_place_is_gone_round(coco, tmp_path):
    (coco / "coco20_training.txt").mkdir()
    assert len(COCO20(coco, "training", list_folder=tmp_path / "run")) == 3
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["coco20_training.txt"]
    assert sorted(path.name for path in coco.iterdir()) == ["coco20_training.txt", "images", "labels", "labels.txt"]


def test_a_stale_list_beside_the_data_does_not_hide_the_one_in_the_folder_given(unwritable, tmp_path, no_scan):
    (unwritable / "coco20_training.txt").write_bytes(b"# COCO20, of long ago\n")
    photographs = COCO20(unwritable, "training", list_folder=tmp_path)
    no_scan()
    assert COCO20(unwritable, "training", list_folder=tmp_path).pairs == photographs.pairs


@pytest.mark.parametrize("older", [None, b"# COCO20, of long ago\n"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", [(Path, "write_text"), (os, "replace")], ids=["writing", "putting it in place"])
def test_an_interrupted_write_leaves_the_older_list_or_none(where, error, older, coco, monkeypatch):
    def interrupted(path, *args, **options):
        Path(path).write_bytes(b"half a li")
        raise error

    file = coco / "coco20_training.txt"
    if older:
        file.write_bytes(older)
    with monkeypatch.context() as patch:
        patch.setattr(*where, interrupted)
        if isinstance(error, OSError):
            assert len(COCO20(coco, "training")) == 3
        else:
            with pytest.raises(KeyboardInterrupt):
                COCO20(coco, "training")
    assert {path.name: path.read_bytes() for path in coco.glob("coco20*")} == ({file.name: older} if older else {})
    assert len(COCO20(coco, "training")) == 3
    assert len(file.read_text().splitlines()) == 1 + 3


# Real data, where they are


@pytest.fixture
def real_coco(tmp_path):
    """coco20/ of the real data, in a folder of its own where the list may be written"""
    if not os.environ.get("DENSEHYBRID_DATA"):
        pytest.skip("the environment variable DENSEHYBRID_DATA names no folder of real data")
    whole = Path(os.environ["DENSEHYBRID_DATA"]).resolve() / "coco20"
    for name in ("images", "labels", "labels.txt"):
        (tmp_path / name).symlink_to(whole / name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.processes
def test_real_photographs_pass_the_rules(real_coco):
    assert len(list((real_coco / "labels/train2017").iterdir())) == 100
    for split, count in (("training", 14), ("validation", 50)):
        photographs = COCO20(real_coco, split, workers=2)
        assert len(photographs) == count
        for (image, labels, name), (_, path) in zip(photographs, photographs.pairs, strict=True):
            raw = np.array(Image.open(path))
            things = set((np.unique(raw).astype(int) + 1).tolist()) & (set(range(1, 92)) - set(REMOVED))
            assert things, name
            assert split == "validation" or things <= set(COCO_KNOWN.values()), name
            for label, known in enumerate(CLASSES):
                assert np.array_equal(labels.numpy() == label, raw == COCO_KNOWN[known] - 1), name
            assert image.shape == (3, *labels.shape) and name.endswith(f"{path.stem}.jpg")
