"""What visitors upload and what is made of it: a folder of the page's own, emptied by session, by age and at exit."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from ..errors import UsageError

PREFIX, LOCK, EXAMPLES = "adaptive-window-page-", ".lock", "examples"
LEAST_FREE = 2**30  # bytes of the disk that uploads leave to others


class Uploads:
    """The folder, below `parent`, and which session uses which of the uploads in it.

    An upload lies in a folder named after its content, so that two sessions with one song share it: it goes with the
    last of them. What a session makes lies in a folder of its own.

    Raises:
        UsageError: no folder can be made there.
    """

    def __init__(self, parent: Path | None, *, age_seconds: float) -> None:
        self.age_seconds = age_seconds
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(parent)
            self.root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).resolve()  # for its owner alone
            self._lock: IO[str] = (self.root / LOCK).open("w")
        except OSError as error:
            raise UsageError(f"--uploads {parent}: no folder can be made there ({error.strerror})") from error
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._guard = threading.Lock()
        self._used: dict[str, set[Path]] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._sweep_forever, daemon=True, name="sweep").start()

    def holds(self, path: str | Path) -> bool:
        """Whether this is a file of visitors: links and `..` followed, nothing hidden."""
        try:
            inside = Path(path).resolve().relative_to(self.root)
        except (ValueError, OSError, RuntimeError):  # elsewhere; a null byte; a loop of links
            return False
        return bool(inside.parts) and not any(part.startswith(".") for part in inside.parts)

    def full(self) -> bool:
        return shutil.disk_usage(self.root).free < LEAST_FREE

    def session(self, name: str) -> Path:
        """The folder for what a session makes. `name` is the visitor's choice, so the folder has its hash."""
        folder = self.root / f"session-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        folder.mkdir(exist_ok=True)
        return folder

    def job(self, session: str) -> Path:
        """A new folder for the files of one job."""
        return Path(tempfile.mkdtemp(prefix="job-", dir=self.session(session)))

    def use(self, session: str, path: Path) -> None:
        """The session uses this upload: it stays as long as the session does, but for its age."""
        top = self.root / path.resolve().relative_to(self.root).parts[0]
        os.utime(top)
        with self._guard:
            self._used.setdefault(session, set()).add(top)

    def end(self, session: str) -> None:
        """The session has ended: what only it used goes."""
        with self._guard:
            mine = self._used.pop(session, set())
            gone = mine.difference(*self._used.values(), {self.root / EXAMPLES})
        for folder in (*gone, self.session(session)):
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        """Removes what nobody has touched for the age."""
        oldest = time.time() - self.age_seconds
        for entry in self.root.iterdir():
            if entry.name not in (LOCK, EXAMPLES) and _last_touched(entry) < oldest:
                shutil.rmtree(entry, ignore_errors=True)

    def close(self) -> None:
        self._closed.set()
        shutil.rmtree(self.root, ignore_errors=True)
        self._lock.close()

    def _sweep_forever(self) -> None:
        while not self._closed.wait(min(60.0, self.age_seconds / 4)):
            self.sweep()


def remove_abandoned(parent: Path) -> None:
    """Removes the folders of servers that were killed: nobody holds their locks."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            with (folder / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use, somebody else's, or made a moment ago and not locked yet
            continue


def _last_touched(folder: Path) -> float:
    """The newest time of change of a folder and what is in it; 0 where it goes away meanwhile."""
    try:
        return max(entry.stat().st_mtime for entry in (folder, *folder.rglob("*")))
    except OSError:
        return 0.0
