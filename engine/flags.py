"""Command lines: a parser that says in one line what is wrong, and the types of flags with their bounds."""

import argparse
import math
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.precision import PRECISIONS
from engine.processes import launchers_number

LARGEST = 2**31 - 1  # of whole numbers, where nothing bounds them sooner
LARGEST_SEED = 2**63 - 1  # of torch's generators
FILES_OF_A_WORKER = 16  # that the main process keeps open for one: 7 in a training, 7 in its validation
SMALLEST_TILE = 32  # pixels a side: networks halve their input five times
FEWEST_WORKERS = 16  # that may always be asked for, however few the cores: reading also waits for the disk


class Parser(argparse.ArgumentParser):
    """Shows the description as it is written, takes no shortened flags and no empty values, and ends in one line."""

    def __init__(self, description: str):
        module = getattr(sys.modules["__main__"], "__spec__", None)  # of a package, python -m runs its __main__.py
        super().__init__(
            prog=f"python -m {module.name.removesuffix('.__main__')}" if module else None,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.of_the_run = self.add_argument_group("how this run goes")
        self.run_flags: dict[str, argparse.Action] = {}

    def add_run_flag(self, flag: str, **choices: Any) -> None:
        """A flag that says how a run goes, where the numbers of the recipe say what it is."""
        action = self.of_the_run.add_argument(flag, **choices)
        self.run_flags[action.dest] = action

    def value_of(self, flag: str, word: str) -> Any:
        """A word from elsewhere than the flag itself, such as --set, as its value."""
        action = self.run_flags[flag]
        kind: Any = action.type or (true_or_false if action.nargs == 0 else str)
        try:
            value = kind(word)
        except argparse.ArgumentTypeError as error:
            self.error(f"--{flag}: {error}")
        if action.choices and value not in action.choices:
            self.error(f"--{flag}: {word!r} is none of {', '.join(action.choices)}")
        return value

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else args
        for before, word in pairwise(["", *words]):
            if word == "" or (word.startswith("--") and word.endswith("=")):  # Path("") would be the working directory
                self.error(f"{(word or before).rstrip('=')}: its value is empty; is a variable not set?")
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        self.exit(1, f"error: {message.removeprefix('argument ')} (--help lists the flags)\n")


def whole_number(least: int, most: int = LARGEST) -> Callable[[str], int]:
    """A flag's type: a whole number, at least and at most so much."""

    def number(word: str) -> int:
        try:
            value = int(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is not a whole number") from None
        if not least <= value <= most:
            bounds = f"at least {least}" if value < least and most == LARGEST else f"in {least}..{most}"
            raise argparse.ArgumentTypeError(f"{value} must be {bounds}")
        return value

    return number


def any_number(word: str) -> float:
    """A flag's type: any number."""
    try:
        return float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number") from None


def finite_number(word: str) -> float:
    """A flag's type: any number but NaN and infinity."""
    value = any_number(word)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{word} is not a finite number")
    return value


def share(word: str) -> float:
    """A flag's type: a number over 0 and at most 1."""
    value = any_number(word)
    if not 0 < value <= 1:  # NaN is not
        raise argparse.ArgumentTypeError(f"{value:g} must be over 0 and at most 1")
    return value


def true_or_false(word: str) -> bool:
    """A flag's type."""
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r} is not true or false")
    return word.lower() == "true"


def number_of_workers(word: str) -> int:
    """A flag's type: as many processes as this machine can hold, 0 for none."""
    value, most = whole_number(0)(word), max(FEWEST_WORKERS, 4 * available_cores())
    if value > most:
        raise argparse.ArgumentTypeError(
            f"{value} processes are too many for {available_cores()} cores; give at most {most}"
        )
    files = open_files()
    if files is not None and value * FILES_OF_A_WORKER > files:
        raise argparse.ArgumentTypeError(
            f"{value} processes may need more than the {files} files that may be open at once; give at most "
            f"{files // FILES_OF_A_WORKER}, or allow more files with ulimit -n"
        )
    return value


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_files() -> int | None:
    """How many files this process may have open; None where nothing says so."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if most == resource.RLIM_INFINITY else most


# The parsers of scripts


def script_parser(description: str) -> Parser:
    """A parser with the flags of every script, training or evaluation."""
    parser = Parser(description)
    parser.add_run_flag("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there, else cpu)")
    parser.add_run_flag(
        "--workers",
        type=number_of_workers,
        default=min(8, max(1, available_cores() // launchers_number("LOCAL_WORLD_SIZE", 1, least=1))),
        help="loader processes, of each GPU's process where there are several; results do not depend on it",
    )
    parser.add_run_flag(
        "--precision",
        choices=list(PRECISIONS),
        help="of the network: tf32 (default on a GPU), float32 (default on a CPU; on a GPU slow, and the most exact), "
        "bfloat16 (the fastest) or float16; all but float32 move the figures a little",
    )
    parser.add_run_flag(
        "--max_pixels",
        type=whole_number(1),
        help="largest picture that is read, in pixels (default 250 million); a larger one ends the run, except in a "
        "folder of any photographs, where it is left out and counted",
    )
    return parser


def argument_parser(description: str) -> Parser:
    """A parser with the flags that every training script shares."""
    parser = script_parser(description)
    parser.add_argument("--exp_name", required=True, help="the run's folder is logs/EXP_NAME")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run of this name where it stopped; how it goes may change, recipe and inputs may not",
    )
    parser.add_argument(
        "--other_inputs",
        action="store_true",
        help="with --resume: go on though weights, data or negatives are others than before; recipe.yaml says so",
    )
    parser.add_argument(
        "--seed", type=whole_number(0, LARGEST_SEED), default=0, help="of the weights, crops and negatives (default 0)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a recipe number, or how the run goes, as the flag of that name does",
    )
    parser.add_run_flag(
        "--cache",
        metavar="FOLDER",
        help="keep decoded copies of images and label maps here, 4 bytes a pixel, made at the first visit",
    )
    parser.add_run_flag(
        "--accumulation",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="split each process's share of a batch into so many parts, computed one after the other, to save memory; "
        "BatchNorm in training mode then uses the statistics of one part (default 1)",
    )
    add_checkpointing_flag(parser, "--checkpointing", "the network's blocks")
    parser.add_run_flag(
        "--sync_batchnorm",
        type=true_or_false,
        default=False,
        metavar="true|false",
        help="of several processes: BatchNorm normalises by the batch of all; on GPUs alone (default false)",
    )
    parser.add_run_flag(
        "--compile", action="store_true", help="torch.compile the network; needs a C++ compiler, and minutes to start"
    )
    parser.add_run_flag(
        "--no_graphs", action="store_true", help="launch a GPU's kernels one by one, where training steps are replayed"
    )
    parser.add_run_flag(
        "--validate_every",
        type=whole_number(1),
        default=1,
        metavar="EPOCHS",
        help="validate after every so many epochs, and after the last (default 1); best.pth is one of these",
    )
    return parser


# Flags of several scripts


def add_checkpointing_flag(parser: Parser, flag: str, parts: str) -> None:
    parser.add_run_flag(
        flag,
        type=true_or_false,
        default=False,
        metavar="true|false",
        help=f"the backward pass computes {parts} again instead of keeping their results (default false)",
    )


def add_tile_flags(parser: Parser) -> None:
    """See check_tile, too."""
    side = whole_number(SMALLEST_TILE)
    parser.add_argument("--tile", type=side, help="run the network on square tiles of this side where memory is short")
    parser.add_argument(
        "--tile_overlap", type=whole_number(0), default=128, help="pixels that tiles share (default 128)"
    )


def check_tile(parser: Parser, args: argparse.Namespace) -> None:
    """Tiles must go on by some pixels."""
    if args.tile is not None and args.tile_overlap >= args.tile:
        parser.error(f"--tile_overlap {args.tile_overlap} must be smaller than --tile {args.tile}")


def add_benchmark_flags(parser: Parser, datasets: list[str], networks: list[str], usual: str) -> None:
    """Of an evaluation on one of several data sets, of one of several networks.

    usual  says which network's weights they are unless --network says it
    """
    parser.add_argument("--dataroot", required=True, help="the data set's folder")
    parser.add_argument("--dataset", required=True, choices=datasets)
    parser.add_argument("--folder", required=True, type=Path, help="where results.json, table.md and others go")
    parser.add_argument("--params", required=True, help="weights, closed-set or hybrid")
    parser.add_argument("--network", choices=networks, help=f"whose weights they are (default: {usual})")


def add_pictures_flag(parser: Parser) -> None:
    parser.add_argument(
        "--pictures",
        type=whole_number(0),
        default=6,
        help="frames in pictures, half of them the best; 0: no picture, no page (default 6)",
    )


def add_fixed_flags(parser: argparse.ArgumentParser, num_classes: int, dataset: str) -> None:
    """Flags of the original's command line that may only say what the script does anyway."""
    parser.add_argument("--num_classes", type=int, choices=[num_classes], help="accepted where it is the script's own")
    parser.add_argument("--dataset", choices=[dataset], help="accepted where it is the script's own")
