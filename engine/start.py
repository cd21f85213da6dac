"""The start of a training run: its command line, its recipe, its record, its device."""

import argparse
import platform
import typing
from pathlib import Path

import torch
import torchvision
import yaml

from engine.device import choose_device, device_name
from engine.files import require_writable
from engine.flags import argument_parser
from engine.inputs import inputs_of
from engine.precision import choose_precision
from engine.processes import launch_command, rank, wait_for_all, world_size
from engine.recipe import read_recipe, type_name
from engine.record import check_folder, git_revision
from engine.run import Run
from errors import WrongInput

FIXED = ("num_classes", "dataset")  # flags of add_fixed_flags, which say what is so anyway


def start_run(
    parser: argparse.ArgumentParser, recipe_type: type, script: str, argv: list[str] | None = None
) -> tuple[argparse.Namespace, typing.Any, Run]:
    """Parse the command line, read the script's block of recipes.yaml, seed torch.

    Returns the arguments, the recipe and the run. Raises ValueError for an unknown key or a value of the wrong
    type, FileExistsError where the run's folder exists and --resume was not given, or was made by another recipe.
    Nothing is written yet: a run that fails on its data leaves no folder behind.
    """
    name = Path(script).stem
    defaults, _ = read_recipe(name, recipe_type, {})
    group = parser.add_argument_group("recipe numbers (recipes.yaml says what each is)")
    types_by_key = typing.get_type_hints(recipe_type)
    for key, kind in types_by_key.items():
        many = len(typing.get_args(kind)) if typing.get_origin(kind) is tuple else None
        group.add_argument(
            f"--{key}", nargs=many, metavar=key.upper(), help=f"{type_name(kind)} (default {getattr(defaults, key)})"
        )
    args = parser.parse_args(argv)
    not_inputs = {*vars(argument_parser("").parse_args(["--exp_name", "any"])), *types_by_key, *FIXED}

    changed = {key: getattr(args, key) for key in types_by_key if getattr(args, key) is not None}
    for setting in args.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise WrongInput(f"--set {setting}: write it as KEY=VALUE")
        changed[key] = value
    recipe, sources = read_recipe(name, recipe_type, changed)

    if args.exp_name in ("", "..") or Path(args.exp_name).name != args.exp_name:
        raise WrongInput(f"--exp_name {args.exp_name!r} must be a plain folder name")
    record = {
        "script": name,
        "command": launch_command(script, argv),
        "revision": git_revision(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        },
        "seed": args.seed,
        "processes": world_size(),
        "recipe": sources,
        "inputs": inputs_of({flag: value for flag, value in vars(args).items() if flag not in not_inputs}),
    }
    device = choose_device(args.device, several_processes=True)
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
        compile=args.compile,
        graphs=not args.no_graphs,
        validate_every=args.validate_every,
    )
    if recipe.sync_batchnorm and device.type != "cuda":
        raise WrongInput(f"sync_batchnorm true needs GPUs, and this run is on {device}: set --sync_batchnorm false")
    if not rank():
        check_folder(run)
    require_writable(run.folder, "--exp_name")
    if args.cache is not None:
        require_writable(args.cache, "--cache")
    wait_for_all()
    torch.manual_seed(args.seed)
    print(yaml.safe_dump(record, sort_keys=False, default_flow_style=None, width=100))
    return args, recipe, run
