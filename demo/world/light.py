"""Light, noise and colours. Colours are RGB, 1.0 is white."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

LIGHTS = (  # sun, ambient, sky above, sky at the horizon, height of the sun, clouds, lit windows
    ((.80, .77, .70), (.46, .50, .56), (.27, .48, .80), (.74, .84, .93), 1.5, .40, .00),  # day
    ((.92, .68, .42), (.46, .46, .52), (.36, .48, .70), (.97, .82, .62), 0.6, .45, .04),  # low sun
    ((.14, .14, .14), (.74, .76, .79), (.58, .63, .69), (.82, .84, .85), 1.5, .95, .00),  # overcast
    ((.30, .20, .18), (.45, .47, .58), (.17, .22, .42), (.86, .60, .52), 0.4, .55, .45),  # dusk
)  # fmt: skip


class Light(NamedTuple):
    """Where the light of a scene comes from; colours of light are factors on the colours of things."""

    sun: np.ndarray
    ambient: np.ndarray
    to_sun: np.ndarray  # unit vector (X, Y, Z)
    sky_top: np.ndarray
    sky_low: np.ndarray  # also the colour of the haze
    clear: float  # metres after which haze has taken 63 percent
    clouds: float  # 0 none .. 1 closed
    lamps: float  # share of windows that are lit

    def on(self, *normal: float) -> np.ndarray:
        """Light on a surface with this outward normal (X, Y, Z)"""
        return self.ambient * (0.85 + 0.15 * normal[1]) + self.sun * max(0.0, float(np.dot(normal, self.to_sun)))


def draw_light(rng: Generator) -> Light:
    """One time of day and weather"""
    sun, ambient, top, low, height, clouds, lamps = LIGHTS[rng.choice(len(LIGHTS), p=(0.42, 0.24, 0.22, 0.12))]
    turn, height = rng.uniform(0.5, 2.64) * rng.choice((-1, 1)), height * rng.uniform(0.7, 1.3)
    to_sun = np.array((np.sin(turn), height, -np.cos(turn)))
    power = rng.uniform(0.9, 1.1)
    sun, ambient, top, low = (np.array(colour) * rng.uniform(0.96, 1.04, 3) for colour in (sun, ambient, top, low))
    return Light(
        sun=sun * power,
        ambient=ambient * power,
        to_sun=to_sun / np.linalg.norm(to_sun),
        sky_top=top,
        sky_low=low,
        clear=rng.uniform(90, 320),
        clouds=float(np.clip(clouds + rng.uniform(-0.2, 0.2), 0, 1)),
        lamps=lamps,
    )


@lru_cache
def tile(kind: str) -> np.ndarray:
    """A 256x256 field of noise that tiles, mean 0, deviation 1"""
    fall, along, across = {"speckle": (0.3, 1, 1), "cloud": (1.7, 1, 2), "leaf": (1.0, 1, 1), "fur": (1.2, 1, 5)}[kind]
    fy, fx = np.meshgrid(np.fft.fftfreq(256) * across, np.fft.fftfreq(256) * along, indexing="ij")
    if kind == "fur":
        fy, fx = fy / across**2, fx * across
    distance = np.hypot(fx, fy)
    distance[0, 0] = 1
    gain = distance**-fall * (np.clip(distance / 0.04, 0, 1) ** 2 if kind == "leaf" else 1)
    white = np.random.default_rng(len(kind)).standard_normal((256, 256))
    field = np.fft.ifft2(np.fft.fft2(white) * gain).real
    return (field - field.mean()) / field.std()


def noise(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The tile's values at integer parts of u, v"""
    return tile(kind)[np.floor(v).astype(np.int32) & 255, np.floor(u).astype(np.int32) & 255]


def pick(rng: Generator, choices: Sequence) -> Any:
    """One of the choices; unlike rng.choice it leaves tuples and functions as they are"""
    return choices[rng.integers(len(choices))]


def draw_seed(rng: Generator) -> int:
    """A seed for something that is painted later"""
    return int(rng.integers(1 << 30))


def vary(rng: Generator, colour: ArrayLike, amount: float = 0.06) -> np.ndarray:
    """The colour a little brighter or darker, and a little off"""
    brighter = rng.uniform(1 - 2 * amount, 1 + 2 * amount)
    return np.clip(np.array(colour) * brighter + rng.normal(0, amount / 3, 3), 0.02, 1)


def tint(rng: Generator, choices: Sequence[ArrayLike]) -> np.ndarray:
    """One of the colours, varied"""
    return vary(rng, pick(rng, choices))


def vivid(rng: Generator) -> np.ndarray:
    """A saturated colour of any hue"""
    hue = rng.uniform(0, 6) - np.array((0, 2, 4))
    return np.clip(np.abs((hue + 6) % 6 - 3) - 1, 0, 1) * rng.uniform(0.45, 0.85) + rng.uniform(0.05, 0.2)
