"""Negatives: other things, in other places."""

import numpy as np
from numpy.random import Generator

from demo.world.canvas import UNITS, Canvas, Pen, checks, corners, disc, dots, limb, rectangle, smooth, stripes
from demo.world.light import draw_light, pick, tint, vary, vivid


def ball(pen: Pen, rng: Generator) -> None:
    pen.fill(
        vivid(rng),
        disc(0, 0.5, 0.5),
        bulge=1,
        pattern=(pick(rng, (stripes(0.17, 0.5), checks(0.25), dots(0.3))), vivid(rng)),
    )


def apple(pen: Pen, rng: Generator) -> None:
    pen.fill((0.35, 0.22, 0.1), limb(0, 0.8, 0.06, 1.0, 0.05))
    pen.fill(
        pick(rng, ((0.78, 0.12, 0.10), (0.60, 0.75, 0.15), (0.90, 0.75, 0.2))),
        smooth("0,80 25,87 46,65 42,25 18,0 0,5 -18,0 -42,25 -46,65 -25,87"),
        bulge=1,
    )
    pen.fill((0.25, 0.5, 0.12), smooth("4,90 20,102 34,95 18,87"))


def star(pen: Pen, rng: Generator) -> None:
    angle = np.linspace(0, 2 * np.pi, 10, endpoint=False) + np.pi / 2
    reach = np.where(np.arange(10) % 2, 0.22, 0.52)
    pen.fill(vivid(rng), np.stack((reach * np.cos(angle), 0.5 + reach * np.sin(angle)), 1), bulge=0.8, grain=0.1)


def fish(pen: Pen, rng: Generator) -> None:
    scales = vivid(rng)
    pen.fill(scales * 0.8, corners("-35,40 -68,65 -60,40 -68,12"), corners("-15,60 10,82 20,60"))
    pen.fill(
        scales,
        smooth("-42,40 -10,65 30,60 55,40 30,20 -10,14"),
        bulge=0.9,
        pattern=(pick(rng, (stripes(0.1), dots(0.09), stripes(0.07, 1))), vivid(rng)),
    )
    pen.fill((1, 1, 1), disc(0.36, 0.47, 0.06))
    pen.fill((0, 0, 0), disc(0.37, 0.47, 0.03))


def cat(pen: Pen, rng: Generator) -> None:
    fur = tint(rng, ((0.85, 0.55, 0.22), (0.2, 0.2, 0.22), (0.75, 0.72, 0.70)))
    ears = (corners("-24,75 -22,100 -5,86"), corners("24,75 22,100 5,86"))
    pen.fill(
        fur,
        smooth("-30,5 -28,40 -12,60 12,60 28,40 30,5 0,0"),
        limb(0.28, 0.06, 0.5, 0.3, 0.09),
        limb(0.5, 0.3, 0.46, 0.48, 0.09, 0.06),
        bulge=0.8,
        grain=0.12,
        kind="fur",
        pattern=(stripes(0.09, 0.3), fur * 0.7),
    )
    pen.fill(fur * 1.05, disc(0, 0.72, 0.25, 0.21), *ears, bulge=0.7, grain=0.1, kind="fur")
    pen.fill((0.3, 0.8, 0.3), disc(-0.09, 0.75, 0.045), disc(0.09, 0.75, 0.045))
    pen.fill((0.9, 0.5, 0.5), disc(0, 0.65, 0.03))


def bird(pen: Pen, rng: Generator) -> None:
    plume = vivid(rng)
    pen.fill(
        (0.9, 0.6, 0.1), limb(-0.03, 0.2, -0.03, 0, 0.035), limb(0.1, 0.2, 0.1, 0, 0.035), corners("42,78 62,70 42,66")
    )
    pen.fill(
        plume, smooth("-60,60 -20,50 10,62 20,85 38,88 46,72 36,40 10,18 -20,25"), bulge=0.9, grain=0.1, kind="fur"
    )
    pen.fill(plume * 0.6, smooth("-35,48 0,55 16,42 -5,28"), bulge=0.6)
    pen.fill((0.02, 0.02, 0.02), disc(0.34, 0.77, 0.035))


def chair(pen: Pen, rng: Generator) -> None:
    wood = tint(rng, ((0.50, 0.30, 0.15), (0.75, 0.58, 0.36), (0.85, 0.85, 0.82)))
    pen.fill(wood * 0.7, rectangle(-0.2, 0, -0.14, 0.45), rectangle(0.22, 0.05, 0.28, 0.45))
    pen.fill(
        wood,
        rectangle(-0.3, 0, -0.23, 1.0),
        rectangle(0.12, 0, 0.19, 0.45),
        *(rectangle(-0.3, y, 0.0, y + 0.08) for y in (0.6, 0.75, 0.9)),
        corners("-30,42 18,42 30,50 -20,50"),
        grain=0.1,
    )


def guitar(pen: Pen, rng: Generator) -> None:
    wood = tint(rng, ((0.70, 0.40, 0.15), (0.55, 0.15, 0.10), (0.20, 0.30, 0.50)))
    pen.fill((0.25, 0.16, 0.1), rectangle(-0.035, 0.5, 0.035, 0.98), rectangle(-0.06, 0.93, 0.06, 1.08))
    pen.fill(
        wood,
        smooth("0,0 -27,8 -26,28 -15,36 -20,50 -8,60 8,60 20,50 15,36 26,28 27,8"),
        bulge=0.6,
        grain=0.07,
        kind="fur",
    )
    pen.fill((0.08, 0.05, 0.04), disc(0, 0.38, 0.08), rectangle(-0.1, 0.14, 0.1, 0.17))


def snail(pen: Pen, rng: Generator) -> None:
    pen.fill(
        vary(rng, (0.70, 0.60, 0.42)),
        smooth("-55,0 -30,14 20,12 40,35 55,40 58,25 45,3"),
        limb(0.5, 0.35, 0.56, 0.58, 0.04),
        limb(0.45, 0.35, 0.45, 0.58, 0.04),
        bulge=0.8,
    )
    pen.fill(
        vivid(rng),
        disc(-0.08, 0.4, 0.36),
        bulge=0.9,
        pattern=(
            lambda x, y: (np.hypot(x + 0.08, y - 0.4) * 9 + np.arctan2(y - 0.4, x + 0.08) / np.pi) % 2 < 0.8,
            vary(rng, (0.4, 0.25, 0.15)),
        ),
    )


def books(pen: Pen, rng: Generator) -> None:
    for y in np.arange(4) * 0.2:
        shift = rng.uniform(-0.08, 0.08)
        pen.fill(
            vivid(rng),
            rectangle(shift - 0.45, y, shift + 0.45, y + 0.19),
            bulge=0.25,
            pattern=(lambda a, b, s=shift: np.abs(np.abs(a - s) - 0.33) < 0.03, (0.9, 0.8, 0.4)),
        )


def butterfly(pen: Pen, rng: Generator) -> None:
    wing, spots = vivid(rng), vivid(rng)
    for side in (-1, 1):
        for outline in ("0,50 30,95 58,90 45,50", "0,50 42,48 40,12 20,10"):
            pen.fill(wing, smooth(corners(outline) * (side, 1)), bulge=0.4, pattern=(dots(0.16), spots))
    pen.fill(
        (0.1, 0.08, 0.08),
        limb(0, 0.2, 0, 0.75, 0.07, 0.05),
        limb(0, 0.75, -0.12, 0.95, 0.02),
        limb(0, 0.75, 0.12, 0.95, 0.02),
    )


def polygon(pen: Pen, rng: Generator) -> None:
    angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
    reach = rng.uniform(0.35, 0.55, len(angle))
    points = np.stack((reach * np.cos(angle), 0.5 + reach * np.sin(angle)), 1)
    pen.fill(
        vivid(rng),
        points,
        bulge=rng.uniform(0, 0.8),
        grain=rng.uniform(0.05, 0.25),
        kind=pick(rng, ("speckle", "leaf", "fur", "cloud")),
        pattern=(pick(rng, (stripes(0.1, rng.uniform(-1, 1)), checks(0.14), dots(0.18))), vivid(rng)),
    )


NEGATIVES = (ball, apple, star, fish, cat, bird, chair, guitar, snail, books, butterfly, polygon)


def draw_negative(width: int, height: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Picture (H, W, 3) uint8 and ids (H, W) uint8: 0 unlabeled, 1..16 backgrounds, 20..31 NEGATIVES in order"""
    bright = float(rng.uniform(0.6, 0.9))
    light = draw_light(rng)._replace(sun=np.full(3, 0.35), ambient=rng.uniform(0.95, 1.05, 3) * bright)
    canvas = Canvas(width, height, light, 0)
    ids = 1 + rng.permutation(16)[:3]
    level, lean = rng.uniform(0.35, 0.75) * UNITS, rng.uniform(-12, 12)
    wide = canvas.width
    floor = np.array(((0, level - lean), (wide, level + lean), (wide, UNITS), (0, UNITS)))
    regions = [rectangle(0, 0, wide, UNITS), floor]
    if rng.random() < 0.6:
        x = rng.uniform(0.2, 0.8) * wide
        regions.append(smooth(np.array((x, level)) + corners("-30,0 -20,-22 0,-30 22,-20 30,0 0,10") * (wide, 100)))
    for number, region in enumerate(regions):
        kind, back = pick(rng, ("speckle", "leaf", "fur", "cloud")), vary(rng, vivid(rng) * 0.6 + 0.25)
        pen = Pen(canvas, wide / 2, UNITS, UNITS, int(ids[number]))
        slanted = stripes(rng.uniform(0.04, 0.15), rng.uniform(-1, 1))
        shape = pick(rng, (slanted, checks(rng.uniform(0.06, 0.16)), dots(rng.uniform(0.1, 0.2))))
        pattern = (shape, vary(rng, back, 0.12))
        outline = (region - (wide / 2, UNITS)) / (UNITS, -UNITS)
        grain, coarse = rng.uniform(0.04, 0.16), rng.uniform(0.8, 3)
        pattern = pattern if rng.random() < 0.6 else None
        pen.fill(back, outline, bulge=0.1, grain=grain, kind=kind, coarse=coarse, pattern=pattern)
    for kind in rng.choice(len(NEGATIVES), rng.integers(3, 7), replace=False):
        size, x = rng.uniform(24, 56), rng.uniform(0.1, 0.9) * wide
        y = rng.uniform(max(size * 0.8, level - 5), UNITS + 2)
        pen = Pen(canvas, x, y, size, 20 + int(kind), 0.0, rng.choice((-1, 1)), rng.uniform(-0.35, 0.35))
        dark = canvas.mask([disc(x, y, 0.4 * size, 0.08 * size)], 1.5)
        if dark is not None:
            canvas.pixels[dark[0], dark[1]] *= 1 - 0.5 * dark[2][..., None]
        NEGATIVES[kind](pen, rng)
    if rng.random() < 0.5:
        x, y = rng.uniform(0, wide), rng.uniform(0, UNITS)
        canvas.fill([disc(x, y, rng.uniform(3, 9), rng.uniform(3, 9))], vivid(rng), 0, bulge=0.5, grain=0.2)
    return canvas.photograph(rng)
