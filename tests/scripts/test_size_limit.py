"""The limit of a picture's size: what --max_pixels says holds for all that a script reads."""

import contextlib

import pytest
from PIL import Image

from data import (
    ADE20K,
    COCO20,
    AnomalyTrack,
    Cityscapes,
    FishyscapesStatic,
    ImageFolder,
    LostAndFound,
    ObstacleTrack,
    RoadAnomaly,
    StreetHazards,
)
from data.files import LabelledImages
from errors import message_of
from tests.support.layouts import LABELLED, SIZE, make
from tests.support.parsers import EVALUATIONS, TRAININGS, parser_of, script_module, spare_networks, words_for
from tests.support.stand_ins import put_in_place
from tools.export_scores.__main__ import main as export_scores

HEIGHT, WIDTH = SIZE
PIXELS = HEIGHT * WIDTH
OPEN = {
    "street-hazards": lambda root, **read: StreetHazards(root, "test", **read),
    "cityscapes": lambda root, **read: Cityscapes(root, "val", **read),
    "lf": LostAndFound,
    "static": FishyscapesStatic,
    "ade20k": ADE20K,
    "coco20": lambda root, **read: COCO20(root, "validation", **read),
    "anomaly-track": AnomalyTrack,
    "obstacle-track": ObstacleTrack,
    "road-anomaly": RoadAnomaly,
}


@pytest.mark.parametrize("name", LABELLED)
def test_a_picture_of_a_data_set_above_its_limit_is_an_error_that_names_the_flag(name, tmp_path):
    root = make(name, tmp_path)
    with pytest.raises(ValueError, match=rf"claims {WIDTH}x{HEIGHT} pixels, more than the 191 that .*--max_pixels$"):
        OPEN[name](root, max_pixels=PIXELS - 1)[0]
    assert OPEN[name](root, max_pixels=PIXELS)[0][0].shape == (3, HEIGHT, WIDTH)


def test_a_label_map_above_the_limit_of_its_data_set_is_an_error(tmp_path):
    root = make("static", tmp_path)
    for path in root.glob("*_rgb.jpg"):
        Image.new("RGB", (2, 2)).save(path)
    with pytest.raises(ValueError, match=r"_labels\.png claims 16x12 pixels, more than the 100 that are read"):
        FishyscapesStatic(root, max_pixels=100)[0]


@pytest.mark.parametrize("name", ["lf", "coco20"])
def test_label_maps_that_are_read_when_a_data_set_is_opened_have_its_limit(name, tmp_path):
    with pytest.raises(ValueError, match=r"claims 16x12 pixels, more than the 191 that are read"):
        OPEN[name](make(name, tmp_path), max_pixels=PIXELS - 1)


# Over all scripts

NAMES = {"ldn": "street-hazards", "dlv3": "cityscapes", "segmenter": "coco20"}
READING = [(script, NAMES[script.split("_")[0]], []) for script in TRAININGS if script != "train_denseflow"]
READING += [("train_denseflow", name, ["--dataset", name]) for name in NAMES.values()]
READING += [("evaluate_closed_set", name, ["--dataset", name]) for name in NAMES.values()]
READING += [("evaluate_ood", name, ["--dataset", name]) for name in LABELLED if name not in
            ("ade20k", "cityscapes", "coco20")]  # fmt: skip
READING += [("evaluate_osr_sh", "street-hazards", []), ("evaluate_osr_coco", "coco20", [])]
SETS = {"train_denseflow": 1, "evaluate_closed_set": 1, "evaluate_ood": 1, "evaluate_osr_coco": 1}
SETS |= {"segmenter_coco20_finetune": 3, "segmenter_coco20_finetune_flow": 3}  # others open two


FLAGS = {script: ["--neg_dataroot", "--neg_images"] for script in TRAININGS if script.endswith("_finetune")}
CASES = [(*case, negatives) for case in READING for negatives in FLAGS.get(case[0], [None])]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "name", "more", "negatives"), CASES)
def test_a_script_reads_every_data_set_up_to_its_flag(script, name, more, negatives, in_tmp, monkeypatch):
    limits = []

    def seen(kind):
        start = kind.__init__

        def init(self, *arguments, **choices):
            start(self, *arguments, **choices)
            limits.append(self.max_pixels)

        monkeypatch.setattr(kind, "__init__", init)

    seen(LabelledImages)
    seen(ImageFolder)
    words = words_for(parser_of(script))
    spare_networks(monkeypatch)
    if negatives:
        at = words.index("--neg_dataroot")
        words[at : at + 2] = [negatives, str(make("ade20k", in_tmp / "negatives"))]
    if "--images" in words:
        at = words.index("--images")
        words[at : at + 2] = []
    words += ["--dataroot", str(make(name, in_tmp / "data")), *more, "--max_pixels", "777", "--workers", "0"]
    words += ["--folder", str(in_tmp / "out")] if script in EVALUATIONS else []
    with contextlib.suppress(Exception):  # of what is put in the network's place; what is seen before it counts
        script_module(script).main(words)
    assert limits == [777] * (SETS.get(script, 2) + bool(negatives))


def test_folders_of_any_photographs_have_the_same_flag(in_tmp, capsys):
    make("ade20k", in_tmp / "photographs")
    with pytest.raises(FileNotFoundError, match="no image"):
        script_module("train_denseflow").main(["--images", "photographs", "--exp_name", "x", "--max_pixels", "191"])
    assert "4 over 191 pixels, the limit (--max_pixels) (" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["--folder", "--check"])
def test_score_maps_are_of_pictures_up_to_the_flag(mode, in_tmp, monkeypatch):
    root = make("static", in_tmp / "data")
    spare_networks(monkeypatch)
    put_in_place(monkeypatch, {"models.fast_inference": lambda model, *how: model})
    (in_tmp / "out").mkdir()
    (in_tmp / "weights.pth").touch()
    words = ["--benchmark", "fishyscapes", "--dataroot", str(root), mode, "out", "--params", "weights.pth"]
    with pytest.raises(ValueError) as error:
        export_scores([*words, "--max_pixels", "191", "--workers", "0"])
    assert "_rgb.jpg claims 16x12 pixels, more than the 191 that are read" in message_of(error.value)


@pytest.mark.parametrize("script", [*TRAININGS, *EVALUATIONS, "predict", "check_data", "export_scores"])
def test_the_help_says_the_limit(script):
    (flag,) = [action for action in parser_of(script)._actions if action.dest == "max_pixels"]
    assert "250 million" in flag.help or "250,000,000" in flag.help
