"""The folder of a run: what is written there, and what must not be."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection
from pathlib import Path

from ..config import AblateConfig, TrainConfig, to_yaml
from ..console import note
from ..errors import UsageError
from ..storage import outputs
from ..storage.lock import FolderLock
from .checkpoint import BEST, LAST, PREVIOUS

CONFIG = "config.yaml"
FILES = (CONFIG, "metrics.jsonl", "summary.json", "trajectory.png", "mlflow.db", LAST, PREVIOUS, BEST)
FOLDERS = ("examples", "tensorboard")


def holds_run(out: Path) -> bool:
    return any((out / name).exists() for name in (LAST, PREVIOUS))


def prepare_folder(
    out: Path,
    lock: FolderLock | None = None,
    *,
    resume: bool,
    files: Collection[str] = FILES,
    folders: Collection[str] = FOLDERS,
    reads: Collection[Path] = (),
) -> None:
    """Makes the run's folder, takes its lock where one is given, and finds out now that it cannot be written.

    `files` and `folders` are what will be written there; `reads`, what the command reads.

    Raises:
        UsageError: not a folder, not writable, in use, holds a run already, or holds none to resume; or holds a file by
            one of these names that adaptive-window did not write, or that the command reads.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written ({error}); name a folder that can") from error
    if lock is not None:
        lock.take()
    if resume and not holds_run(out):
        raise UsageError(f"--resume: {out} holds no {LAST} to go on from")
    if holds_run(out) and not resume:
        raise UsageError(f"{out} holds a run already: add --resume to go on with it, or name another --out")
    if resume and not (out / outputs.LEDGER).exists():  # of a version that kept none
        for name in (name for name in files if (out / name).is_file()):
            outputs.growing(out / name, ours=True)
    if resume:  # of a demo, say
        for folder in (out, *(out / name for name in folders)):
            outputs.take_over(folder)
    advice = "move it elsewhere" if resume else "name another --out"
    claimed = [name for name in files if name != CONFIG or not (resume or _is_read(out / name, reads))]
    outputs.claim(*(out / name for name in claimed), reads=reads, advice=advice)
    for name in (name for name in (LAST, PREVIOUS, BEST) if name in files):
        outputs.growing(out / name, ours=True)  # not by their content, which has a checksum of its own
    for name in folders:
        if os.path.lexists(out / name) and not (out / name).is_dir():
            raise UsageError(f"{str(out / name)!r} is no folder: {advice}")


def _is_read(path: Path, reads: Collection[Path]) -> bool:
    return any(read.exists() and path.exists() and path.samefile(read) for read in reads)


def save_config(config: TrainConfig | AblateConfig, path: Path) -> None:
    """The options as a file for `--config`.

    What `--config` reads is never written, and what was edited since stays as well; a note says so.
    """
    try:
        outputs.claim(path, reads=config.config)
    except UsageError:
        note(
            f"{path} is what --config reads, or was edited: it stays as it is (checkpoints hold the run's options too)"
        )
        return
    outputs.write_text(path, to_yaml(config))
