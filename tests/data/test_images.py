"""Photographs of any folder."""

import numpy as np
import pytest
import torch
from PIL import Image

from data import ImageFolder
from tests.support.layouts import write

# Photographs of any folder


def test_images_at_any_depth_are_found_in_order(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    write(tmp_path / "b/deep/er.PNG", colours)
    write(tmp_path / "a.jpg", colours)
    write(tmp_path / "b/grey.png", colours[:, :, 0])
    write(tmp_path / "c.bmp", colours)
    (tmp_path / "notes.txt").write_text("no image")
    folder = ImageFolder(tmp_path)
    samples = [folder[index] for index in range(len(folder))]
    assert [name for *_, name in samples] == ["a.jpg", "b/deep/er.PNG", "b/grey.png", "c.bmp"]
    for image, labels, _ in samples:
        assert image.shape == (3, 6, 5) and image.dtype == labels.dtype == torch.uint8
        assert labels.shape == (6, 5) and not labels.any()
    assert samples[1][0].equal(torch.from_numpy(colours).permute(2, 0, 1))
    assert all(channel.equal(torch.from_numpy(colours[:, :, 0])) for channel in samples[2][0])


def test_label_maps_of_a_folder_lie_at_the_same_places_and_255_is_an_id_too(tmp_path):
    photograph = np.zeros((4, 6, 3), np.uint8)
    ids = np.array([[0, 1, 2, 7, 254, 255]] * 4, np.uint8)
    for place in ("images/a", "masks/a"):
        (tmp_path / place).mkdir(parents=True)
    Image.fromarray(photograph).save(tmp_path / "images/a/b.jpg")
    Image.fromarray(ids).save(tmp_path / "masks/a/b.png")
    _, labels, name = ImageFolder(tmp_path / "images", masks=tmp_path / "masks")[0]
    assert (labels.tolist(), name) == ([[0, 1, 2, 7, 254, 254]] * 4, "a/b.jpg")
    Image.fromarray(ids[:2]).save(tmp_path / "masks/a/b.png")
    with pytest.raises(ValueError, match=r"b.jpg is 6x4 but its label map .*b.png is 6x2"):
        ImageFolder(tmp_path / "images", masks=tmp_path / "masks")[0]
    (tmp_path / "masks/a/b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b.jpg has no label map .*b.png \(1 such images\)"):
        ImageFolder(tmp_path / "images", masks=tmp_path / "masks")


def test_missing_and_empty_folders_of_photographs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder nowhere; give one that holds images"):
        ImageFolder("nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=rf"no image \(\.jpg, .*\) below {tmp_path}"):
        ImageFolder(tmp_path)


def test_a_broken_photograph_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises((ValueError, OSError), match=r"broken\.png"):
        ImageFolder(tmp_path)[0]
