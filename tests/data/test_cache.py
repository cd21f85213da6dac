"""Decoded copies on the disk: read back bit by bit, made anew when the source changes, whole or not there"""

import os
import resource
import signal
import subprocess
import sys
from functools import partial, wraps
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset

import data.files
import data.images
from benchmarks.loading import plain_crop
from data import (
    ADE20K,
    COCO20,
    AnomalyTrack,
    Cityscapes,
    FishyscapesStatic,
    ImageFolder,
    LostAndFound,
    MaskedPatches,
    ObstacleTrack,
    RoadAnomaly,
    StreetHazards,
    WithNegatives,
    train_transform,
)
from engine.loader import SeededSamples, batches, training_loader
from errors import message_of
from labels import IGNORE, OUTLIER
from methods.real_negatives import negative_images
from tests.support.layouts import ade20k_photograph, make, noise, pair, street_frame
from tests.support.samples import MEAN, smooth_noise

PROJECT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def copies(cache):
    return sorted(path.name for path in cache.iterdir())


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a == b if isinstance(a, str) else a.dtype == b.dtype and torch.equal(a, b)


def streets(root, cache, transform=None):
    return StreetHazards(root, "training", transform, cache=cache)


@pytest.fixture
def frame(tmp_path):
    """One frame of 90x60 noise and every label: (root, image file, label file)"""
    stored = np.random.default_rng(1).integers(1, 15, (60, 90), dtype=np.uint8)
    return tmp_path / "sh", *street_frame(tmp_path / "sh", image=noise(60, 90), stored=stored)


def decodes(monkeypatch):
    """The names of the files that are decoded from here on"""
    read = []
    for original in (data.files.read_image, data.files.read_photograph, data.files.read_labels):

        @wraps(original)
        def told(path, how, *more, original=original):
            read.append(path.name)
            return original(path, how, *more)

        for module in (data.files, data.images):
            monkeypatch.setattr(module, original.__name__, told, raising=False)
    return read


# What is read back


@pytest.mark.slow
def test_copies_are_the_files_bit_by_bit_at_the_first_visit_and_later(street_hazards, tmp_path):
    transform = train_transform(40, (0.5, 2.0), MEAN, with_content=True)
    for applied in (None, transform):
        plain = SeededSamples(streets(street_hazards, None, applied), 3)
        kept = SeededSamples(streets(street_hazards, tmp_path / "cache", applied), 3)
        for epoch in range(3):
            for index in range(10):
                assert_same(plain[epoch, index], kept[epoch, index])
    assert len(copies(tmp_path / "cache")) == 20  # ten frames, image and label map, at whatever crop


def test_a_later_visit_decodes_nothing(frame, tmp_path, monkeypatch):
    dataset = streets(frame[0], tmp_path / "cache")
    read = decodes(monkeypatch)
    for _ in range(3):
        dataset[0]
    assert read == ["000.png", "000.png"]


def test_without_a_cache_nothing_is_written(frame, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    streets(frame[0], None)[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_images_of_every_mode_and_labels_of_sixteen_bits_come_back_as_rgb_and_bytes(tmp_path):
    ade20k_photograph(tmp_path, "grey", mode="L")
    ade20k_photograph(tmp_path, "colour", stored=np.full((40, 40), 150, np.uint16))
    plain, kept = ADE20K(tmp_path), ADE20K(tmp_path, cache=tmp_path / "cache")
    for _ in range(2):
        for index in range(2):
            assert_same(plain[index], kept[index])
    (tmp_path / "pictures").mkdir()
    for mode in ("RGB", "RGBA", "L", "LA", "P"):
        Image.fromarray(noise(5, 7)).convert(mode).save(tmp_path / "pictures" / f"{mode}.png")
    plain, kept = ImageFolder(tmp_path / "pictures"), ImageFolder(tmp_path / "pictures", cache=tmp_path / "cache")
    for _ in range(2):
        for index in range(5):
            assert_same(plain[index], kept[index])


def test_a_copy_takes_three_bytes_a_pixel_one_for_its_label_and_a_head(frame, tmp_path):
    streets(frame[0], tmp_path / "cache")[0]
    sizes = sorted(path.stat().st_size for path in (tmp_path / "cache").iterdir())
    assert sizes == [16 + 60 * 90, 16 + 3 * 60 * 90]


def test_what_is_written_to_a_sample_does_not_reach_its_copy(frame, tmp_path):
    dataset = streets(frame[0], tmp_path / "cache")
    for _ in range(3):
        image, labels, _ = dataset[0]
        assert_same(dataset[0], streets(frame[0], None)[0])
        image.zero_()
        labels.fill_(3)


@pytest.mark.slow
def test_a_copy_is_mapped_and_only_the_rows_that_are_looked_at_are_read(tmp_path):
    if not Path("/proc/self/smaps").exists():
        pytest.skip("what a process has read of a mapped file is told by Linux")
    street_frame(tmp_path / "sh", image=np.zeros((4000, 2000, 3), np.uint8), stored=np.ones((4000, 2000), np.uint8))
    dataset = streets(tmp_path / "sh", tmp_path / "cache")
    dataset[0]
    image, _, _ = dataset[0]
    assert image[:, 2000:2010].sum() == 0
    assert read_of_the_copy() < 6000  # of 23,437 kB: the system maps some around those that are wanted
    assert image.sum() == 0
    assert read_of_the_copy() > 20_000


def read_of_the_copy():
    """Of the largest mapping of a copy, the kB that this process has looked at"""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    sizes = []
    for place, line in enumerate(lines):
        if "cache/000-" in line:
            size, rss = (next(told for told in lines[place:] if told.startswith(key)) for key in ("Size:", "Rss:"))
            sizes.append((int(size.split()[1]), int(rss.split()[1])))
    return max(sizes)[1]


@pytest.mark.processes
@pytest.mark.slow
def test_no_file_stays_open_and_torch_does_not_warn(frame, tmp_path):
    if not Path("/proc/self/fd").exists():
        pytest.skip("the open files of a process are told by Linux")
    script = f"""
import os, sys, warnings
sys.path.insert(0, {str(PROJECT)!r})
from data import StreetHazards
warnings.simplefilter("error")
for cache in (None, {str(tmp_path / "cache")!r}):
    frames = StreetHazards({str(frame[0])!r}, "training", cache=cache)
    frames[0]
    before = len(os.listdir("/proc/self/fd"))
    held = [frames[0] for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) == before, cache
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# When a copy is made anew


def test_a_changed_file_is_decoded_again(frame, tmp_path):
    root, image_path, label_path = frame
    dataset = streets(root, tmp_path / "cache")
    dataset[0]
    size, times = image_path.stat().st_size, image_path.stat()
    Image.fromarray(noise(60, 90, seed=1)).save(image_path)  # of another time
    os.utime(image_path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert_same(dataset[0], streets(root, None)[0])
    Image.fromarray(np.full((60, 90, 3), 9, np.uint8)).save(image_path)  # of the same time and another size
    os.utime(image_path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert image_path.stat().st_size != size
    assert dataset[0][0].unique().tolist() == [9]
    Image.fromarray(np.full((60, 90), 14, np.uint8)).save(label_path)
    assert dataset[0][1].unique().tolist() == [OUTLIER]
    assert_same(dataset[0], streets(root, None)[0])


def test_another_table_of_labels_has_copies_of_its_own(frame, tmp_path):
    dataset = streets(frame[0], tmp_path / "cache")
    assert (dataset[0][1] == OUTLIER).any()
    outliers = dataset[0][1] == OUTLIER
    dataset.table = dataset.table.masked_fill(dataset.table == OUTLIER, IGNORE)
    assert (dataset[0][1][outliers] == IGNORE).all()
    assert not (dataset[0][1] == OUTLIER).any()
    dataset.table = dataset.table.masked_fill(torch.arange(256) == 14, -1)
    with pytest.raises(ValueError, match="holds label value 14; this data set's values are 1-13"):
        dataset[0]


def test_a_file_of_the_same_name_elsewhere_has_its_own_copy(frame, tmp_path):
    root, image_path, label_path = frame
    other = tmp_path / "other"
    paths = street_frame(other, image=noise(60, 90, seed=1), stored=np.full((60, 90), 1, np.uint8))
    for path in (*paths, image_path, label_path):  # all of one size and time
        path.write_bytes(path.read_bytes().ljust(50_000, b"\0"))
        os.utime(path, ns=(0, 0))
    for folder in (root, other, root, other):
        assert_same(streets(folder, tmp_path / "cache")[0], streets(folder, None)[0])


def test_a_picture_that_one_data_set_takes_is_still_refused_by_another(tmp_path):
    root = tmp_path / "sh"
    image_path, _ = street_frame(root)
    Image.fromarray(noise(4, 6)[..., 0]).save(image_path)
    ImageFolder(image_path.parent, cache=tmp_path / "cache")[0]
    with pytest.raises(ValueError, match=r"a greyscale image \(mode L\); expected RGB or RGBA"):
        streets(root, tmp_path / "cache")[0]


@pytest.mark.parametrize("which", [1, 2], ids=["image", "label map"])
def test_damaged_and_missing_files_say_the_same_with_a_cache(which, frame, tmp_path):
    root, path = frame[0], frame[which]
    datasets = [streets(root, cache) for cache in (None, tmp_path / "cache")]
    datasets[1][0]

    def told(dataset):
        with pytest.raises((ValueError, FileNotFoundError)) as raised:
            dataset[0]
        return type(raised.value), str(raised.value)

    path.write_bytes(path.read_bytes()[:500])
    assert told(datasets[0]) == told(datasets[1])
    assert f"{path} cannot be read" in told(datasets[1])[1]
    path.unlink()
    assert told(datasets[0]) == told(datasets[1])
    assert f"{path} is gone" in told(datasets[1])[1]


# Writing


@pytest.mark.parametrize("left", [0, 8, 15, 16, 1000, 16199, 16217])
def test_a_copy_that_is_not_whole_is_not_taken(left, frame, tmp_path):
    cache = tmp_path / "cache"
    dataset = streets(frame[0], cache)
    dataset[0]
    expected = streets(frame[0], None)[0]
    for path in cache.iterdir():
        content = path.read_bytes()
        path.write_bytes((content + b"x")[:left])
    assert_same(dataset[0], expected)
    assert sorted(path.stat().st_size for path in cache.iterdir()) == [16 + 5400, 16 + 16200]
    assert_same(dataset[0], expected)


@pytest.mark.processes
@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_that_is_taken_for_a_copy(frame, tmp_path):
    cache = tmp_path / "cache"
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(PROJECT)!r})
from data import StreetHazards
os.fsync = lambda file: os.truncate(file, 5000) or os.kill(os.getpid(), signal.SIGKILL)
StreetHazards({str(frame[0])!r}, "training", cache={str(cache)!r})[0]
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    (left,) = copies(cache)
    assert left.endswith(".part")
    for _ in range(2):
        assert_same(streets(frame[0], cache)[0], streets(frame[0], None)[0])
    assert len(copies(cache)) == 3


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(frame, tmp_path):
    cache = tmp_path / "cache"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # a file may not grow beyond these bytes
    try:
        with pytest.raises(OSError, match="could not write") as raised:
            streets(frame[0], cache)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = str(raised.value)
    assert f"could not write {cache}/000-" in told and f"the decoded copy of {frame[1]}: it takes 0.0 MB" in told
    assert "make room, give another folder as cache, or go on without one" in told
    assert message_of(raised.value)  # so that a loader's worker hands it over as it is
    assert copies(cache) == []
    assert_same(streets(frame[0], cache)[0], streets(frame[0], None)[0])


def test_a_cache_that_is_a_file_is_named(frame, tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(OSError, match=f"could not write {tmp_path}/cache/000-.*give another folder as cache"):
        streets(frame[0], tmp_path / "cache")[0]


@pytest.mark.processes
@pytest.mark.slow
def test_workers_and_processes_that_write_at_once_all_read_the_same(street_hazards, tmp_path):
    cache = tmp_path / "cache"
    script = f"""
import sys
sys.path.insert(0, {str(PROJECT)!r})
from data import StreetHazards
plain, kept = (StreetHazards({str(street_hazards)!r}, "training", cache=cache) for cache in (None, {str(cache)!r}))
for _ in range(3):
    for (image, labels, _), (other, its, _) in zip(plain, kept):
        assert image.equal(other) and labels.equal(its)
"""
    processes = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    transform = train_transform(32, (0.5, 2.0), MEAN)
    loaded = []
    for folder in (cache, None):
        often = ConcatDataset([streets(street_hazards, folder, transform)] * 3)
        loader = training_loader(often, seed=0, batch_size=2, drop_last=True, workers=2 if folder else 0, device=CPU,
                                 process=0, processes=1)  # fmt: skip
        loaded.append([(names, *tensors) for tensors, names in batches(loader)])
    assert [process.wait() for process in processes] == [0, 0]
    for (names, *tensors), (expected_names, *expected) in zip(*loaded, strict=True):
        assert names == expected_names
        assert_same(tensors, expected)
    assert len(copies(cache)) == 20 and not any(name.endswith(".part") for name in copies(cache))


# Who takes one


SETS = {
    "cityscapes": partial(Cityscapes, split="train"),
    "coco20": partial(COCO20, split="training"),
    "ade20k": ADE20K,
    "lf": LostAndFound,
    "static": FishyscapesStatic,
    "anomaly-track": AnomalyTrack,
    "obstacle-track": ObstacleTrack,
    "road-anomaly": RoadAnomaly,
    "ade20k, as negatives": lambda root, cache: negative_images(root, cache=cache),
}


@pytest.mark.parametrize("name", SETS)
def test_every_data_set_takes_a_cache(name, tmp_path, monkeypatch):
    root = make(name.split(",")[0], tmp_path / "data")
    plain, kept = (SETS[name](root, cache=cache) for cache in (None, str(tmp_path / "cache")))
    read = decodes(monkeypatch)
    for _ in range(2):
        assert_same(plain[0], kept[0])
    assert len(read) == 2 * 2 + 2  # both files at each visit without a cache, once with one


def test_photographs_of_negatives_are_kept_with_and_without_label_maps(tmp_path, monkeypatch):
    pair(tmp_path, "pictures/a.png", "masks/a.png", np.full((30, 40), 5, np.uint8))
    given = {"images": tmp_path / "pictures", "cache": tmp_path / "cache"}
    read = decodes(monkeypatch)
    with_masks = negative_images(masks=tmp_path / "masks", **given)
    for _ in range(2):
        assert_same(with_masks[0], ImageFolder(tmp_path / "pictures", masks=tmp_path / "masks")[0])
    without = negative_images(**given)
    assert without[0][1].unique().tolist() == [0]
    assert read == ["a.png", "a.png"] + ["a.png", "a.png"] * 2 + ["a.png"]  # without label maps it may be turned


@pytest.mark.slow
def test_street_scenes_with_negatives_are_the_same_from_copies(street_hazards, ade20k, tmp_path):
    def samples(cache):
        transform = train_transform(40, (0.5, 2.0), MEAN, with_content=True)
        negatives = MaskedPatches(negative_images(ade20k, cache=cache), 48, 32)
        return SeededSamples(WithNegatives(streets(street_hazards, cache, transform), negatives), 5)

    plain, kept = samples(None), samples(tmp_path)
    for epoch in range(2):
        for index in range(10):
            assert_same(plain[epoch, index], kept[epoch, index])


# The crops are those of the plain way, draw by draw


def plain_and_ours(image, labels, scale, seed, crop_size=32):
    crops = []
    for crop in (partial(plain_crop, image.float() / 255, labels.long(), crop_size, scale, MEAN),
                 partial(train_transform(crop_size, scale, MEAN), image, labels)):  # fmt: skip
        torch.manual_seed(seed)
        crops.append(crop())
    return crops


def test_at_scale_one_a_crop_is_that_of_the_whole_image_resized_cropped_and_flipped():
    image, labels = smooth_noise(50, 70)
    for height, width in ((20, 70), (50, 25), (50, 70)):  # two of them are padded
        for seed in range(20):
            small, its_labels = image[:, :height, :width], labels[:height, :width]
            (plain, plain_labels), ours = plain_and_ours(small, its_labels, (1, 1), seed)
            assert (255 * plain).round().byte().equal(ours[0]) and plain_labels.equal(ours[1].long())


def test_at_any_scale_a_crop_differs_from_that_of_the_whole_image_by_the_rounding_of_its_place_alone():
    image, labels = smooth_noise(90, 120)
    differences, equal = [], []
    for seed in range(200):
        (plain, plain_labels), ours = plain_and_ours(image, labels, (0.5, 2.0), seed)
        differences.append((255 * plain - ours[0]).abs().mean().item())
        equal.append((plain_labels == ours[1]).float().mean().item())
    assert np.mean(differences) < 3 and max(differences) < 9  # of 255; another crop's mean is 52
    assert np.mean(equal) > 0.9 and min(equal) > 0.75
