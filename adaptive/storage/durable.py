"""Files that are whole or not there: written beside their place, flushed to the disk, then moved there.

A process killed at any moment leaves the old file or the new one under the name, never a part of one. What it may leave
beside is a hidden temporary file, which `remove_leftovers` finds.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`: write and close that file in the body; it replaces `path` at the end.

    Where the body, the flush or the move raises, the temporary file is removed and `path` stays as it was. Several
    threads and processes may replace one path: the last one stays.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by a file of this content."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def flush(path: Path) -> None:
    """fsync of a file or of a folder (which holds the names)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(path: Path) -> list[Path]:
    """Removes what killed processes left beside `path`; only where nobody is writing it now. Returns what it was."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{12}}\.tmp")
    found = [entry for entry in path.parent.iterdir() if pattern.fullmatch(entry.name)]
    for entry in found:
        entry.unlink(missing_ok=True)
    return found
