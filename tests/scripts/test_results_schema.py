"""results.json of the four evaluation scripts is what docs/files.md says, key by key."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from engine.results import read_results
from tests.support.layouts import coco_scenes
from tests.support.networks import save_random_weights, small_segmenter
from tests.support.stand_ins import put_in_place

PROJECT = Path(__file__).resolve().parents[2]
KINDS = {"text": str, "number": (int, float), "list": list, "object": dict, "null": type(None)}
SCRIPTS = ("evaluate_ood", "mean_of_images", "evaluate_osr_sh", "evaluate_osr_coco", "evaluate_closed_set")


def documented():
    """The tables of docs/files.md on results.json, in their order: [{key: types}]"""
    text = (PROJECT / "docs" / "files.md").read_text().split("\n## ")[1]
    tables = []
    for block in re.findall(r"\| key \| type \|.*?\n\|[-|]+\n((?:\|.*\n)+)", text):
        rows = [[cell.strip(" `") for cell in line.split("|")[1:3]] for line in block.splitlines()]
        tables.append({key: tuple(KINDS[kind] for kind in kinds.split(" or ")) for key, kinds in rows})
    assert [len(table) for table in tables] == [9, 5, 2, 12]
    return tables


def assert_fits(values, table):
    assert values.keys() == table.keys()
    for key, kinds in table.items():
        allowed = [kind for each in kinds for kind in (each if isinstance(each, tuple) else (each,))]
        assert type(values[key]) in allowed, key


def numbers_of(figures):
    """All that is at the ends of nested figures"""
    parts = figures.values() if isinstance(figures, dict) else figures if isinstance(figures, list) else None
    return [figures] if parts is None else [number for part in parts for number in numbers_of(part)]


@pytest.fixture(scope="module")
def evaluated(street_hazards, tmp_path_factory):
    """The folder with a folder of results for each of SCRIPTS"""
    root = tmp_path_factory.mktemp("evaluated")
    save_random_weights(root / "ldn.pth", hybrid=True)
    torch.manual_seed(0)
    torch.save(small_segmenter(20, heads=2).state_dict(), root / "segmenter.pth")
    coco_scenes(root / "coco")
    streets, ldn = ["--dataroot", str(street_hazards)], str(root / "ldn.pth")
    ood = ["evaluate_ood", *streets, "--dataset", "street-hazards", "--params", ldn]
    commands = {
        "evaluate_ood": [*ood, "--pooled", "--scores", "hybrid", "entropy"],
        "mean_of_images": ood,
        "evaluate_osr_sh": ["evaluate_osr_sh", *streets, "--model", ldn, "--tpr", "0.9"],
        "evaluate_osr_coco": ["evaluate_osr_coco", "--dataroot", str(root / "coco"), "--model",
                              str(root / "segmenter.pth"), "--window", "32", "--window_stride", "20"],
        "evaluate_closed_set": ["evaluate_closed_set", *streets, "--dataset", "street-hazards", "--params", ldn],
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        put_in_place(patch, {"models.segmenter": small_segmenter})
        for name, (script, *flags) in commands.items():
            pictures = [] if name == "evaluate_closed_set" else ["--pictures", "0"]
            run = ["--folder", name, "--device", "cpu", "--workers", "0", *pictures]
            assert importlib.import_module(script).main([*flags, *run])["schema"] == 1
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_results_fit_the_documented_schema(name, evaluated):
    results, (whole, calibration, image, record) = read_results(evaluated / name / "results.json"), documented()
    assert_fits(results, whole)
    assert_fits(results["record"], record)
    assert results["figures"] and all(
        type(number) in (int, float, type(None)) for number in numbers_of(results["figures"])
    )
    assert results["tables"]
    for rows in results["tables"].values():
        assert len({len(row) for row in rows}) == 1 and all(type(cell) is str for row in rows for cell in row)
    scores = list(results["calibration"])
    expected = {"evaluate_ood": ["hybrid", "entropy"], "evaluate_closed_set": []}
    assert scores == expected.get(name, ["hybrid"])
    for each in results["calibration"].values():
        assert_fits(each, calibration)
        low, high = each["heat_range"]
        assert low < high and (each["threshold"] is None) == bool(each["note"]) == (name == "mean_of_images")
    assert len(results["images"]) == (results["record"]["images"] if scores else 0)
    for frame in results["images"]:
        kinds = {"name": image["name"]} | dict.fromkeys(scores, image["SCORE"])
        assert_fits(frame, kinds)
    words = {cell for rows in results["tables"].values() for row in rows for cell in row}
    table = (evaluated / name / "table.md").read_text()
    assert all(title in table for title in results["tables"]) and all(word in table for word in words)


def test_a_results_file_of_another_version_is_refused_with_the_way_out(evaluated, tmp_path):
    results = json.loads((evaluated / "evaluate_ood" / "results.json").read_text())
    for schema, told in ((2, "is of schema 2, not 1"), (None, "is of an earlier version, without a schema")):
        (tmp_path / "r.json").write_text(json.dumps(results | {"schema": schema}))
        with pytest.raises(ValueError, match=rf"r\.json {told}, or no evaluation's: evaluate again"):
            read_results(tmp_path / "r.json")
