"""Networks small enough to build and train in no time, files of weights, and passes through a network and back."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from models import ladder_densenet121, wide_resnet
from models.deeplab import DeepLabV3Plus
from models.denseflow import DenseFlow
from models.segmenter import Segmenter
from models.vit import VisionTransformer

NARROW = {  # as wide_resnet.STAGES, with a few channels and as many kinds of block
    "mod2": (1, (8, 8), 1, 1, 0.0),
    "mod3": (2, (8, 8), 1, 1, 0.0),
    "mod4": (1, (12, 12), 2, 1, 0.0),
    "mod5": (1, (8, 16), 1, 2, 0.0),
    "mod6": (1, (8, 16, 24), 1, 4, 0.3),
    "mod7": (1, (8, 16, 32), 1, 4, 0.5),
}
THIN = {  # one block of each stage, of a 64th of its channels
    name: (1, tuple(width // 64 for width in widths), *rest) for name, (_, widths, *rest) in wide_resnet.STAGES.items()
}


@contextlib.contextmanager
def thin_trunk() -> Iterator[None]:
    """DeepLabV3+ is built with a thin trunk: scripts and files are the real ones, the network takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wide_resnet, "STAGES", THIN)
        patch.setattr(wide_resnet.WideResNet38, "fine_width", 2)
        patch.setattr(wide_resnet.WideResNet38, "coarse_width", 64)
        yield


def narrow_trunk(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(wide_resnet, "STAGES", NARROW)
    patch.setattr(DeepLabV3Plus, "fine_width", 8)
    patch.setattr(DeepLabV3Plus, "coarse_width", 32)


def small_segmenter(num_classes, hybrid=True, heads=16, dataset_head="decoder", checkpointing=False):
    """Patches of 4 pixels, two narrow blocks"""
    encoder = VisionTransformer(patch=4, grid=8, width=48, depth=2, heads=heads, checkpointing=checkpointing)
    return Segmenter(encoder, num_classes, hybrid, dataset_head, width=24, heads=2, checkpointing=checkpointing)


def small_flow(checkpointing=False):
    return DenseFlow((2, 2, 1), (1, 1, 1), growth=2, width=4, dense_layers=2, checkpointing=checkpointing)


def with_fitting_statistics(network):
    """BatchNorm's running statistics are those of random images."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network.train()(torch.rand(4, 3, 48, 64))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network


def save_random_weights(path, hybrid, num_classes=12):
    """Of LDN-121; its BatchNorm statistics fit its random weights"""
    torch.manual_seed(0)
    torch.save(with_fitting_statistics(ladder_densenet121(num_classes, hybrid)).state_dict(), path)


# A pass and what comes of it


def images_of(network, requires_grad=False):
    torch.manual_seed(1)
    side = 16 if network == "segmenter" else 64
    return torch.rand(2, 3, side, side, requires_grad=requires_grad)


def loss_of(outputs):
    torch.manual_seed(2)
    return sum((logits.float() * torch.randn_like(logits.float())).sum() for logits in outputs)


def gradients(model):
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def stepped(model, images):
    """(outputs, gradients, bytes kept for the backward pass) of one pass through the model and back"""
    kept = {}

    def pack(tensor):
        if not any(tensor is weight for weight in model.parameters()):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)  # of dropout
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(images)
    loss_of(outputs).backward()
    return [logits.detach() for logits in outputs], gradients(model), sum(kept.values())
