"""Which picture files are read, how, and what is said of the others: every cell of the table in docs/data.md."""

import ast
import io
import re
import struct
import warnings
from fractions import Fraction
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from data import ImageFolder, StreetHazards
from data.cache import cached
from data.decoding import MAX_PIXELS, eight_bits, open_image, orientation, quiet_pillow
from data.files import label_table, plain_png, read_image, read_labels, read_photograph
from data.listing import say_once
from tests.support.layouts import ODD, claiming, make_odd
from tools.check_data import check

PROJECT = Path(__file__).resolve().parents[2]
EVERY_BYTE = label_table({value: value for value in range(256)})
HEIGHT, WIDTH = 6, 8


@pytest.fixture(autouse=True)
def say_again():
    say_once.cache_clear()


def noise(*shape, most=256, seed=0):
    kind = np.uint8 if most <= 256 else np.uint16
    return np.random.default_rng(seed).integers(0, most, shape, dtype=kind)


def save(path, image, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **how)
    return path


# The table of docs/data.md. Each kind of picture is (what writes it, its colours, its label values), by hand.

GREY = noise(HEIGHT, WIDTH)
GREY[0, 0] = 255
COLOURS = noise(HEIGHT, WIDTH, 3)
DEEP = noise(HEIGHT, WIDTH, most=1024)
DEEP[0, 0] = 1000  # 10 bits are in use
DEEP_COLOURS = noise(HEIGHT, WIDTH, 3, most=1024)
DEEP_COLOURS[0, 0] = 1000
OPAQUE = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
PALETTE = noise(256, 3, seed=1)


def thrice(grey):
    return np.repeat(grey[..., None], 3, axis=-1)


def in_a_palette(**how):
    image = Image.fromarray(GREY)
    image.putpalette(PALETTE.ravel().tolist())
    return lambda path: save(path, image, **how)


def cmyk(path):
    save(path, Image.fromarray(COLOURS).convert("CMYK"), format="TIFF")


def deep_png(values):
    return lambda path: path.write_bytes(imagecodecs.png_encode(values))


KINDS = {
    "1 bit": (lambda path: save(path, Image.fromarray(GREY > 99)), thrice((GREY > 99) * 255), GREY > 99),
    "grey, 8 bits": (lambda path: save(path, GREY), thrice(GREY), GREY),
    "grey, 10 bits in 16": (deep_png(DEEP), thrice(DEEP // 4), None),
    "grey with alpha": (lambda path: save(path, np.dstack([GREY, OPAQUE])), thrice(GREY), GREY),
    "RGB, channels equal": (lambda path: save(path, thrice(GREY)), thrice(GREY), GREY),
    "RGB, channels differ": (lambda path: save(path, COLOURS), COLOURS, None),
    "RGB, 10 bits in 16": (deep_png(DEEP_COLOURS), DEEP_COLOURS // 4, None),
    "RGBA": (lambda path: save(path, np.dstack([COLOURS, GREY])), COLOURS, None),
    "palette": (in_a_palette(), PALETTE[GREY], GREY),
    "palette with transparency": (in_a_palette(transparency=bytes(range(256))), PALETTE[GREY], GREY),
    "CMYK": (cmyk, COLOURS, None),
    "32 bits, floats": (lambda path: save(path, GREY.astype(np.float32), format="TIFF"), None, None),
    "32 bits, whole numbers": (lambda path: save(path, GREY.astype(np.int32), format="TIFF"), None, GREY),
    "JPEG, called .png": (lambda path: save(path, np.full((HEIGHT, WIDTH, 3), 77, np.uint8), format="JPEG"),
                          np.full((HEIGHT, WIDTH, 3), 77), None),
}  # fmt: skip


def table_of_the_page():
    text = (PROJECT / "docs/data.md").read_text()
    rows = re.search(r"^\| stored as .*?\n\|[-|]+\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL).group(1).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {name: [re.match(r"\w+", cell).group() for cell in rest] for name, *rest in cells}


TABLE = table_of_the_page()


def test_the_table_has_a_row_for_each_kind_of_picture():
    assert TABLE.keys() == KINDS.keys()


@pytest.mark.parametrize("column", ["image", "photograph", "label map"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_of_the_table_is_what_happens(kind, column, tmp_path, capfd):
    write, colours, values = KINDS[kind]
    path = tmp_path / "a.png"
    write(path)
    said = TABLE[kind][["image", "photograph", "label map"].index(column)]
    read = {
        "image": lambda: read_image(path),
        "photograph": lambda: read_photograph(path, True),
        "label map": lambda: read_labels(path, EVERY_BYTE),
    }[column]
    if kind == "grey, 10 bits in 16" and column == "label map":  # accepted for what a byte holds
        with pytest.raises(ValueError, match=f"holds label value {DEEP[DEEP > 255].min()}"):
            read()
        write, values = deep_png(GREY.astype(np.uint16)), GREY
        write(path)
    if said == "refused":
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read()
    elif column == "label map":
        np.testing.assert_array_equal(read().numpy(), values)
    else:
        np.testing.assert_array_equal(read().permute(1, 2, 0).numpy(), colours)
        assert said == "accepted" or read_image_fails_or_changes(path)
    assert capfd.readouterr() == ("", "")


def read_image_fails_or_changes(path):
    """Whether a picture is none of 8-bit RGB as it is stored"""
    with Image.open(path) as image:
        return image.mode != "RGB" or path.read_bytes()[24] == 16


@pytest.mark.parametrize("kind", KINDS)
def test_check_data_says_of_each_kind_what_the_data_sets_do(kind, tmp_path):
    write, _, _ = KINDS[kind]
    for column, name in enumerate(("0_rgb.jpg", None, "0_labels.png")):
        root = tmp_path / str(column)
        if column == 1:
            save(root / "whole.png", COLOURS)
            write(root / "photo.png")
            taken, told = len(ImageFolder(root)) == 2, check("images", root)
            assert taken == (TABLE[kind][column] != "refused") == (not told["warnings"]) and told["usable"]
            continue
        save(root / "0_rgb.jpg", np.full((HEIGHT, WIDTH, 3), 77, np.uint8))
        save(root / "0_labels.png", np.array([[0, 1]], np.uint8).repeat(4, 1).repeat(6, 0))
        write(root / "as.png")  # whose ending chooses how it is written
        (root / "as.png").rename(root / name)
        kinds = [group["kind"] for group in check("static", root)["errors"]]
        wrong = [text for text in kinds if text.startswith(("images that are not", "label maps saved"))]
        assert bool(wrong) == (TABLE[kind][column] == "refused"), kinds


def test_sixteen_bit_label_maps_in_colours_are_read_by_their_whole_value(tmp_path):
    for value, taken in ((7, True), (263, False)):  # whose lower bytes are equal; Pillow gives the upper ones
        (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.full((4, 4, 3), value, np.uint16)))
        if taken:
            assert read_labels(tmp_path / "a.png", EVERY_BYTE).unique().tolist() == [7]
        else:
            with pytest.raises(ValueError, match="holds label value 263"):
                read_labels(tmp_path / "a.png", EVERY_BYTE)


def test_a_label_map_in_which_something_is_transparent_is_refused(tmp_path):
    alpha = OPAQUE.copy()
    alpha[3, 2] = 254
    for channels in (GREY[..., None], thrice(GREY)):
        save(tmp_path / "a.png", np.dstack([channels, alpha]))
        with pytest.raises(ValueError, match=r"with transparent pixels, of which nobody knows the label"):
            read_labels(tmp_path / "a.png", EVERY_BYTE)
        save(tmp_path / "a.png", np.dstack([channels, OPAQUE]))
        np.testing.assert_array_equal(read_labels(tmp_path / "a.png", EVERY_BYTE).numpy(), GREY)


@pytest.mark.parametrize(
    "largest, shift", [(200, 0), (255, 0), (256, 2), (1023, 2), (1024, 4), (4095, 4), (4096, 6), (16384, 8), (65535, 8)]
)
def test_the_upper_bits_of_those_in_use_are_taken(largest, shift):
    values = np.array([[0, 77, largest]], np.uint16)
    assert eight_bits(values).tolist() == [[0, 77 // 2**shift, largest // 2**shift]]


@pytest.mark.parametrize(
    "ending", ["jpg", "JPG", "jpeg", "jfif", "png", "PNG", "webp", "bmp", "tif", "tiff", "gif", "avif"]
)
def test_photographs_of_each_ending_are_found_and_read(ending, tmp_path):
    image = Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 90))
    how = {"format": "JPEG"} if ending == "jfif" else {}
    try:
        save(tmp_path / f"a.{ending}", image, **how)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"this Pillow writes no {ending}")
    ((pixels, _, name),) = ImageFolder(tmp_path)
    assert name == f"a.{ending}" and pixels.shape == (3, HEIGHT, WIDTH)
    assert (pixels.float().mean((1, 2)) - torch.tensor([200.0, 30, 90])).abs().max() < 6


def test_of_several_pictures_in_a_file_the_first_is_read(tmp_path):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue")]
    for ending in ("gif", "tif", "webp"):
        save(tmp_path / f"a.{ending}", frames[0], save_all=True, append_images=frames[1:])
        pixels = read_photograph(tmp_path / f"a.{ending}", True)
        assert pixels[0].min() > 240 and pixels[2].max() < 15


# Size


def test_a_picture_above_the_limit_is_refused_by_its_header(tmp_path, capfd):
    path = claiming(tmp_path / "a.png", 60000, 60000)
    for read in (open_image, read_image, plain_or_refused, lambda path: read_photograph(path, True),
                 lambda path: read_labels(path, EVERY_BYTE), lambda path: open_image(path, decoded=False)):  # fmt: skip
        with warnings.catch_warnings(), pytest.raises(ValueError) as error:
            warnings.simplefilter("error")
            read(path)
        assert str(error.value).startswith(f"{path} claims 60000x60000 pixels, more than the 250,000,000 that are read")
        assert "--max_pixels" in str(error.value)
    assert capfd.readouterr() == ("", "")


def plain_or_refused(path):
    assert plain_png(path) is None
    open_image(path)


def test_up_to_the_limit_pillows_own_is_not_heard_and_stays_as_it_was(tmp_path, monkeypatch, capfd):
    path = save(tmp_path / "a.jpg", noise(20, 30, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(path).size == (30, 20)
        with pytest.raises(ValueError, match="30x20"):
            open_image(path, max_pixels=599)
        assert open_image(path, max_pixels=600).size == (30, 20)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    assert capfd.readouterr() == ("", "")


def test_the_faster_decoder_keeps_to_the_limit_too(tmp_path):
    path = save(tmp_path / "a.png", noise(20, 30, 3))
    assert plain_png(path, 600) is not None and plain_png(path, 599) is None
    with pytest.raises(ValueError, match="30x20"):
        read_image(path, max_pixels=599)


def test_the_limit_lets_the_largest_telephones_pictures_pass():
    assert 200_000_000 < MAX_PIXELS < 2**28


def test_a_folder_leaves_out_what_is_too_large_and_the_flag_raises_the_limit(tmp_path, capsys):
    save(tmp_path / "small.png", noise(10, 10, 3))
    save(tmp_path / "large.png", noise(30, 30, 3))
    assert [name for *_, name in ImageFolder(tmp_path, max_pixels=100)] == ["small.png"]
    assert "1 over 100 pixels, the limit (--max_pixels) (large.png)" in capsys.readouterr().out
    assert len(ImageFolder(tmp_path, max_pixels=900)) == 2
    assert len(ImageFolder(tmp_path)) == 2


def test_check_data_tells_what_is_too_large_and_has_the_flag_too(tmp_path):
    save(tmp_path / "0_rgb.jpg", noise(20, 30, 3))
    save(tmp_path / "0_labels.png", noise(20, 30, most=2))
    for quick in (False, True):
        images, labels = check("static", tmp_path, quick=quick, max_pixels=599)["errors"]
        assert (images["kind"], labels["kind"]) == ("images that are not read", "label maps that are not read")
        assert "30x20" in images["examples"][0]
    assert check("static", tmp_path, max_pixels=600)["usable"]


# Damage


def parts_of(content):
    place, parts = 8, []
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        parts.append((content[place + 4 : place + 8], place))
        place += 12 + length
    return parts


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_png_file_is_refused_where_pillows_verify_or_load_refuses_it(mode, tmp_path, capfd):
    path = tmp_path / "a.png"
    Image.fromarray(noise(12, 16, 3)).convert(mode).save(path)
    content, accepted = path.read_bytes(), 0
    for place in range(8, len(content)):
        for flipped in (0x01, 0x20):
            damaged = content[:place] + bytes([content[place] ^ flipped]) + content[place + 1 :]
            try:
                with quiet_pillow():
                    Image.open(io.BytesIO(damaged)).verify()
                    image = Image.open(io.BytesIO(damaged))
                    image.load()
                expected = np.array(image.convert("RGB"))
            except Exception:
                expected = None
            path.write_bytes(damaged)
            try:
                found = read_photograph(path, True).permute(1, 2, 0).numpy()
            except ValueError:
                found = None
            assert (found is None) == (expected is None), (place, flipped)
            assert found is None or np.array_equal(found, expected)
            accepted += found is not None
    assert accepted == 16  # length and checksum of the end, which nobody reads
    assert capfd.readouterr() == ("", "")


def test_a_png_file_whose_data_have_a_wrong_length_is_refused_by_both_decoders(tmp_path):
    path = tmp_path / "a.png"
    for pixels, read in ((noise(40, 60, 3), read_image), (noise(40, 60), lambda path: read_labels(path, EVERY_BYTE))):
        Image.fromarray(pixels).save(path)
        content = path.read_bytes()
        ((_, place),) = [part for part in parts_of(content) if part[0] == b"IDAT"]
        length = int.from_bytes(content[place : place + 4], "big")
        for bit in range(32):
            path.write_bytes(content[:place] + (length ^ 1 << bit).to_bytes(4, "big") + content[place + 4 :])
            assert plain_png(path) is None
            with pytest.raises(ValueError, match=r"a\.png cannot be read as an image: .*; fetch or write it again"):
                read(path)


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 20}])
def test_a_jpeg_file_may_lack_its_end_marker_and_nothing_else(how, tmp_path):
    path = tmp_path / "a.jpg"
    smooth = Image.fromarray(noise(8, 10, 3)).resize((100, 80), Image.Resampling.BICUBIC)
    smooth.save(path, **how)
    content = path.read_bytes()
    whole = read_photograph(path, True)
    assert content.endswith(b"\xff\xd9") and "no end marker" not in open_image(path).info
    for lacking in (1, 2):
        path.write_bytes(content[:-lacking])
        assert read_photograph(path, True).equal(whole) and open_image(path).info["no end marker"]
    start = content.rindex(b"\xff\xda")
    for left in (start + 20, (start + len(content)) // 2, len(content) - 10, len(content) - 6):
        path.write_bytes(content[:left])
        with pytest.raises(ValueError, match=r"a\.jpg cannot be read as an image: .*truncated"):
            read_photograph(path, True)


def test_a_jpeg_file_that_ends_where_a_restart_marker_would_stand_is_refused(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(noise(64, 64, 3)).save(path, restart_marker_rows=1)
    content = path.read_bytes()
    for marker in (b"\xff\xd0", b"\xff\xd1"):
        path.write_bytes(content[: content.rindex(marker)])
        with pytest.raises(ValueError, match="truncated"):
            read_image(path)


def test_check_data_notes_a_missing_end_marker_and_lists_a_damaged_length(tmp_path):
    path = save(tmp_path / "a.jpg", noise(20, 30, 3))
    path.write_bytes(path.read_bytes()[:-2])
    results = check("images", tmp_path)
    assert results["usable"] and results["notes"][0]["examples"] == ["a.jpg"]
    path = save(tmp_path / "b.png", noise(20, 30, 3))
    content = bytearray(path.read_bytes())
    content[parts_of(bytes(content))[1][1] + 3] ^= 1
    path.write_bytes(content)
    (group,) = check("images", tmp_path)["errors"]
    assert group["examples"][0].startswith("b.png: the PNG file is damaged: its part b'IDAT' has a wrong length")


def test_content_that_is_no_image_is_told_in_the_same_words_each_time(tmp_path):
    (tmp_path / "a.png").write_bytes(b"<html>")
    told = set()
    for decoded in (True, False, True):
        with pytest.raises(ValueError) as error:
            open_image(tmp_path / "a.png", decoded)
        told.add(str(error.value))
    (told,) = told
    assert (
        told == f"{tmp_path / 'a.png'} cannot be read as an image: cannot identify image file; fetch or write it again"
    )


def test_heic_is_told_as_what_it_is(tmp_path, capsys):
    content = b"\0\0\0\x18ftypheic" + bytes(64)
    (tmp_path / "a.HEIC").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.HEIC is a HEIC file, which is not read here; save it as JPEG"):
        read_photograph(tmp_path / "a.HEIC", True)
    save(tmp_path / "b.png", COLOURS)
    assert [name for *_, name in ImageFolder(tmp_path)] == ["b.png"]
    assert "1 HEIC, which is not read (a.HEIC)" in capsys.readouterr().out
    results = check("images", tmp_path)
    assert results["usable"] and "a.HEIC is a HEIC file" in results["warnings"][0]["examples"][0]


# What is no file


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_never_opened(kind, tmp_path):
    path = tmp_path / "a.png"
    make_odd(path, kind)
    for read in (read_image, lambda path: read_photograph(path, True), lambda path: read_labels(path, EVERY_BYTE),
                 lambda path: open_image(path, decoded=False),
                 lambda path: cached(tmp_path / "cache", path, read_image, ("RGB",), MAX_PIXELS)):  # fmt: skip
        with pytest.raises(ValueError, match=rf"a\.png is {kind}.*, and no image file; take it out"):
            read(path)


def test_no_other_room_opens_pictures_or_lists_folders_of_them():
    """What is proven of data/decoding.py and data/listing.py holds for every script: there is no other way in"""
    ways = {"rglob", "glob", "iterdir", "scandir"}
    may = {  # the others look for what is beside a picture, or at results
        "data/decoding.py": {"open"},
        "data/listing.py": {"scandir"},
        "tools/check_data/folders.py": {"glob", "iterdir", "scandir"},
        "tools/check_data/pairs.py": {"glob"},
        "tools/export_scores/__main__.py": {"rglob"},
        "tools/export_scores/check.py": {"rglob"},
        "demo/__main__.py": {"iterdir"},
    }
    for path in [
        *PROJECT.glob("*.py"),
        *(path for room in ("data", "tools", "demo") for path in PROJECT.glob(f"{room}/**/*.py")),
    ]:
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                of = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                if (of, node.func.attr) == ("Image", "open") or node.func.attr in ways:
                    found.add(node.func.attr)
        assert found <= may.get(path.relative_to(PROJECT).as_posix(), set()), path.name


# EXIF


def with_orientation(path, pixels, value, how="tag"):
    exif = Image.Exif()
    exif[0x0112] = value
    return save(path, pixels, exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_photographs_are_turned_as_pillow_turns_them(value, ending, tmp_path):
    path = with_orientation(tmp_path / f"a.{ending}", noise(16, 24, 3), value)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image))
        stored = np.array(image)
    np.testing.assert_array_equal(read_photograph(path, True).permute(1, 2, 0).numpy(), expected)
    np.testing.assert_array_equal(read_photograph(path, False).permute(1, 2, 0).numpy(), stored)
    assert ImageFolder(tmp_path)[0][0].shape[1:] == expected.shape[:2]
    assert ImageFolder(tmp_path, as_stored=True)[0][0].shape[1:] == stored.shape[:2]


def tiff_tags(*entries):
    """EXIF data of (tag, type, count, four bytes of value), then 32 bytes that values may lie in"""
    head = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries))
    rows = b"".join(struct.pack(">HHI4s", *entry) for entry in entries)
    return head + rows + bytes(4) + struct.pack(">iiii", -1, 0, 6, 1) + b"6\0" * 8


@pytest.mark.parametrize(
    "exif, value",
    [
        (tiff_tags((0x0112, 3, 1, b"\0\x06\0\0")), 6),
        (tiff_tags((0x0112, 4, 1, b"\0\0\0\x06")), 6),  # as a long number
        (tiff_tags((0x0112, 2, 2, b"6\0\0\0")), 6),  # as text
        (tiff_tags((0x0112, 3, 1, b"\0\x63\0\0")), 1),
        (tiff_tags((0x0112, 3, 1, b"\0\0\0\0")), 1),
        (tiff_tags((0x0112, 5, 1, struct.pack(">I", 26))), 1),  # the fraction -1/0
        (tiff_tags((0x011A, 10, 1, struct.pack(">I", 38)), (0x0112, 3, 1, b"\0\x03\0\0")), 3),
        (tiff_tags((0x0112, 3, 9999, b"\x7f\xff\xff\xff")), 1),  # beyond the end
        (b"Exif\0\0MM\0*\xff\xff\xff\xff", 1),
        (b"Exif\0\0nonsense", 1),
        (b"Exif\0\0", 1),
    ],
)
def test_the_image_counts_and_not_its_metadata(exif, value, tmp_path, capfd):
    content = io.BytesIO()
    Image.fromarray(noise(16, 24, 3)).save(content, "JPEG")
    plain = content.getvalue()
    path = tmp_path / "a.jpg"
    path.write_bytes(plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:])
    upright = read_photograph(path, True)
    assert read_photograph(path, False).shape == (3, 16, 24)
    assert orientation(open_image(path)) == value
    assert upright.shape[1:] == ((24, 16) if value >= 5 else (16, 24))
    assert capfd.readouterr().err == ""


def test_a_fraction_without_a_value_is_no_orientation():
    class Odd:
        def getexif(self):
            return {0x0112: Fraction(13, 2)}

    assert orientation(Odd()) == 6


def street(root, image, labels_size, value):
    with_orientation(root / "train/images/training/t1/000.png", image, value)
    save(root / "train/annotations/training/t1/000.png", np.full(labels_size, 2, np.uint8))
    return StreetHazards(root, "training")


@pytest.mark.parametrize("value", [2, 3, 4])
def test_a_turned_image_beside_a_label_map_of_its_size_is_said(value, tmp_path, capsys):
    pixels = noise(6, 8, 3)
    frames = street(tmp_path, pixels, (6, 8), value)
    for _ in range(2):
        np.testing.assert_array_equal(frames[0][0].permute(1, 2, 0).numpy(), pixels)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and f"t1/000.png has EXIF orientation {value}: viewers turn it" in out
    results = check("street-hazards", tmp_path, ["training"])
    (group,) = [group for group in results["warnings"] if "viewers turn" in group["kind"]]
    assert group["examples"] == [f"train/images/training/t1/000.png has orientation {value}"] and results["usable"]


def test_a_turned_image_beside_an_upright_label_map_is_told_as_that(tmp_path, capsys):
    frames = street(tmp_path, noise(6, 8, 3), (8, 6), 6)
    with pytest.raises(ValueError, match=r"000\.png is 8x6 but its label map .* is 6x8: EXIF orientation 6 turns the"):
        frames[0]
    (group,) = check("street-hazards", tmp_path, ["training"], quick=True)["errors"]
    assert group["examples"][0].endswith("8x6 and 6x8 (one of the two is turned, by EXIF orientation 6)")


# Folders of photographs


def test_pictures_of_other_modes_are_converted_and_what_cannot_be_is_left_out_and_counted(tmp_path, capsys):
    save(tmp_path / "colour.jpg", COLOURS)
    save(tmp_path / "cmyk.jpg", Image.fromarray(COLOURS).convert("CMYK"))
    save(tmp_path / "deep.png", DEEP)
    save(tmp_path / "bits.png", Image.fromarray(GREY > 99))
    for name in ("floats.tif", "more.tif"):
        save(tmp_path / name, GREY.astype(np.float32))
    folder = ImageFolder(tmp_path)
    assert [name for *_, name in folder] == ["bits.png", "cmyk.jpg", "colour.jpg", "deep.png"]
    assert all(image.shape == (3, HEIGHT, WIDTH) and image.dtype == torch.uint8 for image, *_ in folder)
    out = capsys.readouterr().out
    assert out == f"left out below {tmp_path}: 2 of 32-bit values (floats.tif, ...)\n"
    kept = ImageFolder(tmp_path, cache=tmp_path.parent / "cache")
    for _ in range(2):
        assert all(one[0].equal(other[0]) for one, other in zip(folder, kept, strict=True))


def test_colours_of_other_kinds_are_converted_as_pillow_does(tmp_path):
    for mode in ("LAB", "YCbCr"):
        path = save(tmp_path / "a.tif", Image.fromarray(COLOURS).convert("YCbCr") if mode == "YCbCr" else lab())
        with Image.open(path) as image:
            assert image.mode == mode
            expected = np.array(image.convert("RGB"))
        np.testing.assert_array_equal(read_photograph(path, True).permute(1, 2, 0).numpy(), expected)


def lab():
    return Image.frombytes("LAB", (WIDTH, HEIGHT), COLOURS.tobytes())


def test_a_long_file_that_is_no_image_is_not_read_to_its_end(tmp_path, monkeypatch):
    with open(tmp_path / "a.png", "wb") as opened:
        opened.truncate(2**34)  # sixteen gigabytes of nothing, which take no room
    for read in (read_image, lambda path: read_labels(path, EVERY_BYTE)):
        with pytest.raises(ValueError, match="cannot identify image file"):
            read(tmp_path / "a.png")


LABEL_MAPS = ["a.png", "a_color_ids.png", "a.labels.png", "deep/b-2.png", "labels/x.png", "x_mask.png", "gtFine/y.png",
              "z_labelIds.png", "Annotations/deep/w.PNG"]  # fmt: skip
PHOTOGRAPHS = [
    "a.jpg",
    "deep/b.webp",
    "a-large.png",
    "grey.png",
    "unlabelled/g.png",
    "masked.png",
    "deep/a_1.png",
    "b-1.png",
]


def test_label_maps_among_photographs_are_recognised(tmp_path, capsys):
    for name in ("a.jpg", "deep/b.webp"):
        save(tmp_path / name, COLOURS)
    for name in LABEL_MAPS:
        save(tmp_path / name, GREY, format="PNG")
    for name in PHOTOGRAPHS[2:]:  # of grey values, too, but of no word and no coloured picture of their size
        save(tmp_path / name, noise(20, 20))
    assert [name for *_, name in ImageFolder(tmp_path)] == sorted(PHOTOGRAPHS, key=lambda name: Path(name))
    assert f"{len(LABEL_MAPS)} label maps by name and mode (" in capsys.readouterr().out
    (group,) = [group for group in check("images", tmp_path)["notes"] if "label maps" in group["kind"]]
    assert sorted(group["examples"]) == sorted(LABEL_MAPS)
    assert len(ImageFolder(tmp_path, as_stored=True)) == len(LABEL_MAPS) + len(PHOTOGRAPHS)


def test_a_coloured_picture_by_a_label_maps_name_stays_a_photograph(tmp_path):
    for name in ("a.jpg", "a.png", "labels/b.png"):
        save(tmp_path / name, COLOURS)
    assert len(ImageFolder(tmp_path)) == 3


def test_frames_of_a_benchmark_are_neither_left_out_nor_turned(tmp_path):
    with_orientation(tmp_path / "a.png", noise(6, 8, 3), 6)
    save(tmp_path / "labels/b.png", GREY)
    frames = ImageFolder(tmp_path, as_stored=True)
    assert [(image.shape[1:], name) for image, _, name in frames] == [((6, 8), "a.png"), ((6, 8), "labels/b.png")]
