"""Using a network without training it."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """What is computed inside sends gradients through the model to its input, none to its weights.

    The model stays in the mode it is in: in train mode dropout is active and BatchNorm normalises by the batch, but
    leaves its running statistics as they are, which the released code does not.
    """
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats and module.training
    ]
    try:
        for parameter in weights:
            parameter.requires_grad_(False)
        for norm in norms:
            norm.track_running_stats = False
        yield model
    finally:
        for parameter in weights:
            parameter.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True
