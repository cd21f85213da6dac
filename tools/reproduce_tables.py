"""Run every table of the papers for which data and weights are at hand, and show all on one page.

    python -m tools.reproduce_tables --config TABLES_YAML --folder OUTPUT_DIR

TABLES_YAML has a block for each table to run, with the data's folder, the weights and, where needed, more flags:

    lf:                       {dataroot: fishyscapes/lf, weights: dlv3_ade20k.pth}
    static:                   {dataroot: fishyscapes/static, weights: dlv3_ade20k.pth}
    road-anomaly:             {dataroot: RoadAnomaly, weights: ldn121_smiyc.pth, flags: [--network, ldn121]}
    anomaly-track:            {dataroot: dataset_AnomalyTrack, weights: ldn121_smiyc.pth, flags: [--network, ldn121]}
    obstacle-track:           {dataroot: dataset_ObstacleTrack, weights: ldn121_smiyc.pth, flags: [--network, ldn121]}
    street-hazards:           {dataroot: StreetHazards, weights: ldn121_streethazards.pth}
    street-hazards-open-set:  {dataroot: StreetHazards, weights: ldn121_streethazards.pth}
    cityscapes:               {dataroot: Cityscapes, weights: dlv3_ade20k.pth}
    coco20:                   {dataroot: coco, weights: segmenter.pth, flags: [--released_scoring]}

Each is evaluated by its own script into OUTPUT_DIR/TABLE/; OUTPUT_DIR/index.html and tables.md put published and own
figures side by side. Paths are taken from the working directory. The same command again runs only what is missing, has
failed, or has another command or other weights; the data are not compared: remove OUTPUT_DIR/TABLE where they changed.
"""

import shlex
import subprocess
import sys
from pathlib import Path

import yaml

from engine import run_script
from engine.files import require_writable, sha256, write_whole
from engine.flags import Parser
from engine.page import html_link, html_paragraph, html_tables, page
from engine.recipe import PROJECT
from engine.report import published_tables
from engine.results import Rows, markdown_tables, read_results
from errors import MissingFile, UserError, WrongInput

ANOMALIES = ("lf", "static", "road-anomaly", "anomaly-track", "obstacle-track", "street-hazards")
SCRIPTS = {name: ["evaluate_ood.py", "--dataset", name] for name in ANOMALIES} | {
    "street-hazards-open-set": ["evaluate_osr_sh.py"],
    "coco20": ["evaluate_osr_coco.py"],
    "cityscapes": ["evaluate_closed_set.py", "--dataset", "cityscapes"],
}
SERVERS = ("lf-test", "static-test", "anomaly-track-test", "obstacle-track-test", "lost-and-found-no-known")
KEYS = {"dataroot", "weights", "flags"}


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--config", required=True, type=Path, help="YAML file with data roots and weights")
    parser.add_argument("--folder", required=True, type=Path, help="where the results go")
    args = parser.parse_args(argv)
    require_writable(args.folder, "--folder")

    runs = read_config(args.config)
    failed = {}
    for number, (name, run) in enumerate(runs.items(), 1):
        command = command_of(name, run, args.folder / name)
        if is_done(args.folder / name, command, run["weights"]):
            print(f"{number} of {len(runs)}, {name}: done before")
            continue
        print(f"{number} of {len(runs)}, {name}: {shlex.join(['python', *command])}", flush=True)
        error = evaluate(command, args.folder / name / "log.txt")
        if error:
            failed[name] = error
            print(f"  failed: {error}")
    done = {name: args.folder / name / "results.json" for name in runs if name not in failed}
    tables = {name: read_results(path)["tables"] for name, path in done.items()}
    write_page(args.folder, tables, failed)
    if failed:
        raise SystemExit(f"error: {len(failed)} of {len(runs)} tables failed: {', '.join(failed)}; see their log.txt")
    return tables


def read_config(path: Path) -> dict[str, dict]:
    """The tables to run, checked before anything is: names, keys, and that data and weights are there."""
    if not path.is_file():
        raise MissingFile(f"no file {path}; --config is a YAML file as `python -m tools.reproduce_tables --help` shows")
    try:
        runs = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WrongInput(
            f"{path} cannot be read as YAML: {error}; write it in UTF-8, and indent with spaces, not tabs"
        ) from error
    if not isinstance(runs, dict) or not runs:
        raise WrongInput(f"{path} names no table; possible are {', '.join(SCRIPTS)}")
    problems = []
    for name, run in runs.items():
        if name not in SCRIPTS:
            problems.append(f"{name} is no table; possible are {', '.join(SCRIPTS)}")
        elif not isinstance(run, dict) or not {"dataroot", "weights"} <= run.keys() <= KEYS:
            problems.append(f"{name} must have dataroot and weights, may have flags, and nothing else")
        elif not all(isinstance(run[key], str) for key in ("dataroot", "weights")):
            problems.append(f"{name}: dataroot and weights must be paths: {run['dataroot']!r}, {run['weights']!r}")
        elif not isinstance(run.get("flags", []), list):
            problems.append(f"{name}: flags must be a list, such as [--network, ldn121]")
        else:
            if not Path(run["dataroot"]).is_dir():
                problems.append(f"{name}: no folder {run['dataroot']} (dataroot)")
            if not Path(run["weights"]).is_file():
                problems.append(f"{name}: no file {run['weights']} (weights)")
    if problems:
        raise WrongInput(f"{path}: " + "; ".join(problems))
    return runs


def command_of(name: str, run: dict, folder: Path) -> list[str]:
    script, *flags = SCRIPTS[name]
    weights = "--model" if script in ("evaluate_osr_sh.py", "evaluate_osr_coco.py") else "--params"
    flags += ["--dataroot", run["dataroot"], weights, run["weights"], "--folder", folder, *run.get("flags", [])]
    return [script, *map(str, flags)]


def is_done(folder: Path, command: list[str], weights: str) -> bool:
    """Whether the folder holds the results of this command with these weights, and of this version."""
    try:
        results = read_results(folder / "results.json")
        before, digest = shlex.split(results["record"]["command"])[1:], results["record"]["weights_sha256"]
    except (UserError, KeyError, TypeError, AttributeError):
        return False
    if not before or not results["tables"]:
        return False
    same_weights = sha256(weights) == digest
    return same_weights and [Path(before[0]).name, *before[1:]] == command


def evaluate(command: list[str], log: Path) -> str | None:
    """Run the script with its output in the log; None, or the last line of its error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    (log.parent / "results.json").unlink(missing_ok=True)  # of another command
    script, *flags = command
    with open(log, "w", encoding="utf-8") as output:
        code = subprocess.run(
            [sys.executable, PROJECT / script, *flags], stdout=output, stderr=subprocess.STDOUT
        ).returncode
    if code == 0:
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {code}"


def write_page(folder: Path, tables: dict[str, dict[str, Rows]], failed: dict[str, str]) -> None:
    sections = {}
    for name, each in tables.items():
        sections[name] = html_tables(each)
        if (folder / name / "index.html").exists():  # there is none with --pictures 0
            sections[name] += html_link(f"{name}/index.html", "curves, frames and how it was made")
    sections |= {f"{name}: failed": html_paragraph(error) for name, error in failed.items()}
    servers = {title: rows for block in SERVERS for title, rows in published_tables(block, {}).items()}
    sections["published, on test parts whose labels only the benchmarks' servers have"] = html_tables(servers)
    text = page("The tables of the papers", "published and own figures side by side, in percent", sections)
    write_whole(text.encode(errors="backslashreplace"), folder / "index.html")
    parts = [f"## {name}\n\n{markdown_tables(each)}" for name, each in tables.items()]
    parts += [f"## {name}\n\nfailed: {error}\n" for name, error in failed.items()]
    write_whole("\n".join(parts).encode(errors="backslashreplace"), folder / "tables.md")
    print(f"written: {folder / 'index.html'}, {folder / 'tables.md'}")


if __name__ == "__main__":
    run_script(main)
