"""Batches of clips, epoch after epoch, from loader processes that live as long as the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import torch
from torch.utils.data import DataLoader

from ..audio.dataset import ClipDataset

T = TypeVar("T")
END = object()  # of an iterator


class BatchLoader:
    """Iterates over batches of `dataset`'s items, loaded by `workers` processes (0: in this one).

    In this process a thread loads one batch ahead, so that the loop does not wait for copies (PyTorch copies without
    Python's lock); unless an item is more than epoch and index tell (`dataset.by_index`): draws from the global
    generator have to come in the order of steps, or a resumed run would draw others.

    What is loaded does not depend on `workers` or `start`, the way in which they are started: `fork` is quick and
    shares this process's memory, `spawn` begins each as a fresh interpreter and suits libraries that do not bear
    forking. Clips draw their places from (seed, epoch, index) alone; what else might draw in a worker starts from
    `seed` plus the worker's number. `pin_memory` is for CUDA: from other memory a copy to the device waits for it. A
    worker that dies raises `RuntimeError` naming its process.
    """

    def __init__(
        self, dataset: ClipDataset, workers: int, start: Literal["fork", "spawn"], *, pin_memory: bool = False
    ) -> None:
        self._batches: list[list[int]] = []
        self._ahead = workers == 0 and getattr(dataset, "by_index", False)
        # a generator of its own: the loader draws a seed for its workers, which must not disturb dropout's sequence
        self._generator = torch.Generator()
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._batches,
            num_workers=workers,
            multiprocessing_context=start if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            generator=self._generator,
        )

    def batches(self, indices: Sequence[list[int]], seed: int) -> Iterator[dict[str, Any]]:
        """One batch for each list of item numbers, in order; the epoch is the one set on the data set by now."""
        self._batches[:] = indices
        self._generator.manual_seed(seed)
        iterator = iter(self._loader)
        return one_ahead(iterator) if self._ahead else iterator


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each taken from `items` by another thread while the one before it is in use.

    What `items` raises is raised here, at its place. The thread ends with the iterator.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="load") as pool:
        ahead = pool.submit(next, items, END)
        while (item := ahead.result()) is not END:
            ahead = pool.submit(next, items, END)
            yield item  # type: ignore[misc]  # not END
