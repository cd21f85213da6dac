"""What evaluations, predictions and exports are asked: which anomaly score, and what a network's file may not say."""

from pathlib import Path

from engine.flags import Parser, add_pictures_flag, share, whole_number
from errors import WrongInput
from losses import CLASS_SCORES, DATASET_SCORES


def add_score_flag(parser: Parser) -> None:
    parser.add_argument(
        "--score",
        choices=[*DATASET_SCORES, *CLASS_SCORES],
        help="(default: hybrid, or max_logit for closed-set weights)",
    )


def add_heads_flag(parser: Parser) -> None:
    parser.add_argument(
        "--heads",
        type=whole_number(1),
        help="of Segmenter's encoder (default: as its weights say, else 16, as released)",
    )


def add_open_set_flags(parser: Parser, folder: Path) -> None:
    """folder  where the results go unless --folder says otherwise"""
    parser.add_argument("--tpr", type=share, default=0.95, help="share of outlier pixels to find (default 0.95)")
    add_score_flag(parser)
    parser.add_argument(
        "--folder", type=Path, default=folder, help=f"where results.json, index.html and others go (default {folder})"
    )
    add_pictures_flag(parser)


def chosen_score(asked: str | None, hybrid: bool, weights: str | Path) -> str:
    """The score that was asked for, else hybrid, or max_logit where the network has no dataset head."""
    score = asked or ("hybrid" if hybrid else "max_logit")
    if score in DATASET_SCORES and not hybrid:
        raise WrongInput(f"--score {score}: {weights} has no dataset head; take one of {', '.join(CLASS_SCORES)}")
    return score


def chosen_scores(asked: list[str] | None, hybrid: bool) -> list[str]:
    """The scores to evaluate, each name once; energy is another name of generative."""
    possible = [*(DATASET_SCORES if hybrid else ()), *(name for name in CLASS_SCORES if name != "energy")]
    if asked is None:
        return ["hybrid"] if hybrid else possible
    names = possible if "all" in asked else list(dict.fromkeys(asked))
    missing = [name for name in names if name in DATASET_SCORES and not hybrid]
    if missing:
        raise WrongInput(
            f"--scores {' '.join(missing)}: these weights have no dataset head (logits_ood); "
            f"scores that need none: {', '.join(CLASS_SCORES)}"
        )
    return names
