"""One frame: sky, ground and skyline, then all things of the street from far to near."""

import numpy as np
from numpy.random import Generator

from demo.world.buildings import borders, houses
from demo.world.canvas import BUILDING, LINE, PLANT, ROAD, SIDEWALK, SKY, Canvas, disc, rectangle
from demo.world.light import draw_light, noise, tint, vary
from demo.world.street import Palette, Street
from demo.world.traffic import furniture, people, traffic
from demo.world.unknowns import unknown_things

TOWNS = {  # colours of plaster, and of brick and stone; t5 and t6 differ a little from the towns to learn from
    "t1": (((.80, .72, .58), (.74, .60, .50), (.83, .80, .74), (.62, .66, .70)), ((.58, .33, .26), (.60, .56, .50))),
    "t2": (((.70, .52, .42), (.86, .78, .62), (.60, .62, .58), (.78, .66, .64)), ((.52, .30, .25), (.55, .55, .56))),
    "t3": (((.78, .68, .52), (.72, .58, .52), (.66, .70, .72), (.84, .82, .76)), ((.60, .36, .28), (.58, .54, .50))),
    "t5": (((.82, .70, .50), (.66, .52, .46), (.80, .76, .72), (.58, .60, .66)), ((.62, .38, .28), (.56, .52, .48))),
    "t6": (((.76, .64, .58), (.68, .70, .66), (.86, .80, .70), (.64, .50, .44)), ((.50, .31, .27), (.62, .58, .54))),
}  # fmt: skip


def draw_street(width: int, height: int, town: str, rng: Generator, unknowns: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Picture (H, W, 3) uint8 and stored labels (H, W) uint8 of one frame with so many unknown things"""
    light = draw_light(rng)
    canvas = Canvas(width, height, light, SKY)
    road = (-rng.uniform(4.4, 5.4), rng.uniform(2.6, 3.4))
    walk = (road[0] - rng.uniform(1.9, 2.6), road[1] + rng.uniform(1.9, 2.6))
    house = (walk[0] - rng.uniform(1.0, 3.5), walk[1] + rng.uniform(1.0, 3.5))
    street = Street(
        width=canvas.width,
        focal=rng.uniform(98, 118),
        height=rng.uniform(1.8, 2.3),
        horizon=rng.uniform(36, 44),
        vanishing=canvas.width * rng.uniform(0.38, 0.62),
        bend=rng.uniform(-0.0025, 0.0025),
        road=road,
        walk=walk,
        house=house,
    )
    parts = (houses, borders, traffic, furniture, people)
    things = [thing for part in parts for thing in part(street, light, TOWNS[town], rng)]
    things += unknown_things(street, light, rng, unknowns)
    paint_sky(canvas, street, rng)
    paint_ground(canvas, street, rng)
    canvas.shade([o for thing in things for o in thing.cast], light.ambient / (light.on(0, 1, 0) + 0.02), 0.6)
    canvas.shade([o for thing in things for o in thing.contact], (0.45, 0.45, 0.5), 0.8)
    paint_skyline(canvas, street, TOWNS[town], rng)
    for thing in sorted(things, key=lambda thing: (-thing.layer, -thing.depth)):
        thing.paint(canvas)
    return canvas.photograph(rng)


def paint_sky(canvas: Canvas, street: Street, rng: Generator) -> None:
    """A sky that pales towards the horizon, and clouds"""
    light, (x, y) = canvas.light, canvas.grid()
    up = np.clip((street.horizon - y) / street.horizon, 0, 1)
    sky = light.sky_low + (light.sky_top - light.sky_low) * (up**0.7)[..., None]
    high = 1 / (up + 0.12)
    drift = rng.integers(256, size=2).tolist()
    field = noise("cloud", (x - street.vanishing) * high * 0.5 + drift[0], 14 * high + drift[1])
    cover = np.clip(0.55 * field + 2.4 * light.clouds - 1.2, 0, 1) * np.clip(up * 4, 0, 1) * 0.8
    white = np.clip(light.ambient * 0.85 + light.sun * 0.75, 0, 0.97) * (1 - 0.05 * np.clip(field, 0, 2))[..., None]
    canvas.pixels[:] = sky + cover[..., None] * (white - sky)


def paint_ground(canvas: Canvas, street: Street, rng: Generator) -> None:
    """Road, street lines, sidewalks and grass, all as functions of the place on the ground"""
    light, (x, y) = canvas.light, canvas.grid()
    first = int(np.ceil((street.horizon + 0.4) * canvas.scale))
    y = y[first:]
    X, Z = street.ground(x, y)
    fade, offset = np.exp(-Z / 22), int(rng.integers(256))
    fine, lumps = noise("speckle", X * 22 + offset, Z * 9), noise("cloud", X * 9 + offset, Z * 5 + offset)
    ground, labels = np.empty((*X.shape, 3), np.float32), np.full(X.shape, PLANT, np.uint8)

    ground[:] = vary(rng, (0.30, 0.40, 0.17)) * (1 + fade * (0.16 * fine + 0.10 * lumps))[..., None]
    on_walk = (street.walk[0] < X) & (street.walk[1] > X)
    slab = float(rng.uniform(0.7, 1.1))
    joint = ((X / slab % 1 < 0.07) | (Z / slab % 1 < 0.06)) * np.exp(-Z / 12)
    stone = tint(rng, ((0.60, 0.57, 0.53), (0.66, 0.62, 0.54), (0.62, 0.56, 0.52)))
    stone = stone * (1 + fade * (0.06 * fine + 0.07 * lumps) - 0.35 * joint)[..., None]
    ground[on_walk], labels[on_walk] = stone[on_walk], SIDEWALK

    on_road = (street.road[0] < X) & (street.road[1] > X)
    curb = (street.road[0] - 0.22 < X) & (street.road[1] + 0.22 > X) & ~on_road
    ground[curb] = 0.78 * (1 + 0.1 * fine[curb])[..., None] * np.array((1, 0.98, 0.95))
    middle = sum(street.road) / 2
    tracks = 0.05 * np.cos((X - middle) * np.pi / 1.0)
    cracks = np.exp(-np.abs(lumps) * 28) * 0.25
    asphalt = tint(rng, ((0.29, 0.29, 0.31), (0.34, 0.33, 0.33), (0.25, 0.26, 0.29)))
    asphalt = asphalt * (1 + tracks + fade * (0.10 * fine + 0.09 * lumps - cracks))[..., None]
    ground[on_road], labels[on_road] = asphalt[on_road], ROAD

    half = np.maximum(0.13, 1.5 * Z / street.focal)
    dash = float(rng.uniform(0, 6))
    lines = (np.abs(X - middle) < half) & (((Z + dash) % 5 < 3) | (rng.random() < 0.25))
    lines |= np.minimum(np.abs(X - street.road[0] - 0.45), np.abs(X - street.road[1] + 0.45)) < half
    lines &= Z < 34
    if rng.random() < 0.4:
        zebra = float(rng.uniform(6.5, 13))
        across = (zebra < Z) & (zebra + 2.6 > Z) & (np.abs(X - middle) < middle - street.road[0] - 0.75)
        lines = np.where(across, (X - middle) % 1.1 < 0.6, lines)
    lines &= on_road
    centre = (1.0, 0.82, 0.30) if rng.random() < 0.25 else (1.0, 1.0, 0.98)
    colour = np.where((np.abs(X - middle) < half)[..., None], centre, (1.0, 1.0, 0.98)) * 0.84
    ground[lines] = (colour * (1 + fade * (0.05 * fine - 0.06 * np.abs(lumps)))[..., None])[lines]
    labels[lines] = LINE

    haze = (1 - np.exp(-Z / light.clear))[..., None]
    canvas.pixels[first:] = ground * light.on(0, 1, 0) * (1 - haze) + light.sky_low * haze
    canvas.labels[first:] = labels


def paint_skyline(canvas: Canvas, street: Street, palette: Palette, rng: Generator) -> None:
    """Far houses and trees along the horizon"""
    for depth in (160, 110, 75):
        x = -rng.uniform(0, 15)
        while x < canvas.width:
            wide, tall = rng.uniform(6, 18), rng.uniform(2, 9) * 75 / depth + 2
            base = street.horizon + 1.5
            if rng.random() < 0.5:
                colour = tint(rng, palette[0])
                canvas.fill([rectangle(x, base - tall * 1.3, x + wide, base)], colour, BUILDING, depth, grain=0.08)
            else:
                places = ((0.1, 0.4), (0.5, 0.6), (0.9, 0.45))
                humps = [disc(x + wide * t, base - tall * 0.3, wide * 0.3, tall * r) for t, r in places]
                canvas.fill(humps, vary(rng, (0.22, 0.32, 0.16)), PLANT, depth, bulge=0.4, grain=0.15, kind="leaf")
            x += wide * rng.uniform(0.6, 1.3)
