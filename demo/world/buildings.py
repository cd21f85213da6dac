"""Houses, the walls, fences and hedges between sidewalk and gardens, and trees."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from demo.world.canvas import BUILDING, FENCE, PLANT, WALL, Canvas, Pen, disc, limb, rectangle
from demo.world.light import Light, draw_seed, noise, pick, tint, vary
from demo.world.street import Palette, Street, Thing, stand


class House(NamedTuple):
    """What a house looks like; the first four are RGB colours"""

    plaster: np.ndarray
    frame: np.ndarray
    glass: np.ndarray
    roof: np.ndarray
    height: float  # metres
    floor: float  # from one floor to the next
    bay: float  # from one window to the next
    open_x: float  # half of a window, as a share of a bay and of a floor
    open_y: float
    lit: float  # share of the windows


def houses(street: Street, light: Light, palette: Palette, rng: Generator) -> Iterator[Thing]:
    """Houses on both sides, and trees in their gardens"""
    for side, X in enumerate(street.house):
        Z, out = rng.uniform(3.5, 6), (-1, 1)[side]
        while Z < 60:
            long, deep = rng.uniform(7, 13), rng.uniform(6, 9)
            floor, floors = rng.uniform(2.7, 3.3), rng.choice((1, 2, 3, 4), p=(0.25, 0.4, 0.22, 0.13))
            plaster, frame = tint(rng, palette[0] + palette[1][:1]), tint(rng, ((0.9, 0.9, 0.87), (0.35, 0.28, 0.24)))
            glass, roof, height = vary(rng, (0.30, 0.38, 0.46)), vary(rng, (0.42, 0.24, 0.20)), floors * floor + 1
            windows = rng.uniform((1.8, 0.20, 0.24), (2.8, 0.32, 0.34)).tolist()
            house = House(plaster, frame, glass, roof, height, floor, *windows, light.lamps)
            painter = partial(paint_house, street=street, X=X, out=out, Z=Z, long=long, deep=deep, house=house)
            flank = street.along(light, X, Z, Z + long, height)
            cast = (street.shadow(light, X + out * deep / 2, Z, deep / 2, height), flank)
            yield Thing(3, Z, painter, cast if light.to_sun[0] * out > 0 else ())
            if rng.random() < 0.6:
                at = Z + long + rng.uniform(0, 2)
                yield plant_tree(street, light, X - out * 0.2, at, rng, 2)
            Z += long + (rng.uniform(1.5, 4) if rng.random() < 0.6 else 0)


def facade(house: House, light: ArrayLike, along: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Colours (h, w, 3) of a house's wall at metres along it and up from the ground, lit"""
    plaster, frame, glass, roof, height, floor, bay, open_x, open_y, lit = house
    u, v = along / bay, (up - 0.5) / floor
    number = (np.floor(u).astype(int) * 7 + np.floor(v).astype(int) * 13) % 64
    du, dv = np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5)
    inside = (v > 0) & (up < height - 0.5)
    window, edge = inside & (du < open_x) & (dv < open_y), inside & (du < open_x + 0.07) & (dv < open_y + 0.07)
    dirt = 1 + 0.05 * (
        noise("speckle", along * 12, up * 12) + noise("cloud", along * 3, up * 3) - 3 * np.exp(-up / 0.7)
    )
    wall = plaster * light * dirt[..., None]
    wall = np.where((up > height - 0.45)[..., None], roof * light, wall)
    wall = np.where(edge[..., None], frame * light, wall)
    random = np.random.default_rng(int(1e6 * plaster[0])).random(64)[number]
    pane = glass * (0.45 + 0.7 * random + 0.35 * (v % 1))[..., None] * np.minimum(light, 1)
    pane = np.where((random < lit)[..., None], (0.98, 0.80, 0.46), pane)
    pane = np.where(((du < 0.025) | (np.abs(dv - 0.08) < 0.02))[..., None], frame * light, pane)
    wall = np.where(window[..., None], pane, wall)
    door = (up < 2.3) & (np.abs(along % (3 * bay) - 1.5 * bay) < 0.55)
    return np.where(door[..., None], roof * light * (0.55 + 0.2 * (up % 0.8 < 0.6))[..., None], wall)


def paint_house(
    canvas: Canvas, street: Street, X: float, out: int, Z: float, long: float, deep: float, house: House
) -> None:
    """A house from Z on: front, flank along the road, and a gable roof if it is low; out is -1 on the left, 1 right"""
    light, height = canvas.light, house.height
    a, b = street.project(X, 0, Z)[0], street.project(X + out * deep, height, Z)[0]

    def front(x, y):
        along, up = np.abs(x - a[0]) * Z / street.focal + 0 * y, (a[1] - y) * Z / street.focal + 0 * x
        return facade(house, light.on(0, 0, -1), along, up)

    def flank(x, y):
        ahead, up = street.upright(X, x, y)
        return facade(house, light.on(-out, 0, 0), ahead - Z, up)

    def tiles(x, y):
        ahead, up = street.upright(X, x, y)
        course = np.exp(-ahead / 30) * ((up / 0.25 % 1 < 0.3) | ((ahead / 0.5 + np.floor(up / 0.25) * 0.5) % 1 < 0.15))
        return house.roof * (1 - 0.25 * course + 0.06 * noise("speckle", ahead * 9, up * 9))[..., None]

    canvas.fill([rectangle(a[0], b[1], b[0], a[1])], front, BUILDING, Z, light=1)
    canvas.fill([street.strip(X, Z, Z + long, height)], flank, BUILDING, Z + long / 3, light=1)
    if height < 8:
        ridge = street.project(X + out * deep / 2, height + deep / 3, np.array((Z, Z + long)))
        ends = np.array((Z - 0.2, Z + long, Z))
        eaves = street.project((X - out * 0.3, X - out * 0.3, X + out * deep), height - 0.1, ends)
        gable, slope = np.stack((eaves[0], eaves[2], ridge[0])), np.stack((eaves[0], eaves[1], ridge[1], ridge[0]))
        canvas.fill([gable], house.plaster, BUILDING, Z, light.on(0, 0, -1), grain=0.05)
        canvas.fill([slope], tiles, BUILDING, Z, light.on(-out * 0.5, 0.8, 0))


def borders(street: Street, light: Light, palette: Palette, rng: Generator) -> Iterator[Thing]:
    """A wall, a fence and a hedge between sidewalk and gardens, in every frame; and open places"""
    kinds = list(rng.permutation((0, 1, 2)))
    kinds.insert(rng.integers(4), rng.integers(2))
    for side, X in enumerate(street.walk):
        Z, out = max(1.5, street.focal * abs(X) / 100) * rng.uniform(0.7, 1), (-1, 1)[side]
        for place in range(5):
            long = rng.uniform(5, 9) if place < 2 else rng.uniform(8, 14)
            kind = kinds[2 * side + place] if place < 2 else rng.integers(5)
            if kind < 3:
                paint = (paint_wall, paint_fence, paint_hedge)[kind]
                tall = (rng.uniform(1.9, 2.7), rng.uniform(1.5, 2.0), rng.uniform(1.2, 2.0))[kind]
                cast = street.along(light, X, Z, Z + long, tall)
                stone, seed = pick(rng, palette[1]), draw_seed(rng)
                how = {"stone": stone} if paint is paint_wall else {}
                painter = partial(paint, street=street, X=X, out=out, Z=Z, long=long, tall=tall, seed=seed, **how)
                yield Thing(1, Z, painter, (cast,) if kind != 1 and light.to_sun[0] * out > 0 else ())
            Z += long


def paint_wall(
    canvas: Canvas, street: Street, X: float, out: int, Z: float, long: float, tall: float, stone: ArrayLike, seed: int
) -> None:
    """A wall of bricks, or of slabs, with a coping"""
    rng = np.random.default_rng(seed)
    stone, brick = vary(rng, stone), rng.random() < 0.7

    def surface(x, y):
        ahead, up = street.upright(X, x, y)
        course = up / 0.32
        row = np.floor(course)
        if brick:
            joint = (course % 1 < 0.22) | ((ahead / 0.8 + row * 0.5) % 1 < 0.10)
        else:
            joint = (ahead / 2 % 1 < 0.05) | (course % 4 < 0.15)
        dirt = 0.10 * noise("speckle", ahead * 8, up * 8) + 0.08 * noise("cloud", ahead * 6, up * 6)
        dirt -= 0.2 * np.exp(-up / 0.4)
        colour = stone * ((1 + dirt) * (1 - 0.3 * joint * np.exp(-ahead / 25)))[..., None]
        return np.where((up > tall - 0.22)[..., None], np.minimum(stone * 1.25 + 0.08, 0.95), colour)

    canvas.fill([street.strip(X, Z, Z + long, tall)], surface, WALL, Z + long / 3, canvas.light.on(-out, 0, 0))


def paint_fence(
    canvas: Canvas, street: Street, X: float, out: int, Z: float, long: float, tall: float, seed: int
) -> None:
    """Pickets on two rails; the picture shows through the gaps, the label does not"""
    rng = np.random.default_rng(seed)
    colour = tint(rng, ((0.92, 0.91, 0.88), (0.55, 0.38, 0.22), (0.16, 0.26, 0.20)))
    pitch, duty = rng.uniform(0.5, 0.75), rng.uniform(0.45, 0.6)

    def pickets(x, y):
        ahead, up = street.upright(X, x, y)
        bar = (ahead / pitch % 1 < duty) & (up < tall - 0.12 * (np.abs(ahead / pitch % 1 - duty / 2) > duty / 4))
        solid = bar | (np.abs(up - tall * 0.25) < 0.09) | (np.abs(up - tall * 0.75) < 0.09)
        shaded = colour * (1 - 0.12 * bar - 0.15 * (ahead / pitch % 1 > duty * 0.7))[..., None]
        return np.concatenate((shaded, solid[..., None]), -1)

    canvas.fill([street.strip(X, Z, Z + long, tall)], pickets, FENCE, Z + long / 3, canvas.light.on(-out, 0, 0) * 1.05)


def paint_hedge(
    canvas: Canvas, street: Street, X: float, out: int, Z: float, long: float, tall: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    green = tint(rng, ((0.20, 0.34, 0.12), (0.16, 0.30, 0.14), (0.28, 0.36, 0.12)))

    def leaves(x, y):
        ahead, up = street.upright(X, x, y)
        near = np.exp(-ahead / 30)
        leaf = 0.30 * noise("leaf", ahead * 14, up * 14) + 0.12 * noise("speckle", x * 2, y * 2)
        return green * (0.8 + 0.35 * up / tall + near * leaf)[..., None]

    top = tall + rng.uniform(-0.12, 0.12, 12)
    canvas.fill(
        [street.strip(X, Z, Z + long, top)], leaves, PLANT, Z + long / 3, canvas.light.on(-out * 0.7, 0.7, 0) * 0.95
    )


def plant_tree(street: Street, light: Light, X: float, Z: float, rng: Generator, layer: int = 0) -> Thing:
    """A tree and the shadows of its trunk and crown"""
    tall, seed = rng.uniform(4.5, 7.5), draw_seed(rng)

    def paint(canvas):
        tree(stand(canvas, street, X, Z, PLANT, tall), np.random.default_rng(seed))

    dx, dz = (-tall * light.to_sun[axis] / max(light.to_sun[1], 0.25) for axis in (0, 2))
    crown = street.ring(X + dx * 0.65, Z + dz * 0.65, tall * 0.24, tall * 0.24)
    return Thing(layer, Z, paint, (street.shadow(light, X, Z, 0.15, tall * 0.6), crown))


def tree(pen: Pen, rng: Generator) -> None:
    pen.fill(
        vary(rng, (0.32, 0.24, 0.17)),
        limb(0, 0, 0, 0.5, 0.055, 0.035),
        limb(0, 0.35, 0.12, 0.55, 0.03, 0.02),
        limb(0, 0.35, -0.1, 0.55, 0.03, 0.02),
        bulge=0.8,
        grain=0.1,
    )
    green = tint(rng, ((0.24, 0.38, 0.13), (0.18, 0.33, 0.15), (0.33, 0.40, 0.13), (0.42, 0.34, 0.12)))
    count = 16 if pen.size > 35 else 9
    angle, reach = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.3, 1, count)
    x, y = 0.2 * reach * np.cos(angle), 0.67 + 0.24 * reach * np.sin(angle)
    clumps = [disc(a, b, r, r * 0.85) for a, b, r in zip(x, y, rng.uniform(0.08, 0.13, count), strict=True)]
    pen.fill(green * 0.72, disc(0, 0.66, 0.2, 0.22), *clumps, bulge=0.6, grain=0.2, kind="leaf")
    for clump in sorted(clumps[: count * 2 // 3], key=lambda clump: clump[:, 1].mean()):
        pen.fill(
            green * (0.72 + 0.55 * (clump[:, 1].mean() - 0.42)) * rng.uniform(0.92, 1.12),
            clump * 0.94 + clump.mean(0) * 0.06,
            bulge=0.55,
            grain=0.2,
            kind="leaf",
        )
