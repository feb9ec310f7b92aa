"""Which examples make which batch."""

from __future__ import annotations

import itertools
import math

import torch


def batches_of(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The order of an epoch: a function of seed and epoch alone, so that a resumed run goes on in it.

    Every batch is full, so that any number of processes can share it: the last is filled up from the epoch's beginning.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
    filled = list(itertools.islice(itertools.cycle(order), math.ceil(count / batch_size) * batch_size))
    return [filled[i : i + batch_size] for i in range(0, len(filled), batch_size)]
