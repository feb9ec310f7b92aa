"""What a command may write: no file that it reads, and none that adaptive-window did not write itself.

Every folder in which files are written has a hidden ledger, `.adaptive-window.jsonl`: a line for each file, with its
name, the sha256 of its content and the kind of command, appended before the file takes its name. So a command that runs
again replaces what it wrote, and nothing else: a file that somebody else or another kind of command wrote under that
name, or that was edited since, is not its own.
Names are compared as the file system does it (`os.path.samefile`): links of both kinds, case and relative paths lead to
the same file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .durable import replacing

LEDGER = ".adaptive-window.jsonl"
LOCK = ".lock"  # of `lock.py`, in every folder of a run
_writer: ContextVar[str] = ContextVar("writer", default="library")
_ABOUT = {"about": "files that adaptive-window wrote into this folder: it replaces these, unless they were changed"}


@contextlib.contextmanager
def acting(kind: str) -> Iterator[None]:
    """Files are written, and known again, as this kind of command's; within a command that calls another, as its own.

    A context manager, and a decorator.
    """
    token = _writer.set(kind) if _writer.get() == "library" else None
    try:
        yield
    finally:
        if token is not None:
            _writer.reset(token)


def claim(
    *paths: Path, reads: Iterable[Path | None] = (), overwrite: bool = False, advice: str = "name another one"
) -> None:
    """Finds out, before any work, that these files can be written and that nothing is lost by it.

    Args:
        reads: files that the command reads; what does not exist, and folders, are passed over.
        overwrite: files of somebody else may be replaced (never one that is read).
        advice: what the user can do, for the message.

    Raises:
        UsageError: a path is a file that is read, or one that adaptive-window did not write, or no place for a file.
    """
    sources = [read for read in reads if read is not None]
    for path in paths:
        for read in sources:
            if _same(path, read):
                named = "" if os.fspath(path) == os.fspath(read) else f" ({str(read)!r})"
                raise UsageError(
                    f"{str(path)!r} is a file that this command reads{named}, which would be lost: name another one"
                )
        real = resolved(path)
        if not real.parent.is_dir():
            raise UsageError(f"{str(path)!r}: there is no folder {str(real.parent)!r}")
        if real.is_dir():
            raise UsageError(f"{str(path)!r} is a folder: {advice}")
        if os.path.lexists(real):
            if not stat.S_ISREG(os.stat(real).st_mode):
                raise UsageError(f"{str(path)!r} is not a regular file: {advice}")
            if not overwrite and not wrote(real):
                raise UsageError(
                    f"{str(path)!r} exists, and this command did not write it (or it was changed since): {advice}"
                )
        elif not os.access(real.parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise UsageError(f"{str(path)!r}: cannot be written (Permission denied in {str(real.parent)!r})")


@contextlib.contextmanager
def writing(path: Path, *, overwrite: bool = False, song: bool = False) -> Iterator[Path]:
    """`durable.replacing`, of a file that is ours to replace, and entered in the ledger; through a link, what it names.

    `song` is for music that was made to be trained on: `made_in` does not count it.

    Raises:
        UsageError: as `claim` does.
    """
    claim(path, overwrite=overwrite)
    real = resolved(path)
    with replacing(real) as temporary:
        yield temporary
        _append(real, _digest(temporary), song)


def write_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """`writing` of a text in UTF-8."""
    with writing(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def growing(path: Path, *, ours: bool = False) -> Path:
    """Enters a file that is appended to, or replaced by means of its own, under its name alone; returns `path`.

    `ours` says that what is there is known to be.

    Raises:
        UsageError: as `claim` does.
    """
    if not ours:
        claim(path)
    _append(resolved(path), None, False)
    return path


def take_over(folder: Path) -> None:
    """What another kind of command wrote into this folder counts as this one's: a run that it goes on with."""
    entries = _entries(folder)
    for entry in entries:
        if not any({**entry, "by": _writer.get()} == other for other in entries):
            _append(folder / entry["name"], entry["sha256"], entry.get("song", False))


def wrote(path: Path) -> bool:
    """Whether this kind of command wrote this file, and nobody changed it since."""
    real = resolved(path)
    entries = (entry for entry in _entries(real.parent) if entry["name"] == real.name)
    digests = [entry["sha256"] for entry in entries if entry.get("by") == _writer.get()]
    return bool(digests) and (None in digests or _digest(real) in digests)


def made_in(folder: Path) -> set[str]:
    """Names of the files in a folder that a command wrote: results, not music to train on."""
    made: dict[str, bool] = {}
    for entry in _entries(folder):
        made[entry["name"]] = not entry.get("song", False)
    return {name for name, result in made.items() if result}


def remove(path: Path) -> bool:
    """Removes a file if adaptive-window wrote it; whether it did."""
    real = resolved(path)
    if real.is_file() and wrote(real):
        real.unlink()
        return True
    return False


def remove_folder(folder: Path, advice: str = "name another one") -> None:
    """Removes a folder in which adaptive-window wrote everything.

    Raises:
        UsageError: it holds something else; nothing is removed then.
    """
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if Path(root, name).is_symlink()]
        for name in (*links, *files):
            path = Path(root, name)
            ours = name in (LEDGER, LOCK) or (not path.is_symlink() and path.is_file() and wrote(path))
            if not ours:
                raise UsageError(
                    f"{str(folder)!r} is to be made anew, but this command did not write {str(path)!r} (or it was "
                    f"changed since): {advice}"
                )
    shutil.rmtree(folder)


def resolved(path: Path) -> Path:
    """Where the file lies: a link is followed, so that it stays one."""
    return Path(os.path.realpath(path))


def _same(path: Path, read: Path) -> bool:
    if not read.exists() or read.is_dir():
        return False
    return resolved(path) == resolved(read) or (path.exists() and os.path.samefile(path, read))


def _entries(folder: Path) -> list[dict[str, Any]]:
    try:
        lines = (folder / LEDGER).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):  # a line in which a kill came
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("name"), str) and "sha256" in entry:
                found.append(entry)
    return found


def _append(path: Path, digest: str | None, song: bool) -> None:
    """One write of one line, so that several processes can write into one folder."""
    ledger = path.parent / LEDGER
    entry: dict[str, Any] = {"name": path.name, "sha256": digest, "by": _writer.get()}
    if song:
        entry["song"] = True
    if entry in _entries(path.parent):
        return
    text = json.dumps(entry) + "\n"
    if not ledger.exists():
        text = json.dumps(_ABOUT) + "\n" + text
    with open(ledger, "ab", buffering=0) as file:
        file.write(b"\n" * _torn(ledger) + text.encode())
        os.fsync(file.fileno())


def _torn(ledger: Path) -> bool:
    """Whether a kill left the last line without its end."""
    with open(ledger, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
