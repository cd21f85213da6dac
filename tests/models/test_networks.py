"""Networks opened from their weight files: what the names of the weights say."""

import re

import pytest
import torch

from models import NETWORKS, deeplabv3plus, ladder_densenet121, networks, open_network, segmenter
from models.networks import dataset_head
from models.segmenter import Segmenter
from models.vit import VisionTransformer
from models.weights import read_state_dict
from tests.golden.fill import golden_state_dict
from tests.support.stand_ins import put_in_place


def saved(model, path, gain=1.0):
    torch.save(golden_state_dict(model.state_dict(), gain), path)
    return path


def small_segmenter(num_classes, hybrid=True, heads=2, dataset_head="decoder"):
    encoder = VisionTransformer(patch=4, grid=8, width=16, depth=1, heads=heads)
    return Segmenter(encoder, num_classes, hybrid, dataset_head, width=16, heads=2)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_class_key_of_each_network_has_a_row_for_each_class_and_is_its_own(name):
    with torch.device("meta"):
        model = {"ldn121": ladder_densenet121, "deeplabv3plus": deeplabv3plus, "segmenter": segmenter}[name](7)
    keys = model.state_dict()
    assert len(keys[NETWORKS[name].class_key]) == 7
    assert [other for other, architecture in NETWORKS.items() if architecture.class_key in keys] == [name]


@pytest.mark.slow
@pytest.mark.parametrize("hybrid", [False, True])
def test_network_head_and_number_of_classes_are_found_from_the_file_alone(hybrid, tmp_path):
    written = ladder_densenet121(7, hybrid)
    model = open_network(saved(written, tmp_path / "w.pth"))
    assert model.hybrid == hybrid and len(model.logits.conv.weight) == 7
    expected = golden_state_dict(written.state_dict(), 1.0)
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("kind", [None, "decoder", "linear"])
def test_segmenters_head_and_heads_are_those_of_the_file(kind, tmp_path, monkeypatch):
    put_in_place(monkeypatch, {"models.segmenter": small_segmenter})
    torch.save(small_segmenter(5, kind is not None, 4, kind or "decoder").state_dict(), tmp_path / "w.pth")
    model = open_network(tmp_path / "w.pth")
    assert model.hybrid == (kind is not None) and model.dataset_head == (kind or "decoder")
    assert model.model.encoder.heads == 4 and model.model.decoder.num_classes == 5
    with pytest.raises(ValueError, match=r"trained with 4 heads, and the network here has 2: give --heads 4"):
        open_network(tmp_path / "w.pth", heads=2)


def test_a_file_of_a_released_segmenter_says_nothing_of_its_16_heads(tmp_path, monkeypatch):
    put_in_place(monkeypatch, {"models.segmenter": small_segmenter})
    torch.save(dict(small_segmenter(5, heads=4).state_dict()), tmp_path / "w.pth")
    assert open_network(tmp_path / "w.pth").model.encoder.heads == 16
    assert open_network(tmp_path / "w.pth", heads=8).model.encoder.heads == 8


def test_the_file_is_read_once(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(networks, "read_state_dict", lambda path: reads.append(path) or read_state_dict(path))
    path = saved(ladder_densenet121(3), tmp_path / "w.pth")
    monkeypatch.setattr("models.weights.read_state_dict", lambda *_: pytest.fail("read again"))
    open_network(path, "ldn121")
    assert reads == [path]


def test_weights_of_another_network_or_number_of_classes_are_refused(tmp_path):
    path = saved(ladder_densenet121(3), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth does not fit deeplabv3plus: it has no final\.6\.weight\. Is it an"):
        open_network(path, "deeplabv3plus")
    with pytest.raises(ValueError, match=r"\(3, 128, 1, 1\) instead of \(12,.* number of classes\? Give 3 classes$"):
        open_network(path, "ldn121", 12, expected="Give 3 classes")
    torch.save({"weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=re.escape("holds weights of no network here: known by final.6.weight")):
        open_network(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"w\.pth cannot be read as a weight file: it is empty; fetch it again$"):
        open_network(path, "ldn121", 12, expected="Give 3 classes")


@pytest.mark.parametrize("kind", [None, "decoder", "linear"])
def test_the_kind_of_dataset_head_is_read_from_a_file(kind, tmp_path):
    torch.save({"model": small_segmenter(5, kind is not None, 2, kind or "decoder").state_dict()}, tmp_path / "last.pt")
    assert dataset_head(read_state_dict(tmp_path / "last.pt"), "segmenter") == kind


def test_another_networks_dataset_head_is_none_of_segmenters():
    weights = ladder_densenet121(2).state_dict()
    assert dataset_head(weights, "ldn121") == "convolution" and dataset_head(weights, "segmenter") is None
