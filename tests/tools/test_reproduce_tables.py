"""tools.reproduce_tables: every table of a YAML by its own script, and one page of them."""

import json
import shlex
import shutil

import pytest
import yaml

from engine.results import evaluation_results
from errors import message_of
from tools import reproduce_tables


def config(folder, **runs):
    path = folder / "tables.yaml"
    path.write_text(yaml.safe_dump({name.replace("_", "-"): run for name, run in runs.items()}))
    return path


@pytest.fixture
def runs(in_tmp, street_hazards, random_weights):
    """Two tables of the tiny world, and the flags of the script"""
    run = {"dataroot": str(street_hazards), "weights": str(random_weights["hybrid"])}
    flags = ["--workers", "0", "--pictures", "2", "--device", "cpu"]
    path = config(
        in_tmp, street_hazards=run | {"flags": [*flags, "--pooled"]}, street_hazards_open_set=run | {"flags": flags}
    )
    return ["--config", str(path), "--folder", str(in_tmp / "out")]


@pytest.mark.processes
@pytest.mark.slow
def test_every_table_is_evaluated_by_its_script_and_stands_on_one_page(runs, in_tmp, capsys, monkeypatch):
    tables = reproduce_tables.main(runs)
    page, text = (in_tmp / "out" / "index.html").read_text(), (in_tmp / "out" / "tables.md").read_text()
    for name in ("street-hazards", "street-hazards-open-set"):
        results = json.loads((in_tmp / "out" / name / "results.json").read_text())
        assert results["record"]["images"] == 5
        assert f'href="{name}/index.html"' in page and (in_tmp / "out" / name / "index.html").exists()
        assert (in_tmp / "out" / name / "table.md").read_text() in text
        for title, rows in tables[name].items():
            assert title in text
            assert all(cell in page for row in rows for cell in row if "'" not in cell)
    ap = json.loads((in_tmp / "out/street-hazards/results.json").read_text())["figures"]["pooled"]["hybrid"]["AP"]
    assert f"{100 * ap:.2f}" in page and "30.2 ?" in page
    assert "77.96" in page  # published alone: the labels are on a server

    # Again: nothing is left to do. With one result lost: that one.
    started = []
    real = reproduce_tables.evaluate
    monkeypatch.setattr(
        reproduce_tables, "evaluate", lambda command, log: started.append(command[0]) or real(command, log)
    )
    assert reproduce_tables.main(runs) == tables and not started
    assert capsys.readouterr().out.count("done before") == 2
    shutil.rmtree(in_tmp / "out" / "street-hazards-open-set")
    assert reproduce_tables.main(runs) == tables and started == ["evaluate_osr_sh.py"]


@pytest.mark.processes
@pytest.mark.slow
def test_a_table_that_fails_leaves_the_others_and_is_named(runs, in_tmp, capsys):
    runs_of = yaml.safe_load((in_tmp / "tables.yaml").read_text())
    (in_tmp / "none.pth").write_bytes(b"no weights")
    runs_of["street-hazards"]["weights"] = "none.pth"
    (in_tmp / "tables.yaml").write_text(yaml.safe_dump(runs_of))
    with pytest.raises(SystemExit, match=r"1 of 2 tables failed: street-hazards; see their log\.txt"):
        reproduce_tables.main(runs)
    assert "failed: error: none.pth cannot be read as a weight file" in capsys.readouterr().out
    page = (in_tmp / "out" / "index.html").read_text()
    assert "street-hazards: failed" in page and 'href="street-hazards-open-set/index.html"' in page


def test_other_flags_or_other_weights_are_not_done_before(in_tmp):
    folder, weights = in_tmp / "lf", in_tmp / "w.pth"
    folder.mkdir()
    weights.write_bytes(b"one")
    digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # sha256sum
    command = reproduce_tables.command_of("lf", {"dataroot": "a b", "weights": str(weights)}, folder)
    assert command[:3] == ["evaluate_ood.py", "--dataset", "lf"] and "--params" in command
    record = {"command": shlex.join(["python", "some/where/evaluate_ood.py", *command[1:]]), "weights_sha256": digest}
    results = evaluation_results(record | {"weights": str(weights)}, "lf", "ldn121", {}, {"figures": [["score"]]})
    (folder / "results.json").write_text(json.dumps(results))
    assert reproduce_tables.is_done(folder, command, weights)
    for damaged in ("", "[1]", '{"record": 3}', '{"record": {}}', '{"record": {"command": 3, "weights_sha256": ""}}',
                    '{"record": {"command": "python", "weights_sha256": "a"}}', '{"figures": 1}', "\xff",
                    json.dumps({key: value for key, value in results.items() if key != "schema"}),
                    *(json.dumps(results | {"record": record}) for record in (3, {}, {"command": 3}))):  # fmt: skip
        (folder / "results.json").write_text(damaged, encoding="latin-1")
        assert not reproduce_tables.is_done(folder, command, weights), damaged
    for damaged in ({}, [], "", 3):
        (folder / "results.json").write_text(json.dumps(results | {"tables": damaged}))
        assert not reproduce_tables.is_done(folder, command, weights), damaged
    (folder / "results.json").write_text(json.dumps(results))
    assert reproduce_tables.is_done(folder, command, weights)
    assert not reproduce_tables.is_done(folder, [*command, "--pooled"], weights)
    weights.write_bytes(b"two")
    assert not reproduce_tables.is_done(folder, command, weights)
    assert not reproduce_tables.is_done(in_tmp / "nowhere", command, weights)


def test_all_mistakes_of_the_file_are_told_at_once_and_before_any_run(in_tmp):
    (in_tmp / "w.pth").touch()
    path = config(
        in_tmp,
        lf={"dataroot": "nowhere", "weights": "missing.pth"},
        kitti={"dataroot": ".", "weights": "w.pth"},
        static={"dataroot": ".", "params": "w.pth"},
        coco20={"dataroot": ".", "weights": "w.pth", "flags": "--released_scoring"},
        road_anomaly={"dataroot": None, "weights": "w.pth"},
    )
    with pytest.raises(ValueError) as error:
        reproduce_tables.main(["--config", str(path), "--folder", "out"])
    for told in (
        "lf: no folder nowhere (dataroot)", "lf: no file missing.pth (weights)", "kitti is no table",
        "road-anomaly: dataroot and weights must be paths: None, 'w.pth'",
        "static must have dataroot and weights", "coco20: flags must be a list",
    ):  # fmt: skip
        assert told in str(error.value)
    assert not (in_tmp / "out").exists()


@pytest.mark.parametrize(
    ("text", "told"), [("", "names no table"), ("a: [", "cannot be read as YAML"), ("- lf", "names no")]
)
def test_a_file_without_tables_is_refused(in_tmp, text, told):
    (in_tmp / "t.yaml").write_text(text)
    with pytest.raises(ValueError, match=told):
        reproduce_tables.main(["--config", "t.yaml", "--folder", "out"])
    with pytest.raises(FileNotFoundError, match=r"no file none.yaml; --config"):
        reproduce_tables.main(["--config", "none.yaml", "--folder", "out"])


@pytest.mark.parametrize("content", [b"lf:\n\tdataroot: a\n", "lf: {dataroot: ä}".encode("latin-1"), b"\xff\xfel\0f\0"])
def test_a_file_with_tabs_or_of_another_encoding_is_told_in_one_line(in_tmp, content):
    (in_tmp / "t.yaml").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"(?s)t\.yaml cannot be read as YAML: .*in UTF-8, and indent with spaces"
    ) as refused:
        reproduce_tables.main(["--config", "t.yaml", "--folder", "out"])
    assert message_of(refused.value) and "\n" not in message_of(refused.value)


def test_a_file_with_a_byte_order_mark_is_read(in_tmp):
    (in_tmp / "t.yaml").write_bytes(b"\xef\xbb\xbflf: {dataroot: nowhere, weights: missing.pth}")
    with pytest.raises(ValueError, match=r"lf: no folder nowhere"):
        reproduce_tables.main(["--config", "t.yaml", "--folder", "out"])
