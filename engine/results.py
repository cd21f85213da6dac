"""results.json and table.md: what an evaluation found, under one schema, which docs/files.md describes."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from engine.files import write_whole
from errors import MissingFile, WrongInput

SCHEMA = 1  # of results.json; another number for every change that a reader must know of
Rows = list[list]  # of a table, the first of them the header; fractions are shown as percent, NaN as an empty cell


class Calibration(NamedTuple):
    """What makes scores comparable between pictures: where an unknown thing begins, and the colours of heat maps."""

    threshold: float  # NaN where there is none; `note` then says why
    tpr: float  # the share of outlier pixels that reach the threshold
    heat_range: list[float]  # scores that are black and pale yellow
    scores_of: str = "logits"  # or probabilities
    note: str = ""


def evaluation_results(
    record: dict,
    dataset: str,
    network: str,
    figures: dict,
    tables: dict[str, Rows],
    calibration: dict[str, Calibration] | None = None,
    images: list[dict] | None = None,
) -> dict:
    """An evaluation's results as results.json has them, but for NaN, which is null there."""
    return {
        "schema": SCHEMA,
        "dataset": dataset,
        "network": network,
        "weights": record["weights"],
        "figures": figures,
        "tables": {title: [[cell_text(cell) for cell in row] for row in rows] for title, rows in tables.items()},
        "calibration": {score: each._asdict() for score, each in (calibration or {}).items()},
        "images": images or [],
        "record": record,
    }


def read_results(path: Path, flag: str = "") -> dict:
    """The results of an evaluation.

    flag    that named the file, for the errors
    raises  MissingFile; WrongInput where it is no results.json of an evaluation, or one of another version
    """
    named = f"{flag} {path}".strip()
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingFile(f"{named} cannot be opened ({error.strerror}); it is an evaluation's results.json") from error
    except ValueError as error:
        raise WrongInput(f"{named} is no JSON file ({error}); give the results.json itself") from error
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        other = "an earlier version, without a schema" if schema is None else f"schema {schema!r}, not {SCHEMA}"
        raise WrongInput(f"{named} is of {other}, or no evaluation's: evaluate again with the script that made it")
    missing = [key for key, kind in PARTS.items() if not isinstance(results.get(key), kind)]
    if missing:
        raise WrongInput(f"{named} is damaged, lacking {', '.join(missing)}: evaluate again")
    return results


PARTS = {"figures": dict, "tables": dict, "calibration": dict, "images": list, "record": dict, "weights": str}


def write_results(
    folder: Path, results: dict, tables: dict[str, Rows], names: tuple[str, str] = ("results.json", "table.md")
) -> None:
    """The tables to the screen, then the results and the tables into two files of the folder."""
    text = markdown_tables(tables)
    print(f"\n{text}")  # before what a full disk can end
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(json.dumps(without_nan(results), indent=2).encode(), folder / names[0])
    write_whole(text.encode(errors="backslashreplace"), folder / names[1])
    print(f"written: {folder}/{names[0]}, {folder}/{names[1]}")


def markdown_tables(tables: dict[str, Rows]) -> str:
    return "\n\n".join(f"{title}\n\n{markdown_table(rows)}" for title, rows in tables.items()) + "\n"


def markdown_table(rows: Rows) -> str:
    cells = [[cell_text(value) for value in row] for row in rows]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def cell_text(value: Any) -> str:
    """A cell: fractions as percent with one digit more than published tables have, NaN as nothing."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{100 * value:.2f}"
    return str(value)


def threshold_text(threshold: float) -> str:
    """A cell: no share, but a score."""
    return "" if math.isnan(threshold) else f"{threshold:.4f}"


def without_nan(value: Any) -> Any:
    """JSON has no NaN: undefined figures become null."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
