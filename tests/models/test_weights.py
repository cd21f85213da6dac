"""Files of weights: what is read, and what is said of the others."""

import copy
import io
import os
import pickle
import re
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import densenet121, densenet169, resnet18

from errors import message_of
from models import (
    ladder_densenet121,
    load_imagenet_densenet121,
    load_weights,
)
from models.networks import dataset_head
from models.vit import VisionTransformer
from models.weights import load_network, read_state_dict
from tests.golden.fill import golden_state_dict


class TwoHeads(nn.Module):
    """A small stand-in for a hybrid model: a body with BatchNorm, and two heads"""

    def __init__(self, num_classes=3):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.logits = nn.Conv2d(4, num_classes, 1)
        self.logits_ood = nn.Conv2d(4, 2, 1)


def saved(content, path):
    torch.save(content, path)
    return path


def assert_same_state(model, state_dict, but=()):
    own = model.state_dict()
    assert {key for key in own if not key.startswith(but or "\0")} == state_dict.keys()
    for key, value in state_dict.items():
        assert own[key].equal(value), key


# Weight files


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"state_dict": state},
    lambda state: {"state_dict": {"module." + key: value for key, value in state.items()}, "epoch": 174},
    lambda state: {"module." + key: value for key, value in state.items()},
    lambda state: {"model": state},
], ids=["plain", "state_dict", "NVIDIA", "DataParallel", "model"])  # fmt: skip
def test_a_wrapped_file_loads_as_the_plain_one(wrap, tmp_path):
    state = TwoHeads().state_dict()
    model = TwoHeads()
    assert load_weights(model, saved(wrap(state), tmp_path / "weights.pth")) is model
    assert_same_state(model, state)


def test_our_own_last_pt_loads(tmp_path):
    trained = TwoHeads()
    optimizer = torch.optim.Adam(trained.parameters())
    trained.logits(trained.backbone(torch.rand(2, 3, 8, 8))).sum().backward()
    optimizer.step()
    last = {"model": trained.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": 0.5}
    model = load_weights(TwoHeads(), str(saved(last, tmp_path / "last.pt")))
    assert_same_state(model, trained.state_dict())


def test_another_models_file_is_refused_with_keys_and_shapes_named(tmp_path):
    state = TwoHeads(num_classes=5).state_dict()
    state["decoder.weight"] = state.pop("backbone.0.weight")
    path = saved(state, tmp_path / "other.pth")
    model = TwoHeads()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="does not fit TwoHeads") as error:
        load_weights(model, path)
    told = str(error.value)
    assert str(path) in told
    assert "1 missing: backbone.0.weight" in told
    assert "1 unexpected: decoder.weight" in told
    assert "logits.weight (5, 4, 1, 1) instead of (3, 4, 1, 1)" in told
    assert "logits.bias (5,) instead of (3,)" in told
    assert_same_state(model, before)


def test_a_file_of_another_number_of_classes_is_refused(tmp_path):
    path = saved(ladder_densenet121(19).state_dict(), tmp_path / "smiyc.pth")
    with pytest.raises(ValueError, match=re.escape("logits.conv.weight (19, 128, 1, 1) instead of (12, 128, 1, 1)")):
        load_weights(ladder_densenet121(12), path)


def test_a_hybrid_file_is_refused_by_a_closed_set_model(tmp_path):
    path = saved(ladder_densenet121(12).state_dict(), tmp_path / "hybrid.pth")
    with pytest.raises(ValueError, match=re.escape("7 unexpected: logits_ood.norm.weight")):
        load_weights(ladder_densenet121(12, hybrid=False), path)


@pytest.mark.slow
def test_a_new_head_may_be_missing_and_keeps_its_initial_weights(tmp_path):
    closed_set = ladder_densenet121(12, hybrid=False).state_dict()
    path = saved(closed_set, tmp_path / "closed.pth")
    model = ladder_densenet121(12)
    head = copy.deepcopy(model.logits_ood.state_dict())
    load_weights(model, path, new=("logits_ood.",))
    assert_same_state(model, closed_set, but=("logits_ood.",))
    assert_same_state(model.logits_ood, head)
    with pytest.raises(ValueError, match=re.escape("7 missing: logits_ood.norm.weight")):
        load_weights(model, path)


def test_only_the_new_head_may_be_missing(tmp_path):
    state = {key: value for key, value in TwoHeads().state_dict().items() if "logits_ood" not in key}
    del state["logits.bias"]
    with pytest.raises(ValueError, match=r"1 missing: logits\.bias"):
        load_weights(TwoHeads(), saved(state, tmp_path / "weights.pth"), new=("logits_ood.",))


@pytest.mark.parametrize("key", TwoHeads().state_dict())
def test_no_key_may_be_missing(key, tmp_path):
    state = TwoHeads().state_dict()
    del state[key]
    with pytest.raises(ValueError, match=f"1 missing: {re.escape(key)}"):
        load_weights(TwoHeads(), saved(state, tmp_path / "weights.pth"))


def test_a_dataset_head_is_found_in_a_file(tmp_path):
    state = TwoHeads().state_dict()
    hybrid = read_state_dict(saved({"model": state}, tmp_path / "hybrid.pt"))
    assert dataset_head(hybrid, "ldn121")
    closed_set = {key: value for key, value in state.items() if "logits_ood" not in key}
    assert not dataset_head(read_state_dict(saved(closed_set, tmp_path / "closed.pth")), "ldn121")


@pytest.mark.parametrize(
    "build",
    [lambda: ladder_densenet121(12), lambda: VisionTransformer(grid=2, width=24, depth=1, heads=2)],
    ids=["convolutions", "transformer"],
)
def test_a_network_from_a_file_is_the_one_that_was_written_and_draws_nothing(build, tmp_path):
    written = build()
    torch.save(written.state_dict(), tmp_path / "weights.pth")
    before = torch.get_rng_state()
    model = load_network(build, tmp_path / "weights.pth")
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_state(model, written.state_dict())
    for (name, ours), theirs in zip(model.named_buffers(), written.buffers(), strict=True):
        assert torch.equal(ours, theirs), name  # also those that no file holds
    (tmp_path / "weights.pth").write_bytes(b"")  # nothing is left that reads it
    assert_same_state(model, written.state_dict())


def test_a_network_is_built_whatever_was_in_its_memory_before(tmp_path, monkeypatch):
    """trunc_normal_ draws until all lies within its bounds, which what is found in memory need not"""
    draws = iter(range(9))

    def found_in_memory(tensor):
        next(draws)
        return torch.full_like(tensor, 1e9)

    monkeypatch.setattr(torch, "empty_like", found_in_memory)

    class Found(nn.Linear):
        def reset_parameters(self):
            with torch.no_grad():
                self.weight.fill_(1e9)
                nn.init.trunc_normal_(self.weight, std=0.02)

    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "weights.pth")
    model = load_network(lambda: Found(3, 2), tmp_path / "weights.pth")
    assert model.weight.equal(torch.load(tmp_path / "weights.pth", weights_only=True)["weight"])


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(f"no weight file {path}; the README lists")):
            load_weights(TwoHeads(), path)


def test_a_file_that_is_not_pytorchs_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    for content in (b"", b"<!DOCTYPE html><title>Google Drive - Virus scan warning</title>", bytes(range(256)) * 40):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{path} cannot be read as a weight file")):
            load_weights(TwoHeads(), path)


UNREADABLE = {
    "empty": (b"", "it is empty"),
    "a page": (b"\n  <!DOCTYPE html><title>Virus scan warning</title>", "it is a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "it only points to the file in Git LFS"),
    "half": (lambda: written({"w": torch.ones(500)})[:900], "it is cut short"),
    "a network": (
        lambda: written(nn.Linear(2, 2)),
        r"it holds other objects than tensors .* \(torch\.nn\.modules\.linear\.Linear\)",
    ),
    "an old network": (
        lambda: written(nn.Linear(2, 2), False),
        r"it holds other objects .* \(torch\.nn\.modules\.linear\.Linear\)",
    ),
    "a pickle": (pickle.dumps({"w": 1}), "it is no weight file, or a damaged one"),
    "words": (b"hello", "it is no weight file, or a damaged one"),
}


def written(content, zipped=True):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_a_file_is_that_holds_no_weights_is_said_in_our_words(kind, tmp_path, recwarn):
    content, said = UNREADABLE[kind]
    path = tmp_path / "weights.pth"
    path.write_bytes(content() if callable(content) else content)
    with pytest.raises(ValueError, match=rf"weights\.pth cannot be read as a weight file: {said}") as refused:
        load_weights(TwoHeads(), path)
    assert "weights_only" not in message_of(refused.value) and not recwarn


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_memory_that_does_not_suffice_for_weights_is_not_told_as_damage(error, tmp_path, monkeypatch):
    def short(*arguments, **choices):
        raise error

    path = saved(TwoHeads().state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(torch, "load", short)
    with pytest.raises(
        MemoryError, match=r"^memory does not suffice to read .*weights\.pth, 0\.0 GiB; end other programs$"
    ):
        load_weights(TwoHeads(), path)


def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path):
    buffer = io.BytesIO()
    torch.save(TwoHeads().state_dict(), buffer)
    path = tmp_path / "weights.pth"
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(buffer.getvalue()[: int(share * buffer.tell())])
        with pytest.raises(ValueError, match=re.escape(f"{path} cannot be read as a weight file")):
            load_weights(TwoHeads(), path)


class Trap:
    """Makes a folder when it is unpickled"""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.mark.parametrize("zipped", [True, False], ids=["new format", "old format"])
def test_code_in_a_weight_file_is_refused_and_not_run(zipped, tmp_path):
    path, place = tmp_path / "weights.pth", tmp_path / "sprung"
    torch.save(TwoHeads().state_dict() | {"trap": Trap(place)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=re.escape(f"{path} cannot be read as a weight file")):
        load_weights(TwoHeads(), path)
    assert not place.exists()
    torch.load(path, weights_only=False)
    assert place.exists()  # the trap was a working one


@pytest.mark.parametrize("content", [
    [torch.zeros(2)], {}, {"epoch": 3}, {"model": {}}, {"logits.weight": [1.0, 2.0]}, torch.zeros(2),
    {0: torch.zeros(2)},
], ids=["list", "empty", "numbers", "empty model", "lists", "tensor", "numbered"])  # fmt: skip
def test_a_file_without_weights_is_refused(content, tmp_path):
    path = saved(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=re.escape(f"{path} holds no state_dict")):
        load_weights(TwoHeads(), path)


# ImageNet weights


@pytest.fixture(scope="module")
def imagenet():
    """A state_dict such as torchvision's file of DenseNet-121, in torchvision's spelling, of random values"""
    return golden_state_dict(densenet121(weights=None).state_dict())


def as_published(state_dict):
    """The spelling of the file that torchvision downloads: norm.1 for norm1, and no BatchNorm counters"""
    kept = {key: value for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}
    return {re.sub(r"(denselayer\d+\.)(norm|conv)([12])\.", r"\1\2.\3.", key): v for key, v in kept.items()}


@pytest.mark.slow
@pytest.mark.parametrize("spelling", [dict, as_published])
def test_the_backbone_gets_exactly_the_imagenet_values(spelling, imagenet, tmp_path):
    written = spelling(imagenet)
    assert ("features.denseblock4.denselayer16.conv.2.weight" in written) == (spelling is as_published)
    model = ladder_densenet121(4)
    head = copy.deepcopy({key: v for key, v in model.state_dict().items() if not key.startswith("backbone.")})
    assert load_imagenet_densenet121(model, saved(written, tmp_path / "densenet121.pth")) is model
    expected = {f"backbone.{key}": value for key, value in imagenet.items()
                if not key.startswith(("classifier.", "features.norm5."))}  # fmt: skip
    assert_same_state(model, expected | head)


@pytest.mark.slow
@pytest.mark.parametrize("network", [densenet169, resnet18])
def test_imagenet_weights_of_another_network_are_refused(network, tmp_path):
    path = saved(network(weights=None).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not fit Backbone") as error:
        load_imagenet_densenet121(ladder_densenet121(4), path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("key", ["features.conv0.weight", "features.denseblock3.denselayer7.norm.2.running_var"])
def test_imagenet_weights_with_a_key_missing_are_refused(key, imagenet, tmp_path):
    published = as_published(imagenet)
    del published[key]
    with pytest.raises(ValueError, match=f"1 missing: {re.escape(key.replace('norm.2', 'norm2'))}"):
        load_imagenet_densenet121(ladder_densenet121(4), saved(published, tmp_path / "part.pth"))


def test_a_missing_imagenet_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "nowhere.pth"))):
        load_imagenet_densenet121(ladder_densenet121(4), tmp_path / "nowhere.pth")


def test_without_a_network_the_url_and_the_place_for_its_file_are_named(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="name resolution") as error:
        load_imagenet_densenet121(ladder_densenet121(4))
    told = str(error.value)
    assert "https://download.pytorch.org/models/densenet121-a639ec97.pth" in told
    assert str(tmp_path / "checkpoints" / "densenet121-a639ec97.pth") in told
    assert "--init" in told


def test_a_cached_imagenet_file_is_read_without_a_network(monkeypatch, imagenet, tmp_path):
    def unreachable(*args, **kwargs):
        raise AssertionError("the file is there")

    (tmp_path / "checkpoints").mkdir()
    saved(as_published(imagenet), tmp_path / "checkpoints" / "densenet121-a639ec97.pth")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    model = load_imagenet_densenet121(ladder_densenet121(4))
    assert model.backbone.features.conv0.weight.equal(imagenet["features.conv0.weight"])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("core", [b"numpy._core.", b"numpy.core."])
def test_a_number_of_numpys_beside_the_weights_is_read_over(zipped, core, tmp_path):
    """As training codes of before PyTorch 1.6 wrote their best figure; "numpy.core" is NumPy 1's spelling."""
    if zipped and core == b"numpy.core.":
        pytest.skip("a zip file cannot be patched byte by byte")
    weights = {"layer.weight": torch.arange(3.0)}
    path = tmp_path / "file.pth"
    content = {"state_dict": {f"module.{key}": value for key, value in weights.items()}, "mean_iu": np.float64(0.8)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.", core) if not zipped else path.read_bytes())
    assert torch.equal(read_state_dict(path)["layer.weight"], weights["layer.weight"])
