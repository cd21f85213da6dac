"""Unknown things: they stand only in test frames, and nothing like them is among the negatives."""

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator

from demo.world.canvas import ANOMALY, Pen, checks, corners, disc, dots, limb, rectangle, smooth, stripes
from demo.world.light import Light, draw_seed, tint, vary, vivid
from demo.world.street import Street, Thing, stand


def deer(pen: Pen, rng: Generator) -> None:
    fur = tint(rng, ((0.52, 0.35, 0.20), (0.40, 0.27, 0.17), (0.60, 0.46, 0.32)))
    pen.fill(fur * 0.65, limb(-0.22, 0.42, -0.26, 0.02, 0.075, 0.05), limb(0.17, 0.42, 0.13, 0.02, 0.075, 0.05))
    pen.fill(
        (0.80, 0.72, 0.58),
        limb(0.31, 0.82, 0.24, 0.93, 0.03, 0.02),
        limb(0.24, 0.93, 0.30, 1.0, 0.025, 0.015),
        limb(0.25, 0.92, 0.16, 0.98, 0.025, 0.015),
        limb(0.35, 0.82, 0.40, 0.94, 0.03, 0.02),
        limb(0.40, 0.93, 0.35, 1.0, 0.025, 0.015),
        limb(0.40, 0.92, 0.48, 0.98, 0.025, 0.015),
        grain=0,
    )
    body = smooth("-36,55 -30,63 0,60 18,64 26,80 33,84 42,78 50,72 49,67 38,68 31,52 20,38 0,36 -25,38 -35,44")
    pen.fill(
        fur,
        body,
        limb(-0.3, 0.44, -0.28, 0.02, 0.12, 0.06),
        limb(0.22, 0.44, 0.25, 0.02, 0.1, 0.06),
        limb(0.30, 0.81, 0.22, 0.86, 0.06, 0.02),
        bulge=0.8,
        grain=0.13,
        kind="fur",
    )
    pen.fill((0.88, 0.80, 0.68), smooth("-37,55 -42,50 -38,42 -34,48"), smooth("-15,37 15,37 10,41 -10,41"), grain=0.05)
    pen.fill((0.05, 0.04, 0.04), disc(0.5, 0.695, 0.022), disc(0.385, 0.775, 0.02), bulge=0)


def sofa(pen: Pen, rng: Generator) -> None:
    cloth = tint(rng, ((0.55, 0.12, 0.18), (0.15, 0.38, 0.40), (0.70, 0.48, 0.20), (0.42, 0.25, 0.48)))
    pen.fill((0.2, 0.13, 0.08), rectangle(-0.58, 0, -0.52, 0.1), rectangle(0.52, 0, 0.58, 0.1))
    pen.fill(cloth * 0.85, smooth("-55,10 -56,62 -45,72 0,75 45,72 56,62 55,10"), bulge=0.35, grain=0.08)
    pen.fill(cloth * 1.1, smooth("-44,36 -43,66 -22,68 -2,66 -2,36"), smooth("2,36 2,66 22,68 43,66 44,36"), bulge=0.4)
    pen.fill(cloth * 0.95, rectangle(-0.5, 0.08, 0.5, 0.28), bulge=0.2)
    pen.fill(cloth * 1.2, smooth("-50,28 -46,38 -2,38 -2,27"), smooth("2,27 2,38 46,38 50,28"), bulge=0.6)
    for side in (-1, 1):
        pen.fill(cloth, limb(side * 0.56, 0.1, side * 0.56, 0.44, 0.17, 0.2), bulge=0.7, grain=0.07)


def teapot(pen: Pen, rng: Generator) -> None:
    enamel = tint(rng, ((0.90, 0.90, 0.86), (0.20, 0.42, 0.62), (0.85, 0.55, 0.35), (0.62, 0.78, 0.68)))
    bloom = vivid(rng)
    ring = np.concatenate((disc(-0.47, 0.42, 0.2, 0.24), disc(-0.47, 0.42, 0.12, 0.16)[::-1]))
    pen.fill(enamel * 0.9, ring, smooth("28,25 45,38 52,60 66,70 60,76 44,66 36,50 25,45"), bulge=0.7, grain=0.02)
    pen.fill(
        enamel,
        smooth("-25,3 -42,20 -43,42 -28,66 0,72 28,66 43,42 42,20 25,3 0,0"),
        bulge=1,
        grain=0.02,
        pattern=(lambda x, y: (np.abs(y - 0.38) < 0.1) & dots(0.16)(x, y + 0.02), bloom),
    )
    pen.fill(enamel * 0.8, smooth("-26,66 -15,78 0,82 15,78 26,66 0,63"), disc(0, 0.87, 0.07), bulge=0.9, grain=0.02)
    pen.fill((1, 1, 1), disc(-0.17, 0.53, 0.05, 0.09, -0.4), bulge=0, grain=0)


def umbrella(pen: Pen, rng: Generator) -> None:
    one, two = vivid(rng), (0.95, 0.93, 0.88)
    pen.fill((0.75, 0.72, 0.66), limb(0, 0, 0, 0.7, 0.035), grain=0.02)
    cloth = smooth("-62,50 -50,76 -25,93 0,98 25,93 50,76 62,50 42,56 21,50 0,55 -21,50 -42,56")
    pen.fill(
        one, cloth, bulge=0.9, grain=0.03, pattern=(lambda x, y: (np.arctan2(x, 1.05 - y) * 4.2 + 0.5) % 2 < 1, two)
    )
    pen.fill(one, limb(0, 0.97, 0, 1.02, 0.03))


def balloon(pen: Pen, rng: Generator) -> None:
    one, two = vivid(rng), vivid(rng)
    pen.fill((0.35, 0.25, 0.15), limb(-0.12, 0.35, -0.055, 0.12, 0.015), limb(0.12, 0.35, 0.055, 0.12, 0.015), bulge=0)

    def gores(x, y):
        half = 0.12 + 0.27 * np.sin(np.clip((y - 0.2) * 3.6, 0, 3))
        return np.arcsin(np.clip(x / half, -1, 1)) * 2.6 % 2 < 1

    pen.fill(
        one,
        smooth("-10,26 -30,45 -37,68 -26,90 0,100 26,90 37,68 30,45 10,26"),
        bulge=0.9,
        grain=0.02,
        pattern=(gores, two),
    )
    pen.fill((0.52, 0.36, 0.2), rectangle(-0.08, 0, 0.08, 0.14), bulge=0.5, pattern=(checks(0.03), (0.4, 0.26, 0.14)))


def helicopter(pen: Pen, rng: Generator) -> None:
    paint = tint(rng, ((0.78, 0.15, 0.12), (0.90, 0.70, 0.10), (0.25, 0.35, 0.25)))
    pen.fill(
        (0.15, 0.15, 0.16),
        rectangle(-0.03, 0.62, 0.03, 0.75),
        limb(-0.62, 0.75, 0.62, 0.77, 0.035),
        limb(-0.2, 0.08, 0.35, 0.08, 0.035),
        limb(-0.1, 0.1, -0.05, 0.3, 0.03),
        limb(0.22, 0.1, 0.18, 0.3, 0.03),
    )
    pen.fill(
        paint,
        smooth("-22,50 -5,64 20,62 38,45 40,30 25,20 -5,20 -20,30"),
        smooth("-10,55 -45,50 -68,66 -72,64 -62,46 -10,36"),
        bulge=0.9,
    )
    pen.fill((0.30, 0.45, 0.58), smooth("12,56 22,56 35,43 36,34 14,36"), bulge=0.6)
    pen.fill((0.9, 0.9, 0.88), rectangle(-0.16, 0.38, 0.08, 0.43), bulge=0)
    pen.fill((0.2, 0.2, 0.2), limb(-0.66, 0.5, -0.66, 0.76, 0.04))


def dinosaur(pen: Pen, rng: Generator) -> None:
    skin = tint(rng, ((0.30, 0.45, 0.18), (0.45, 0.38, 0.22), (0.25, 0.40, 0.40)))
    pen.fill(
        skin * 0.7,
        limb(-0.02, 0.4, -0.1, 0.18, 0.16, 0.1),
        limb(-0.1, 0.18, -0.04, 0.03, 0.1, 0.07),
        limb(-0.06, 0.03, 0.06, 0.03, 0.06),
    )
    body = smooth(
        "-72,52 -45,46 -20,54 2,64 14,80 20,95 33,100 52,93 53,86 36,83 52,80 48,76 32,74 26,55 16,38 -5,30 "
        "-30,34 -50,42"
    )
    pen.fill(
        skin,
        body,
        limb(0.06, 0.42, 0.12, 0.2, 0.2, 0.12),
        limb(0.12, 0.2, 0.06, 0.04, 0.11, 0.07),
        limb(0.05, 0.03, 0.2, 0.03, 0.07),
        limb(0.22, 0.56, 0.33, 0.5, 0.06, 0.04),
        limb(0.33, 0.5, 0.36, 0.56, 0.04, 0.03),
        bulge=0.9,
        grain=0.12,
        kind="leaf",
        pattern=(stripes(0.055, 0.4), skin * 0.75),
    )
    pen.fill((0.95, 0.9, 0.3), disc(0.31, 0.94, 0.025), bulge=0)
    pen.fill(
        (0.95, 0.95, 0.9),
        *(np.array(((x, 0.855), (x + 0.03, 0.855), (x + 0.015, 0.815))) for x in (0.38, 0.43, 0.48)),
        bulge=0,
        grain=0,
    )


def rocket(pen: Pen, rng: Generator) -> None:
    paint, body = vivid(rng), vary(rng, (0.88, 0.88, 0.90))
    pen.fill(paint * 0.8, corners("-14,32 -32,2 -30,0 -10,14"), corners("14,32 32,2 30,0 10,14"), bulge=0.4)
    pen.fill((0.2, 0.2, 0.22), corners("-8,10 8,10 12,2 -12,2"))
    pen.fill(
        body,
        smooth("-12,10 -17,40 -13,72 0,102 13,72 17,40 12,10 0,8"),
        bulge=1,
        grain=0.02,
        pattern=(lambda x, y: (y > 0.76) | (np.abs(y - 0.22) < 0.05), paint),
    )
    pen.fill((0.25, 0.3, 0.35), disc(0, 0.55, 0.085), bulge=0.2)
    pen.fill((0.5, 0.75, 0.9), disc(0, 0.55, 0.06), bulge=0.7)
    pen.fill(paint, rectangle(-0.02, 0.02, 0.02, 0.3))


ANOMALIES = (deer, sofa, teapot, umbrella, balloon, helicopter, dinosaur, rocket)
FLYING = (balloon, helicopter)


def unknown_things(street: Street, light: Light, rng: Generator, count: int) -> Iterator[Thing]:
    """Unknown things, 16 to 36 units high; the first one is near and on the road or over it"""
    for number, kind in enumerate(rng.choice(len(ANOMALIES), count, replace=False)):
        draw, seed, flip = ANOMALIES[kind], draw_seed(rng), rng.choice((-1, 1))
        Z = rng.uniform(5.2, 7.2) if number == 0 else rng.uniform(6.5, 13)
        size = rng.uniform(22, 36) if number == 0 else rng.uniform(16, 28)
        x = street.width * (rng.uniform(0.2, 0.8) if number == 0 else rng.uniform(0.1, 0.9))
        X = (x - street.vanishing) * Z / street.focal - street.bend * Z * Z
        left, right = street.road if number == 0 else street.walk
        X = float(np.clip(X, left + 0.8, right - 0.8))
        low = rng.uniform(min(size + 3, street.horizon), street.horizon)
        Y = street.height + (street.horizon - low) * Z / street.focal if draw in FLYING else 0.0
        size *= Z / street.focal
        spread = street.ring(X, Z, 0.5 * size, 0.16 * size)

        def paint(canvas, draw=draw, seed=seed, X=X, Z=Z, size=size, flip=flip, Y=Y):
            draw(stand(canvas, street, X, Z, ANOMALY, size, flip, Y), np.random.default_rng(seed))

        if Y:
            yield Thing(0, Z, paint, (spread,))
        else:
            yield Thing(0, Z, paint, (street.shadow(light, X, Z, 0.35 * size, size),), (spread,))
