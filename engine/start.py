"""The start of a training run: its command line, its recipe, its record, its device."""

import argparse
import typing
from pathlib import Path
from typing import Any

import torch
import yaml

from engine.device import device_name, start_process
from engine.files import require_writable
from engine.flags import Parser, argument_parser
from engine.inputs import inputs_of
from engine.precision import choose_precision
from engine.processes import is_main_process, launch_command, wait_for_all, world_size
from engine.recipe import Recipe, meanings, read_recipe, type_name
from engine.record import check_folder, git_revision, versions
from engine.run import Run
from errors import WrongInput

FIXED = ("num_classes", "dataset")  # flags of add_fixed_flags, which say what is so anyway


def start_run(
    parser: Parser, recipe_type: type[Recipe], script: str, argv: list[str] | None = None
) -> tuple[argparse.Namespace, Any, Run]:
    """Parse the command line, read the script's block of recipes.yaml, seed torch.

    Returns the arguments, the recipe and the run. Raises WrongInput for an unknown key or a value of the wrong
    type, FileInTheWay where the run's folder exists and --resume was not given, or was made by another recipe.
    Nothing is written yet: a run that fails on its data leaves no folder behind.
    """
    name = Path(script).stem
    add_recipe_flags(parser, name, recipe_type)
    args = parser.parse_args(argv)
    recipe, sources = read_recipe(name, recipe_type, changed_numbers(parser, args, recipe_type))
    if args.exp_name in ("", "..") or Path(args.exp_name).name != args.exp_name:
        raise WrongInput(f"--exp_name {args.exp_name!r} must be a plain folder name")
    if recipe.batch_size % args.accumulation:
        raise WrongInput(f"accumulation {args.accumulation} must divide batch_size {recipe.batch_size}")
    record = {
        "script": name,
        "command": launch_command(script, argv),
        "revision": git_revision(),
        "versions": versions(),
        "seed": args.seed,
        "processes": world_size(),
        "recipe": sources,
        "inputs": given_inputs(parser, args, recipe_type),
        "run": {flag: getattr(args, flag) for flag in parser.run_flags if flag not in ("device", "precision")},
    }
    device = start_process(args.device, several_processes=True)
    precision = choose_precision(args.precision, device)
    record |= {"device": device_name(device), "precision": precision.name}
    run = Run(
        folder=Path("logs", args.exp_name),
        device=device,
        record=record,
        precision=precision,
        seed=args.seed,
        workers=args.workers,
        resume=args.resume,
        other_inputs=args.other_inputs,
        accumulation=args.accumulation,
        checkpointing=args.checkpointing,
        sync_batchnorm=args.sync_batchnorm,
        compile=args.compile,
        graphs=not args.no_graphs,
        validate_every=args.validate_every,
    )
    check_run(run, args.cache)
    torch.manual_seed(args.seed)
    print(yaml.safe_dump(record, sort_keys=False, default_flow_style=None, width=100))
    return args, recipe, run


def add_recipe_flags(parser: Parser, name: str, recipe_type: type[Recipe]) -> None:
    """A flag for each number of the recipe: what it is, of what type, and what recipes.yaml sets it to."""
    defaults, _ = read_recipe(name, recipe_type, {})
    group = parser.add_argument_group("recipe numbers (their defaults are those of recipes.yaml)")
    meaning = meanings(recipe_type)
    for key, kind in typing.get_type_hints(recipe_type).items():
        many = len(typing.get_args(kind)) if typing.get_origin(kind) is tuple else None
        default = as_words(getattr(defaults, key))
        about = f"{meaning[key]} ({type_name(kind)}, default {default})"
        group.add_argument(f"--{key}", nargs=many, metavar=key.upper(), help=about.replace("%", "%%"))


def as_words(value: Any) -> str:
    """A recipe's value as a command line or YAML has it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def changed_numbers(parser: Parser, args: argparse.Namespace, recipe_type: type[Recipe]) -> dict[str, Any]:
    """The recipe's numbers that flags or --set change; a --set of how the run goes is put into args."""
    keys = typing.get_type_hints(recipe_type)
    changed = {key: getattr(args, key) for key in keys if getattr(args, key) is not None}
    for setting in args.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise WrongInput(f"--set {setting}: write it as KEY=VALUE")
        if key in parser.run_flags:
            setattr(args, key, parser.value_of(key, value))
        else:
            changed[key] = value
    return changed


def given_inputs(parser: Parser, args: argparse.Namespace, recipe_type: type[Recipe]) -> dict[str, Any]:
    """What the flags name that is read, such as data and weights: all that only this script has."""
    every_script = vars(argument_parser("").parse_args(["--exp_name", "any"]))
    others = {*every_script, *parser.run_flags, *typing.get_type_hints(recipe_type), *FIXED}
    return inputs_of({flag: value for flag, value in vars(args).items() if flag not in others})


def check_run(run: Run, cache: str | None) -> None:
    """Find out before any work whether the run can be: its device, its folder, and what it would go on with."""
    if run.sync_batchnorm and run.device.type != "cuda":
        raise WrongInput(f"sync_batchnorm true needs GPUs, and this run is on {run.device}: set --sync_batchnorm false")
    if is_main_process():
        check_folder(run)
    require_writable(run.folder, "--exp_name")
    if cache is not None:
        require_writable(cache, "--cache")
    wait_for_all()
