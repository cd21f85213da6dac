"""What a training reads: recorded when it begins, and compared when it goes on."""

import hashlib
from pathlib import Path
from typing import Any, cast

from torch.utils.data import Subset

from engine.files import sha256
from engine.loader import Samples

FILES = "training_files"  # the one input that no flag names


def inputs_of(flags: dict[str, Any]) -> dict[str, Any]:
    """{flag: what was given}, without what was not: a file with its SHA-256, a folder by its path.

    Raises what the system says of a file that cannot be read.
    """
    inputs = {}
    for flag, value in flags.items():
        if isinstance(value, (str, Path)) and Path(value).is_file():
            inputs[flag] = {"file": str(value), "sha256": sha256(value)}
        elif isinstance(value, (str, Path)) and Path(value).is_dir():
            inputs[flag] = {"folder": str(value)}
        elif value not in (None, []):
            inputs[flag] = value
    return inputs


def files_of(dataset: Samples) -> dict[str, Any]:
    """How many files a data set reads, and the SHA-256 of their names relative to its folder, which may move."""
    names = names_in(dataset)
    return {"files": len(names), "sha256": hashlib.sha256("\n".join(names).encode(errors="replace")).hexdigest()}


def names_in(dataset: Samples) -> list[str]:
    """Those of data sets that say them in `names`; of another, its length is all there is to compare."""
    if isinstance(dataset, Subset):
        names = names_in(cast(Samples, dataset.dataset))
        return [names[index] for index in dataset.indices]
    return getattr(dataset, "names", None) or [str(index) for index in range(len(dataset))]


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two inputs: contents of files, names of training files, other values; not places."""
    return [
        f"{flag} was {described(before.get(flag))!r} and is {described(now.get(flag))!r}"
        for flag in sorted({*before, *now})
        if compared(before.get(flag)) != compared(now.get(flag))
    ]


def compared(value: Any) -> Any:
    return value.get("sha256", "a folder") if isinstance(value, dict) else value


def described(value: Any) -> str:
    if not isinstance(value, dict):
        return "not given" if value is None else str(value)
    what = value.get("file") or value.get("folder") or f"{value.get('files')} files"
    return f"{what}, SHA-256 {value['sha256'][:12]}" if "sha256" in value else what
