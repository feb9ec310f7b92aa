"""Which examples make which batch."""

from __future__ import annotations

import torch


def batches_of(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The order of an epoch: a function of seed and epoch alone, so that a resumed run goes on in it."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
    return [order[i : i + batch_size] for i in range(0, count, batch_size)]
