"""A network with its weights, and what it says of an image."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import resize

from data import COCO20, Cityscapes, StreetHazards
from engine import SlidingWindows, to_device
from engine.precision import Precision
from errors import WrongInput
from losses import anomaly_score
from methods.evaluation import chosen_score
from models import NETWORKS, fast_inference, open_network
from tools.predict.memory import check_memory, shrunk

CLASSES = {"cityscapes": Cityscapes, "street-hazards": StreetHazards, "coco20": COCO20}
USUAL_CLASSES = {"deeplabv3plus": "cityscapes", "ldn121": "street-hazards", "segmenter": "coco20"}  # of networks
SMALLEST = 32  # a side that is shorter is continued to it with its last pixel: networks halve their input five times


@dataclass(frozen=True)
class Predictor:
    """Images (1, 3, H, W) uint8 -> classes (H, W) uint8, scores (H, W) float32."""

    model: nn.Module
    score_name: str
    network: str  # of NETWORKS
    num_classes: int
    heads: int | None  # of Segmenter's encoder
    device: torch.device
    memory_format: torch.memory_format
    max_side: int | None  # pixels, to which the network sees pictures shrunk
    tile: int | None  # pixels a side

    def __call__(self, image: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Raises ValueError where the image takes more memory than is free, and as predicted does."""
        if self.device.type == "cpu":
            check_memory(*image.shape[2:], self.network, self.num_classes, self.max_side, self.tile)
        return predicted(self.model, self.score_name, image, self.device, self.memory_format, self.max_side)


def open_predictor(
    weights: str,
    network: str,
    classes: str,
    score: str | None,
    heads: int | None,
    tile: int | None,
    tile_overlap: int,
    max_side: int | None,
    device: torch.device,
    precision: Precision,
) -> Predictor:
    """A network with its weights, for inference.

    classes  of CLASSES, that the weights know
    score    None: hybrid, or max_logit for closed-set weights
    heads    of Segmenter's encoder; None: as its weights say
    tile     side of the tiles that it runs on, which share tile_overlap pixels; None: whole images, but for Segmenter
    """
    num_classes = CLASSES[classes].num_classes
    expected = f"Expected by --network {network} --classes {classes}: {num_classes} classes"
    model = open_network(weights, network, num_classes, heads, expected)
    if network == "segmenter":
        heads = model.model.encoder.heads
    score_name = chosen_score(score, model.hybrid, weights)
    model = fast_inference(model.to(device), precision.dtype, precision.memory_format)
    if network == "segmenter":
        model = SlidingWindows(model, *NETWORKS["segmenter"].window, at_a_time=8, enlarge=True)
    elif tile is not None:
        model = SlidingWindows(model, tile, tile - tile_overlap)
    return Predictor(model, score_name, network, num_classes, heads, device, precision.memory_format, max_side, tile)


@torch.inference_mode()
def predicted(
    model: nn.Module,
    score_name: str,
    image: Tensor,
    device: torch.device,
    memory_format: torch.memory_format,
    max_side: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """(1, 3, H, W) uint8 -> classes (H, W) uint8, scores (H, W) float32.

    From a shrunk image both come back to H, W, scores bilinearly and classes from the nearest pixel.
    Raises ValueError where scores are not finite, or memory does not suffice.
    """
    size = image.shape[2:]
    try:
        if max_side is not None and max(size) > max_side:
            image = resize(image, shrunk(size, max_side), antialias=True)
        [image] = to_device([image], device, memory_format)
        height, width = image.shape[2:]
        if min(height, width) < SMALLEST:
            image = F.pad(image, (0, max(0, SMALLEST - width), 0, max(0, SMALLEST - height)), mode="replicate")
        output = model(image)
        logits = [part[:, :, :height, :width] for part in (output if isinstance(output, tuple) else (output,))]
        scores, classes = anomaly_score(score_name, *logits), logits[0].argmax(1).byte()
        if (height, width) != size:
            scores = F.interpolate(scores[:, None], size, mode="bilinear", align_corners=False)[:, 0]
            classes = F.interpolate(classes[:, None], size, mode="nearest-exact")[:, 0]
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "DefaultCPUAllocator" not in str(error):
            raise
        raise WrongInput(f"memory does not suffice for {size[1]}x{size[0]} pixels; try --max_side or --tile") from error
    if not scores.isfinite().all():
        raise WrongInput("its scores are not finite; are these weights damaged?")
    return classes[0].cpu().numpy(), scores[0].cpu().numpy()
