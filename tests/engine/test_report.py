"""What an evaluation hands on: curves, histograms, the best and worst frames, published figures, how it was made."""

import hashlib
import io
import json
import re
import subprocess
import time
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
import yaml
from PIL import Image

import evaluate_ood
import evaluate_osr_sh
from data import StreetHazards
from engine.curves import distribution_of, panels_png, plot_histogram, plot_precision_recall, plot_roc, rendered_panel
from engine.evaluate import Frame
from engine.evaluation import FrameRanking, start_evaluation
from engine.flags import script_parser
from engine.page import html_paragraph, html_table, page
from engine.pictures import CELL_WIDTH, GAP, HEADER, LEGEND_LINE, save_grid
from engine.report import PUBLISHED, published_tables
from engine.results import cell_text
from labels import IGNORE, OUTLIER
from metrics import AnomalyMetrics
from tests.support.networks import save_random_weights
from tests.support.samples import average_precision, frames_of_every_kind

PROJECT = Path(__file__).resolve().parents[2]


def scored(pixels, share=0.1, seed=0, digits=None):
    """Scores and labels of pixels; digits rounds the scores, so that many are equal"""
    draw = np.random.default_rng(seed)
    labels = np.where(draw.random(pixels) < share, OUTLIER, draw.integers(0, 12, pixels))
    scores = draw.normal(size=pixels) + 1.5 * (labels == OUTLIER)
    return (scores if digits is None else scores.round(digits)).astype(np.float32), labels


# Curves


@pytest.mark.parametrize("digits", [None, 1], ids=["distinct", "tied"])
@pytest.mark.parametrize("share", [0.5, 0.002], ids=["even", "rare"])
def test_every_point_of_the_curves_is_one_of_scikit_learns(share, digits):
    scores, labels = scored(20_000, share, digits=digits)
    labels[::7] = IGNORE
    curves = AnomalyMetrics().update(scores, labels).curves()
    truth, scores = labels[labels != IGNORE] == OUTLIER, scores[labels != IGNORE]
    fpr, tpr, thresholds = sklearn.metrics.roc_curve(truth, scores, drop_intermediate=False)
    at = {float(threshold): place for place, threshold in enumerate(thresholds)}
    places = [at[float(threshold)] for threshold in curves["threshold"]]
    np.testing.assert_allclose(curves["fpr"], fpr[places], rtol=0, atol=1e-12)
    np.testing.assert_allclose(curves["tpr"], tpr[places], rtol=0, atol=1e-12)
    precision, recall, thresholds = sklearn.metrics.precision_recall_curve(truth, scores)
    at = {float(threshold): place for place, threshold in enumerate(thresholds)} | {np.inf: len(thresholds)}
    places = [at[float(threshold)] for threshold in curves["threshold"]]
    np.testing.assert_allclose(curves["precision"], precision[places], rtol=0, atol=1e-12)
    np.testing.assert_allclose(curves["recall"], recall[places], rtol=0, atol=1e-12)


@pytest.mark.parametrize("points", [9, 50, 500])
def test_the_curves_have_both_ends_and_no_more_points_than_asked(points):
    curves = AnomalyMetrics().update(*scored(20_000)).curves(points)
    assert points / 3 < len(curves["tpr"]) <= points and all(
        len(curve) == len(curves["tpr"]) for curve in curves.values()
    )
    for name, ends in {"fpr": (0, 1), "tpr": (0, 1), "recall": (0, 1), "precision": (1, None)}.items():
        assert curves[name][0] == ends[0] and ends[1] in (None, curves[name][-1])
    assert curves["precision"][-1] == pytest.approx(np.mean(scored(20_000)[1] == OUTLIER))
    assert np.all(np.diff(curves["threshold"]) < 0)


@pytest.mark.parametrize("share", [0.3, 0.001])
def test_a_few_hundred_points_lose_hardly_anything(share):
    metrics = AnomalyMetrics().update(*scored(200_000, share))
    curves, figures = metrics.curves(), metrics.compute()
    assert np.trapezoid(curves["tpr"], curves["fpr"]) == pytest.approx(figures["AUROC"], abs=1e-3)
    mean = (curves["precision"][1:] + curves["precision"][:-1]) / 2
    assert np.sum(mean * np.diff(curves["recall"])) == pytest.approx(figures["AP"], abs=5e-3)
    assert np.interp(0.95, curves["tpr"], curves["fpr"]) == pytest.approx(figures["FPR95"], abs=5e-3)


def test_two_pixels_make_curves_by_hand():
    curves = AnomalyMetrics().update(np.array([1.0, 2.0]), np.array([OUTLIER, 3])).curves()
    assert {name: curve.tolist() for name, curve in curves.items()} == {
        "threshold": [np.inf, 2, 1], "recall": [0, 0, 1], "precision": [1, 0, 0.5], "fpr": [0, 1, 1], "tpr": [0, 0, 1],
    }  # fmt: skip


@pytest.mark.parametrize("label", [3, OUTLIER, IGNORE])
def test_one_kind_of_pixels_has_no_curve_but_a_histogram(label):
    metrics = AnomalyMetrics().update(np.full(4, 0.5), np.full(4, label))
    assert all(curve.size == 0 for curve in metrics.curves().values())
    histogram = metrics.histogram(10)
    assert histogram["inliers"].sum() == 4 * (label == 3) and histogram["outliers"].sum() == 4 * (label == OUTLIER)
    assert np.all(np.diff(histogram["edges"]) > 0)


def test_curves_of_fewer_points_than_their_ends_need_are_refused():
    with pytest.raises(ValueError, match="points is 8"):
        AnomalyMetrics().curves(8)


def test_curves_and_histogram_of_millions_of_pixels_take_no_time_once_they_are_sorted():
    metrics = AnomalyMetrics().update(*scored(3_000_000, 0.01))
    metrics.compute()
    started = time.process_time()
    metrics.curves(), metrics.histogram()
    assert time.process_time() - started < 0.2


# Histograms


@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("digits", [None, 1], ids=["distinct", "tied"])
def test_the_histogram_is_numpys_of_the_middle_and_its_end_bins_take_the_rest(digits, infinite):
    scores, labels = scored(20_000, digits=digits)
    if infinite:
        scores[:300], scores[300:500] = -np.inf, np.inf
    histogram = AnomalyMetrics().update(scores, labels).histogram(40)
    edges = histogram["edges"]
    assert np.isfinite(edges).all() and len(edges) == 41
    for kind, mask in (("inliers", labels != OUTLIER), ("outliers", labels == OUTLIER)):
        slow, _ = np.histogram(np.clip(scores[mask], edges[0], edges[-1]), edges)
        np.testing.assert_array_equal(histogram[kind], slow)
        low, high = np.quantile(scores[mask & np.isfinite(scores)], [0.0011, 0.9989])
        assert edges[0] <= low and high <= edges[-1]
    assert edges[-1] - edges[0] < 1.01 * np.ptp(scores[np.isfinite(scores)])


def test_a_score_on_an_edge_is_in_the_bin_above_it():
    labels = np.array([3, 3, 3, 3, OUTLIER, OUTLIER])
    histogram = AnomalyMetrics().update(np.array([0.0, 1, 1, 2, 3, 4]), labels).histogram(4)
    assert {name: values.tolist() for name, values in histogram.items()} == {
        "edges": [0, 1, 2, 3, 4], "inliers": [1, 2, 1, 0], "outliers": [0, 0, 0, 2],
    }  # fmt: skip


def test_a_far_outlier_does_not_squeeze_the_histogram():
    scores, labels = scored(20_000)
    scores[:3] = 1e6
    histogram = AnomalyMetrics().update(scores, labels).histogram()
    assert histogram["edges"][-1] < 10 and histogram["inliers"].sum() + histogram["outliers"].sum() == 20_000


def test_the_threshold_that_is_drawn_is_that_of_the_figures():
    metrics = AnomalyMetrics().update(*scored(5_000))
    assert distribution_of(metrics).threshold == metrics.compute()["threshold95"]
    half = distribution_of(metrics, 0.5)
    assert half.threshold == metrics.threshold(0.5) > metrics.threshold()
    drawn = []
    rendered_panel(lambda axes: (plot_histogram(axes, "hybrid", half), drawn.append(axes)), 3)
    lines = {line.get_label(): line.get_xdata()[0] for line in drawn[0].lines}
    assert lines == {f"threshold {half.threshold:.3f} at TPR 0.5": half.threshold}
    bars = {patch.get_label(): patch.get_data() for patch in drawn[0].patches if "pixels" in patch.get_label()}
    assert len(bars) == 2
    for kind in ("inliers", "outliers"):
        shares, edges, _ = bars[f"{kind}: {half.histogram[kind].sum():,} pixels"]
        np.testing.assert_allclose(shares, 100 * half.histogram[kind] / half.histogram[kind].sum())
        np.testing.assert_array_equal(edges, half.histogram["edges"])


def test_each_score_has_its_curve_with_its_figures_in_the_legend():
    scores = {name: distribution_of(AnomalyMetrics().update(*scored(5_000, seed=n))) for n, name in enumerate("abc")}
    axes = []
    for draw in (plot_precision_recall, plot_roc):
        rendered_panel(lambda one, draw=draw: (draw(one, scores), axes.append(one)), 4)
    for panel, keys, figure in ((axes[0], ("recall", "precision"), "AP"), (axes[1], ("fpr", "tpr"), "AUROC")):
        lines = {line.get_label().split(": ")[0]: line for line in panel.lines}
        for name, each in scores.items():
            drawn = np.stack([each.curves[key] for key in keys], 1)[figure == "AP" :]
            np.testing.assert_array_equal(lines[name].get_xydata(), drawn)
            assert f"{figure} {100 * each.figures[figure]:.2f}" in lines[name].get_label()


def test_panels_lie_beside_each_other_row_by_row():
    panels = [np.full((2, 3, 3), 20 * number, np.uint8) for number in range(3)]
    with Image.open(io.BytesIO(panels_png(panels, 2))) as opened:
        sheet = np.array(opened)
    assert sheet.shape == (4, 6, 3)
    assert sheet[::2, ::3, 0].tolist() == [[0, 20], [40, 255]] and (sheet[:2, :3] == 0).all()


# The best and the worst frames


@pytest.mark.parametrize("keep", [1, 3])
def test_the_best_and_the_worst_frames_are_those_of_a_slow_selection(keep):
    ranking, slow = FrameRanking(keep), {}
    for frame, scores in frames_of_every_kind(40):
        outlier = (frame.labels == OUTLIER).flatten().numpy()
        defined = outlier.any() and not outlier.all()
        slow[frame.name] = sklearn.metrics.average_precision_score(outlier, scores.flatten()) if defined else None
        ranking.add(frame, scores, average_precision(frame, scores))
        assert len(ranking._best) <= keep and len(ranking._worst) <= keep  # pictures never pile up
    assert list(ranking.ap) == list(slow)
    assert list(ranking.ap.values()) == pytest.approx(list(slow.values()))
    assert list(slow.values()).count(None) == 9 and list(slow.values()).count(1) == 2
    best = sorted((name for name in slow if slow[name] is not None), key=lambda name: -slow[name])[:keep]
    worst = sorted((name for name in slow if slow[name] is not None), key=lambda name: slow[name])[:keep]
    expected = [*((f"best {n}", name) for n, name in enumerate(best, 1)),
                *((f"worst {n}", name) for n, name in enumerate(worst, 1))]  # fmt: skip
    pictures = ranking.captioned()
    assert list(pictures) == [f"{place}: {name}, AP {100 * slow[name]:.2f} %" for place, name in expected]
    for (_, name), picture in zip(expected, pictures.values(), strict=True):
        assert picture.image.flat[0] == pytest.approx(int(name.split()[1]) / 100)  # the frame's own picture


def test_no_frame_is_both_best_and_worst():
    ranking = FrameRanking(3)
    for frame, scores in frames_of_every_kind(5):  # four with an AP
        ranking.add(frame, scores, average_precision(frame, scores))
    names = [re.search(r"frame \d", caption)[0] for caption in ranking.captioned()]
    assert len(names) == len(set(names)) == 4


def test_a_wide_frame_is_thinned_and_nothing_of_it_is_kept_whole():
    ranking = FrameRanking(1)
    labels = torch.zeros(1, 1024, 2048, dtype=torch.long)
    labels[:, :500] = OUTLIER
    scores = torch.rand(1, 1024, 2048)
    ranking.add(Frame(0, "wide", torch.rand(1, 3, 1024, 2048), labels, torch.rand(1, 2, 1024, 2048), None), scores, 0.5)
    picture = next(iter(ranking.captioned().values()))
    assert picture.labels.shape == picture.scores.shape == picture.image.shape[1:] == (342, 683)
    np.testing.assert_array_equal(picture.scores, scores[0, ::3, ::3])
    assert all(part is None or part.base is None for part in picture)  # a view would keep the whole


def test_pictures_can_be_changed_once_the_threshold_is_known():
    ranking = FrameRanking(2)
    for frame, scores in frames_of_every_kind(12):
        ranking.add(frame, scores, average_precision(frame, scores))
    ranking.redraw(lambda picture: picture._replace(open_prediction=picture.scores > 0.5))
    for picture in ranking.captioned().values():
        np.testing.assert_array_equal(picture.open_prediction, picture.scores > 0.5)


# Published figures


def test_published_figures_are_these():
    """Percent: AP, AUROC, FPR95 and status, copied from the papers' figures apart from published.yaml"""
    known = yaml.safe_load(PUBLISHED.read_text())
    expected = {
        "lf": [(63.8, None, 6.1, "confirmed"), (6.02, None, 45.63, "reported"), (18.77, None, 38.13, "reported"),
               (25.79, None, 32.26, "reported"), (41.31, None, 37.69, "reported"), (58.81, None, 4.76, "reported"),
               (60.58, None, 31.02, "reported")],
        "static": [(60.0, None, 4.9, "confirmed"), (70.23, 99.15, 3.33, "third party"),
                   (14.24, None, 34.10, "reported"), (27.99, None, 28.50, "reported"), (31.66, None, 37.32, "reported"),
                   (72.91, None, 13.57, "reported"), (92.08, None, 1.52, "reported"), (66.44, None, 25.59, "reported")],
        "street-hazards": [(30.2, 95.6, 13.0, "unconfirmed")],
        "lf-test": [(43.90, None, 6.18, "confirmed")],
        "static-test": [(72.27, None, 5.51, "confirmed")],
        "anomaly-track-test": [(77.96, None, 9.81, "confirmed")],
        "obstacle-track-test": [(87.08, None, 0.24, "confirmed"), (81.7, None, 0.2, "confirmed")],
        "lost-and-found-no-known": [(78.7, None, 2.1, "confirmed")],
        "road-anomaly": [(31.39, None, 63.97, "confirmed")],
    }  # fmt: skip
    for block, lines in expected.items():
        found = [*known[block]["dense_hybrid"], *known[block].get("peers", [])]
        assert [(*(line.get(key) for key in ("AP", "AUROC", "FPR95")), line["status"]) for line in found] == lines, (
            block
        )
    track = known["anomaly-track-test"]["dense_hybrid"][0]
    assert [track[key] for key in ("sIoU", "PPV", "F1")] == [54.17, 24.13, 31.08]
    cityscapes = [(line["mIoU"], line["test_mIoU"]) for line in known["cityscapes"]["dense_hybrid"]]
    assert cityscapes == [(81.4, 82.46), (81.0, 82.06)]
    opened = known["street-hazards-open-set"]["dense_hybrid"]
    keys = ("mIoU", "open_mIoU", "open_mIoU_t5", "open_mIoU_t6", "status")
    assert [[line[key] for key in keys] for line in opened] == [[63.0, 45.8, 46.1, 45.3, "unconfirmed"]]
    empty = {"coco20", "anomaly-track", "obstacle-track"}
    assert all(known[block]["dense_hybrid"] == [] for block in empty)
    assert known.keys() == {*expected, *empty, "cityscapes", "street-hazards-open-set"}


def test_every_published_line_has_a_source_a_status_and_figures_with_a_column():
    for block, known in yaml.safe_load(PUBLISHED.read_text()).items():
        for line in [*known["dense_hybrid"], *known.get("peers", [])]:
            words = {"method", "source", "status"}
            assert words < line.keys() and line.keys() - words <= known["figures"].keys(), (block, line)
            assert line["status"] in {"confirmed", "third party", "reported", "unconfirmed"} and line["source"]
            assert all(isinstance(line[key], float) for key in line.keys() - words)


def test_published_figures_stand_beside_ours_and_unconfirmed_ones_are_marked():
    ours = {"hybrid": {"AP": 0.5, "AUROC": float("nan"), "FPR95": 0.125, "outlier_pixels": 3}, "entropy": {"AP": 0.25}}
    tables = published_tables("static", ours)
    assert list(tables) == [f"Fishyscapes Static, validation, beside {whose}"
                            for whose in ("DenseHybrid's published figures", "its peers'")]  # fmt: skip
    first, second = tables.values()
    mine = [["method", "source", "AP %", "AUROC %", "FPR95 %"], ["ours, hybrid", "this run", "50.00", "", "12.50"],
            ["ours, entropy", "this run", "25.00", "", ""]]  # fmt: skip
    assert first[:3] == second[:3] == mine and len(second) == 9
    assert first[3][2:] == ["60.0", "", "4.9"] and first[4] == ["the released weights", "a third party's run", "70.23",
                                                                 "99.15", "3.33"]  # fmt: skip
    ((title, rows),) = published_tables("street-hazards", ours).items()
    assert "?: not confirmed" in title and rows[-1][1:] == ["circulates, not confirmed", "30.2 ?", "95.6 ?", "13.0 ?"]
    (rows,) = published_tables("coco20", {"hybrid": {"mIoU": 0.5}}).values()
    assert rows[1:] == [["ours, hybrid", "this run", "50.00", "", ""],
                        ["DenseHybrid", "no published figures at hand", "", "", ""]]  # fmt: skip


def test_figures_of_a_part_of_the_images_are_not_taken_for_those_of_all():
    ours = {"hybrid": {"AP": 0.5}}
    for images, source in ((1500, "this run"), (5, "this run, of 5 images, not 1500"), (None, "this run")):
        (rows,) = published_tables("street-hazards", ours, images).values()
        assert rows[1][:3] == ["ours, hybrid", source, "50.00"]
    (rows,) = published_tables("coco20", {"hybrid": {"mIoU": 0.5}}, 6).values()  # of which none are published
    assert rows[1][1] == "this run"


# How it was made


def started(weights, *flags):
    """The evaluation that a command line starts"""
    parser = script_parser("")
    for flag in ("--dataroot", "--params"):
        parser.add_argument(flag)
    parser.add_argument("--folder", type=Path)
    words = ["--device", "cpu", "--folder", "out", "--params", str(weights), *flags]
    return start_evaluation(parser, "params", "somewhere/evaluate_ood.py", words)[1]


def test_hash_revision_and_recipe_of_the_weights_are_recorded(tmp_path, in_tmp):
    weights = tmp_path / "final.pth"
    weights.write_bytes(bytes(range(256)) * 5000)
    record = started(weights, "--dataroot", "a b").record(7)
    assert record["weights_sha256"] == hashlib.sha256(bytes(range(256)) * 5000).hexdigest()
    assert record["command"] == f"python evaluate_ood.py --device cpu --folder out --params {weights} --dataroot 'a b'"
    assert (record["dataroot"], record["images"], record["recipe"]) == ("a b", 7, None)
    revision = subprocess.run(
        ["git", "-C", PROJECT, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert (record["revision"] or "").removesuffix("+changes") == revision
    assert record["versions"]["torch"] == torch.__version__ and record["device"].startswith("cpu")
    (tmp_path / "recipe.yaml").write_text("script: ldn\nrecipe: {release: {scale: [0.5, 2.0]}}\nwhen: 2024-05-06\n")
    record = started(weights, "--dataroot", ".").record(7)
    assert record["recipe"]["recipe"] == {"release": {"scale": [0.5, 2.0]}}
    assert json.loads(json.dumps(record)) == record
    (tmp_path / "recipe.yaml").write_text("a: [1,\n")
    with pytest.raises(ValueError, match=r"recipe\.yaml beside the weights cannot be read as YAML"):
        started(weights, "--dataroot", ".").record(7)


# The page


class Page(HTMLParser):
    """Words of a page, the tables' cells, its attributes that name something to fetch, and tags left open"""

    def __init__(self, text):
        super().__init__()
        self.words, self.rows, self.named, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.named += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def flags(street_hazards, weights, *more):
    return ["--dataroot", str(street_hazards), "--device", "cpu", "--workers", "0", *more, str(weights)]


@pytest.fixture(scope="module")
def evaluations(street_hazards, tmp_path_factory):
    """The folder with ood/, mean/ (without --pooled) and open_set/ of weights that lie in <weights>/ with a recipe"""
    folder = tmp_path_factory.mktemp("evaluations")
    weights = folder / "<weights>" / "final.pth"
    weights.parent.mkdir()
    save_random_weights(weights, hybrid=True)
    (weights.parent / "recipe.yaml").write_text("script: ldn_streethazards\nrecipe: {changed: {lr: 0.125}}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ood = ["--dataset", "street-hazards", "--pictures", "4"]
        scores = ["--scores", "hybrid", "entropy"]
        evaluate_ood.main(flags(street_hazards, weights, *ood, "--folder", "ood", "--pooled", *scores, "--params"))
        evaluate_ood.main(flags(street_hazards, weights, *ood, "--folder", "mean", "--params"))
        evaluate_osr_sh.main(flags(street_hazards, weights, "--folder", "open_set", "--tpr", "0.9", "--model"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ood", "mean", "open_set"])
def test_the_page_shows_every_figure_and_fetches_nothing(name, evaluations):
    text = (evaluations / name / "index.html").read_text()
    page = Page(text)
    assert page.open == [] and page.named and all(value.startswith("data:") for value in page.named)
    assert not re.search(r"https?:|url\(|@import|<script|<iframe", text)
    words = "".join(page.words)
    assert "<img" not in words and "base64" not in words  # no part of a page is shown as text
    assert ('alt="ROC"' in text) == (name != "mean")  # which has no pooled pixels and no curves
    table = (evaluations / name / "table.md").read_text()
    markdown = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")
    ]
    for row in markdown:
        assert [cell for cell in row if cell] in [[cell for cell in found if cell] for found in page.rows], row
    assert all(title in words for title in table.splitlines() if title and not title.startswith("|"))
    results = json.loads((evaluations / name / "results.json").read_text())
    record = results["record"]
    for key in ("dataroot", "weights", "weights_sha256", "revision", "device"):
        assert record[key] is None or record[key] in words, key
    assert "lr: 0.125" in words and "<weights>" in words and "<weights>" not in text
    assert " ".join(words.split()).count(record["command"].replace(" --", " \\ --")) == 1
    aps = {image["name"]: image["hybrid"]["AP"] for image in results["images"]}
    assert len(aps) == record["images"] == 5
    for frame, ap in aps.items():
        assert [frame, f"{100 * ap:.2f}"] in page.rows
    best, worst = max(aps, key=aps.get), min(aps, key=aps.get)
    assert f"best 1: {best}, AP {100 * aps[best]:.2f} %" in words
    assert f"worst 1: {worst}, AP {100 * aps[worst]:.2f} %" in words


@pytest.mark.slow
def test_the_headline_is_that_of_the_benchmark(evaluations):
    results = json.loads((evaluations / "ood/results.json").read_text())
    text = (evaluations / "ood/index.html").read_text()
    headline = dict(re.findall(r"<dt>(\w+)</dt><dd>([\d.]+) <small>%</small>", text))
    mean = results["figures"]["mean_of_images"]["hybrid"]
    assert headline == {figure: f"{100 * mean[figure]:.2f}" for figure in ("AP", "AUROC", "FPR95")}
    assert "StreetHazards test, mean over images" in unescape(text)


@pytest.mark.slow
def test_pictures_lie_in_the_folder_where_scores_are_pooled(evaluations):
    pictures = {"curves.png", "histogram.png"}
    for name in ("ood", "open_set"):
        found = {path.name for path in (evaluations / name).iterdir()}
        assert found == {"results.json", "table.md", "index.html", "pictures.png", "pictures_best_worst.png", *pictures}
        for picture in pictures:
            with Image.open(evaluations / name / picture) as opened:
                assert opened.size[0] > 1500 and len(np.unique(np.array(opened))) > 50
    found = {path.name for path in (evaluations / "mean").iterdir()}
    assert found == {"results.json", "table.md", "index.html", "pictures.png", "pictures_best_worst.png"}
    assert "--pooled" in (evaluations / "mean/index.html").read_text()
    assert "--pooled the evaluation keeps" not in (evaluations / "ood/index.html").read_text()


@pytest.mark.slow
def test_curves_of_an_earlier_evaluation_do_not_stay(evaluations, street_hazards, monkeypatch):
    monkeypatch.chdir(evaluations)
    Path("again").mkdir()
    Path("again/curves.png").write_text("of another evaluation")
    weights = evaluations / "<weights>" / "final.pth"
    evaluate_ood.main(flags(street_hazards, weights, "--dataset", "street-hazards", "--folder", "again", "--params"))
    assert not Path("again/curves.png").exists()


@pytest.mark.slow
def test_no_pictures_means_figures_alone(evaluations, street_hazards, monkeypatch):
    monkeypatch.chdir(evaluations)
    weights = evaluations / "<weights>" / "final.pth"
    for name in ("index.html", "pictures.png", "pictures_best_worst.png", "curves.png", "histogram.png"):
        Path("none").mkdir(exist_ok=True)
        Path("none", name).write_text("of an earlier evaluation")
    evaluate_osr_sh.main(flags(street_hazards, weights, "--folder", "none", "--pictures", "0", "--model"))
    assert sorted(path.name for path in Path("none").iterdir()) == ["results.json", "table.md"]


@pytest.mark.slow
def test_the_sheet_has_a_line_of_words_above_each_frame(evaluations, tmp_path):
    with (
        Image.open(evaluations / "ood/pictures.png") as plain,
        Image.open(evaluations / "ood/pictures_best_worst.png") as captioned,
    ):
        assert captioned.size == (plain.size[0], plain.size[1] + 4 * LEGEND_LINE)
    red = np.full((20, 40, 3), (255, 0, 0), np.uint8)
    save_grid(tmp_path / "sheet.png", ["a"], [[red], [red]], {}, captions=["first", "second"])
    sheet = np.array(Image.open(tmp_path / "sheet.png"))
    is_red = (sheet[:, GAP + 20] == (255, 0, 0)).all(1)
    height = CELL_WIDTH // 2
    rows = [HEADER + LEGEND_LINE, HEADER + 2 * LEGEND_LINE + height + GAP]  # where the frames begin
    assert np.flatnonzero(np.diff(is_red.astype(int)) == 1).tolist() == [row - 1 for row in rows]
    assert np.count_nonzero(is_red) == 2 * height
    for row in rows:
        assert (sheet[row - LEGEND_LINE : row] < 100).all(-1).any()  # words


def test_columns_of_numbers_stand_flush_right_and_words_are_escaped():
    table = html_table([["a<b", "AP %"], ["<i>", 0.5], ["x", float("nan")]])
    assert table.count('class="number"') == 3 and "<i>" not in table and "&lt;i&gt;" in table
    assert f">{cell_text(0.5)}<" in table and "nan" not in table


def test_what_is_no_part_of_a_page_is_escaped_in_it():
    text = page("a<b", "c&d", {"e<f": html_paragraph("g<h"), "words": "<i>"}, {"j<k": 0.5})
    assert all(words in text for words in ("a&lt;b", "c&amp;d", "e&lt;f", "<p>g&lt;h</p>", "&lt;i&gt;", "j&lt;k"))


@pytest.mark.slow
def test_classes_of_the_legend_are_those_of_the_data_set(evaluations):
    words = Page((evaluations / "open_set/index.html").read_text()).words
    assert [name for name in words if name in StreetHazards.class_colours] == list(StreetHazards.class_colours)
