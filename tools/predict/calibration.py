"""The threshold and the range of heat maps that an evaluation found."""

import math
from pathlib import Path

from engine.files import sha256
from engine.results import read_results
from errors import WrongInput


def read_calibration(path: Path, score_name: str, weights: str) -> tuple[float, list[float] | None]:
    """(threshold, range of heat or None) of a score, from an evaluation's results.json."""
    results = read_results(path, "--calibration")
    calibration = results["calibration"]
    if not calibration:
        raise WrongInput(
            f"--calibration {path} has no threshold: evaluate_closed_set.py finds none; take the results.json of "
            "evaluate_ood.py, evaluate_osr_sh.py or evaluate_osr_coco.py"
        )
    if score_name not in calibration:
        raise WrongInput(
            f"--calibration {path} has a threshold for the score {' and '.join(calibration)}, and the "
            f"score here is {score_name}: choose it with --score, or evaluate this one"
        )
    found = calibration[score_name] if isinstance(calibration[score_name], dict) else {}
    if found.get("note"):
        raise WrongInput(f"--calibration {path} has {found['note']}")
    if found.get("scores_of") != "logits":
        raise WrongInput(
            f"--calibration {path} was made with --released_scoring, whose scores are of probabilities; the scores "
            "here are of logits: evaluate without it"
        )
    threshold, heat = found.get("threshold"), found.get("heat_range")
    if not is_number(threshold):
        raise WrongInput(
            f"--calibration {path} has {threshold!r} for the threshold of {score_name}: was there no "
            "pixel of an unknown thing to take it from?"
        )
    if results["record"].get("weights_sha256") != sha256(weights):
        print(f"note: the threshold was found for {results['weights']}, the weights here, {weights}, are others")
    sound = isinstance(heat, list) and len(heat) == 2 and all(map(is_number, heat)) and heat[0] < heat[1]
    if not sound:
        print(f"note: {path} has no heat_range that can be used: heat maps span the scores of each picture")
    return float(threshold), heat if sound else None


def is_number(value) -> bool:
    """Whether a value from a JSON file is a finite number, which a float can hold."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
