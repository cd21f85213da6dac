"""Problems of a data set, and the summary of them that is printed."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MOST = 5  # examples shown of each kind of problem
LEVELS = {"error": "errors, with which the data cannot be used", "warning": "warnings", "note": "notes"}


class Problem(NamedTuple):
    level: str  # error, warning or note
    kind: str  # what is wrong and how to mend it; problems of one kind are shown together
    example: str = ""


def grouped(problems: Iterable[Problem]) -> list[dict]:
    """[{"kind", "examples"}] in the order in which the kinds turned up."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem.example)
    return [{"kind": kind, "examples": [text for text in found if text]} for kind, found in kinds.items()]


def summary(results: dict) -> str:
    """Every kind of problem with its first examples, and whether the data can be used; results as check gives them."""
    lines = []
    for level, title in LEVELS.items():
        groups = results[f"{level}s"]
        if groups:
            lines.append(f"\n{title}:")
        for group in groups:
            examples = group["examples"]
            count = f" ({len(examples):,} files)" if len(examples) > 1 else ""
            lines.append(f"  - {group['kind']}{count}")
            lines += [f"      {example}" for example in examples[:MOST]]
            if len(examples) > MOST:
                lines.append(f"      and {len(examples) - MOST:,} more")
    counted = {level: len(results[f"{level}s"]) for level in ("error", "warning")}
    numbers = [f"{count} {level}{'s' * (count > 1)}" for level, count in counted.items() if count]
    verdict = "can be used" if results["usable"] else "CANNOT be used"
    depth = "by folders, pairs and headers alone, " if results["quick"] else ""
    lines.append(
        f"\n{depth}{results['dataset']} in {results['dataroot']} {verdict}: {', '.join(numbers) or 'all is well'}"
    )
    return "\n".join(lines)


def shortened(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
