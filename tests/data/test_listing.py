"""Which files count, for every data set, folder of photographs and prediction: links, hidden names, pipes, rights."""

import itertools
import os
import shutil
from pathlib import Path

import pytest

from data import COCO20, ImageFolder
from data.listing import files_below, say_once
from data.pairs import pair_files
from tests.support.layouts import LABELLED, make, make_odd, noise, write
from tools.check_data import SOURCES, check
from tools.export_scores.__main__ import images_of
from tools.predict.inputs import list_inputs

READERS = {  # of a folder of photographs -> the paths below it that are read
    "ImageFolder": lambda root: [path.relative_to(root).as_posix() for path in ImageFolder(root).paths],
    "predict": lambda root: list(list_inputs(root, root.parent / "results")),
    "export_scores": lambda root: [path.relative_to(root).as_posix() for path in images_of(root).paths],
    "check_data": lambda root: [
        path.relative_to(root).as_posix() for path, _ in SOURCES["images"].splits["all"].pairs(root)
    ],
}


@pytest.fixture(autouse=True)
def say_again():
    say_once.cache_clear()


def save(path, seed=0):
    return write(path, noise(6, 8, seed))


def splits(name, root):
    return {title: split.pairs(root) for title, split in SOURCES[name].splits.items()}


# Links to folders


@pytest.mark.parametrize("reader", READERS)
def test_links_to_folders_and_files_are_followed(reader, tmp_path):
    root = tmp_path / "album"
    save(root / "a.jpg")
    save(tmp_path / "elsewhere/deep/b.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "c.jpg").symlink_to(tmp_path / "elsewhere/deep/b.jpg")
    assert READERS[reader](root) == ["a.jpg", "c.jpg", "linked/deep/b.jpg"]


@pytest.mark.parametrize("reader", READERS)
def test_links_that_lead_back_end_the_way_down(reader, tmp_path, capsys):
    root = tmp_path / "album"
    save(root / "deep/a.jpg")
    (root / "deep/up").symlink_to(root)
    (root / "deep/here").symlink_to(".")
    (root / "one").mkdir()
    (root / "two").mkdir()
    (root / "one/other").symlink_to(root / "two")
    (root / "two/other").symlink_to(root / "one")
    assert READERS[reader](root) == ["deep/a.jpg"]
    if reader != "check_data":
        assert "4 a folder that is listed already (deep/here, ...)" in capsys.readouterr().out


@pytest.mark.parametrize("reader", READERS)
def test_a_link_beside_its_folder_doubles_nothing_and_the_folder_keeps_its_name(reader, tmp_path):
    root = tmp_path / "album"
    save(root / "town/a.jpg")
    (root / "copy").symlink_to("town")
    for number in range(8):  # each of which leads to all others
        (root / f"ring{number}").mkdir()
        for other in range(8):
            (root / f"ring{number}/{other}").symlink_to(root / f"ring{other}")
    assert READERS[reader](root) == ["town/a.jpg"]


@pytest.mark.parametrize("name", LABELLED)
def test_data_sets_are_the_same_behind_links(name, tmp_path):
    """Some of the deepest folders are moved away and linked to"""

    def pairs_below(root):
        return {
            title: [[path.relative_to(root) for path in pair] for pair in pairs]
            for title, pairs in splits(name, root).items()
        }

    expected = pairs_below(make(name, tmp_path / "plain"))
    root = make(name, tmp_path / "linked")
    for number, folder in enumerate(sorted(path for path in root.rglob("*") if path.is_dir())):
        if not folder.is_symlink() and not any(part.is_symlink() for part in folder.parents):
            deepest = max((path for path in [folder, *folder.rglob("*")] if path.is_dir()), key=lambda p: len(p.parts))
            shutil.move(deepest, tmp_path / f"moved{number}")
            deepest.symlink_to(tmp_path / f"moved{number}")
    assert any(path.is_symlink() for path in root.rglob("*")) or name == "static"
    assert pairs_below(root) == expected
    assert check(name, root)["usable"]


# What cannot be read


@pytest.fixture
def closed(monkeypatch):
    """A function that makes the system refuse to list a folder, as for a user without rights (tests may run as root)"""
    scandir, refused = os.scandir, set()

    def asked(path="."):
        if Path(path).name in refused:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", asked)
    return refused.add


@pytest.mark.parametrize("reader", READERS)
def test_a_folder_that_may_not_be_read_is_an_error_and_not_fewer_images(reader, tmp_path, closed):
    save(tmp_path / "open/a.jpg")
    save(tmp_path / "shut/b.jpg")
    closed("shut")
    with pytest.raises(OSError, match=r"the folder .*/shut cannot be read \(Permission denied\): make it"):
        READERS[reader](tmp_path)


@pytest.mark.parametrize("name", LABELLED)
def test_a_data_set_of_which_a_folder_may_not_be_read_is_refused(name, tmp_path, closed):
    root = make(name, tmp_path / "data")
    pairs = [pair for found in splits(name, root).values() for pair in found]
    for which in (0, 1):
        folder = pairs[0][which].parent
        closed(folder.name)
        with pytest.raises(OSError, match="cannot be read"):
            splits(name, root)
        results = check(name, root)
        assert not results["usable"] and any("cannot be read (Permission denied)" in group["kind"]
                                             for group in results["errors"])  # fmt: skip


def test_a_link_through_a_folder_without_rights_is_an_error(tmp_path, monkeypatch):
    save(tmp_path / "a.jpg")
    (tmp_path / "town").symlink_to("/nowhere")
    stat = os.stat

    def refused(path, **how):
        if Path(str(path)).name == "town" and how.get("follow_symlinks", True):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **how)

    class Entry:
        name, path = "town", str(tmp_path / "town")

        def is_dir(self):
            raise PermissionError(13, "Permission denied", self.path)

    monkeypatch.setattr("data.listing.os.scandir", lambda folder: Entries([Entry()]))
    with pytest.raises(OSError, match="cannot be read"):
        files_below(tmp_path, (".jpg",))


class Entries(list):
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


# Hidden files, and those of systems


HIDDEN = [
    "._a.jpg",
    ".ipynb_checkpoints/a-checkpoint.jpg",
    "@eaDir/a.jpg",
    "__MACOSX/a.jpg",
    ".Trash-1000/files/a.jpg",
    ".thumbnails/a.jpg",
    "lost+found/a.jpg",
    "deep/.ipynb_checkpoints/a.jpg",
    "deep/@eaDir/SYNO@.jpg",
]


@pytest.mark.parametrize("reader", READERS)
def test_hidden_files_and_those_of_systems_are_left_out_and_counted(reader, tmp_path, capsys):
    save(tmp_path / "a.jpg")
    for name in HIDDEN:
        save(tmp_path / name)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "deep/.git").mkdir()
    assert READERS[reader](tmp_path) == ["a.jpg"]
    assert f"left out below {tmp_path}: {len(HIDDEN) + 1} hidden or a system's (" in capsys.readouterr().out
    READERS[reader](tmp_path)
    assert capsys.readouterr().out == ""  # a line is said once


@pytest.mark.parametrize("reader", READERS)
def test_a_hidden_folder_above_hides_nothing(reader, tmp_path):
    save(tmp_path / ".cache/@eaDir/photos/a.jpg")
    assert READERS[reader](tmp_path / ".cache/@eaDir/photos") == ["a.jpg"]


@pytest.mark.parametrize("name", LABELLED)
def test_a_data_set_that_was_looked_at_with_notebooks_and_file_managers_stays_as_it_was(name, tmp_path):
    root = make(name, tmp_path / "data")
    before = splits(name, root)
    for folder in {path.parent for pairs in before.values() for pair in pairs for path in pair}:
        image = next(path for pairs in before.values() for pair in pairs for path in pair if path.parent == folder)
        for place in (".ipynb_checkpoints", "@eaDir", ".thumbnails"):
            (folder / place).mkdir()
            shutil.copy(image, folder / place / image.name)
        shutil.copy(image, folder / f"._{image.name}")
    assert splits(name, root) == before
    results = check(name, root)
    assert results["usable"] and any(group["kind"].startswith("hidden, or a system's") for group in results["notes"])


# What is no file


ODD = ["a named pipe", "a socket", "a device", "a link to nowhere"]


@pytest.mark.parametrize("kind", ODD)
def test_what_is_named_like_an_image_and_is_no_file_is_told_at_the_door(kind, tmp_path):
    save(tmp_path / "a.jpg")
    make_odd(tmp_path / "b.jpg", kind)
    for reader in ("ImageFolder", "export_scores", "check_data"):
        with pytest.raises(ValueError, match=rf"b\.jpg is {kind}.*, and no file; take it out"):
            READERS[reader](tmp_path)
    (group,) = check("images", tmp_path)["errors"]
    assert kind in group["kind"]
    assert READERS["predict"](tmp_path) == ["a.jpg", "b.jpg"]  # of which one then fails by itself


@pytest.mark.parametrize("name", LABELLED)
def test_what_is_no_file_among_the_pairs_of_a_data_set_is_told_and_not_opened(name, tmp_path):
    root = make(name, tmp_path / "data")
    pairs = splits(name, root)
    for kind, which in itertools.product(ODD, (0, 1)):
        path = next(iter(pairs.values()))[0][which]
        path.unlink()
        make_odd(path, kind)
        with pytest.raises(FileNotFoundError, match=rf"{path.name} is {kind}"):
            splits(name, root)
        results = check(name, root)
        assert any(kind in example for group in results["errors"] for example in group["examples"])
        path.unlink()
        save(path)


@pytest.mark.parametrize("reader", READERS)
def test_a_folder_named_like_an_image_is_listed_as_any_other_and_told(reader, tmp_path, capsys):
    save(tmp_path / "x.jpg/a.jpg")
    assert READERS[reader](tmp_path) == ["x.jpg/a.jpg"]
    assert "1 a folder by the name of an image (x.jpg)" in capsys.readouterr().out


# Endings


ENDINGS_OF = {".jpg": [".JPG", ".jpeg", ".JPEG", ".Jpg"], ".png": [".PNG", ".Png"]}


@pytest.mark.parametrize("name", LABELLED)
def test_endings_are_compared_without_case(name, tmp_path):
    root = make(name, tmp_path / "data")
    before = splits(name, root)
    pair = next(iter(before.values()))[0]
    endings = [(which, ending) for which, path in enumerate(pair) for ending in ENDINGS_OF[path.suffix]]
    for which, ending in endings:
        path = pair[which]
        renamed = path.rename(path.with_suffix(ending))
        found = splits(name, root)
        assert [len(pairs) for pairs in found.values()] == [len(pairs) for pairs in before.values()]
        assert renamed in [each[which] for pairs in found.values() for each in pairs]
        assert check(name, root)["usable"]
        renamed.rename(path)
    assert splits(name, root) == before


def test_pairs_of_mixed_endings_give_the_same_samples(tmp_path):
    plain, mixed = (COCO20(make("coco20", tmp_path / name), "training") for name in ("plain", "mixed"))
    expected = [plain[index] for index in range(len(plain))]
    for number, path in enumerate(sorted((tmp_path / "mixed/images").rglob("*.jpg"))):
        path.rename(path.with_suffix((".JPG", ".jpeg", ".jpg")[number % 3]))
    for path in (tmp_path / "mixed/labels").rglob("*.png"):
        path.rename(path.with_suffix(".PNG"))
    mixed = COCO20(tmp_path / "mixed", "training")
    assert len(mixed) == len(expected)
    for one, other in zip(expected, (mixed[index] for index in range(len(mixed))), strict=True):
        assert one[0].equal(other[0]) and one[1].equal(other[1])


def test_two_files_that_differ_in_their_ending_alone_are_told(tmp_path):
    root = make("coco20", tmp_path)
    path = sorted((root / "images/train2017").iterdir())[0]
    shutil.copy(path, path.with_suffix(".JPEG"))
    with pytest.raises(FileNotFoundError, match=r"differ in their ending alone, and one is needed; take one out"):
        COCO20(root, "training")
    assert "differ in their ending alone" in check("coco20", root)["errors"][0]["kind"]


def test_an_image_of_another_kind_is_told_beside_its_label_map(tmp_path):
    root = make("street-hazards", tmp_path)
    path = root / "train/images/training/t1/0.png"
    path.rename(path.with_suffix(".webp"))
    with pytest.raises(FileNotFoundError, match=r"0\.png has no image .*0\.webp is there, .* are \*\.png: convert"):
        SOURCES["street-hazards"].splits["training"].pairs(root)


# The rule itself


def test_a_listing_says_what_each_thing_is(tmp_path):
    save(tmp_path / "b/c.PNG")
    save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "x.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / ".hidden.png").write_text("x")
    (tmp_path / ".hidden.txt").write_text("x")
    (tmp_path / "b/up").symlink_to("..")
    found = files_below(tmp_path, (".png",))
    told = [[path.relative_to(tmp_path).as_posix() for path in paths] for paths in found]
    assert told == [["a.png", "b/c.PNG"], ["loop.png"], ["notes.txt"], [".hidden.png"], ["b/up"], ["x.png"]]


def test_an_ending_may_reach_back_over_a_folder(tmp_path):
    for name in ("a.labels/map.png", "a.labels/other.png", "b/c.Labels/MAP.png", "map.png"):
        save(tmp_path / name)
    files = files_below(tmp_path, (".labels/map.png",)).files
    assert [path.relative_to(tmp_path).as_posix() for path in files] == ["a.labels/map.png", "b/c.Labels/MAP.png"]


def test_what_file_systems_hand_out_in_any_order_is_sorted(tmp_path, monkeypatch):
    for name in ("b/2.png", "b/1.png", "a/9.png", "a.png"):
        save(tmp_path / name)
    expected = files_below(tmp_path, (".png",)).files
    assert expected == sorted(tmp_path.rglob("*.png"))
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: Entries(reversed(list(scandir(path)))))
    assert files_below(tmp_path, (".png",)).files == expected
    assert pair_files(tmp_path, tmp_path, "", every_image=False) == [(path, path) for path in expected]
