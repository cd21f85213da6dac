"""Outlines and patterns, the canvas that paints picture and label through one mask, and the pen that draws on it."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

from demo.world.light import Light, noise

# The values stored in StreetHazards' label files.
SKY, BUILDING, FENCE, OTHER, PERSON, POLE, LINE, ROAD, SIDEWALK, PLANT, CAR, WALL, SIGN, ANOMALY = range(1, 15)
UNITS = 96  # height of every picture in drawing units
FINE = 2  # pictures are painted this many times finer than they are stored


# Outlines: (N, 2) arrays of points


def rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), float)


CIRCLE = np.stack([wave(np.linspace(0, 2 * np.pi, 24, endpoint=False)) for wave in (np.cos, np.sin)], 1)


def disc(x: float, y: float, rx: float, ry: float | None = None, turn: float = 0.0) -> np.ndarray:
    """An ellipse around x, y, turned by an angle in radians"""
    dx, dy = (CIRCLE * (rx, rx if ry is None else ry)).T
    return np.stack((x + dx * np.cos(turn) - dy * np.sin(turn), y + dx * np.sin(turn) + dy * np.cos(turn)), 1)


def limb(x0: float, y0: float, x1: float, y1: float, w0: float, w1: float | None = None) -> np.ndarray:
    """A rod with round ends, w0 wide at the first and w1 (or w0) at the second"""
    ahead = np.arctan2(y1 - y0, x1 - x0)
    angle = np.linspace(0.5 * np.pi, 1.5 * np.pi, 7) + ahead
    ends = np.stack((np.cos(angle), np.sin(angle)), 1)
    return np.concatenate(
        (np.array((x0, y0)) + ends * w0 / 2, np.array((x1, y1)) - ends * (w0 if w1 is None else w1) / 2)
    )


def corners(text: str) -> np.ndarray:
    """The points "x,y x,y ...", given in hundredths"""
    return np.array([point.split(",") for point in text.split()], float) / 100


def smooth(points: np.ndarray | str) -> np.ndarray:
    """A closed curve (Catmull-Rom) through the points, or through corners(points)"""
    p = corners(points) if isinstance(points, str) else np.asarray(points)
    before, after, later = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = np.linspace(0, 1, 6, endpoint=False)[None, :, None]
    a, b, c, d = (q[:, None] for q in (before, p, after, later))
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return curve.reshape(-1, 2)


Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of x and y, giving bool: where the second colour is


def stripes(width: float, slope: float = 0.0) -> Pattern:
    """A pattern: every other stripe, upright if slope is 0"""
    return lambda x, y: (x + slope * y) / width % 2 < 1


def checks(width: float) -> Pattern:
    """A pattern: every other square"""
    return lambda x, y: ((x / width % 2) < 1) ^ ((y / width % 2) < 1)


def dots(width: float) -> Pattern:
    """A pattern: one dot in each square"""
    return lambda x, y: np.hypot(x / width % 1 - 0.5, y / width % 1 - 0.5) < 0.3


class Canvas:
    """A picture and its label map, painted together

    pixels  (FINE*height, FINE*width, 3) float32, RGB 0..1
    labels  (FINE*height, FINE*width) uint8
    """

    def __init__(self, width: int, height: int, light: Light, background: int):
        self.scale = FINE * height / UNITS
        self.size, self.light = (FINE * width, FINE * height), light
        self.width = UNITS * width / height
        self.pixels = np.zeros((FINE * height, FINE * width, 3), np.float32)
        self.labels = np.full((FINE * height, FINE * width), background, np.uint8)

    def grid(self, rows: slice = slice(None), cols: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """x (1, w) and y (h, 1): centres of pixels in drawing units"""
        x, y = (np.arange(n, dtype=np.float32) + 0.5 for n in self.size)
        return x[None, cols] / self.scale, y[rows, None] / self.scale

    def mask(self, outlines: Sequence[np.ndarray], blur: float = 0.0) -> tuple[slice, slice, np.ndarray] | None:
        """rows, cols, and the (h, w) float mask in 0..1 of the outlines' union, cut to the picture; None if outside"""
        outlines = [outline * self.scale for outline in outlines]
        margin = 2 * blur * self.scale + 1
        low = np.floor(np.min([o.min(0) for o in outlines], 0) - margin).astype(int).clip(0)
        high = np.minimum(np.ceil(np.max([o.max(0) for o in outlines], 0) + margin).astype(int), self.size)
        if (high <= low).any():
            return None
        picture = Image.new("L", tuple(int(n) for n in high - low))
        for outline in outlines:
            ImageDraw.Draw(picture).polygon([tuple(point) for point in (outline - low - 0.5).tolist()], fill=255)
        if blur:
            picture = picture.filter(ImageFilter.GaussianBlur(blur * self.scale))
        mask = np.asarray(picture, np.float32) / 255
        return slice(low[1], high[1]), slice(low[0], high[0]), mask

    def fill(
        self,
        outlines: Sequence[np.ndarray],
        colour: ArrayLike | Callable[[np.ndarray, np.ndarray], np.ndarray],
        label: int,
        depth: float = 0.0,
        light: ArrayLike | None = None,
        bulge: float = 0.0,
        grain: float = 0.0,
        kind: str = "speckle",
        coarse: float = 1.0,
    ) -> None:
        """Paint picture and label inside the outlines

        colour  RGB, or a function of x (1, w), y (h, 1) giving (h, w, 3), or (h, w, 4) with the picture's opacity
        bulge   0 flat .. 1 round: shading as if the outline were swollen
        grain   deviation of the noise `kind`, whose lumps are `coarse` times larger
        depth   metres, for the haze
        light   RGB factors; None is light on what faces the camera, a little upwards
        """
        found = self.mask(outlines)
        if found is None or not found[2].any():
            return
        rows, cols, mask = found
        x, y = self.grid(rows, cols)
        paint = np.asarray(colour(x, y) if callable(colour) else colour, np.float32)
        opacity = mask[..., None] if paint.shape[-1] == 3 else mask[..., None] * paint[..., 3:]
        paint = paint[..., :3] * np.float32(self.light.on(0, 0.5, -0.6) if light is None else light)
        if grain:
            u, v = (np.float32(FINE) * (a + start) / coarse for a, start in zip((x, y), outlines[0][0], strict=True))
            paint = paint * (1 + np.float32(grain) * noise(kind, u, v))[..., None]
        if bulge and min(mask.shape) > 6:
            paint = paint * (1 + np.float32(bulge) * self.relief(mask))[..., None]
        haze = np.float32(1 - np.exp(-depth / self.light.clear))
        paint = paint * (1 - haze) + np.float32(self.light.sky_low) * haze
        self.pixels[rows, cols] += opacity * (paint - self.pixels[rows, cols])
        self.labels[rows, cols][mask > 0.5] = label

    def relief(self, mask: np.ndarray) -> np.ndarray:
        """(h, w): about -1 on the side away from the light .. 1 towards it"""
        radius = max(1.0, 0.28 * min(mask.shape))
        swollen = Image.fromarray(np.uint8(255 * mask)).filter(ImageFilter.GaussianBlur(radius))
        height = np.asarray(swollen, np.float32) / 255
        slope = np.zeros_like(height)
        slope[1:-1] = 0.75 * (height[2:] - height[:-2])
        slope[:, 1:-1] -= np.copysign(0.65, float(self.light.to_sun[0])) * (height[:, 2:] - height[:, :-2])
        return 0.85 * radius * slope

    def shade(self, outlines: Sequence[np.ndarray], factor: ArrayLike, blur: float) -> None:
        """Darken the ground (road, lines, sidewalk, grass) by an RGB factor inside the outlines' union"""
        found = self.mask(outlines, blur) if outlines else None
        if found is not None:
            rows, cols, mask = found
            mask = (mask * np.isin(self.labels[rows, cols], (ROAD, LINE, SIDEWALK, PLANT)))[..., None]
            self.pixels[rows, cols] *= 1 - mask * (1 - np.float32(factor))

    def photograph(self, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
        """What a camera makes of it: (H, W, 3) uint8 picture and (H, W) uint8 labels, perhaps mirrored"""
        size = (self.size[0] // FINE, self.size[1] // FINE)
        x, y = self.grid()
        corner = (x / self.width - 0.5) ** 2 + (y / UNITS - 0.5) ** 2
        pixels = self.pixels * (1 - rng.uniform(0.1, 0.3) * corner)[..., None]
        pixels = Image.fromarray(np.uint8(255 * np.clip(pixels, 0, 1))).resize(size, Image.Resampling.BOX)
        pixels = pixels.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.45) * size[1] / UNITS))
        pixels = np.asarray(pixels) * rng.uniform(0.92, 1.08) * rng.uniform(0.98, 1.02, 3)
        pixels = pixels + rng.normal(0, rng.uniform(0.5, 2.5), pixels.shape)
        step = rng.choice((-1, 1))
        return np.uint8(pixels.clip(0, 255))[:, ::step], self.labels[FINE // 2 :: FINE, FINE // 2 :: FINE][:, ::step]


class Pen:
    """Paints outlines given in a thing's own units: x from its middle to the right, y up from its foot"""

    def __init__(
        self,
        canvas: Canvas,
        x: float,
        y: float,
        size: float,
        label: int,
        depth: float = 0.0,
        flip: int = 1,
        turn: float = 0.0,
    ):
        self.canvas, self.foot, self.size, self.label, self.depth = canvas, np.array((x, y)), size, label, depth
        self.axes = size * np.array(((flip * np.cos(turn), -np.sin(turn)), (-flip * np.sin(turn), -np.cos(turn)))).T

    def fill(
        self,
        colour: ArrayLike,
        *outlines: np.ndarray,
        label: int | None = None,
        bulge: float = 0.5,
        grain: float = 0.05,
        kind: str = "speckle",
        coarse: float = 1.0,
        pattern: tuple[Pattern, ArrayLike] | None = None,
    ) -> None:
        """As Canvas.fill; pattern is (function of own x, y giving bool, the RGB colour there)"""
        paint = colour
        if pattern is not None:
            back = np.linalg.inv(self.axes)

            def paint(x, y):
                dx, dy = x - self.foot[0], y - self.foot[1]
                second = pattern[0](dx * back[0, 0] + dy * back[1, 0], dx * back[0, 1] + dy * back[1, 1])
                return np.where(second[..., None], pattern[1], colour)

        outlines = [outline @ self.axes + self.foot for outline in outlines]
        how = {"bulge": bulge, "grain": grain, "kind": kind, "coarse": coarse}
        self.canvas.fill(outlines, paint, label or self.label, self.depth, **how)
