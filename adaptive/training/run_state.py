"""A run: what is fixed, what is trained, and how far it is. What the loop hands down to all that work on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from ..audio.codec import Codec
from ..audio.dataset import ClipDataset
from ..config import TrainConfig
from ..model.agent import AdaptiveWindowCreativeAgent
from .objective import Objective
from .report import Evaluation


@dataclass
class Progress:
    """Where a run is: all that a resumed run needs beside tensors."""

    step: int = 0  # batches used, refused ones included
    epoch: int = 0
    batch: int = 0  # batches of this epoch already used
    best: float = math.inf
    epochs_without_gain: int = 0
    refused: int = 0
    refused_in_a_row: int = 0


@dataclass
class Run:
    """One training run. `progress` and `evaluations` grow in place; the rest stays the same objects to its end."""

    config: TrainConfig
    codec: Codec
    train_set: ClipDataset
    held_out: ClipDataset
    device: torch.device
    agent_arguments: dict[str, Any]
    agent: AdaptiveWindowCreativeAgent
    optimizer: torch.optim.AdamW
    objective: Objective
    progress: Progress = field(default_factory=Progress)
    evaluations: list[Evaluation] = field(default_factory=list)
    mode: str = "eager"
    """What of a step is compiled: a resumed run has the same bits where it goes on in the same mode."""
