"""How pictures and label maps are read, whichever data set they are of."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from data import (
    StreetHazards,
)
from data.files import label_table, open_image, plain_png, read_image, read_labels
from tests.support.layouts import noise, street_frame, write
from tests.support.samples import error_of_sample


@pytest.mark.parametrize("which", [0, 1], ids=["image", "label map"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.8])
def test_a_truncated_file_is_named_wherever_it_is_cut(which, share, tmp_path):
    stored = np.random.default_rng(0).integers(1, 15, (40, 60), dtype=np.uint8)
    path = street_frame(tmp_path, image=noise(40, 60), stored=stored)[which]
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    told = error_of_sample(ValueError, StreetHazards(tmp_path, "training"))
    assert f"{path} cannot be read as an image" in told
    assert "fetch or write it again" in told


def test_a_file_that_went_away_is_named(tmp_path):
    image_path, _ = street_frame(tmp_path)
    frames = StreetHazards(tmp_path, "training")
    image_path.unlink()
    assert f"{image_path} is gone" in error_of_sample(FileNotFoundError, frames)


@pytest.mark.parametrize("mode, words", [("L", "a greyscale image"), ("LA", "a greyscale image"),
                                         ("P", "a palette image"), ("1", "a black-and-white image")])  # fmt: skip
def test_an_image_that_may_be_a_label_map_is_refused(mode, words, tmp_path):
    image_path, _ = street_frame(tmp_path)
    write(image_path, noise(4, 6), mode)
    told = error_of_sample(ValueError, StreetHazards(tmp_path, "training"))
    assert f"{image_path} is stored as {words} (mode {mode}); expected RGB or RGBA" in told
    assert "convert it, or check that no label map lies among the images" in told


def test_an_rgb_label_map_is_refused(tmp_path):
    _, label_path = street_frame(tmp_path, stored=noise(4, 6))
    told = error_of_sample(ValueError, StreetHazards(tmp_path, "training"))
    assert f"{label_path} is stored as an image (mode RGB); a label map has one value per pixel" in told


def interlaced_png(pixels):
    """The bytes of an interlaced PNG file of (8, 8, 3): Pillow reads such files and writes none"""
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    rows = [b"\0" + row.tobytes() for y, dy, x, dx in passes for row in pixels[y::dy, x::dx]]
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 1)),
        (b"IDAT", zlib.compress(b"".join(rows))),
        (b"IEND", b""),
    )
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_whoever_decodes_a_png_file_it_gives_pillows_pixels(tmp_path, capfd):
    pixels, path = noise(8, 8), tmp_path / "a.png"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for options, quick in (
        ({}, True),
        ({"dpi": (72, 72)}, True),
        ({"transparency": tuple(pixels[0, 0].tolist())}, True),
        ({"icc_profile": profile}, True),
    ):
        Image.fromarray(pixels).save(path, **options)
        assert (plain_png(path) is not None) == quick
        assert read_image(path).permute(1, 2, 0).tolist() == pixels.tolist()
    path.write_bytes(interlaced_png(pixels))
    assert plain_png(path) is None
    assert read_image(path).permute(1, 2, 0).tolist() == pixels.tolist() == np.array(Image.open(path)).tolist()
    Image.fromarray(pixels).save(path, "JPEG")
    assert plain_png(path) is None
    assert read_image(path).permute(1, 2, 0).tolist() == np.array(Image.open(path)).tolist()
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_png_file_with_a_wrong_byte_anywhere_reads_as_pillow_reads_it(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(noise(8, 8)).save(path)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            with open_image(path) as image:
                expected = np.array(image.convert("RGB")).tolist() if image.mode == "RGB" else "another mode"
        except ValueError as error:
            expected = str(error)
        try:
            found = read_image(path).permute(1, 2, 0).tolist()
        except ValueError as error:
            found = "another mode" if "is stored as" in str(error) else str(error)
        assert found == expected, place


def test_every_byte_may_be_a_known_label(tmp_path):
    path = write(tmp_path / "a.png", np.arange(256, dtype=np.uint8)[None])
    backwards = label_table({value: 255 - value for value in range(256)})
    assert read_labels(path, backwards).tolist() == [[*range(255, -1, -1)]]
    without_seven = label_table({value: 255 - value for value in range(256) if value != 7})
    with pytest.raises(ValueError, match=r"holds label value 7; this data set's values are 0-6, 8-255"):
        read_labels(path, without_seven)


def test_of_several_strange_values_the_least_is_told(tmp_path):
    path = write(tmp_path / "a.png", np.array([[300, 9, 2, 1, 70]], np.uint16))
    with pytest.raises(ValueError, match="holds label value 9; this data set's values are 1-2"):
        read_labels(path, label_table({1: 0, 2: 1}))
    path = write(tmp_path / "b.png", np.array([[1, 258]], np.uint16))
    with pytest.raises(ValueError, match="holds label value 258"):
        read_labels(path, label_table({1: 0, 2: 1}))
