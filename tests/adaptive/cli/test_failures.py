"""What `main` says of each error, and its exit code: 2 for what the user can mend, 1 for a run that cannot go on."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from adaptive_window import cli
from adaptive_window.audio.cache import CacheError
from adaptive_window.audio.files import AudioError
from adaptive_window.config import UsageError
from adaptive_window.training.loop import TrainingError

CUDA_TEXT = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.1 GiB.\nmore"
TRAIN = ("train", "--data", "songs", "--out", "run")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("wrong"), 2, "error: wrong"),
        (AudioError("a.wav", "silent"), 2, "'a.wav': silent"),
        (CacheError("the cache is gone"), 2, "the cache is gone"),
        (TrainingError("10 steps in a row"), 1, "10 steps in a row"),
        (torch.OutOfMemoryError(CUDA_TEXT), 2, "79.1 GiB. Take a smaller --batch-size than 4"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "smaller --batch-size than 4"),
        (MemoryError(), 2, "out of memory: the allocation failed Take a smaller --batch-size"),
        (OSError(errno.ENOSPC, "No space left on device", "run/x"), 2, "'run/x': No space left on device; make room"),
        (OSError(errno.EROFS, "Read-only file system", "run/x"), 2, "'run/x': Read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "run/x"), 2, "'run/x': Permission denied"),
    ],
)
def test_what_is_no_bug_is_said_in_one_line(
    error: Exception, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("adaptive_window.training.run.run_training", fail)
    assert cli.main(TRAIN) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("adaptive-window train: error: ")
    assert said in line


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), KeyError("x"), FileNotFoundError(errno.ENOENT, "No such file", "x")]
)
def test_a_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("adaptive_window.training.run.run_training", fail)
    with pytest.raises(type(error)):
        cli.main(TRAIN)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ((*TRAIN, "--batch-size", "1"), "The batch is a single pair of clips already: fewer --num-pairs"),
        (("compose", "a.wav", "b.wav", "--checkpoint", "c", "-o", "o.wav"), "take another --device"),
    ],
)
def test_advice_on_memory_fits_the_command(
    arguments: tuple[str, ...], advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError(CUDA_TEXT)

    monkeypatch.setattr("adaptive_window.training.run.run_training", fail)
    monkeypatch.setattr("adaptive_window.inference.compose.compose_file", fail)
    assert cli.main(arguments) == 2
    assert advice in capsys.readouterr().err


class Failing(Dataset[int]):
    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        if self.error is None:
            os.kill(os.getpid(), 9)
        raise self.error  # type: ignore[misc]  # not None here


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CacheError("the cache is gone"), 2, "error: the cache is gone\n"),
        (None, 1, "; where the kernel killed it for memory, take fewer --workers"),
    ],
)
def test_errors_of_a_loader_process_are_said_without_its_traceback(
    error: Exception | None, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As PyTorch's own loader hands them on."""
    monkeypatch.setattr(
        "adaptive_window.training.run.run_training", lambda _: next(iter(DataLoader(Failing(error), num_workers=1)))
    )
    assert cli.main(TRAIN) == code
    printed = capfd.readouterr().err
    assert said in printed
    assert "Traceback" not in printed
    if error is None:
        assert re.search(r"error: loader process \d+ (is killed by signal: Killed|exited unexpectedly);", printed)


def test_nothing_is_imported_to_refuse_a_flag() -> None:
    """So that the answer comes at once; torch alone takes seconds."""
    code = (
        "import sys\nfrom adaptive_window import cli\n"
        "try:\n    cli.main(['train', '--quux'])\n"
        "except SystemExit as stop:\n    print(stop.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "2 False", done.stderr
