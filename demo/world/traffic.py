"""What stands and moves on road and sidewalks: cars, street furniture, people."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.random import Generator

from demo.world.buildings import plant_tree
from demo.world.canvas import (
    CAR,
    OTHER,
    PERSON,
    POLE,
    SIGN,
    Canvas,
    Pen,
    corners,
    disc,
    limb,
    rectangle,
    smooth,
    stripes,
)
from demo.world.light import Light, draw_seed, pick, tint, vary, vivid
from demo.world.street import Palette, Street, Thing, stand

CARS = (  # outline (Z, Y) from the near bottom over the roof to the far bottom, its glass edges, windows of the flank
    (((0, .3), (0, .8), (.08, .98), (.6, 1.0), (1.15, 1.42), (2.5, 1.45), (3.2, 1.0), (4.1, .85), (4.2, .7),
      (4.2, .3)), (3, 5),
     ((.75, 1.02), (1.25, 1.36), (1.8, 1.38), (1.8, 1.02)), ((1.9, 1.02), (1.9, 1.38), (2.45, 1.38), (2.95, 1.02))),
    (((0, .3), (0, .95), (.35, 1.48), (2.3, 1.55), (3.1, 1.05), (3.8, .9), (3.9, .7), (3.9, .3)), (1, 3),
     ((.3, 1.05), (.55, 1.45), (1.3, 1.48), (1.3, 1.05)), ((1.4, 1.05), (1.4, 1.48), (2.2, 1.48), (2.8, 1.05))),
    (((0, .3), (0, 1.1), (.15, 1.95), (3.2, 2.0), (4.0, 1.2), (4.5, 1.0), (4.6, .7), (4.6, .3)), (1, 3),
     ((.4, 1.2), (.5, 1.8), (1.8, 1.82), (1.8, 1.2)), ((1.95, 1.2), (1.95, 1.82), (3.0, 1.82), (3.6, 1.2))),
)  # fmt: skip
CAR_COLOURS = ((.72, .10, .10), (.12, .25, .55), (.86, .87, .88), (.10, .11, .12), (.55, .57, .60), (.85, .65, .12),
               (.10, .38, .30))  # fmt: skip


def traffic(street: Street, light: Light, palette: Palette, rng: Generator) -> Iterator[Thing]:
    """Parked cars, one ahead, and oncoming ones"""
    ours, theirs = street.road[1] - 1.25, street.road[0] + 1.9
    places = (
        (ours, rng.uniform(7, 10), False),
        (ours, rng.uniform(15, 22), False),
        (sum(street.road) / 2 + 1.9, rng.uniform(22, 34), False),
        (theirs, rng.uniform(8, 15), True),
        (theirs, rng.uniform(20, 34), True),
    )
    for X, Z, oncoming in [places[i] for i in sorted(rng.choice(5, rng.integers(2, 5), replace=False))]:
        dx = -light.to_sun[0] / max(light.to_sun[1], 0.25)
        under = street.project((X - 0.95, X + 0.95, X + 0.95, X - 0.95), 0, (Z - 0.15, Z - 0.15, Z + 4.2, Z + 4.2))
        cast = street.project(np.array((X - 0.9, X + 0.9, X + 0.9, X - 0.9)) + 1.2 * dx, 0, (Z, Z, Z + 4.2, Z + 4.2))
        painter = partial(paint_car, street=street, X=X, Z=Z, oncoming=oncoming, seed=draw_seed(rng))
        yield Thing(0, Z, painter, (cast,), (under,))


def paint_car(canvas: Canvas, street: Street, X: float, Z: float, oncoming: bool, seed: int) -> None:
    """A car: its outline drawn out over its width; first the edges that face the camera, far to near, then the flank"""
    rng = np.random.default_rng(seed)
    outline, glass, *windows = CARS[rng.choice(3, p=(0.5, 0.35, 0.15))]
    outline, long, light = np.array(outline), outline[-1][0], canvas.light
    colour, dark, pane = tint(rng, CAR_COLOURS), np.array((0.05, 0.05, 0.06)), light.sky_top * 0.35 + 0.06
    if oncoming:
        outline = np.stack((long - outline[:, 0], outline[:, 1]), 1)[::-1]
        glass = [len(outline) - 2 - edge for edge in glass]
        windows = [[(long - z, y) for z, y in window] for window in windows]

    def at(side, points):
        z, y = np.array(points, float).T
        return street.project(X + side * (0.9 - 0.2 * np.clip(y - 0.95, 0, 0.6)), y, Z + z)

    def plate(x, half, low, high, z):
        return street.project((x - half, x + half, x + half, x - half), (low, low, high, high), z)

    def paint(points, colour, normal, **how):
        canvas.fill([points], colour, CAR, Z, light.on(*normal), **how)

    for x in (-0.72, 0.72):
        paint(plate(x + X, 0.14, 0, 0.5, Z + 0.1), dark, (0, 0, -1))
    for edge in range(len(outline) - 2, -1, -1):
        a, b = outline[edge], outline[edge + 1]
        normal = np.array((0, b[0] - a[0], a[1] - b[1])) / np.hypot(*(b - a))
        if normal[1] * (street.height - a[1]) - normal[2] * (Z + a[0]) > 0:
            paint(np.concatenate((at(-1, (a, b)), at(1, (b, a)))), colour, normal, bulge=0.12)
            if edge in glass:
                inner = [a + (b - a) * t for t in (0.12, 0.9)]
                paint(np.concatenate((at(-0.86, inner), at(0.86, inner[::-1]))), pane, normal, bulge=0.2)
    lamp, low = ((1, 0.97, 0.85), 0.55) if oncoming else ((0.75, 0.06, 0.05), 0.68)
    for x in (-0.66, 0.66):
        paint(plate(X + x, 0.18, low, low + 0.2, Z - 0.01), np.array(lamp), (0, 1, -1))
    paint(plate(X, 0.25, 0.42, 0.58, Z - 0.01), np.array((0.9, 0.9, 0.85)), (0, 0, -1))
    paint(plate(X, 0.88, 0.28, 0.38, Z - 0.01), dark * 2, (0, 0, -1))
    if abs(X) > 0.9:
        side = -1 if X > 0 else 1
        paint(at(side, outline), colour, (side, 0.25, 0), bulge=0.15)
        for window in windows:
            paint(at(side, window), pane, (side, 0.3, 0))
        for axle in (0.8, long - 0.85):
            paint(at(side * 1.01, disc(axle, 0.34, 0.36)), dark, (side, 0, 0))
            paint(at(side * 1.02, disc(axle, 0.34, 0.19)), np.array((0.55, 0.55, 0.57)), (side, 0, 0))


def furniture(street: Street, light: Light, palette: Palette, rng: Generator) -> Iterator[Thing]:
    """Street lamps, traffic signs, trees on the sidewalk, and clutter without a class"""

    def place(draw, X, Z, label, half, height):
        seed, flip = draw_seed(rng), -1 if X > 0 else 1

        def paint(canvas):
            draw(stand(canvas, street, X, Z, label, flip=flip), np.random.default_rng(seed))

        cast, contact = street.shadow(light, X, Z, half, height), street.ring(X, Z, half * 1.5, half * 1.5)
        return Thing(0, Z, paint, (cast,), (contact,))

    left, right = street.road[0] - 0.5, street.road[1] + 0.5
    near = ((left, rng.uniform(7, 11)), (right, rng.uniform(6, 9)))
    middle = ((left, rng.uniform(14, 18)), (right, rng.uniform(14, 20)))
    for X, Z in (*near, *middle, (right, 28), (left, 30)):
        yield place(lamp_post, X, Z, POLE, 0.12, 5)
    near = ((left - rng.uniform(0, 0.6), rng.uniform(7, 11)), (right + rng.uniform(0, 0.6), rng.uniform(5.5, 9)))
    for X, Z in (*near, (right, rng.uniform(11, 15)))[rng.integers(2) :]:
        yield place(traffic_sign, X, Z, SIGN, 0.1, 2.5)
    for _ in range(rng.integers(1, 4)):
        X = street.walk[0] + 0.5 if rng.random() < 0.5 else street.walk[1] - 0.5
        yield plant_tree(street, light, X, rng.uniform(12, 34), rng)
    for _ in range(rng.integers(2, 5)):
        X = rng.uniform(street.walk[0] + 0.3, left) if rng.random() < 0.5 else rng.uniform(right, street.walk[1] - 0.3)
        yield place(pick(rng, (litter_bin, hydrant)), X, rng.uniform(6.5, 16), OTHER, 0.3, 1)


def lamp_post(pen: Pen, rng: Generator) -> None:
    grey, half = tint(rng, ((0.30, 0.32, 0.33), (0.20, 0.25, 0.23), (0.38, 0.37, 0.36))), max(0.1, 1.6 / pen.size)
    tall, reach = rng.uniform(4.6, 5.6), rng.uniform(0.8, 1.4)
    pen.fill(
        grey,
        rectangle(-half, 0, half, tall),
        rectangle(-half * 1.5, 0, half * 1.5, 0.5),
        limb(0, tall, reach, tall + 0.35, half * 1.4),
        bulge=0.5,
        grain=0.03,
    )
    pen.fill(grey * 0.6, smooth(corners("-20,30 10,55 50,30 10,22") + (reach, tall)))


def traffic_sign(pen: Pen, rng: Generator) -> None:
    half, tall, r = max(0.07, 1.5 / pen.size), rng.uniform(2.1, 2.6), max(rng.uniform(0.42, 0.52), 4.5 / pen.size)
    pen.fill(vary(rng, (0.40, 0.42, 0.43)), rectangle(-half, 0, half, tall), label=POLE, grain=0.03)
    red, blue, white, yellow = (0.80, 0.08, 0.09), (0.08, 0.25, 0.68), (0.95, 0.95, 0.93), (0.97, 0.78, 0.10)
    kind = rng.integers(5)
    triangle = np.array(((-1.1, -0.8), (1.1, -0.8), (0, 1.1))) * r + (0, tall)
    square = rectangle(-0.85 * r, tall - 0.85 * r, 0.85 * r, tall + 0.85 * r)
    diamond = disc(0, tall, 1.15 * r)[::6]
    outer, share, rim, face = (
        (disc(0, tall, r), 0.68, red, white),
        (triangle, 0.58, red, white),
        (square, 0.85, white, blue),
        (diamond, 0.8, white, yellow),
        (disc(0, tall, r), 0.9, white, blue),
    )[kind]
    inner = (outer - (0, tall)) * share + (0, tall)
    pen.fill(rim, outer, bulge=0.1, grain=0.02)
    pen.fill(face, inner, bulge=0.1, grain=0.02)
    mark = white if face == blue else (0.1, 0.1, 0.1)
    if rng.random() < 0.8:
        level = rectangle(-0.42 * r, tall - 0.12 * r, 0.42 * r, tall + 0.12 * r)
        upright = rectangle(-0.1 * r, tall - 0.4 * r, 0.1 * r, tall + 0.3 * r)
        slanted = limb(-0.25 * r, tall - 0.3 * r, 0.25 * r, tall + 0.3 * r, 0.22 * r)
        pen.fill(mark, pick(rng, (level, upright, slanted)), bulge=0, grain=0)


def litter_bin(pen: Pen, rng: Generator) -> None:
    colour = tint(rng, ((0.18, 0.34, 0.22), (0.25, 0.27, 0.30), (0.20, 0.28, 0.42)))
    pen.fill(colour, corners("-28,0 28,0 33,95 -33,95"), bulge=0.6, pattern=(stripes(0.08), colour * 0.75))
    pen.fill(colour * 0.7, smooth("-36,93 -20,106 20,106 36,93"))


def hydrant(pen: Pen, rng: Generator) -> None:
    red = tint(rng, ((0.75, 0.14, 0.10), (0.85, 0.65, 0.12)))
    pen.fill(
        red,
        rectangle(-0.15, 0, 0.15, 0.65),
        disc(0, 0.66, 0.17, 0.16),
        disc(0, 0.42, 0.28, 0.09),
        rectangle(-0.22, 0, 0.22, 0.1),
        bulge=0.8,
    )


def people(street: Street, light: Light, palette: Palette, rng: Generator) -> Iterator[Thing]:
    """Pedestrians, most on the sidewalks"""
    for number in range(rng.integers(3, 6)):
        Z = rng.uniform(5.2, 8.5) if number < 2 else rng.uniform(7, 13)
        side = number % 2 if number < 2 else rng.integers(2)
        edge = Z * (street.width - street.vanishing if side else street.vanishing) / street.focal - 0.4  # of the view
        low, high = (-street.walk[0], -street.road[0]) if side == 0 else (street.walk[1], street.road[1])
        X = (-1, 1)[side] * min(rng.uniform(high + 0.5, low - 0.4), max(edge, high - 0.6))
        if number > 2 and rng.random() < 0.3:
            X = rng.uniform(*street.road)
        tall, flip, seed = rng.uniform(1.55, 1.9), rng.choice((-1, 1)), draw_seed(rng)
        painter = partial(paint_person, street=street, X=X, Z=Z, tall=tall, flip=flip, seed=seed)
        yield Thing(0, Z, painter, (street.shadow(light, X, Z, 0.22, tall),), (street.ring(X, Z, 0.4, 0.3),))


def paint_person(canvas: Canvas, street: Street, X: float, Z: float, tall: float, flip: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pen = stand(canvas, street, X, Z, PERSON, tall, flip)
    skin = pick(rng, ((0.90, 0.70, 0.58), (0.72, 0.50, 0.38), (0.45, 0.30, 0.22)))
    coat = vary(rng, vivid(rng) * 0.7 + 0.1)
    trousers = tint(rng, ((0.13, 0.16, 0.28), (0.10, 0.10, 0.11), (0.40, 0.34, 0.26), (0.30, 0.32, 0.35)))
    stride, swing = rng.uniform(0.02, 0.13), rng.uniform(0.02, 0.12)
    pen.fill(trousers * 0.8, limb(-0.03, 0.48, -stride - 0.02, 0.05, 0.12, 0.075))
    pen.fill(trousers, limb(0.03, 0.48, stride + 0.02, 0.05, 0.12, 0.075))
    pen.fill(
        (0.08, 0.07, 0.07),
        limb(-stride - 0.03, 0.025, -stride + 0.04, 0.02, 0.05),
        limb(stride + 0.01, 0.025, stride + 0.09, 0.02, 0.05),
    )
    pen.fill(coat * 0.75, limb(-0.1, 0.77, -0.12 - swing, 0.5, 0.075, 0.06))
    pen.fill(coat, smooth("-12,80 0,84 12,80 12.5,62 12,44 0,42 -12,44 -12.5,62"), bulge=0.6)
    pen.fill(coat * 0.9, limb(0.1, 0.77, 0.12 + swing, 0.5, 0.075, 0.06))
    pen.fill(
        skin,
        disc(-0.13 - swing, 0.47, 0.03),
        disc(0.13 + swing, 0.47, 0.03),
        disc(0, 0.915, 0.062, 0.078),
        rectangle(-0.03, 0.8, 0.03, 0.88),
    )
    pen.fill(
        tint(rng, ((0.12, 0.08, 0.06), (0.42, 0.28, 0.14), (0.65, 0.5, 0.28), (0.4, 0.4, 0.4))),
        smooth("-7,91 -6,98 0,101 6,98 6.5,93 2,95"),
    )
