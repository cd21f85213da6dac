"""Reading weight files: released ones, torchvision's ImageNet ones, and our own checkpoints.

Every file is read with weights_only=True and must fit; what may be missing, the caller says.
"""

import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import DenseNet121_Weights

from errors import MissingFile, OutOfMemory, WrongInput, message_of
from models.vit import resize_positions

RELEASED = "the README lists the released files and where they are"
NUMPY_NUMBERS = [  # harmless, and beside the weights in some released files, such as NVIDIA's figure of merit
    *((np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64")),
]
DENSENET121_URL = DenseNet121_Weights.IMAGENET1K_V1.url
IMAGENET_VIT = (
    "expected is vit_base_p16_384.pth, ViT-B/16 trained on ImageNet at 384x384: "
    "https://drive.google.com/file/d/1AlCpbDZhFiZ99teZKXu80OnskWagnvw4/view"
)
NVIDIA_WEIGHTS = "cityscapes_cv0_wideresnet38_nosdcaug.pth"
NVIDIA_SOURCE = (
    "NVIDIA's Cityscapes weights are at drive.google.com/file/d/1CKB7gpcPLgDLA7LuFJc46rYcNzF3aWzH/view: "
    "put them into the working directory, or give their place with --init FILE"
)
IMAGENET_VIT_GRID = 24  # 384 pixels in patches of 16
RELEASED_HEADS = 16  # of the encoder of released Segmenters
SEGMENTER_DATASET_HEADS = {"decoder": "model.decoder_th.", "linear": "model.logits_ood."}  # kind -> key prefix


def read_state_dict(path: str | Path, source: str = RELEASED) -> dict[str, Tensor]:
    """The state_dict in a weight file, however it is wrapped; `source` says where such a file is to be had.

    Unwraps {"state_dict": ...} (NVIDIA), {"model": ...} (released flows, our last.pt) and a prefix "module."
    (DataParallel) or "flow." (the flow released for COCO). Raises FileNotFoundError where there is no file, ValueError
    where it holds no weights, MemoryError where memory does not suffice for them.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"no weight file {path}; {source}")
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old files, in words that only its authors need
            # Mapped, so that a look at the keys reads no weights; files of PyTorch before 1.6 cannot be.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch.load fails in a dozen ways on a file that is not its own
        if message_of(error):  # what the system says of the file
            raise
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            size = path.stat().st_size / 2**30
            raise OutOfMemory(f"memory does not suffice to read {path}, {size:.1f} GiB; end other programs") from error
        raise WrongInput(f"{path} cannot be read as a weight file: {what_it_is(path, str(error))}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    ):
        raise WrongInput(f"{path} holds no state_dict; expected a dict of tensors by parameter name")
    for prefix in ("module.", "flow."):
        if all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    return content


def what_it_is(path: Path, said: str) -> str:
    """What a file is that torch.load does not read, and the way out, in our words.

    said  torch's text, of which only the name of a class is taken: it advises to load the file without weights_only,
          which runs whatever code the file holds
    """
    with open(path, "rb") as file:
        head = file.read(64).lstrip().lower()
    if not head:
        return "it is empty; fetch it again"
    if head.startswith(b"<"):
        return "it is a web page, as comes where a download asks for a click or a login; fetch the file in a browser"
    if head.startswith(b"version https://git-lfs"):
        return "it only points to the file in Git LFS; fetch that with git lfs pull"
    if head.startswith(b"pk") and not zipfile.is_zipfile(path):
        return "it is cut short; fetch or copy it again"
    foreign = re.search(r"GLOBAL (\S+) was not an allowed global", said)
    if foreign:
        return (
            f"it holds other objects than tensors and numbers ({foreign[1]}), which could be harmful code; give a file "
            "with the state_dict alone"
        )
    return "it is no weight file, or a damaged one; give a file of torch.save with a state_dict"


def noted_numbers(state_dict: dict[str, Tensor]) -> dict[str, int]:
    """{module.name: number}, what a network noted of itself beside its weights, such as heads that no shape tells."""
    metadata = getattr(state_dict, "_metadata", {})
    return {
        f"{module}.{name}": number
        for module, noted in metadata.items()
        for name, number in noted.items()
        if name != "version"
    }


def load_weights(model: nn.Module, path: str | Path, new: tuple[str, ...] = (), source: str = RELEASED) -> nn.Module:
    """Load a weight file into the model and return it.

    new     name prefixes of parts that the file need not have; they keep their initial weights
    source  where the file is to be had, for the error where it is missing
    raises  ValueError with the missing, unexpected and misshapen keys where the file does not fit
    """
    weights = read_state_dict(path, source)
    fit_state_dict(model, weights, path, new)
    say_unnoted_numbers(model, weights, path)
    return model


def load_network(
    build: Callable[[], nn.Module], path: str | Path, weights: dict[str, Tensor] | None = None
) -> nn.Module:
    """A network with the weights of a file: load_weights(build(), path), without drawing initial ones before.

    weights  of the file, where they have been read
    """
    with NoInitialWeights():
        model = build()
    weights = read_state_dict(path) if weights is None else weights
    fit_state_dict(model, weights, path)
    say_unnoted_numbers(model, weights, path)
    return model


class NoInitialWeights(TorchFunctionMode):
    """Tensors that would be filled with random numbers in place become zeros: a large network saves seconds.

    Zeros, because trunc_normal_ draws again until all numbers lie within its bounds, for ever where memory is left as
    it was found.
    """

    fillers = (
        Tensor.uniform_,
        Tensor.normal_,
        Tensor.erfinv_,
        nn.init.uniform_,
        nn.init.normal_,
        nn.init.kaiming_uniform_,
    )

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.fillers:
            with torch.no_grad():
                return (args[0] if args else kwargs["tensor"]).zero_()
        return function(*args, **(kwargs or {}))


def load_imagenet_densenet121(model: nn.Module, path: str | Path | None = None) -> nn.Module:
    """Fill `model.backbone` with torchvision's ImageNet DenseNet-121, from a local file or torchvision's cache.

    Both spellings are read: torchvision's own (norm1) and that of the published file (norm.1). The last norm and
    the classifier are left out: the network has neither. Instead, weights of the whole network fill all of it.
    """
    if path is None:
        path = Path(torch.hub.get_dir(), "checkpoints", DENSENET121_URL.rsplit("/", 1)[1])
        if not path.is_file():
            try:
                torch.hub.load_state_dict_from_url(DENSENET121_URL, check_hash=True, weights_only=True)
            except (OSError, RuntimeError) as error:  # urllib's errors, and a hash that does not fit
                raise MissingFile(
                    f"ImageNet weights of DenseNet-121 could not be downloaded ({error}); get {DENSENET121_URL} "
                    f"and put it at {path}, or give its place with --init FILE"
                ) from error
    weights = read_state_dict(path)
    if any(key.startswith("backbone.") for key in weights):
        fit_state_dict(model, weights, path)
        return model
    # The published file is older than BatchNorm's counters.
    features = {key: value for key, value in model.backbone.state_dict().items() if key.endswith("batches_tracked")}
    for key, value in weights.items():
        key = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key)
        if not key.startswith(("classifier.", "features.norm5.")):
            features[key] = value
    fit_state_dict(model.backbone, features, path)
    return model


def load_imagenet_vit(model: nn.Module, path: str | Path) -> nn.Module:
    """Fill the encoder of a Segmenter with the ImageNet weights of a ViT-B/16 for 384x384, and return the model.

    path    a plain state_dict with timm's names. Its position embedding of 24x24 patches is resized bilinearly to the
            encoder's grid, the class token's row is kept. Instead, weights of a whole Segmenter fill all of it.
    raises  FileNotFoundError where there is no file, ValueError where it does not fit the encoder
    """
    encoder = model.model.encoder
    weights = read_state_dict(path, IMAGENET_VIT)
    if any(key.startswith("model.encoder.") for key in weights):
        fit_state_dict(model, weights, path)
        say_unnoted_numbers(model, weights, path)
        return model
    positions = weights.get("pos_embed")
    if positions is not None and positions.shape == (1, 1 + IMAGENET_VIT_GRID**2, encoder.width):
        weights = weights | {"pos_embed": resize_positions(positions, (encoder.grid, encoder.grid))}
    try:
        fit_state_dict(encoder, dict(weights), path)  # whose heads may be others: the release trains 16 from 12
    except ValueError as error:
        raise WrongInput(f"{error} ({IMAGENET_VIT})") from None
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
        mismatches = "; ".join(f"{len(keys)} {kind}: {shorten(keys)}" for kind, keys in problems.items() if keys)
        raise WrongInput(
            f"{path} does not fit {type(module).__name__}: {mismatches}. Is it another model's file, or has it "
            "another number of classes?"
        )
    for key, value in state_dict.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise WrongInput(
                f"{path} holds {int((~value.isfinite()).sum())} values of {key} that are NaN or infinite; take the "
                "weights of a training that ended well, or fetch the file again"
            )
    noted = noted_numbers(state_dict)
    for key, number in noted_numbers(own).items():
        if noted.get(key, number) != number:
            name = key.rpartition(".")[2]
            raise WrongInput(
                f"{path} was trained with {noted[key]} {name}, and the network here has {number}: give "
                f"--{name} {noted[key]}"
            )
    module.load_state_dict(state_dict, strict=False)  # what strict would refuse was looked at above


def say_unnoted_numbers(model: nn.Module, state_dict: dict[str, Tensor], path: str | Path) -> None:
    """One printed line for each number of the network that no shape tells and the file does not say."""
    noted = noted_numbers(state_dict)
    for key, number in noted_numbers(model.state_dict()).items():
        if key not in noted:
            module, _, name = key.rpartition(".")
            print(
                f"note: {path} does not say how many {name} {module} has: {number} assumed (released files have "
                f"{RELEASED_HEADS}); if that is wrong, so are all scores: give the right number as --{name}"
            )


def shorten(keys: list[str], most: int = 6) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
