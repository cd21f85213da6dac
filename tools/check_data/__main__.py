"""Check a data set before it is used: folders, pairs, sizes, modes, label values, numbers of images.

    python -m tools.check_data --dataset DATASET --dataroot DATAROOT [--quick] [--folder OUTPUT_DIR]

DATASET is street-hazards, cityscapes, lf or static (Fishyscapes), ade20k, coco20, anomaly-track or obstacle-track
(SegmentMeIfYouCan), road-anomaly, or images: any folder of them. Every file is read, with all cores; what is wrong is
listed with the way to mend it. The exit code is 1 where the data cannot be used, else 0: another number of images
than is published is only a warning. Nothing is written below DATAROOT.
"""

import os
from pathlib import Path

from data.decoding import MAX_PIXELS
from engine import run_script, write_results
from engine.files import require_writable
from engine.flags import Parser, available_cores, number_of_workers, whole_number
from engine.results import markdown_table
from tools.check_data.check import check
from tools.check_data.problems import summary
from tools.check_data.sources import SOURCES
from tools.check_data.tables import split_tables


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--dataset", required=True, choices=list(SOURCES))
    parser.add_argument("--dataroot", required=True, type=Path, help="the data set's folder")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="only these (default: all that are read)")
    parser.add_argument("--quick", action="store_true", help="folders, pairs and the files' headers only")
    parser.add_argument(
        "--workers",
        type=number_of_workers,
        default=available_cores(),
        help="processes; 0: this one (default: all cores)",
    )
    parser.add_argument(
        "--max_pixels",
        type=whole_number(1),
        default=MAX_PIXELS,
        help=f"of the largest picture that is read (default {MAX_PIXELS:,})",
    )
    parser.add_argument("--folder", type=Path, help="where check_data.json and check_data.md go (default: nowhere)")
    args = parser.parse_args(argv)
    unknown = set(args.splits or ()) - SOURCES[args.dataset].splits.keys()
    if unknown:
        parser.error(
            f"{args.dataset} has no split {', '.join(sorted(unknown))}: {', '.join(SOURCES[args.dataset].splits)}"
        )
    # Not Path.resolve, to which a loop of links is a mistake in the code.
    if args.folder and Path(os.path.realpath(args.folder)).is_relative_to(os.path.realpath(args.dataroot)):
        parser.error(f"--folder {args.folder} lies in --dataroot, where nothing is to be written; choose another")
    if args.folder:
        require_writable(args.folder, "--folder")

    results = check(args.dataset, args.dataroot, args.splits, args.workers, args.quick, args.max_pixels)
    tables = split_tables(args.dataset, results["splits"])
    if args.folder:
        write_results(args.folder, results, tables, ("check_data.json", "check_data.md"))
    elif tables:
        print("\n".join(f"\n{title}\n\n{markdown_table(rows)}" for title, rows in tables.items()))
    print(summary(results))
    if not results["usable"]:
        raise SystemExit(1)
    return results


if __name__ == "__main__":
    run_script(main)
