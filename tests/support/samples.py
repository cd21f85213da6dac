"""Samples held in memory, as a data set gives them."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from engine.evaluate import Frame
from labels import IGNORE, OUTLIER
from metrics import AnomalyMetrics

MEAN = (84, 88, 95)


class Pictures(Dataset):
    """Samples held in memory"""

    mean_colour = (107, 117, 120)

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return *self.samples[index], f"picture {index}"


def ramp(height, width):
    """The image's red and the label are the column, and green is the row"""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([columns, rows, torch.full_like(rows, 77)]).to(torch.uint8)
    return image, columns.to(torch.uint8)


def smooth_noise(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 16 + 1, width // 16 + 1, generator=generator)
    image = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)[0]
    return (255 * image).to(torch.uint8), (255 * image[0]).to(torch.uint8) // 40


def frames_of_every_kind(count, seed=0):
    """Frames of 6x8 pixels and their scores; every fifth has no outlier, one has nothing else, two have equal APs"""
    draw = torch.Generator().manual_seed(seed)
    for number in range(count):
        labels = torch.randint(0, 12, (1, 6, 8), generator=draw)
        if number % 5:
            labels[:, 2:4, 2:5] = OUTLIER
        if number == 7:
            labels[:] = OUTLIER
        scores = torch.rand(1, 6, 8, generator=draw) + 0.3 * (labels == OUTLIER)
        if number in (3, 8):
            scores = (labels == OUTLIER).float()  # a perfect frame, twice
        image = torch.full((1, 3, 6, 8), number / 100)
        yield Frame(number, f"frame {number}", image, labels, torch.rand(1, 12, 6, 8, generator=draw), None), scores


def average_precision(frame, scores):
    return AnomalyMetrics().update(scores, frame.labels).compute()["AP"]


def error_of_sample(error, dataset, index=0):
    """What the data set says of a sample that cannot be had"""
    with pytest.raises(error) as raised:
        dataset[index]
    return str(raised.value)


def random_batch(seed=0, batch=2, num_classes=5, height=6, width=7, spread=3.0, dtype=torch.float32):
    """Logits, and labels with about a fifth of outliers and of ignored pixels each"""
    generator = torch.Generator().manual_seed(seed)
    class_logits = spread * torch.randn(batch, num_classes, height, width, generator=generator, dtype=dtype)
    dataset_logits = spread * torch.randn(batch, 2, height, width, generator=generator, dtype=dtype)
    labels = torch.randint(num_classes, (batch, height, width), generator=generator)
    kind = torch.rand(labels.shape, generator=generator)
    labels[kind < 0.4] = IGNORE
    labels[kind < 0.2] = OUTLIER
    return class_logits.requires_grad_(), dataset_logits.requires_grad_(), labels
