"""Gradient checkpointing: parts of a network are computed again in the backward pass, and keep nothing until then."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Flags = dict[nn.Module | nn.Parameter, bool]


def checkpointed_if(
    checkpointing: bool, part: nn.Module, *inputs: Tensor | list[Tensor], random: bool = False
) -> Tensor:
    """part(*inputs), with the same gradients whether checkpointing or not.

    checkpointing  keep the inputs alone for the backward pass, and compute the part again there. Running statistics
                   are updated the first time only, unlike in the release, where they are updated twice.
    random         whether the part draws numbers, as dropout does: the second time it gets the same ones
    """
    if checkpointing and torch.is_grad_enabled():
        return checkpointed(part, inputs, random)
    return part(*inputs)


@torch.compiler.disable  # Dynamo knows no checkpoint with a context_fn: what is checkpointed runs uncompiled
def checkpointed(part: nn.Module, inputs: tuple, random: bool) -> Tensor:
    requires_grad = {weight: weight.requires_grad for weight in part.parameters()}
    tracks = {norm: norm.track_running_stats for norm in part.modules() if isinstance(norm, _BatchNorm)}

    def contexts() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
        return contextlib.nullcontext(), second_time(requires_grad, tracks)

    return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=random, context_fn=contexts)


@contextlib.contextmanager
def second_time(requires_grad: Flags, tracks: Flags) -> Iterator[None]:
    """Weights and norms are as they were the first time, `frozen` or not; running statistics stay as they are."""
    required = {weight: weight.requires_grad for weight in requires_grad}
    tracked = {norm: norm.track_running_stats for norm in tracks}
    statistics = [(norm, name, buffer) for norm in tracks for name, buffer in norm.named_buffers()]
    try:
        for weight, flag in requires_grad.items():
            weight.requires_grad_(flag)
        for norm, flag in tracks.items():
            norm.track_running_stats = flag
        for norm, name, buffer in statistics:
            setattr(norm, name, buffer.clone())
        yield
    finally:
        for weight, flag in required.items():
            weight.requires_grad_(flag)
        for norm, flag in tracked.items():
            norm.track_running_stats = flag
        for norm, name, buffer in statistics:
            setattr(norm, name, buffer)
