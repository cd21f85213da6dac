"""What the splits of a data set hold, as tables."""

from tools.check_data.sources import CHOSEN

MOST_ROWS = 25  # of the table of labels on the screen; check_data.json holds all


def split_tables(name: str, reports: dict[str, dict]) -> dict[str, list[list]]:
    """Title -> rows, the first of them the header: what is there, and the labels where files were read.

    name     of the data set
    reports  of inspect_split, by the name of the split
    """
    if not reports:
        return {}
    tables = {f"{name}: what is there": image_rows(name, reports)}
    labels = {title: report["labels"] for title, report in reports.items() if "labels" in report}
    if labels:
        tables[f"{name}: labels, in what is chosen" if name == "coco20" else f"{name}: labels"] = label_rows(labels)
    return tables


def image_rows(name: str, reports: dict[str, dict]) -> list[list]:
    rows = [["split", "images", "published", "sizes", "outlier pixels"]]
    for title, report in reports.items():
        outliers = f"{report['outlier_pixels']:,}" if "outlier_pixels" in report else ""
        images = f"{report['images']:,}" + (
            f", {report['chosen_images']:,} chosen" if "chosen_images" in report else ""
        )
        published = f"{report['published_images']:,}" if report["published_images"] else ""
        published += f", {CHOSEN[title]:,} chosen" if name == "coco20" else ""
        sizes = [f"{size} ({count:,})" for size, count in report["sizes"].items()]
        more = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
        rows.append([title, images, published, ", ".join(sizes[:3]) + more, outliers])
    return rows


def label_rows(labels: dict[str, dict[str, dict]]) -> list[list]:
    """A row a label, of the most frequent MOST_ROWS.

    labels  of label_pixels, by the name of the split
    """
    first = next(iter(labels.values()))
    order = list(first)
    if len(order) > MOST_ROWS:
        order = sorted(order, key=lambda label: -sum(part[label]["pixels"] for part in labels.values()))
    rows = [["label", "stored", *(f"{title}, % of pixels" for title in labels)]]
    for label in order[:MOST_ROWS]:
        rows.append([label, first[label]["stored"], *(part[label]["share"] for part in labels.values())])
    if order[MOST_ROWS:]:
        rest = [sum(part[label]["share"] for label in order[MOST_ROWS:]) for part in labels.values()]
        rows.append([f"{len(order) - MOST_ROWS} others", "", *rest])
    return rows
