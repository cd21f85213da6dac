"""Opening a network from its weight file: which head and how many classes it has stands in the names of its weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from errors import WrongInput
from models.deeplab import deeplabv3plus
from models.ladder_densenet import ladder_densenet121
from models.segmenter import WINDOW, WINDOW_STRIDE, segmenter
from models.weights import (
    RELEASED_HEADS,
    SEGMENTER_DATASET_HEADS,
    load_network,
    load_weights,
    noted_numbers,
    read_state_dict,
)


@dataclass(frozen=True)
class Architecture:
    """How a network is built, and which of its weights say what it has."""

    build: Callable[..., nn.Module]  # (num_classes, hybrid) -> the network
    class_key: str  # a tensor whose first dimension is the number of classes
    dataset_heads: Mapping[str, str] = field(default_factory=lambda: {"convolution": "logits_ood."})  # kind -> prefix
    window: tuple[int, int] | None = None  # side and stride of the windows it slides over an image; None: whole images


NETWORKS = {
    "deeplabv3plus": Architecture(deeplabv3plus, "final.6.weight"),
    "ldn121": Architecture(ladder_densenet121, "logits.conv.weight"),
    "segmenter": Architecture(
        segmenter, "model.decoder.mask_norm.weight", SEGMENTER_DATASET_HEADS, (WINDOW, WINDOW_STRIDE)
    ),
}
OF_WHOLE_IMAGES = [name for name, architecture in NETWORKS.items() if architecture.window is None]


def open_network(
    path: str | Path,
    network: str | None = None,
    num_classes: int | None = None,
    heads: int | None = None,
    expected: str = "",
) -> nn.Module:
    """A network with the weights of a file, which is read once, and its attributes `hybrid` and `num_classes`.

    network      one of NETWORKS; None: the one whose weights they are
    num_classes  None: as many as the weights have
    heads        of Segmenter's encoder; None: as the file says, else 16, as released
    expected     what the error adds where the file does not fit, such as the flags that asked for it
    raises       MissingFile; WrongInput where the file holds no weights, or those of another network
    """
    weights = read_state_dict(path)
    network = network or network_of(weights, path)
    if num_classes is None:
        num_classes = number_of_classes(weights, network, path)
    head = dataset_head(weights, network)
    choices = []
    if network == "segmenter":
        choices = [heads or noted_numbers(weights).get("model.encoder.heads", RELEASED_HEADS), head or "decoder"]
    try:
        model = load_network(
            lambda: NETWORKS[network].build(num_classes, head is not None, *choices), path, weights=weights
        )
    except WrongInput as error:
        raise WrongInput(f"{error} {expected}".rstrip()) from None
    model.hybrid, model.num_classes = head is not None, num_classes
    return model


def hybrid_segmenter(
    path: str | Path, num_classes: int, heads: int, dataset_head: str, checkpointing: bool = False
) -> nn.Module:
    """A Segmenter to be fine-tuned: a file's weights, closed-set or hybrid, and where it has none a new dataset head.

    heads, dataset_head, checkpointing  as in segmenter
    """
    model = segmenter(num_classes, heads=heads, dataset_head=dataset_head, checkpointing=checkpointing)
    return load_weights(model, path, new=(SEGMENTER_DATASET_HEADS[dataset_head],))


def network_of(weights: Mapping[str, Tensor], path: str | Path) -> str:
    """The network whose weights they are, by its class key."""
    found = [name for name, architecture in NETWORKS.items() if architecture.class_key in weights]
    if len(found) != 1:
        keys = ", ".join(f"{architecture.class_key} of {name}" for name, architecture in NETWORKS.items())
        raise WrongInput(f"{path} holds weights of {' and '.join(found) or 'no network'} here: known by {keys}")
    return found[0]


def number_of_classes(weights: Mapping[str, Tensor], network: str, path: str | Path) -> int:
    key = NETWORKS[network].class_key
    if key not in weights:
        raise WrongInput(f"{path} does not fit {network}: it has no {key}. Is it another --network's?")
    return len(weights[key])


def dataset_head(weights: Mapping[str, Tensor], network: str) -> str | None:
    """Which dataset head P(d_out | x) the weights of a network hold, of its `dataset_heads`; None for a closed set."""
    for kind, prefix in NETWORKS[network].dataset_heads.items():
        if any(key.startswith(prefix) for key in weights):
            return kind
    return None
