"""More than one process: what a run under torchrun shares, agrees on and waits for.

    torchrun --nproc-per-node N -m adaptive_window train ...

torchrun starts the processes and ends or restarts them together; here they meet in PyTorch's own process group: gloo on
CPUs, NCCL on CUDA, where process i of a machine takes device i. `data_parallel.py` is what they compute together.
Outside of torchrun every function below does what one process needs.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UsageError

T = TypeVar("T")

POLL_SECONDS = 0.05
JOIN_TIMEOUT = timedelta(minutes=10)  # for all processes to be there
LAST_WORDS_SECONDS = 10.0  # a rank that ends because rank 0 failed leaves rank 0 this long to say why

_lasting: dist.Store | None = None  # torchrun's own, which its restarts share
_store: dist.Store | None = None  # the part of it that belongs to the group that is joined
_turns = itertools.count()  # numbers what is exchanged there, in the same order on every rank
_groups = itertools.count()


class MainFailed(SystemExit):
    """Rank 0 failed, and says why; the other ranks end without another word, by exit code 1."""

    def __init__(self) -> None:
        super().__init__(1)


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_torchelastic_launched()


def rank() -> int:
    return int(os.environ["RANK"]) if launched() else 0


def size() -> int:
    """Processes in all."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def is_main() -> bool:
    """Whether this process writes and prints: rank 0, or the only one."""
    return rank() == 0


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the process group of torchrun for a `with` block, and leaves it however the block ends.

    Raises:
        UsageError: more processes on this machine than CUDA devices.
    """
    global _lasting, _store, _turns
    if not launched():
        yield
        return
    options: dict[str, Any] = {"backend": "gloo"}
    if device.type == "cuda":
        local, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if int(os.environ["LOCAL_WORLD_SIZE"]) > devices:
            raise UsageError(
                f"--nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}: this machine has {devices} CUDA devices; "
                "start as many processes, or use --device cpu"
            )
        torch.cuda.set_device(local)
        options = {"backend": "cpu:gloo,cuda:nccl", "device_id": torch.device("cuda", local)}
    _lasting, _, _ = next(dist.rendezvous("env://", timeout=JOIN_TIMEOUT))
    # what an earlier attempt, or an earlier group of this one, exchanged must not be read again
    store = dist.PrefixStore(f"adaptive_window/{os.environ['TORCHELASTIC_RESTART_COUNT']}.{next(_groups)}", _lasting)
    dist.init_process_group(store=store, rank=rank(), world_size=size(), **options)
    _store, _turns = store, itertools.count()
    messages = logging.getLogger("adaptive_window")
    level = messages.level
    if not is_main():
        messages.setLevel(logging.ERROR)  # warnings are the same everywhere: rank 0 gives them
    try:
        yield
    except MainFailed:
        time.sleep(LAST_WORDS_SECONDS)  # the first process to end makes torchrun end the others
        raise
    except BaseException:
        if device.type == "cuda" and dist.group.WORLD is not None:
            dist.group.WORLD.abort()  # a collective that others never join would be waited for
        raise
    finally:
        messages.setLevel(level)
        _store = _lasting = None
        dist.destroy_process_group()


def on_main(function: Callable[[], T]) -> T:
    """Runs `function` on rank 0 and returns its result, which must pickle, on every rank.

    The others wait as long as it takes (no collective is open, so none times out). If it fails, they end; if rank 0 is
    stopped by a signal in it, they stop by the same exception.
    """
    if _store is None:
        return function()
    key = f"main/{next(_turns)}"
    if not is_main():
        stopped_by, result = pickle.loads(_wait_for(key))
        if stopped_by is not None:
            raise stopped_by()
        return result
    try:
        result = function()
    except (KeyboardInterrupt, SystemExit) as stop:
        _tell(key, type(stop), None)
        raise
    except BaseException:
        _tell(key, MainFailed, None)
        raise
    _tell(key, None, result)
    return result


def _tell(key: str, stopped_by: type[BaseException] | None, result: object) -> None:
    if _store is not None:
        _store.set(key, pickle.dumps((stopped_by, result)))  # type: ignore[arg-type]  # a store takes bytes too


def mark_begun(run: str) -> None:
    """Tells later attempts (`torchrun --max-restarts`) that this run was begun, and not refused."""
    if _lasting is not None and is_main():
        _lasting.set(_begun(run), "")


def begun_before(run: str) -> bool:
    """Whether an attempt before torchrun's restart had begun this run."""
    if _lasting is None:
        return False
    lasting = _lasting
    attempt = largest(int(os.environ["TORCHELASTIC_RESTART_COUNT"]))[0]  # each machine counts its own failures
    return attempt > 0 and on_main(lambda: lasting.check([_begun(run)]))


def _begun(run: str) -> str:
    return f"adaptive_window/begun/{run}"


def main_first(function: Callable[[], T]) -> T:
    """Runs `function` on rank 0, then, if it did not fail there, on the others: downloads once, complains once."""
    mine: list[T] = []
    on_main(lambda: mine.append(function()))
    return mine[0] if mine else function()


def share_of_node(items: Sequence[T]) -> Sequence[T]:
    """This process's part of work that is done once on every machine (each may have a cache of its own)."""
    if not launched():
        return items
    return items[int(os.environ["LOCAL_RANK"]) :: int(os.environ["LOCAL_WORLD_SIZE"])]


def wait_for_all() -> None:
    """Returns when every rank is here, however long the slowest takes."""
    if _store is None:
        return
    turn = next(_turns)
    _store.set(f"here/{turn}/{rank()}", "")
    for other in range(size()):
        _wait_for(f"here/{turn}/{other}")


def _wait_for(key: str) -> bytes:
    """Polls instead of blocking in the store, so that signals are heard and nothing times out."""
    assert _store is not None
    while not _store.check([key]):
        time.sleep(POLL_SECONDS)
    return _store.get(key)


def largest(*values: int) -> list[int]:
    """The largest of the ranks' values, each, on every rank; waits for the other processes, not for a device."""
    if not dist.is_initialized():
        return list(values)
    found = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


def gather(value: T) -> list[T]:
    """Every rank's value, in the order of ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value)
    return found


def gather_by_rank(states: dict[str, Tensor]) -> dict[str, Tensor]:
    """All ranks' tensors in one dict: rank 0's under their names, rank r's under `rank<r>.<name>`."""
    found: dict[str, Tensor] = {}
    for other, theirs in enumerate(gather(states)):
        found |= {f"rank{other}.{name}" if other else name: value for name, value in theirs.items()}
    return found


def part_of_rank(states: dict[str, Tensor]) -> dict[str, Tensor]:
    """What this rank gave to `gather_by_rank`; empty where that run had fewer ranks."""
    if is_main():
        return {name: value for name, value in states.items() if "." not in name}
    prefix = f"rank{rank()}."
    return {name.removeprefix(prefix): value for name, value in states.items() if name.startswith(prefix)}


def mean(values: Tensor) -> Tensor:
    """Mean over the ranks of a tensor without gradient; the same bits on every rank."""
    if not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / size()


def share(batch: list[int]) -> list[int]:
    """This rank's part of a global batch, whose length is a multiple of the number of ranks."""
    part = len(batch) // size()
    return batch[rank() * part : (rank() + 1) * part]


def check_batch_size(batch_size: int) -> None:
    if batch_size % size():
        raise UsageError(
            f"--batch-size {batch_size} is the batch of all processes together: make it a multiple of their number, "
            f"{size()}"
        )


def rank_seed(seed: int) -> int:
    """A seed of its own for every rank; rank 0's is that of a run of one process."""
    return seed + 1_000_003 * rank()
