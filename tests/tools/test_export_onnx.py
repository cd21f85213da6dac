import copy
import math
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import DenseNet

from engine import run_script
from losses import hybrid_score, max_logit_score
from models import NETWORKS, ladder_densenet, ladder_densenet121, wide_resnet
from models.deeplab import DeepLabV3Plus
from models.segmenter import Segmenter
from models.vit import VisionTransformer
from tests.golden.fill import golden_image, golden_state_dict
from tests.support.stand_ins import put_in_place
from tools import export_onnx

TOLERANCE = 1e-4  # of the largest magnitude


def saved(model, path, gain=1.0):
    torch.save(golden_state_dict(model.state_dict(), gain), path)
    return path


def exported(network, weights, *flags):
    """The ONNX file beside the weights, and what the export says of it"""
    path = weights.with_suffix(".onnx")
    return path, export_onnx.main(["--params", str(weights), "--network", network, "--output", str(path), *flags])


def run(path, image):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, {"image": image.numpy()})), strict=True))


def assert_close(ours, expected):
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.fixture(scope="module")
def short_ldn(tmp_path_factory):
    """(model, ONNX file, differences) of an LDN-121 of a quarter of the layers, each wider: the time goes by layers"""
    with pytest.MonkeyPatch.context() as patch:
        short = DenseNet(128, (1, 3, 6, 4), num_init_features=128)
        patch.setattr(ladder_densenet, "densenet121", lambda weights: copy.deepcopy(short))
        model = ladder_densenet121(5).eval()
        weights = saved(model, tmp_path_factory.mktemp("ldn") / "hybrid.pth")
        model.load_state_dict(torch.load(weights))
        return model, *exported("ldn121", weights)


@pytest.fixture
def small(monkeypatch):
    """DeepLabV3+ with a block a stage and Segmenter with a block, all narrow, in the place of the real ones"""
    narrow = {
        name: (1, tuple(width // 32 for width in widths), *rest)
        for name, (_, widths, *rest) in wide_resnet.STAGES.items()
    }
    monkeypatch.setattr(wide_resnet, "STAGES", narrow)

    class NarrowDeepLab(DeepLabV3Plus):
        fine_width, coarse_width = 4, 128

    def small_segmenter(num_classes, hybrid, heads, dataset_head):
        encoder = VisionTransformer(grid=4, width=24, depth=1, heads=heads)
        return Segmenter(encoder, num_classes, hybrid, dataset_head, width=24, depth=1, heads=2)

    def narrow_deeplab(num_classes, hybrid):
        return NarrowDeepLab(num_classes, hybrid, 16, 8)

    put_in_place(monkeypatch, {"models.deeplabv3plus": narrow_deeplab, "models.segmenter": small_segmenter})


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 3, 90, 160), (2, 3, 161, 67)])
def test_ldn_gives_torchs_outputs_at_other_sizes_than_the_traced_one(short_ldn, size):
    model, path, _ = short_ldn
    image = golden_image(*size[2:], batch=size[0])
    with torch.inference_mode():
        class_logits, dataset_logits = model(image)
    outputs = run(path, image)
    assert list(outputs) == ["class_logits", "dataset_logits", "hybrid_score"]
    assert_close(outputs["class_logits"], class_logits)
    assert_close(outputs["dataset_logits"], dataset_logits)
    assert_close(outputs["hybrid_score"], hybrid_score(class_logits, dataset_logits))


@pytest.mark.slow
def test_the_file_names_its_input_and_no_place_on_this_machine(short_ldn):
    _, path, differences = short_ldn
    graph = onnx.load(path).graph
    shapes = {
        tensor.name: [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim]
        for tensor in (*graph.input, *graph.output)
    }
    assert shapes == {
        "image": ["batch", 3, "height", "width"],
        "class_logits": ["batch", 5, "height", "width"],
        "dataset_logits": ["batch", 2, "height", "width"],
        "hybrid_score": ["batch", "height", "width"],
    }
    assert str(export_onnx.Path(export_onnx.__file__).parent).encode() not in path.read_bytes()
    assert differences.keys() == set(export_onnx.CHECKED)
    assert max(max(of_outputs.values()) for of_outputs in differences.values()) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_deeplab_of_closed_set_weights_gives_the_max_logit_score(tmp_path):
    model = NETWORKS["deeplabv3plus"].build(7, False).eval()
    weights = saved(model, tmp_path / "closed.pth")
    path, differences = exported("deeplabv3plus", weights)
    assert all(list(of_outputs) == ["class_logits", "max_logit_score"] for of_outputs in differences.values())
    model.load_state_dict(torch.load(weights))
    for size in ((33, 47), (96, 64)):
        image = golden_image(*size)
        outputs = run(path, image)
        with torch.inference_mode():
            class_logits = model(image)
        assert_close(outputs["class_logits"], class_logits)
        assert_close(outputs["max_logit_score"], max_logit_score(class_logits))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_segmenter_pads_and_resizes_its_positions_at_any_size(tmp_path):
    model = NETWORKS["segmenter"].build(5, True, 3, "linear").eval()
    weights = saved(model, tmp_path / "hybrid.pth", 0.5)
    path, _ = exported("segmenter", weights, "--heads", "3")
    model.load_state_dict(torch.load(weights))
    for size in ((64, 64), (33, 100)):  # 64: the positions' own grid
        image = golden_image(*size, batch=3)
        outputs = run(path, image)
        with torch.inference_mode():
            class_logits, dataset_logits = model(image)
        assert_close(outputs["class_logits"], class_logits)
        assert_close(outputs["dataset_logits"], dataset_logits)


class PooledToAGrid(nn.Module):
    """LDN-121's grids, without the network"""

    names = ["pooled"]

    def forward(self, image):
        height, width = image.shape[2:]
        return F.adaptive_avg_pool2d(image, (4, max(1, round(4 * width / height))))


@pytest.mark.slow
def test_the_grids_of_the_pyramid_are_torchs_for_every_shape_of_features(tmp_path):
    path = tmp_path / "pooled.onnx"
    export_onnx.write_onnx(PooledToAGrid(), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ties = 0
    for height in range(1, 20):
        for width in range(1, 33):
            image = torch.rand(1, 3, height, width)
            [pooled] = session.run(None, {"image": image.numpy()})
            np.testing.assert_allclose(pooled, PooledToAGrid()(image).numpy(), rtol=1e-5, atol=1e-6)
            ties += math.modf(4 * width / height)[0] == 0.5
    assert ties > 20  # where rounding half up and half to even part ways


class Halved(nn.Module):
    """A network of one operation, with both heads"""

    hybrid = True

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, images):
        return self.factor * images, images[:, :2]


@pytest.mark.slow
def test_a_file_that_does_other_than_torch_is_reported(tmp_path):
    model = export_onnx.Scored(Halved()).eval()
    path = tmp_path / "halved.onnx"
    export_onnx.write_onnx(model, path)
    differences = export_onnx.check_onnx(model, path)
    assert max(differences[export_onnx.CHECKED[0]].values()) < 1e-6
    with torch.no_grad():
        model.network.factor.mul_(1.001)
    with pytest.raises(ValueError, match=r"class_logits of image \(1, 3, 120, 150\) differs by 1\.0e-03") as error:
        export_onnx.check_onnx(model, path)
    assert "dataset_logits" not in str(error.value)
    with torch.no_grad():
        model.network.factor.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"class_logits of image .* differs by nan"):
        export_onnx.check_onnx(model, path)


@pytest.mark.slow
def test_a_file_whose_check_fails_is_not_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "open_network", lambda *args: Halved())
    monkeypatch.setattr(export_onnx, "TOLERANCE", -1.0)
    before = tmp_path / "model.onnx"
    before.write_text("an earlier export")
    with pytest.raises(ValueError, match="no file was written"):
        export_onnx.main(["--params", "any.pth", "--network", "ldn121", "--output", str(before)])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert before.read_text() == "an earlier export"


@pytest.mark.parametrize(("network", "flags", "told"), [
    ("deeplabv3plus", [], "does not fit deeplabv3plus: it has no final.6.weight"),
    ("ldn121", ["--num_classes", "19"], "another number of classes"),
], ids=["network", "num_classes"])  # fmt: skip
def test_weights_that_do_not_fit_are_one_line(network, flags, told, random_weights, tmp_path):
    command = ["--params", str(random_weights["hybrid"]), "--network", network, "--output", str(tmp_path / "m.onnx")]
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: export_onnx.main([*command, *flags]))
    assert told in str(stop.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_or_package_is_told_before_anything_is_read(tmp_path, monkeypatch):
    command = ["--params", "nowhere.pth", "--network", "ldn121", "--output"]
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent"):
        export_onnx.main([*command, str(tmp_path / "absent" / "model.onnx")])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="needs onnxruntime: pip install"):
        export_onnx.main([*command, str(tmp_path / "model.onnx")])
