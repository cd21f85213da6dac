"""The pairs of image and label map of a split, and what is wrong with the files that are none."""

from collections import Counter
from pathlib import Path

from data.listing import files_below
from data.pairs import PairProblem, UnpairedFiles
from tools.check_data.problems import Problem, shortened
from tools.check_data.sources import ImagesAndMaps, Source


def list_pairs(source: Source, title: str, root: Path) -> tuple[ImagesAndMaps, list[Problem]]:
    """The pairs of a split that are in order, and what is wrong with its other files."""
    try:
        pairs, unpaired = source.splits[title].pairs(root), []
    except UnpairedFiles as error:
        pairs, unpaired = error.pairs, error.problems
    except (OSError, ValueError) as error:  # a folder that cannot be read; ImageFolder's
        return [], [Problem("error", str(error))]
    missing = [problem for problem in unpaired if problem.kind == "no folder"]
    if len(missing) > 1 and len(source.splits) > 1:
        others = " ".join(other for other in source.splits if other != title)
        advice = f"unpack it, or leave it out of the check: --splits {others}"
        return pairs, [Problem("error", f"the split {title} is not there: {missing[0].message}; {advice}")]
    return pairs, [unpaired_problem(problem, source, title, root, bool(pairs)) for problem in unpaired]


def unpaired_problem(problem: PairProblem, source: Source, title: str, root: Path, some: bool) -> Problem:
    """A problem of pairing with its way out; `some` says whether other files of the split are pairs."""
    example = shortened(problem.path, root)
    if problem.kind in ("no folder", "no label"):
        of_labels = source.labels in problem.path.relative_to(root).parts
        advice = (
            f"the label maps are missing: {source.get_labels}" if of_labels else "the images are missing: unpack them"
        )
        return Problem("error", f"{problem.message} ({advice})")
    if problem.kind == "no image":
        endings = Counter(path.suffix for path in files_below(problem.path, ("",)).files).most_common(3)
        there = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in endings)
        return Problem("error", f"{problem.message}; files that are there: {there or 'none'}")
    if problem.kind == "no file":
        return Problem("error", "what is named like an image or label map and is no file; take it out", problem.message)
    if problem.kind == "twice":
        return Problem("error", f"{title}: files that differ in their ending alone; take one out", example)
    if problem.kind == "label alone":
        alone = "label maps without their image" if some else "no label map has its image"
        return Problem("error", f"{title}: {alone}; unpack the images again, or take the label maps out", example)
    reason = why_image_alone(names_beside(problem.path, problem.wanted), source, some)
    return Problem("error", f"{title}: {reason}", f"{example}: {shortened(problem.wanted, root)} is missing")


def why_image_alone(beside: list[str], source: Source, some: bool) -> str:
    """What is most likely wrong with an image without label map, by what lies in that one's place."""
    if any("labelTrainIds" in name for name in beside):
        return "there is only *_labelTrainIds.png where *_labelIds.png is read; " + source.get_labels
    if any(name.lower().endswith((".jpg", ".jpeg")) for name in beside):
        return "the label map is a JPEG, which blurs the values; take the original PNG file"
    if some:
        return "images without label map; unpack the label maps again, or take the images out"
    return f"no image has its label map; {source.get_labels}"


def names_beside(image: Path, wanted: Path) -> list[str]:
    """What lies where an image's label map should be, by names that begin as both do."""
    same = [a == b for a, b in zip(image.stem, wanted.stem, strict=False)]
    stem = wanted.stem[: (same + [False]).index(False)].rstrip("_-")
    if image.parent == wanted.parent or not wanted.parent.is_dir():
        return []
    return [path.name for path in wanted.parent.glob(f"{stem}*") if not path.name[len(stem) : len(stem) + 1].isalnum()]
