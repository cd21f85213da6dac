"""Decoding picture files: which are read, up to what size, and what of a damaged one.

Pillow decides what a file is, by its content and never by its name. The limit of size is ours and is checked in the
header; Pillow's own and its warnings are switched off while a file is read, and only then.
"""

import contextlib
import io
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from data.listing import why_no_file
from errors import MissingFile, OutOfMemory, WrongInput

MAX_PIXELS = 250_000_000  # telephones take 200 million; decoded, these are 750 MB in each loader process
ORIENTATION = 0x0112  # EXIF's number of the tag
PNG_START = b"\x89PNG\r\n\x1a\n"
THIRTY_TWO_BITS = ("I", "F")  # Pillow's modes of values of no stated range
ALONE = threading.RLock()  # Pillow's limit and Python's filters of warnings are of the whole process
# More data, each with all restart markers, none of which is decoded where the data before were whole.
MORE_JPEG = [
    b"".join(bits * 64 + bytes([0xFF, marker]) for marker in range(0xD0, 0xD8)) + bits * 64
    for bits in (b"\x55", b"\xaa", b"\xfe", b"\x9d\x36\xc8")
]


class NotRead(WrongInput):
    """A picture that may be whole and is not read here: larger than the limit, or HEIC."""


logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints what Pillow logs of odd files


def open_image(path: Path, decoded: bool = True, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture, decoded or only its header read.

    Raises ValueError that names the file: what is no regular file or is damaged, and NotRead, one of them. Of a PNG
    file every part must have its length and checksum, as Pillow's verify() wants it; a JPEG file may lack its end
    marker, as there, but no data: its `info` then has the key "no end marker".
    """
    return read_picture(path, decoded, max_pixels)[0]


def read_picture(path: Path, decoded: bool = True, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, bytes]:
    """As open_image, with the file's content where it is decoded."""
    kind = why_no_file(path)
    if kind:
        raise WrongInput(f"{path} is {kind}, and no image file; take it out")
    content = b""
    try:
        with quiet_pillow():
            image = Image.open(path)
            fits = image.width * image.height <= max_pixels
            if decoded and fits:
                image.close()
                content = path.read_bytes()
                image = loaded(Image.open(io.BytesIO(content)), content)
    except FileNotFoundError:
        raise MissingFile(f"{path} is gone; it was there when the data set was listed") from None
    except MemoryError as error:
        raise OutOfMemory(f"memory does not suffice to decode {path}; try fewer --workers, or shrink it") from error
    except Exception as error:  # Pillow fails in a dozen ways on a damaged file
        if path.suffix.lower() in (".heic", ".heif"):
            raise NotRead(f"{path} is a HEIC file, which is not read here; save it as JPEG") from error
        known = not isinstance(error, UnidentifiedImageError)  # whose own words name what holds the content
        reason = (str(error) or repr(error)) if known else "cannot identify image file"
        raise WrongInput(f"{path} cannot be read as an image: {reason}; fetch or write it again") from error
    if not fits:
        size = f"{image.width}x{image.height}"
        image.close()
        raise NotRead(
            f"{path} claims {size} pixels, more than the {max_pixels:,} that are read; shrink it or cut it into parts, "
            "or raise the limit with --max_pixels"
        )
    return image, content


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Without Pillow's limit of size and its warnings, which are for those who know no other limit."""
    with ALONE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def loaded(image: Image.Image, content: bytes) -> Image.Image:
    """The image of a file's content, decoded; raises what Pillow does, and ValueError for a damaged PNG file."""
    if image.format == "PNG":
        for _ in png_parts(content):
            pass
    try:
        image.load()
    except OSError:
        whole = with_end_marker(content) if image.format == "JPEG" else None
        if whole is None:
            raise
        image = whole
    return image


def png_parts(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Name and data of each part of a PNG file before its end; ValueError where one is damaged or the end is missing.

    What Pillow's verify() refuses is refused. Its load(), and libspng, look at fewer checksums, and give pixels of
    nothing where the length of the data is wrong.
    """
    content, place = memoryview(content), len(PNG_START)
    while True:
        if place + 8 > len(content):
            raise WrongInput("the PNG file is cut short: its end is missing")
        length, name = struct.unpack_from(">I4s", content, place)
        if name == b"IEND":
            return
        data, checksum = content[place + 8 : place + 8 + length], content[place + 8 + length : place + 12 + length]
        if zlib.crc32(data, zlib.crc32(name)).to_bytes(4, "big") != checksum:
            raise WrongInput(f"the PNG file is damaged: its part {name!r} has a wrong length or checksum")
        yield name, data
        place += 12 + length


def with_end_marker(content: bytes) -> Image.Image | None:
    """The picture of a JPEG file that lacks nothing but its end marker; None where data are missing, too.

    Decoders fill missing data with grey and say nothing, but where data are missing, they would take more.
    """
    byte = b"\0" if content.endswith(b"\xff") else b""  # after which 0xFF is data, or the first half of the marker
    pictures = []
    for more in (b"", *(byte + more for more in MORE_JPEG)):
        picture = Image.open(io.BytesIO(content + more + b"\xff\xd9"))
        try:
            picture.load()
        except OSError:
            return None
        pictures.append(picture)
    if any(picture.tobytes() != pictures[0].tobytes() for picture in pictures[1:]):
        return None
    pictures[0].info["no end marker"] = True
    return pictures[0]


def orientation(image: Image.Image) -> int:
    """How a viewer turns the picture, 1..8 as EXIF counts; 1, not at all, where that is not said or makes no sense."""
    try:
        with quiet_pillow():
            value = image.getexif().get(ORIENTATION, 1)
        value = int(value[0] if isinstance(value, tuple) else value)
    except Exception:  # the image counts and not its metadata, which come damaged in many ways
        return 1
    return value if 1 <= value <= 8 else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, ...) as a viewer shows them; 5..8 exchange height and width."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def rgb_pixels(image: Image.Image, content: bytes) -> np.ndarray:
    """Any decoded picture as uint8 (H, W, 3), not turned; transparency is dropped and not blended.

    Raises ValueError for values of 32 bits.
    """
    if image.mode in THIRTY_TWO_BITS:
        raise WrongInput("its values are 32-bit, of no stated range; convert it to 8 or 16 bits")
    deep = sixteen_bit_values(image, content)
    if deep is None:
        with quiet_pillow():
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    shallow = eight_bits(deep)
    if shallow.ndim == 2:
        shallow = shallow[..., None]
    colours = 3 if shallow.shape[2] >= 3 else 1
    return np.repeat(shallow[..., :colours], 3 // colours, axis=2)


def sixteen_bit_values(image: Image.Image, content: bytes) -> np.ndarray | None:
    """uint16 (H, W), or (H, W, C) with alpha as the last of 2 or 4, of a picture that is stored so; else None.

    Pillow keeps the upper byte alone of colours in PNG files: of values of 10 bits, two of these.
    """
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.format == "PNG" and content[24] == 16 and image.mode in ("RGB", "RGBA", "LA"):
        return imagecodecs.png_decode(content)
    return None


def eight_bits(values: np.ndarray) -> np.ndarray:
    """The upper eight of the bits that are in use: 8, 10, 12, 14 or 16, by the largest value."""
    used = int(values.max(initial=0)).bit_length()
    return (values >> (max(8, used + used % 2) - 8)).astype(np.uint8)


def described(mode: str) -> str:
    """A Pillow mode in words."""
    kind = {"L": "a greyscale", "LA": "a greyscale", "P": "a palette", "1": "a black-and-white"}.get(mode, "an")
    return f"{kind} image (mode {mode})"
