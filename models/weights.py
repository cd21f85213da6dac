"""Reading weight files: released ones, torchvision's ImageNet ones, and our own checkpoints.

Every file is read with weights_only=True and must fit; what may be missing, the caller says.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import DenseNet121_Weights

RELEASED = "the README lists the released files and where they are"
NUMPY_NUMBERS = [  # harmless, and beside the weights in some released files, such as NVIDIA's figure of merit
    *((np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64")),
]
DENSENET121_URL = DenseNet121_Weights.IMAGENET1K_V1.url


def read_state_dict(path: str | Path, source: str = RELEASED) -> dict[str, Tensor]:
    """The state_dict in a weight file, however it is wrapped; `source` says where such a file is to be had.

    Unwraps {"state_dict": ...} (NVIDIA), {"model": ...} (released flows, our last.pt) and a "module." prefix
    (DataParallel). Raises FileNotFoundError where there is no file, ValueError where it holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weight file {path}; {source}")
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in a dozen ways on a file that is not its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a weight file: it is none, is damaged, or holds other objects than "
            f"tensors and numbers ({reason})"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    ):
        raise ValueError(f"{path} holds no state_dict; expected a dict of tensors by parameter name")
    if all(key.startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    return content


def has_dataset_head(path: str | Path) -> bool:
    """Whether a weight file holds the dataset head P(d_out | x), by its released key prefix `logits_ood`."""
    return any(key.startswith("logits_ood.") for key in read_state_dict(path))


def load_weights(model: nn.Module, path: str | Path, new: tuple[str, ...] = (), source: str = RELEASED) -> nn.Module:
    """Load a weight file into the model and return it.

    new     name prefixes of parts that the file need not have; they keep their initial weights
    source  where the file is to be had, for the error where it is missing
    raises  ValueError with the missing, unexpected and misshapen keys where the file does not fit
    """
    fit_state_dict(model, read_state_dict(path, source), path, new)
    return model


def load_imagenet_densenet121(model: nn.Module, path: str | Path | None = None) -> nn.Module:
    """Fill `model.backbone` with torchvision's ImageNet DenseNet-121, from a local file or torchvision's cache.

    Both spellings are read: torchvision's own (norm1) and that of the published file (norm.1). The last norm and
    the classifier are left out: the network has neither.
    """
    if path is None:
        path = Path(torch.hub.get_dir(), "checkpoints", DENSENET121_URL.rsplit("/", 1)[1])
        if not path.is_file():
            try:
                torch.hub.load_state_dict_from_url(DENSENET121_URL, check_hash=True, weights_only=True)
            except (OSError, RuntimeError) as error:  # urllib's errors, and a hash that does not fit
                raise FileNotFoundError(
                    f"ImageNet weights of DenseNet-121 could not be downloaded ({error}); get {DENSENET121_URL} "
                    f"and put it at {path}, or give its place with --init FILE"
                ) from error
    # The published file is older than BatchNorm's counters.
    features = {key: value for key, value in model.backbone.state_dict().items() if key.endswith("batches_tracked")}
    for key, value in read_state_dict(path).items():
        key = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key)
        if not key.startswith(("classifier.", "features.norm5.")):
            features[key] = value
    fit_state_dict(model.backbone, features, path)
    return model


def fit_state_dict(module: nn.Module, state_dict: dict[str, Tensor], path: str | Path, new: tuple[str, ...] = ()):
    """Load strictly, but for keys under the prefixes `new` that are missing; `path` names the file in errors."""
    own = module.state_dict()
    missing = [key for key in own if key not in state_dict and not key.startswith(new or "\0")]
    unexpected = [key for key in state_dict if key not in own]
    misshapen = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in state_dict.items()
        if key in own and own[key].shape != value.shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(problems.values()):
        told = "; ".join(f"{len(keys)} {kind}: {shorten(keys)}" for kind, keys in problems.items() if keys)
        raise ValueError(
            f"{path} does not fit {type(module).__name__}: {told}. Is it another model's file, or has it "
            "another number of classes?"
        )
    module.load_state_dict(state_dict, strict=False)  # what strict would refuse was looked at above


def shorten(keys: list[str], most: int = 6) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
