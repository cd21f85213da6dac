import copy
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from engine import SlidingWindows
from models import (
    ReleasedScoring,
    load_imagenet_vit,
    load_weights,
    segmenter,
)
from models.mask_transformer import MaskTransformer
from models.segmenter import Segmenter
from models.vit import Attention, Block, VisionTransformer, resize_positions
from models.weights import SEGMENTER_DATASET_HEADS
from tests.golden.fill import golden_image, golden_state_dict

GOLDEN = Path(__file__).parents[1] / "golden"
GAIN = 0.5  # of the golden weights
TOLERANCE = 1e-4  # of the largest magnitude
KINDS = [None, "decoder", "linear"]  # of dataset head


def meta_model(hybrid=True, **choices):
    with torch.device("meta"):
        return segmenter(20, hybrid, **choices).eval()


def with_tensors(model, tensors):
    """A model of the meta device with these weights, and with the buffers that are in no file"""
    model.load_state_dict(tensors, assign=True)
    small = small_segmenter()
    model.mean, model.std = small.mean, small.std
    return model


def small_segmenter(kind=None, heads=3, depth=3):
    """Patches of 4 pixels, a grid of 4x4 of them, 5 classes"""
    encoder = VisionTransformer(patch=4, grid=4, width=24, depth=depth, heads=heads)
    return Segmenter(encoder, 5, kind is not None, kind or "decoder", width=24, heads=2).eval()


def saved(content, path):
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def hybrid():
    """The hybrid model with the golden weights; a test leaves its state and mode as they were"""
    model = meta_model()
    return with_tensors(model, golden_state_dict(model.state_dict(), GAIN))


@pytest.fixture(scope="module")
def closed_set(hybrid):
    """The closed-set model; a golden tensor depends on its key alone, so both models share theirs"""
    shared = {key: value for key, value in hybrid.state_dict().items() if not key.startswith("model.decoder_th.")}
    return with_tensors(meta_model(False), shared)


# Against the released code's outputs and the released checkpoints' layouts


def assert_close_to_release(outputs, released, keys):
    for key, logits in zip(keys, outputs, strict=True):
        ours, theirs = logits[:, :, ::8, ::8].numpy(), released[key]
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max(), key


@pytest.mark.slow
@pytest.mark.parametrize("size", ["96x160", "100x150", "128x128", "512x512_batch1"])
def test_hybrid_outputs_equal_the_released_ones(hybrid, size):
    height, width = map(int, size.removesuffix("_batch1").split("x"))
    images = golden_image(height, width, batch=1 if size.endswith("_batch1") else 2)
    with torch.inference_mode():
        outputs = hybrid(images)
    assert [tuple(logits.shape) for logits in outputs] == [(len(images), k, height, width) for k in (20, 2)]
    assert_close_to_release(outputs, np.load(GOLDEN / f"segmenter_hybrid_20_{size}.npz"), ("logits", "logits_ood"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(96, 160), (128, 128)])
def test_closed_set_outputs_equal_the_released_ones(closed_set, size):
    with torch.inference_mode():
        class_logits = closed_set(golden_image(*size))
    released = np.load(GOLDEN / "segmenter_20_{}x{}.npz".format(*size))
    assert_close_to_release([class_logits], released, ["logits"])


@pytest.mark.slow
@pytest.mark.parametrize("size", [(300, 400), (560, 900)])
def test_sliding_windows_equal_the_released_inference(hybrid, size):
    windows = SlidingWindows(hybrid, 512, 320, at_a_time=4, enlarge=True)
    with torch.inference_mode():
        outputs = windows(golden_image(*size, batch=1))
    released = np.load(GOLDEN / "segmenter_hybrid_20_windows_{}x{}.npz".format(*size))
    assert [tuple(logits.shape) for logits in outputs] == [(1, 20, *size), (1, 2, *size)]
    assert_close_to_release(outputs, released, ("logits", "logits_ood"))
    probabilities = ReleasedScoring(Given(outputs))(None)
    assert_close_to_release(probabilities, released, ("released_logits", "released_logits_ood"))


class Given(nn.Module):
    """Outputs that were computed before"""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, images):
        return self.outputs


@pytest.mark.parametrize(("is_hybrid", "layout"), [(True, "segmenter_hybrid_20"), (False, "segmenter_20")])
def test_keys_shapes_and_order_are_the_released_ones(is_hybrid, layout):
    released = json.loads((GOLDEN / f"{layout}.layout.json").read_text())
    ours = {key: list(value.shape) for key, value in meta_model(is_hybrid).state_dict().items()}
    assert list(ours.items()) == list(released.items())


def constants(shapes):
    """A tensor for each key whose elements are all one number that depends on the key, in little memory"""
    return {key: torch.tensor(float(zlib.crc32(key.encode()) % 1000)).expand(shape) for key, shape in shapes.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("is_hybrid", "layout"), [(True, "segmenter_hybrid_20"), (False, "segmenter_20")])
def test_released_files_load_strictly(is_hybrid, layout, tmp_path):
    released = constants(json.loads((GOLDEN / f"{layout}.layout.json").read_text()))
    path = saved(released, tmp_path / "released.pth")
    model = meta_model(is_hybrid).to_empty(device="cpu")
    assert load_weights(model, path) is model
    for key, value in model.state_dict().items():
        assert (value == released[key]).all(), key
    with pytest.raises(ValueError, match=re.escape("model.decoder_th.cls_emb")):
        load_weights(meta_model(not is_hybrid), path)


@pytest.mark.parametrize("kind", ["decoder", "linear"])
def test_a_closed_set_file_leaves_the_new_dataset_head_as_it_was(kind, tmp_path):
    closed_set, model = small_segmenter(), small_segmenter(kind)
    path = saved(closed_set.state_dict(), tmp_path / "closed.pth")
    prefix = SEGMENTER_DATASET_HEADS[kind]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=rf"missing: {re.escape(prefix)}"):
        load_weights(model, path)
    load_weights(model, path, new=(prefix,))
    for key, value in model.state_dict().items():
        assert value.equal(before[key] if key.startswith(prefix) else closed_set.state_dict()[key]), key
    images = torch.rand(1, 3, 12, 20)
    assert model(images)[0].equal(closed_set(images))


# The network by itself


def test_sixteen_heads_are_the_default_of_encoder_and_network():
    with torch.device("meta"):
        encoders = [VisionTransformer(), segmenter(20).model.encoder]
    assert {block.attn.heads for encoder in encoders for block in encoder.blocks} == {16}


@pytest.mark.slow
def test_twelve_heads_are_another_network(hybrid):
    twelve = with_tensors(meta_model(heads=12), hybrid.state_dict())
    images = golden_image(64, 64, batch=1)
    with torch.inference_mode():
        sixteen_logits, twelve_logits = hybrid(images)[0], twelve(images)[0]
    assert (sixteen_logits - twelve_logits).abs().max() > 100 * TOLERANCE * sixteen_logits.abs().max()


@pytest.mark.parametrize("heads", [5, 7])
def test_heads_that_do_not_divide_the_width_are_refused(heads):
    with pytest.raises(ValueError, match=f"{heads} attention heads do not divide the width 768"), torch.device("meta"):
        segmenter(20, heads=heads)


def test_another_dataset_head_is_refused():
    with pytest.raises(ValueError, match="dataset_head 'conv' is none of decoder, linear"):
        small_segmenter("conv")


def test_attention_is_that_of_a_slow_loop():
    torch.manual_seed(0)
    attention = Attention(width=6, heads=2, dropout=0.1).eval()
    tokens = torch.randn(1, 4, 6)
    with torch.no_grad():
        ours = attention(tokens)
        expected = torch.zeros(4, 6)
        query, key, value = attention.qkv(tokens)[0].split(6, dim=1)
        for head in (slice(0, 3), slice(3, 6)):
            for token in range(4):
                weights = torch.stack([query[token, head] @ key[other, head] for other in range(4)]) / 3**0.5
                expected[token, head] = sum(w * value[other, head] for other, w in enumerate(weights.softmax(0)))
        expected = attention.proj(expected)
    torch.testing.assert_close(ours[0], expected)


def test_an_image_is_padded_right_and_below_with_the_mean_colour():
    model = small_segmenter("linear")
    image = torch.rand(1, 3, 13, 18)
    padded = model.mean.expand(1, 3, 16, 20).clone()
    padded[:, :, :13, :18] = image
    before = image.clone()
    with torch.no_grad():
        for ours, whole in zip(model(image), model(padded), strict=True):
            torch.testing.assert_close(ours, whole[:, :, :13, :18])
    assert image.equal(before)


def test_mean_and_std_are_in_no_file_and_move_with_the_model():
    model = small_segmenter()
    assert not {"mean", "std"} & set(model.state_dict())
    model.to("meta", torch.float64)
    for statistic in (model.mean, model.std):
        assert statistic.is_meta
        assert statistic.dtype == torch.float64


def slow_resize(grid, height, width):
    """(n, m, D) -> (height, width, D), bilinearly between the pixels' centres, place by place"""

    def neighbours(place, length, new_length):
        centre = min(max((place + 0.5) * length / new_length - 0.5, 0), length - 1)
        low = int(centre)
        return (low, 1 - (centre - low)), (min(low + 1, length - 1), centre - low)

    resized = np.zeros((height, width, grid.shape[2]))
    for row in range(height):
        for column in range(width):
            for y, down in neighbours(row, len(grid), height):
                for x, right in neighbours(column, grid.shape[1], width):
                    resized[row, column] += down * right * grid[y, x]
    return resized


@pytest.mark.parametrize("grid", [(4, 4), (1, 9), (7, 3), (2, 2)])
def test_positions_are_resized_bilinearly_without_antialiasing_and_the_class_token_keeps_its_own(grid):
    positions = torch.randn(1, 1 + 16, 3, dtype=torch.float64)
    resized = resize_positions(positions, grid)
    assert resized[0, 0].equal(positions[0, 0])
    expected = slow_resize(positions[0, 1:].view(4, 4, 3).numpy(), *grid)
    np.testing.assert_allclose(resized[0, 1:].view(*grid, 3).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_but_the_imagenet_classifier_gets_a_gradient(kind):
    model = small_segmenter(kind)
    output = model(torch.rand(2, 3, 16, 24))  # positions resized, too
    outputs = output if isinstance(output, tuple) else (output,)
    sum(logits.square().mul(torch.rand_like(logits)).sum() for logits in outputs).backward()
    without = {
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    }
    assert without == {"model.encoder.head.weight", "model.encoder.head.bias"}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == without  # so that an optimiser and a distributed run know


@pytest.mark.slow
def test_weights_start_as_is_usual_for_transformers():
    torch.manual_seed(0)
    model = segmenter(20, dataset_head="linear")
    for name, parameter in model.named_parameters():
        parameter = parameter.detach()
        leaf = name.rsplit(".", 1)[1]
        if leaf in ("proj_patch", "proj_classes"):
            assert parameter.std().item() == pytest.approx(768**-0.5, rel=0.01), name
        elif "patch_embed" in name:
            continue  # PyTorch's default for a convolution
        elif leaf in ("cls_token", "pos_embed", "cls_emb") or parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.002, name
        elif leaf == "weight":
            assert (parameter == 1).all(), name
        else:
            assert (parameter == 0).all(), name
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}


# What is random in training


def test_drop_path_rises_linearly_over_the_encoders_blocks_and_is_nowhere_else():
    model = meta_model()
    rates = [block.drop_path.p for block in model.model.encoder.blocks]
    assert rates == pytest.approx([0.1 * number / 11 for number in range(12)])
    for decoder in (model.model.decoder, model.model.decoder_th):
        assert [block.drop_path.p for block in decoder.blocks] == [0, 0]


def test_drop_path_takes_whole_samples_at_its_rate_and_keeps_the_mean():
    torch.manual_seed(0)
    branch = torch.ones(20000, 2, 3)
    drop_path = Block(8, heads=2, drop_path=0.3).drop_path
    dropped = drop_path.train()(branch)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (dropped == dropped[:, :1, :1]).all()
    assert (dropped[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.013)  # four standard deviations
    assert drop_path.eval()(branch) is branch


def test_a_block_drops_its_two_branches_independently():
    torch.manual_seed(0)
    block = Block(8, heads=2, drop_path=0.5).train()
    one = torch.randn(1, 3, 8)
    with torch.no_grad():
        outputs = block(one.expand(2000, -1, -1))
        both_ways = []
        for attention in (0.0, 2.0):  # a branch that is kept counts double
            tokens = one + attention * block.attn(block.norm1(one))
            both_ways += [tokens + mlp * block.mlp(block.norm2(tokens)) for mlp in (0.0, 2.0)]
    close = torch.stack([torch.isclose(outputs, way, atol=1e-5).all((1, 2)) for way in both_ways])
    assert (close.sum(0) == 1).all()
    assert close.float().mean(1).tolist() == pytest.approx([0.25] * 4, abs=0.04)


def test_dropout_is_a_tenth_in_the_decoders_and_none_in_the_encoder():
    model = meta_model().model
    for part, rate, number in ((model.encoder, 0.0, 24), (model.decoder, 0.1, 4), (model.decoder_th, 0.1, 4)):
        rates = [module.p for module in part.modules() if isinstance(module, nn.Dropout)]
        assert rates == [rate] * number  # one of the attention and one of the MLP in each block


@pytest.mark.parametrize("training", [True, False])
def test_attention_weights_the_projection_and_both_mlp_layers_drop_in_training_only(training, monkeypatch):
    weight_dropouts, dropped = [], []
    plain = F.scaled_dot_product_attention

    def recorded(query, key, value, dropout_p=0.0):
        weight_dropouts.append(dropout_p)
        return plain(query, key, value, dropout_p=dropout_p)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    decoder = MaskTransformer(3, encoder_width=8, width=8, depth=1, heads=2).train(training)
    for module in decoder.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda module, inputs, output: dropped.append((output == 0).any().item()))
    decoder(torch.randn(20, 30, 8))
    assert weight_dropouts == [0.1 if training else 0.0]
    assert dropped == [training] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_only_training_is_random(kind):
    model = small_segmenter(kind)
    model.model.encoder.blocks[2].drop_path.p = 0.5
    images = torch.rand(8, 3, 16, 16)

    def runs():
        with torch.no_grad():
            outputs = [model(images) for _ in range(2)]
        return outputs if kind is None else [output[1] for output in outputs]

    first, second = runs()
    assert first.equal(second)
    model.train()
    first, second = runs()
    assert not first.equal(second)


# Dataset heads


def test_the_light_head_is_a_norm_and_a_linear_layer_on_each_patch():
    torch.manual_seed(0)
    model = small_segmenter("linear")
    head = model.model.logits_ood
    nn.init.normal_(head.norm.weight)
    nn.init.normal_(head.linear.weight)
    images = torch.rand(1, 3, 16, 12)
    with torch.no_grad():
        tokens = model.model.encoder((images - model.mean) / model.std)[0]
        maps = torch.zeros(1, 2, 4, 3)
        for place, token in enumerate(tokens):
            normal = (token - token.mean()) / (token.var(unbiased=False) + 1e-5).sqrt()
            maps[0, :, place // 3, place % 3] = head.linear.weight @ (normal * head.norm.weight + head.norm.bias)
        expected = F.interpolate(maps, scale_factor=4, mode="bilinear", align_corners=False)
        torch.testing.assert_close(model(images)[1], expected)


@pytest.mark.slow
def test_what_the_dataset_heads_cost():
    parameters, flops = {}, {}
    for kind in KINDS:
        model = meta_model(kind is not None, dataset_head=kind or "decoder")
        parameters[kind] = sum(parameter.numel() for parameter in model.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, 512, 512, device="meta"))
        flops[kind] = counter.get_total_flops()
    assert parameters["linear"] - parameters[None] == 2 * 768 + 2 * 768 + 2
    assert flops["linear"] - flops[None] == 2 * 768 * 2 * 32 * 32
    assert flops["linear"] < 1.0001 * flops[None]
    block = 12 * 768**2 + 13 * 768
    assert parameters["decoder"] - parameters[None] == 2 * 768 + 3 * 768**2 + 768 + 2 * block + 2 * 768 + 2 * 2
    tokens = 32 * 32 + 2
    attention = 2 * 2 * tokens**2 * 768
    products = 3 * 2 * 1024 * 768**2 - 2 * 1024 * 768**2 + 2 * 2 * 768**2 + 2 * 1024 * 768 * 2
    assert flops["decoder"] - flops[None] == 2 * (2 * tokens * 12 * 768**2 + attention) + products
    assert 1.14 < flops["decoder"] / flops[None] < 1.16


def test_released_scoring_gives_probabilities_in_the_place_of_logits():
    class_logits = torch.tensor([0.0, np.log(3.0)]).view(1, 2, 1, 1)
    dataset_logits = torch.tensor([np.log(4.0), 0.0]).view(1, 2, 1, 1)
    outputs = ReleasedScoring(Given((class_logits, dataset_logits)))(None)
    assert [output.flatten().tolist() for output in outputs] == [pytest.approx([0.25, 0.75]), pytest.approx([0.8, 0.2])]
    assert ReleasedScoring(Given(class_logits))(None).flatten().tolist() == pytest.approx([0.25, 0.75])


# ImageNet weights


def imagenet_shapes():
    """Of timm's vit_base_patch16_384: the released encoder's, but for the position embedding's 24x24 patches"""
    layout = json.loads((GOLDEN / "segmenter_20.layout.json").read_text())
    prefix = "model.encoder."
    shapes = {key.removeprefix(prefix): shape for key, shape in layout.items() if key.startswith(prefix)}
    return shapes | {"pos_embed": [1, 577, 768]}


@pytest.mark.slow
def test_an_imagenet_vit_fills_the_encoder_alone_with_its_positions_resized(tmp_path):
    torch.manual_seed(0)
    imagenet = constants(imagenet_shapes()) | {"pos_embed": torch.randn(1, 577, 768)}
    model = meta_model(False).to_empty(device="cpu")
    nn.init.normal_(model.model.decoder.proj_dec.weight)
    decoder = copy.deepcopy(model.model.decoder.state_dict())
    assert load_imagenet_vit(model, saved(imagenet, tmp_path / "vit_base_p16_384.pth")) is model
    positions = model.model.encoder.pos_embed.detach()[0].numpy()
    expected = imagenet.pop("pos_embed")[0].numpy()
    assert (positions[0] == expected[0]).all()
    resized = slow_resize(expected[1:].reshape(24, 24, 768).astype(np.float64), 32, 32)
    np.testing.assert_allclose(positions[1:].reshape(32, 32, 768), resized, atol=1e-5)
    for key, value in imagenet.items():
        assert (model.model.encoder.state_dict()[key] == value).all(), key
    for key, value in model.model.decoder.state_dict().items():
        assert value.view(torch.int32).equal(decoder[key].view(torch.int32)), key  # empty memory may hold NaN


@pytest.fixture
def small_imagenet():
    """(a small model, an ImageNet state_dict that fits it)"""
    model = small_segmenter()
    weights = VisionTransformer(patch=4, grid=24, width=24, depth=3, heads=3).state_dict()
    return model, weights


def altered(weights, kind):
    if kind == "for 224x224":
        weights["pos_embed"] = torch.zeros(1, 1 + 14 * 14, 24)
    elif kind == "without positions":
        del weights["pos_embed"]
    elif kind == "of another width":
        return VisionTransformer(patch=4, grid=24, width=48, depth=3, heads=3).state_dict()
    elif kind == "deeper":
        return VisionTransformer(patch=4, grid=24, width=24, depth=4, heads=3).state_dict()
    return weights


def test_weights_of_a_whole_segmenter_fill_all_of_another(tmp_path):
    torch.manual_seed(6)
    first, second = small_segmenter(), small_segmenter()
    torch.save(first.state_dict(), tmp_path / "final.pth")
    load_imagenet_vit(second, tmp_path / "final.pth")
    assert all(value.equal(second.state_dict()[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize(("kind", "told"), [
    ("for 224x224", "pos_embed (1, 197, 24) instead of (1, 17, 24)"),
    ("without positions", "1 missing: pos_embed"),
    ("of another width", "of another shape: cls_token (1, 1, 48) instead of (1, 1, 24)"),
    ("deeper", "12 unexpected: blocks.3.norm1.weight"),
])  # fmt: skip
def test_another_file_than_imagenets_is_refused_and_changes_nothing(kind, told, small_imagenet, tmp_path):
    model, weights = small_imagenet
    before = copy.deepcopy(model.state_dict())
    path = saved(altered(weights, kind), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=re.escape(f"{path} does not fit VisionTransformer")) as error:
        load_imagenet_vit(model, path)
    for part in (told, "vit_base_p16_384.pth", "1AlCpbDZhFiZ99teZKXu80OnskWagnvw4"):
        assert part in str(error.value)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


def test_the_imagenet_file_that_fits_the_small_model_loads(small_imagenet, tmp_path):
    model, weights = small_imagenet
    load_imagenet_vit(model, saved(weights, tmp_path / "vit.pth"))
    assert model.model.encoder.pos_embed.shape == (1, 17, 24)
    assert model.model.encoder.norm.weight.equal(weights["norm.weight"])


def test_a_missing_imagenet_vit_is_named_with_where_it_is_to_be_had(small_imagenet, tmp_path):
    path = tmp_path / "vit_base_p16_384.pth"
    with pytest.raises(FileNotFoundError, match=re.escape(f"no weight file {path}; expected is")) as error:
        load_imagenet_vit(small_imagenet[0], path)
    assert "1AlCpbDZhFiZ99teZKXu80OnskWagnvw4" in str(error.value)
