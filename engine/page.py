"""The parts of an evaluation's page, index.html: every picture is inside it, and nothing is fetched from elsewhere."""

import base64
import io
from html import escape
from pathlib import Path
from string import Template

import yaml
from PIL import Image

from engine.pictures import (
    IGNORE_COLOUR,
    UNKNOWN_COLOUR,
    Colours,
    Picture,
    heat_note,
    heat_range,
    picture_cells,
)
from engine.results import cell_text

TEMPLATE = Path(__file__).with_name("page.html")
CELL_WIDTH = 480  # pixels of one picture of a frame


def page(title: str, subtitle: str, sections: dict[str, str], headline: dict[str, float] | None = None) -> str:
    """The whole page. Title, subtitle and the sections' titles are words, the sections themselves HTML."""
    parts = [f"<section>\n<h2>{escape(name)}</h2>\n{content}\n</section>" for name, content in sections.items()]
    tiles = f'<dl class="headline">\n{html_headline(headline)}\n</dl>' if headline else ""
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title), subtitle=escape(subtitle), headline=tiles, sections="\n".join(parts)
    )


def html_paragraph(words: str) -> str:
    return f"<p>{escape(words)}</p>\n"


def html_link(path: str, words: str) -> str:
    return f'<p><a href="{escape(path)}">{escape(words)}</a></p>\n'


def html_headline(figures: dict[str, float]) -> str:
    return "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{cell_text(value) or '&ndash;'} <small>%</small></dd></div>"
        for name, value in figures.items()
    )


def html_tables(tables: dict[str, list[list]]) -> str:
    return "\n".join(f"<h3>{escape(title)}</h3>\n{html_table(rows)}" for title, rows in tables.items())


def html_table(rows: list[list]) -> str:
    """The first row is the header; columns of numbers alone stand flush right."""
    header, *body = [[cell_text(value) for value in row] for row in rows]
    numbers = [all(is_number(row[column]) for row in body) for column in range(len(header))]
    classes = [' class="number"' if number else "" for number in numbers]
    lines = []
    for tag, row in [("th", header), *(("td", row) for row in body)]:
        cells = [f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(row, classes, strict=True)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>\n"


def is_number(cell: str) -> bool:
    return not cell.strip("0123456789.,-+ ?")


def html_panels(panels: dict[str, bytes]) -> str:
    """PNG files by what they show."""
    images = [f'<img src="{data_uri(content, "png")}" alt="{escape(name)}">' for name, content in panels.items()]
    return '<div class="panels">\n' + "\n".join(images) + "\n</div>\n"


def html_frames(frames: dict[str, Picture], score_name: str, colours: Colours, truth_colours: Colours | None) -> str:
    """Each frame under its caption, and the legend of the class colours."""
    if not frames:
        return html_paragraph("No frame has an AP: that takes outliers and other pixels.")
    low, high = heat_range([picture.scores for picture in frames.values()])
    figures = []
    for caption, picture in frames.items():
        cells = picture_cells(picture, colours, low, high, truth_colours)
        images = [
            f'<div><img src="{jpeg_uri(Image.fromarray(cell), CELL_WIDTH)}" alt="{title} of {escape(caption)}">'
            f"<span>{title}</span></div>"
            for title, cell in cells.items()
        ]
        figures.append(
            f'<figure class="frame"><figcaption>{escape(caption)}</figcaption>\n<div class="cells">\n'
            + "\n".join(images)
            + "\n</div></figure>\n"
        )
    legend = [*(colours | (truth_colours or {})).items(), ("unknown", UNKNOWN_COLOUR), ("ignored", IGNORE_COLOUR)]
    swatches = [f'<li><i style="background:rgb{tuple(colour)}"></i>{escape(name)}</li>' for name, colour in legend]
    note = html_paragraph(f"Best and worst by the AP of the frame's own pixels; {heat_note(score_name, low, high)}.")
    return note + '<ul class="legend">' + "".join(swatches) + "</ul>\n" + "".join(figures)


def html_sheet(path: Path) -> str:
    """The sheet of frames that were chosen evenly, where there is one."""
    if not path.exists():
        return ""
    with Image.open(path) as sheet:
        image = (
            f'<img class="sheet" src="{jpeg_uri(sheet.convert("RGB"))}" alt="frames spread evenly over the data set">'
        )
    return (
        f'<details><summary>Frames spread evenly over the data set</summary><div class="wide">{image}</div></details>\n'
    )


def html_every_frame(ap: dict[str, float | None], score_name: str) -> str:
    rows = [
        [f"frame, {score_name} score", "AP %"],
        *([name, "" if each is None else each] for name, each in ap.items()),
    ]
    return f"<details><summary>AP of each of {len(ap)} frames</summary>{html_table(rows)}</details>\n"


def html_record(record: dict) -> str:
    """The command, what it ran on and with, and the recipe of the weights."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    facts = {
        "data root": record["dataroot"],
        "images": record["images"],
        "weights": record["weights"],
        "SHA-256 of the weights": record["weights_sha256"],
        "git revision": record["revision"] or "none, not a git checkout",
        "versions": versions,
        "device": record["device"],
        "precision": record["precision"],
    }
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    if record["recipe"] is None:
        recipe = html_paragraph("No recipe.yaml lies beside the weights, so how they were trained is not recorded.")
    else:
        text = yaml.safe_dump(record["recipe"], sort_keys=False, default_flow_style=None, width=90)
        recipe = f"<details><summary>Recipe of the weights</summary><pre>{escape(text)}</pre></details>\n"
    command = record["command"].replace(" --", " \\\n    --")  # one flag a line, to copy as it is
    return f'<pre>{escape(command)}</pre>\n<dl class="facts">{items}</dl>\n{recipe}'


def jpeg_uri(picture: Image.Image, width: int | None = None) -> str:
    if width:
        height = round(picture.height * width / picture.width)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=88, subsampling=0)
    return data_uri(buffer.getvalue(), "jpeg")


def data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
