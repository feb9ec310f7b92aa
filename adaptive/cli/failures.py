"""What the command line says of an error that is no bug, and the exit code."""

from __future__ import annotations

import errno
import os
import re

from ..errors import CANNOT_GO_ON, MENDABLE, AdaptiveWindowError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
_DEVICE = {errno.EIO, errno.EMFILE, errno.ENFILE}

# PyTorch says "DataLoader worker (pid 7) is killed by signal: Killed. " or "DataLoader worker (pid(s) 7) exited ..."
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) ([^\n]*?) *$", re.MULTILINE)


def explain(error: BaseException, batch_size: int | None) -> tuple[str, int] | None:
    """(message, exit code) of an error; None for what only a traceback can explain.

    2 is for what the user can mend, 1 for a run that cannot go on. `batch_size` is the command's, for the advice.
    """
    import torch

    if isinstance(error, AdaptiveWindowError):
        return _last_line(error), error.exit_code
    if lost := _WORKER.match(str(error)):
        return (
            f"loader process {lost[1]} {lost[2].rstrip('.')}; where the kernel killed it for memory, take fewer "
            "--workers; go on with --resume",
            CANNOT_GO_ON,
        )
    no_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or no_memory:
        return f"out of memory: {_first_line(error) or 'the allocation failed'} {_less(batch_size)}", MENDABLE
    if isinstance(error, OSError) and error.errno in _NO_SPACE | _REFUSED | _DEVICE:
        where = f"{os.fspath(error.filename)!r}: " if error.filename is not None else ""
        advice = "; make room, or write elsewhere" if error.errno in _NO_SPACE else ""
        return f"{where}{error.strerror}{advice}", MENDABLE
    return None


def _less(batch_size: int | None) -> str:
    if batch_size is None:
        return "Free some, or take another --device"
    if batch_size == 1:
        return "The batch is a single pair of clips already: fewer --num-pairs, or --clip-seconds and --window-seconds"
    return (
        f"Take a smaller --batch-size than {batch_size} (with --force where --resume goes on with a run), "
        "or fewer --num-pairs"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _last_line(error: BaseException) -> str:
    """The message; of one that a loader's worker raised, without the worker's traceback."""
    text = str(error)
    if "Original Traceback" not in text:
        return text
    return text.strip().rpartition("\n")[2].partition(": ")[2]
