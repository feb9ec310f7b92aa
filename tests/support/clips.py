"""Small stand-ins for songs, codec and agent: what training tests need to take seconds."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from adaptive_window.config import TrainConfig

CLIP, WINDOW = 60, 40  # frames: 6 s and 4 s at 10 frames/s
SMALL_AGENT = {"component_dim": 16, "composer_heads": 2, "composer_layers": 1, "composer_dim": 64}


class ConvolutionCodec:
    """`dim` channels at 10 frames/s; a frame decodes to 320 samples. Enough of a codec for training and its losses."""

    name, fingerprint, random, dim, hop, sample_rate = "convolution", "0123456789abcdef", False, 128, 320, 3200

    def __init__(self, differentiable: bool = True) -> None:
        self.differentiable = differentiable
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(self.dim, 1, 640, generator=generator) / self.dim

    @property
    def frame_rate(self) -> float:
        return self.sample_rate / self.hop

    def frames(self, seconds: float) -> int:
        return round(seconds * self.frame_rate)

    def decode(self, latents: Tensor) -> Tensor:
        return F.conv_transpose1d(latents, self.weight, stride=self.hop, padding=160)


def smooth_latents(count: int, frames: int = CLIP, *, seed: int = 0, rank: int = 4, width: int = 15) -> Tensor:
    """`[count, 128, frames]`, unit spread: a few slow curves mixed into the channels, as music's latents are."""
    generator = torch.Generator().manual_seed(seed)
    curves = torch.randn(count, rank, frames + width - 1, generator=generator)
    curves = F.avg_pool1d(curves, width, stride=1)
    mixing = torch.randn(128, rank, generator=torch.Generator().manual_seed(99))  # the same for every song
    latents = mixing @ curves
    return latents / latents.std()


def white_latents(count: int, frames: int = CLIP, *, seed: int = 0) -> Tensor:
    return torch.randn(count, 128, frames, generator=torch.Generator().manual_seed(seed))


class Clips(Dataset[dict[str, Any]]):
    """What `ClipDataset` offers the training loop, from tensors `[N, 128, T]`."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets
        self.epoch = 0
        self.fingerprint = f"{len(inputs)} clips, sum {float(inputs.sum() + targets.sum()):.6g}"

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "input": self.inputs[index],
            "target": self.targets[index],
            "input_file": f"song{index}_input.wav",
            "target_file": f"song{index}_target.wav",
        }


def small_config(out: Path, **changes: Any) -> TrainConfig:
    out.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "data": out / "unused",
        "out": out,
        "clip_seconds": 6.0,
        "window_seconds": 4.0,
        "decode_seconds": 2.0,
        "max_steps": 4,
        "batch_size": 2,
        "spectral": "latent",
        "schedule": "constant",
        "warmup_steps": 0,
        "selector": "mlp",
        "rhythm_from": "none",  # the objective of the original alone, unless a test asks for more
        "harmony_from": "none",
        "conflict_weight": 0.0,
        "novelty_after": 0.0,
        "examples": 0,
        "tensorboard": False,
        "device": "cpu",
    }
    return TrainConfig(**{**values, **changes})


class Draws(Dataset[tuple[int, int, int, int]]):
    """What a worker's generators give, and its process; here, where a spawned worker can import it from."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> tuple[int, int, int, int]:
        numbers = int(torch.randint(2**31, ())), random.getrandbits(31), int(np.random.randint(2**31))  # noqa: NPY002 - the global one is meant
        return *numbers, os.getpid()
