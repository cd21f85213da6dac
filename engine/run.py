"""A training run: where it lives and what it runs with."""

from dataclasses import dataclass
from pathlib import Path

import torch

from engine.precision import FLOAT32, Precision


@dataclass(frozen=True)
class Run:
    """Where a training run lives and what it runs with."""

    folder: Path
    device: torch.device
    record: dict  # what the folder's recipe.yaml says
    precision: Precision = FLOAT32
    seed: int = 0
    workers: int = 0
    resume: bool = False
    other_inputs: bool = False  # a resumed run may read other files than before
    accumulation: int = 1  # parts of a process's share of a batch
    checkpointing: bool = False  # of the network
    sync_batchnorm: bool = False  # on GPUs
    compile: bool = False
    graphs: bool = True  # on a GPU
    validate_every: int = 1  # epochs
