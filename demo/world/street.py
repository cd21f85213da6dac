"""The geometry of a street, in metres, and the things that stand in it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from demo.world.canvas import CIRCLE, Canvas, Pen
from demo.world.light import Light

Palette = tuple[Sequence[tuple[float, float, float]], ...]  # colours of plaster, and of brick and stone


class Street(NamedTuple):
    """A camera over a road that may bend, and where road, sidewalk and gardens end to the left and right (metres)"""

    width: float  # of the picture; this, focal, horizon and vanishing are in drawing units
    focal: float
    height: float  # metres over the road
    horizon: float
    vanishing: float
    bend: float
    road: tuple[float, float]
    walk: tuple[float, float]
    house: tuple[float, float]

    def project(self, X: ArrayLike, Y: ArrayLike, Z: ArrayLike) -> np.ndarray:
        """(N, 2) points of the picture"""
        X, Y, Z = np.broadcast_arrays(*(np.atleast_1d(np.asarray(value, float)) for value in (X, Y, Z)))
        return np.stack(
            (self.vanishing + self.focal * (X / Z + self.bend * Z), self.horizon + self.focal * (self.height - Y) / Z),
            1,
        )

    def ground(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """X and Z (h, w) of the ground seen at x (1, w), y (h, 1) under the horizon"""
        Z = self.focal * self.height / np.maximum(y - self.horizon, 0.05) + 0 * x
        return (x - self.vanishing) * Z / self.focal - self.bend * Z * Z, Z

    def upright(self, X: float, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Z and Y (h, w) seen at x, y on the upright surface that runs along the road at X"""
        Z = np.geomspace(1.5, 90, 200)
        seen = self.project(X, 0, Z)[:, 0]
        turning = int(np.argmin(seen)) if X > 0 else int(np.argmax(seen))
        seen, Z = seen[: turning + 1], Z[: turning + 1]
        ahead = np.interp(x, seen[::-1], Z[::-1]) if X > 0 else np.interp(x, seen, Z)
        return ahead + 0 * y, self.height - (y - self.horizon) * ahead / self.focal

    def strip(self, X: float, z0: float, z1: float, top: ArrayLike) -> np.ndarray:
        """Outline of an upright strip along the road; top is a height or heights for 12 points from z0 to z1"""
        Z = np.linspace(z0, z1, 12)
        return np.concatenate((self.project(X, 0, Z), self.project(X, top, Z)[::-1]))

    def shadow(self, light: Light, X: float, Z: float, half: float, height: float) -> np.ndarray:
        """Outline on the ground of the shadow of something upright"""
        dx, dz = (-height * light.to_sun[axis] / max(light.to_sun[1], 0.25) for axis in (0, 2))
        near = np.array((X - half, X + half, X + half * 0.7 + dx, X - half * 0.7 + dx))
        return self.project(near, 0, np.maximum(np.array((Z, Z, Z + dz, Z + dz)), 1.5))

    def ring(self, X: float, Z: float, wide: float, deep: float) -> np.ndarray:
        """Outline of an ellipse on the ground, half as wide and as deep as given"""
        return self.project(X + wide * CIRCLE[:, 0], 0, np.maximum(Z + deep * CIRCLE[:, 1], 1.5))

    def along(self, light: Light, X: float, z0: float, z1: float, height: float) -> np.ndarray:
        """Outline of the shadow of a wall along the road"""
        return self.project((X, X, X - light.to_sun[0] / max(light.to_sun[1], 0.25) * height), 0, (z0, z1, z1))


class Thing(NamedTuple):
    """Something to paint: layer and depth order it (higher first), then how, and the shadows that it casts"""

    layer: int
    depth: float
    paint: Callable[[Canvas], None]
    cast: tuple[np.ndarray, ...] = ()
    contact: tuple[np.ndarray, ...] = ()


def stand(
    canvas: Canvas, street: Street, X: float, Z: float, label: int, size: float = 1.0, flip: int = 1, Y: float = 0.0
) -> Pen:
    """A pen for something at X, Y, Z whose own unit is `size` metres"""
    x, y = street.project(X, Y, Z)[0]
    return Pen(canvas, x, y, size * street.focal / Z, label, Z, flip)
