"""evaluate_closed_set.py against predictions counted by hand."""

import json

import pytest
import sklearn.metrics
import torch

import evaluate_closed_set
from data import StreetHazards
from labels import IGNORE
from models import ladder_densenet121, load_weights


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closed", "hybrid"])
def test_the_iou_of_each_class_is_that_of_scikit_learn(in_tmp, street_hazards, random_weights, kind):
    flags = (
        f"--dataroot {street_hazards} --dataset street-hazards --folder out --params {random_weights[kind]} --workers 0"
    )
    results = evaluate_closed_set.main(flags.split())

    model = load_weights(ladder_densenet121(12, hybrid=kind == "hybrid"), random_weights[kind]).eval()
    truths, found = [], []
    for image, labels, _ in (
        sample for sample in map(StreetHazards(street_hazards, "validation").__getitem__, range(3))
    ):
        with torch.no_grad():
            output = model(image[None] / 255)
        prediction = (output[0] if kind == "hybrid" else output).argmax(1)[0]
        truths.append(labels[labels != IGNORE])
        found.append(prediction[labels != IGNORE])
    truths, found = torch.cat(truths), torch.cat(found)
    present = sorted({*truths.tolist(), *found.tolist()})
    expected = sklearn.metrics.jaccard_score(truths, found, labels=present, average=None, zero_division=0)
    assert [results["figures"]["iou"][list(StreetHazards.class_colours)[label]] for label in present] == pytest.approx(
        expected.tolist(), abs=2e-3
    )
    assert results["figures"]["mIoU"] == pytest.approx(expected.mean(), abs=2e-3)
    assert results["figures"]["mIoU_classes"] == len(present)
    assert json.loads((in_tmp / "out" / "results.json").read_text())["record"]["images"] == 3
