"""The start of a run: the flags every script shares, its folder, its device, and how its errors end."""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
import yaml
from torch.utils.data import Dataset

from engine.checkpoint import require_writable, write_whole
from engine.flags import LARGEST_SEED, Parser, available_cores, number_of_workers, whole_number
from engine.inputs import FILES, differences, files_of, inputs_of
from engine.loader import dead_worker_explained
from engine.lock import FolderLock
from engine.precision import FLOAT32, PRECISIONS, Precision, choose_precision
from engine.processes import (
    check_launcher,
    join_processes,
    launch_command,
    launchers_number,
    leave_processes,
    lost_neighbour_explained,
    rank,
    told_by,
    wait_for_all,
    world_size,
)
from engine.recipe import PROJECT, read_recipe, type_name
from errors import FileInTheWay, WrongInput, message_of

FIXED = ("num_classes", "dataset")  # flags of add_fixed_flags, which say what is so anyway
NOT_COMPARED = (
    "accumulation",
    "checkpointing",
    "flow_checkpointing",
)  # recipe keys that a resumed run may have otherwise


@dataclass(frozen=True)
class Run:
    """Where a training run lives and what it runs with."""

    folder: Path
    device: torch.device
    record: dict  # what the folder's recipe.yaml says
    precision: Precision = FLOAT32
    seed: int = 0
    workers: int = 0
    resume: bool = False
    other_inputs: bool = False  # a resumed run may read other files than before
    compile: bool = False
    graphs: bool = True  # on a GPU
    validate_every: int = 1  # epochs


def argument_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that every training script shares."""
    parser = script_parser(description)
    parser.add_argument("--exp_name", required=True, help="the run's folder is logs/EXP_NAME")
    parser.add_argument("--resume", action="store_true", help="go on with the run of this name where it stopped")
    parser.add_argument(
        "--other_inputs",
        action="store_true",
        help="with --resume: go on though weights, data or negatives are others than before; recipe.yaml says so",
    )
    parser.add_argument(
        "--seed", type=whole_number(0, LARGEST_SEED), default=0, help="of the weights, crops and negatives (default 0)"
    )
    parser.add_argument(
        "--cache",
        metavar="FOLDER",
        help="keep decoded copies of images and label maps here, 4 bytes a pixel, made at the first visit",
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the network; needs a C++ compiler, and minutes to start"
    )
    parser.add_argument(
        "--no_graphs", action="store_true", help="launch a GPU's kernels one by one, where training steps are replayed"
    )
    parser.add_argument(
        "--validate_every",
        type=whole_number(1),
        default=1,
        metavar="EPOCHS",
        help="validate after every so many epochs, and after the last (default 1); best.pth is one of these",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe number, as its flag does"
    )
    return parser


def script_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags of every script, training or evaluation."""
    parser = Parser(description)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there, else cpu)")
    parser.add_argument(
        "--workers",
        type=number_of_workers,
        default=min(8, max(1, available_cores() // launchers_number("LOCAL_WORLD_SIZE", 1, least=1))),
        help="loader processes, of each GPU's process where there are several; results do not depend on it",
    )
    parser.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        help="of the network: tf32 (default on a GPU), float32 (default on a CPU; on a GPU slow, and the most exact), "
        "bfloat16 (the fastest) or float16; all but float32 move the figures a little",
    )
    parser.add_argument(
        "--max_pixels",
        type=whole_number(1),
        help="of the largest picture that is read (default 250 million); a larger one is an error, but left out and "
        "counted in a folder of any photographs",
    )
    return parser


def add_fixed_flags(parser: argparse.ArgumentParser, num_classes: int, dataset: str) -> None:
    """Flags of the original's command line that may only say what the script does anyway."""
    parser.add_argument("--num_classes", type=int, choices=[num_classes], help="accepted where it is the script's own")
    parser.add_argument("--dataset", choices=[dataset], help="accepted where it is the script's own")


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


def flat_recipe(record: dict) -> dict:
    """What a resumed run must agree on: {"script", "seed", and every recipe number but NOT_COMPARED}."""
    numbers = {key: value for source in record["recipe"].values() for key, value in source.items()}
    what = {key: value for key, value in numbers.items() if key not in NOT_COMPARED}
    return {"script": record["script"], "seed": record["seed"], **what}


def check_folder(run: Run) -> None:
    """Refuse an existing run without --resume, and --resume with another recipe or of a run that still runs."""
    recipe_file = run.folder / "recipe.yaml"
    if not run.resume:
        if run.folder.exists():
            raise FileInTheWay(f"{run.folder} exists; add --resume to go on with it, or choose another --exp_name")
        return
    if run.folder.is_dir():
        FolderLock(run.folder, run.record["command"]).release()
    if not recipe_file.exists():
        if not any(run.folder.glob("last.pt*")):
            print(f"nothing to resume in {run.folder}: starting from the beginning")
        return
    before = read_record(run.folder)
    check_same_recipe(flat_recipe(before), run)
    check_same_inputs({flag: value for flag, value in before.get("inputs", {}).items() if flag != FILES}, run)


def read_record(folder: Path) -> dict:
    """What recipe.yaml says of a run."""
    path = folder / "recipe.yaml"
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
        flat_recipe(record)
        dict(record.get("inputs", {}))
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise WrongInput(
            f"{path} is damaged; take it away: last.pt, where there is one, holds the same numbers"
        ) from error
    return record


def open_folder(run: Run) -> FolderLock:
    """Make the run's folder, and hold its lock. Raises FileExistsError where another process made it or holds it."""
    try:
        run.folder.mkdir(parents=True, exist_ok=run.resume)
    except FileExistsError as error:
        raise FileInTheWay(
            f"{run.folder} was made by another process since this one started; choose another --exp_name"
        ) from error
    return FolderLock(run.folder, run.record["command"])


def check_same_recipe(before: dict, run: Run) -> None:
    now = flat_recipe(run.record)
    changes = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and key in before  # older versions had fewer keys
    ]
    if changes:
        raise WrongInput(
            f"{run.folder} was started with another recipe: {'; '.join(changes)}; resume with the same command, or "
            f"choose another --exp_name{further(run)}"
        )


def check_same_inputs(before: dict, run: Run) -> None:
    changes = differences(before, run.record["inputs"]) if before else []  # older records have none
    if changes and not run.other_inputs:
        raise WrongInput(
            f"{run.folder} was started with other inputs: {'; '.join(changes)}; resume with the same, add "
            f"--other_inputs to go on with these, or choose another --exp_name{further(run)}"
        )


def further(run: Run) -> str:
    """How a new run goes on from the weights of this one, where the script has a flag for them."""
    weights = next((name for name in ("final.pth", "best.pth") if (run.folder / name).exists()), None)
    flags = [flag for flag in ("model", "init", "flow_state") if flag in run.record.get("inputs", {})]
    if not weights or not flags:
        return ""
    words = [f"--{flags[0]}", str(run.folder / weights)]
    if "flow_state" in flags[1:] and (run.folder / "final_flow.pth").exists():
        words += ["--flow_state", str(run.folder / "final_flow.pth")]
    return f" for a run that begins with the weights of this one: {shlex.join(words)}"


def compare_files(run: Run, dataset: Dataset, epochs: int) -> None:
    """Refuse other training files than before; write into recipe.yaml what the run goes on with.

    epochs  that the run has behind it
    """
    run.record.setdefault("inputs", {})[FILES] = files_of(dataset)
    if not (run.folder / "recipe.yaml").exists():
        return
    record = read_record(run.folder)
    before = record.get("inputs", {})
    check_same_inputs(before, run)
    if before and differences(before, run.record["inputs"]):
        changes = [*record.get("inputs_before", []), {"until_epoch": epochs, **before}]
        record |= {"inputs": run.record["inputs"], "inputs_before": changes}
    now = ("command", "device", "precision", "processes", "revision", "versions")
    going_on = {"after_epoch": epochs} | {key: run.record[key] for key in now if key in run.record}
    write_record(run.folder, record | {"resumed": [*record.get("resumed", []), going_on]})


def write_record(folder: Path, record: dict) -> None:
    write_whole(yaml.safe_dump(record, sort_keys=False).encode(), folder / "recipe.yaml")


def choose_device(name: str | None, several_processes: bool = False) -> torch.device:
    """The named device, else a GPU if there is one, else the CPU; a GPU has its index, and is made the current one.

    several_processes  whether torchrun may start the script; its process then joins the others here
    Raises ValueError for a device that is not there, and for several processes where there may be but one.
    """
    check_launcher()
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if world_size() > 1 and not several_processes:
        raise WrongInput(f"this script was started as {world_size()} processes and runs as one: start it with python")
    try:
        device = join_processes(torch.device(name))
        if device.type not in ("cpu", "cuda"):
            raise WrongInput(f"--device {name}: cpu and cuda are what this runs on")
        if device.type == "cuda":
            # "cuda" alone names no GPU, and torch.cuda refuses it. What asks for no device gets the current one.
            device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
            torch.cuda.set_device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise WrongInput(f"--device {name} cannot be used here: {error}") from error
    return device


def device_name(device: torch.device) -> str:
    """Such as "cuda:0 (NVIDIA H100 80GB HBM3)" or "cpu (x86_64)"."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device} ({kind})"


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the most that tensors took since the last reset, else the most that this process ever took.

    0 where the system does not say, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def git_revision() -> str | None:
    """The commit of this code, with "+changes" where files differ from it; None outside a git checkout."""
    try:
        git = ["git", "-C", str(PROJECT)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if status else "")


def run_script(main: typing.Callable[[], typing.Any]) -> None:
    """Run a script's main; what a user can cause or mend ends in one line, see errors.py, all else in a traceback.

    A reader of the output that leaves, as head does, ends the script quietly with status 141, as a pipe's signal would.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # of names that the terminal cannot show
    try:
        try:
            with dead_worker_explained(), lost_neighbour_explained():
                main()
            leave_processes()
        except KeyboardInterrupt:
            print("\nstopped")
            sys.exit(130)
        finally:
            sys.stdout.flush()
    except Exception as error:
        if any(isinstance(each, BrokenPipeError) for each in (error, error.__cause__)) and output_is_gone():
            sys.exit(141)
        message = message_of(error)
        if message is None:
            raise
        sys.exit(told_by(message))


def output_is_gone() -> bool:
    """Whether nobody reads what is printed; the rest of it then goes nowhere, or Python would fail on it at its end."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
