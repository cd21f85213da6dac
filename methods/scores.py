"""Which anomaly score an evaluation or a prediction takes."""

from pathlib import Path

from errors import WrongInput
from losses import CLASS_SCORES, DATASET_SCORES


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
