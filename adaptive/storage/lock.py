"""One run in a folder at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
from pathlib import Path
from typing import TextIO

from ..errors import UsageError
from .outputs import LOCK

log = logging.getLogger(__name__)

_OWNER = re.compile(r"process \d+ on \S*\n")


class FolderLock:
    """Holds a folder against other processes, from `take` to `release`, which the end of a `with` block calls.

    The lock is the kernel's, on the file `.lock` in the folder, which stays: it ends with the process, however that
    ends, and child processes do not inherit it (POSIX record locks, `fcntl(2)`), so that a loader's worker cannot
    outlive a run with it. Where the file system has no locks, a warning says so and nothing is held.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: TextIO | None = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def take(self) -> None:
        """The folder must exist.

        Raises:
            UsageError: another process holds it; the message says which.
            OSError: the file cannot be opened.
        """
        path = self.folder / LOCK
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UsageError(f"{str(path)!r} is no lock of adaptive-window's: name another folder")
        file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 - released in `release`
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # fcntl(2): EAGAIN or EACCES
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise UsageError(
                f"{self.folder} is in use by {owner}: name another folder, or wait until that run has ended"
            ) from error
        except OSError as error:
            log.warning("%s: no locks here (%s): nothing keeps a second run out", self.folder, error.strerror)
        file.seek(0)
        if (content := file.read(1000)) and not _OWNER.fullmatch(content):
            file.close()
            raise UsageError(f"{str(path)!r} is somebody else's file, and here would be a lock: name another folder")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
