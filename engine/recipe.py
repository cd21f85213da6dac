"""Recipes: the numbers of a training, from recipes.yaml and the command line, typed and checked."""

import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml

from engine.flags import LARGEST
from errors import WrongInput

PROJECT = Path(__file__).resolve().parent.parent
RECIPES = PROJECT / "recipes.yaml"
SCHEDULES = ("cosine", "constant", "poly")
LARGEST_CROP = 2**14  # pixels a side, 3 GiB an image: a larger number is a slip


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of any training, each with what it means, as --help shows it. Raises WrongInput for unusable ones.

    A script adds what only its experiment has.
    """

    lr: Annotated[float, "learning rate of the optimizer at the start"]
    lr_min: Annotated[float, "learning rate at the end of a cosine schedule; 0 with another"]
    schedule: Annotated[str, "cosine from lr to lr_min, poly (power 0.9) from lr to 0, or constant; once an epoch"]
    epochs: Annotated[int, "passes over the training images"]
    batch_size: Annotated[int, "images to a step, of all processes and parts together"]
    drop_last: Annotated[bool, "leave an epoch's last, incomplete batch out"]
    crop_size: Annotated[int, "side of the training crops, pixels"]
    scale: Annotated[tuple[float, float], "images are resized by a random factor in this range, then cropped"]
    # A momentum of 0.01 leaves the running statistics stale for some hundred steps from random weights.
    statistics_batches: Annotated[
        int, "batches on which BatchNorm's statistics are estimated anew before each validation; 0: never"
    ]

    def __post_init__(self):
        require_positive(self, "lr", "epochs", "batch_size", "crop_size")
        require(self.crop_size <= LARGEST_CROP, f"crop_size {self.crop_size} must be at most {LARGEST_CROP}")
        require(0 <= self.lr_min <= self.lr, f"lr_min {self.lr_min} must lie between 0 and lr {self.lr}")
        require(self.statistics_batches >= 0, f"statistics_batches must not be negative: {self.statistics_batches}")
        require_range("scale", self.scale)
        require(self.schedule in SCHEDULES, f"schedule {self.schedule!r} must be one of {', '.join(SCHEDULES)}")
        require(
            self.schedule == "cosine" or self.lr_min == 0,
            f"lr_min {self.lr_min} is the end of a cosine schedule; with schedule {self.schedule} it must be 0",
        )


def meanings(recipe_type: type[Recipe]) -> dict[str, str]:
    """{key: what its number means, and its unit}; of a field without an Annotated, just that it is a number."""
    hints = typing.get_type_hints(recipe_type, include_extras=True)
    return {key: getattr(hint, "__metadata__", ("a number of this script",))[0] for key, hint in hints.items()}


def require_range(key: str, factors: tuple[float, float]) -> None:
    require(0 < factors[0] <= factors[1], f"{key} {list(factors)} must be a range of positive factors")


def require_positive(recipe: Recipe, *keys: str) -> None:
    for key in keys:
        require(getattr(recipe, key) > 0, f"{key} must be positive, not {getattr(recipe, key)}")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise WrongInput(message)


def read_recipe(name: str, recipe_type: type, changed: dict, path: Path = RECIPES):
    """A recipe from its block and the changed numbers, and the numbers by source: release, ours, changed."""
    blocks = yaml.safe_load(path.read_text(encoding="utf-8"))
    if name not in blocks:
        raise WrongInput(f"{path} has no block {name}; it has {', '.join(blocks)}")
    kinds = typing.get_type_hints(recipe_type)
    sources: dict[str, dict] = {"release": {}, "ours": {}, "changed": {}}
    for source, numbers in (*blocks[name].items(), ("changed", changed)):
        if source not in sources:
            raise WrongInput(f"{path}, block {name}: {source!r} is neither 'release' nor 'ours'")
        for key, value in (numbers or {}).items():
            if key not in kinds:
                raise WrongInput(f"{key} is not a recipe key of {name}; its keys are {', '.join(kinds)}")
            for earlier in sources.values():
                earlier.pop(key, None)
            sources[source][key] = convert(key, value, kinds[key])
    values = {key: value for numbers in sources.values() for key, value in numbers.items()}
    missing = [key for key in kinds if key not in values]
    if missing:
        raise WrongInput(f"{path}, block {name}: {', '.join(missing)} missing")
    return recipe_type(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}), sources


def convert(key: str, value: typing.Any, kind: typing.Any) -> typing.Any:
    """A value from YAML, or a word from the command line, as a recipe field of type `kind` (a tuple as a list)."""
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str):
            value = value.strip("[]()").replace(",", " ").split()
        kinds = typing.get_args(kind)
        if not isinstance(value, (list, tuple)) or len(value) != len(kinds):
            raise WrongInput(f"{key}: {value!r} is not {type_name(kind)}")
        return [convert(key, part, part_kind) for part, part_kind in zip(value, kinds, strict=True)]
    if isinstance(kind, types.UnionType):  # float | None
        if value is None or str(value).lower() in ("none", "null", ""):
            return None
        return convert(key, value, typing.get_args(kind)[0])
    if kind is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if kind is str and isinstance(value, str):
        return value
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
            if math.isfinite(number) and number == kind(number) and (kind is float or abs(number) <= LARGEST):
                return kind(number)
        except (TypeError, ValueError, OverflowError):  # the last: a whole number past all floats
            pass
    raise WrongInput(f"{key}: {value!r} is not {type_name(kind)}")


def type_name(kind: typing.Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"{len(typing.get_args(kind))} numbers"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    return names[kind] if kind in names else f"{names[typing.get_args(kind)[0]]} or null"
