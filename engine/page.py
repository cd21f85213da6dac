"""The parts of an evaluation's page, index.html: every picture is inside it, and nothing is fetched from elsewhere.

The page's HTML is engine/templates/; all that is put into it is escaped there, but for parts that come from there.
"""

import base64
import functools
import io
from collections.abc import Mapping
from pathlib import Path

import jinja2
import yaml
from markupsafe import Markup
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

CELL_WIDTH = 480  # pixels of one picture of a frame


@functools.cache
def templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell_text"] = cell_text
    return environment


def page(title: str, subtitle: str, sections: Mapping[str, str], headline: dict[str, float] | None = None) -> str:
    """The whole page.

    sections  {title: what the functions below give}; other text is escaped
    headline  name -> fraction
    """
    template = templates().get_template("page.html")
    return template.render(title=title, subtitle=subtitle, sections=sections, headline=headline or {})


def part(macro: str, *values) -> Markup:
    """What a macro of parts.html makes of the values."""
    return getattr(templates().get_template("parts.html").module, macro)(*values)


def html_paragraph(words: str) -> Markup:
    return part("paragraph", words)


def html_link(path: str, words: str) -> Markup:
    return part("link", path, words)


def html_tables(tables: dict[str, list[list]]) -> Markup:
    return Markup("\n").join(part("titled", title, html_table(rows)) for title, rows in tables.items())


def html_table(rows: list[list]) -> Markup:
    """The first row is the header; columns of numbers alone stand flush right."""
    header, *body = [[cell_text(value) for value in row] for row in rows]
    numbers = [all(is_number(row[column]) for row in body) for column in range(len(header))]
    return part("table", header, body, numbers)


def is_number(cell: str) -> bool:
    return not cell.strip("0123456789.,-+ ?")


def html_panels(panels: dict[str, bytes]) -> Markup:
    """PNG files by what they show."""
    return part("panels", {name: data_uri(content, "png") for name, content in panels.items()})


def html_frames(frames: dict[str, Picture], score_name: str, colours: Colours, truth_colours: Colours | None) -> Markup:
    """Each frame under its caption, and the legend of the class colours."""
    if not frames:
        return html_paragraph("No frame has an AP: that takes outliers and other pixels.")
    low, high = heat_range([picture.scores for picture in frames.values()])
    cells = {
        caption: {
            title: jpeg_uri(Image.fromarray(cell), CELL_WIDTH)
            for title, cell in picture_cells(picture, colours, low, high, truth_colours).items()
        }
        for caption, picture in frames.items()
    }
    legend = [*(colours | (truth_colours or {})).items(), ("unknown", UNKNOWN_COLOUR), ("ignored", IGNORE_COLOUR)]
    note = html_paragraph(f"Best and worst by the AP of the frame's own pixels; {heat_note(score_name, low, high)}.")
    return note + part("frames", cells, legend)


def html_sheet(path: Path) -> Markup:
    """The sheet of frames that were chosen evenly, where there is one."""
    if not path.exists():
        return Markup()
    with Image.open(path) as sheet:
        image = part("sheet", jpeg_uri(sheet.convert("RGB")), "frames spread evenly over the data set")
    return part("folded", "Frames spread evenly over the data set", image)


def html_every_frame(ap: dict[str, float | None], score_name: str) -> Markup:
    rows: list[list] = [
        [f"frame, {score_name} score", "AP %"],
        *([name, "" if each is None else each] for name, each in ap.items()),
    ]
    return part("folded", f"AP of each of {len(ap)} frames", html_table(rows))


def html_record(record: dict) -> Markup:
    """The command, what it ran on and with, and the recipe of the weights."""
    facts = {
        "data root": record["dataroot"],
        "images": record["images"],
        "weights": record["weights"],
        "SHA-256 of the weights": record["weights_sha256"],
        "git revision": record["revision"] or "none, not a git checkout",
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "device": record["device"],
        "precision": record["precision"],
    }
    if record["recipe"] is None:
        recipe = html_paragraph("No recipe.yaml lies beside the weights, so how they were trained is not recorded.")
    else:
        text = yaml.safe_dump(record["recipe"], sort_keys=False, default_flow_style=None, width=90)
        recipe = part("folded", "Recipe of the weights", part("text", text))
    command = record["command"].replace(" --", " \\\n    --")  # one flag a line, to copy as it is
    return part("facts", command, facts) + recipe


def jpeg_uri(picture: Image.Image, width: int | None = None) -> str:
    if width:
        height = round(picture.height * width / picture.width)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=88, subsampling=0)
    return data_uri(buffer.getvalue(), "jpeg")


def data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
