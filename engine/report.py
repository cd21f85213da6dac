"""What an evaluation hands on: published figures beside its own, pictures, and one page that shows it all."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml
from markupsafe import Markup

from engine.curves import Distribution, panels_png, plot_histogram, plot_precision_recall, plot_roc, rendered_panel
from engine.evaluation import ReportedFrames
from engine.files import write_whole
from engine.page import (
    html_every_frame,
    html_frames,
    html_panels,
    html_paragraph,
    html_record,
    html_sheet,
    html_tables,
    page,
)
from engine.pictures import Colours, save_pictures
from engine.recipe import PROJECT
from engine.results import Rows, cell_text, write_results
from errors import UnusableFile, message_of

PUBLISHED = PROJECT / "published.yaml"


# Published figures


def published_tables(block: str, ours: dict[str, dict], images: int | None = None) -> dict[str, Rows]:
    """Title -> rows: DenseHybrid's published figures beside ours, then its peers' where there are.

    block   of published.yaml
    ours    figures as fractions by the name of the score; those that the block does not know are left out
    images  that ours are of; the rows say so where the published figures are of another number
    """
    known = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))[block]
    header = ["method", "source", *(f"{heading} %" for heading in known["figures"].values())]
    all_images = known.get("images", images)
    source = "this run" if images == all_images or images is None else f"this run, of {images} images, not {all_images}"
    lines = [
        [f"ours, {name}", source, *(cell_text(figures.get(key, "")) for key in known["figures"])]
        for name, figures in ours.items()
    ]
    none = [["DenseHybrid", "no published figures at hand", *("" for _ in known["figures"])]]
    tables = {
        "beside DenseHybrid's published figures": [published_row(line, known) for line in known["dense_hybrid"]] or none
    }
    if "peers" in known:
        tables["beside its peers'"] = [published_row(line, known) for line in known["peers"]]
    if any(line["status"] == "unconfirmed" for line in known["dense_hybrid"]):
        tables = {f"{title} (?: not confirmed)": rows for title, rows in tables.items()}
    return {f"{known['title']}, {title}": [header, *lines, *rows] for title, rows in tables.items()}


def published_row(line: dict, known: dict) -> list[str]:
    doubt = " ?" if line["status"] == "unconfirmed" else ""
    source = line["source"] + (", not confirmed" if doubt else "")
    return [line["method"], source, *(f"{line[key]}{doubt}" if key in line else "" for key in known["figures"])]


# The report

PICTURES = ("pictures.png", "pictures_best_worst.png", "curves.png", "histogram.png", "index.html")


@dataclass(frozen=True)
class Report:
    """What the pictures and the page show beside the tables and the record of the results."""

    title: str
    headline: dict[str, float]  # name -> fraction
    frames: ReportedFrames
    colours: Colours
    truth_colours: Colours | None = None  # of the truth, where its labels are not the predicted classes
    distributions: dict[str, Distribution] = field(default_factory=dict)  # of pooled scores, by the curves' names
    without_curves: str = "No pixels of both kinds, outliers and others, so there is no curve to draw."


def write_evaluation(folder: Path, results: dict, report: Report | None = None) -> None:
    """results.json and table.md into the folder and, where frames are shown, pictures, curves and the page."""
    write_results(folder, results, results["tables"])
    if report is None:
        return
    with figures_are_written(folder):
        for name in PICTURES:
            (folder / name).unlink(missing_ok=True)  # of an earlier evaluation
        if not report.frames.pictures:
            return
        score = report.frames.scores[0]
        save_pictures(folder / "pictures.png", report.frames.pictures, report.colours, score, report.truth_colours)
        write_page(folder, results, report)


@contextlib.contextmanager
def figures_are_written(folder: Path) -> Iterator[None]:
    """Where the pictures and the page are made: an error says that the figures are there without them."""
    try:
        yield
    except OSError as error:
        message = message_of(error) or str(error)
        raise UnusableFile(
            error.errno,
            f"{message}. The figures are in {folder}/results.json and table.md; a picture or the page is missing",
        ) from error


def write_page(folder: Path, results: dict, report: Report) -> None:
    """pictures_best_worst.png, curves.png and histogram.png into the folder, and index.html that shows everything."""
    score, frames, record = report.frames.scores[0], report.frames.ranking.captioned(), results["record"]
    if frames:
        pictures, captions, colours = [*frames.values()], [*frames], (report.colours, score, report.truth_colours)
        save_pictures(folder / "pictures_best_worst.png", pictures, *colours, captions)
    sections = {
        "Figures": html_tables(results["tables"]),
        "Curves and scores": write_curves(folder, report.distributions) or html_paragraph(report.without_curves),
        "Frames": html_frames(frames, score, report.colours, report.truth_colours)
        + html_sheet(folder / "pictures.png")
        + html_every_frame(report.frames.ranking.ap, score),
        "How to reproduce": html_record(record),
    }
    subtitle = f"{score} score, weights {Path(record['weights']).name}, {record['images']} images"
    text = page(report.title, subtitle, sections, report.headline)
    write_whole(text.encode(errors="backslashreplace"), folder / "index.html")
    print(f"page: {folder / 'index.html'}")


def write_curves(folder: Path, distributions: dict[str, Distribution]) -> Markup:
    """curves.png and histogram.png of scores that have curves, and the page's part with them; empty without any."""
    files = [folder / name for name in ("curves.png", "histogram.png")]
    with_curves = {name: each for name, each in distributions.items() if each.curves["tpr"].size}
    if not with_curves:
        return Markup()
    lines = len(with_curves) + 1
    curves = {
        "precision and recall": rendered_panel(partial(plot_precision_recall, distributions=with_curves), lines),
        "ROC": rendered_panel(partial(plot_roc, distributions=with_curves), lines),
    }
    bars = {
        f"scores, {name}": rendered_panel(partial(plot_histogram, name=name, distribution=each), 3)
        for name, each in with_curves.items()
    }
    write_whole(panels_png([*curves.values()], 2), files[0])
    write_whole(panels_png([*bars.values()], min(3, len(bars))), files[1])
    words = html_paragraph("Over all pixels pooled; a dot marks the threshold's true positive rate.")
    panels = (html_panels({name: panels_png([panel]) for name, panel in kind.items()}) for kind in (curves, bars))
    return words + Markup().join(panels)
