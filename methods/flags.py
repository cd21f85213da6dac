"""Flags of evaluations, predictions and exports that name a score or a network."""

from pathlib import Path

from engine.flags import Parser, add_pictures_flag, share, whole_number
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
