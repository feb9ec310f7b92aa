"""Runs that get SIGTERM or Ctrl-C at chosen places, and what became of them and of the runs resumed from them.

    python -m signal_runs

Prints a JSON object: place -> `code` (exit code), `seconds` from the signal to the exit, `said` (its standard
error), `differing` (names of what the resumed run left otherwise than a run left alone).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from small_run import NoisyClips, differing, forked, left_by, train

from adaptive_window import cli
from adaptive_window.audio.cache import LatentCache
from adaptive_window.training import checkpoint, loop
from adaptive_window.training.loop import Trainer

OPTIONS: dict[str, Any] = {"max_steps": 8, "save_every": 3, "log_every": 2}
INT, TERM = signal.SIGINT, signal.SIGTERM


class Place:
    """Calls `function`, and at its n-th call sends the signals before it."""

    def __init__(self, function: Callable[..., Any], nth: int, signals: tuple[int, ...], at: Path) -> None:
        self.function, self.left, self.signals, self.at = function, nth, signals, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self.function, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            self.at.write_text(repr(time.monotonic()))
            os.kill(os.getpid(), self.signals[0])
            if len(self.signals) > 1:  # while the main thread is held up in a call
                threading.Timer(0.3, os.kill, (os.getpid(), self.signals[1])).start()
                time.sleep(60)
        return self.function(*arguments, **options)


def in_loading(trainer: Trainer, place: Callable[..., Any]) -> None:
    original = NoisyClips.__getitem__
    sender = place(original, 9)
    NoisyClips.__getitem__ = lambda self, index: sender(self, index)  # type: ignore[method-assign]  # a signal is sent from inside


def between_clips(trainer: Trainer, place: Callable[..., Any]) -> None:
    """The first clip of a batch has drawn its noise, the second has not."""
    sender = place(NoisyClips.__getitem__, 10)  # two steps after a checkpoint: this one is saved
    NoisyClips.__getitem__ = lambda self, index: sender(self, index)  # type: ignore[method-assign]  # a signal is sent from inside


def in_first_step(trainer: Trainer, place: Callable[..., Any]) -> None:
    trainer.take_step.objective = place(trainer.objective, 1)


def in_step(trainer: Trainer, place: Callable[..., Any]) -> None:
    trainer.take_step.objective = place(trainer.objective, 5)


def in_evaluation(trainer: Trainer, place: Callable[..., Any]) -> None:
    trainer.state.objective = place(trainer.objective, 1)


def in_save(trainer: Trainer, place: Callable[..., Any]) -> None:
    checkpoint._write_sealed = place(checkpoint._write_sealed, 2)


def in_examples(trainer: Trainer, place: Callable[..., Any]) -> None:
    loop.write_examples = place(loop.write_examples, 1)


PLACES: dict[str, tuple[Callable[..., None], tuple[int, ...]]] = {
    "SIGTERM while loading": (in_loading, (TERM,)),
    "SIGINT while loading": (in_loading, (INT,)),
    "SIGTERM between two clips": (between_clips, (TERM,)),
    "SIGTERM in the first step": (in_first_step, (TERM,)),
    "SIGINT in a step": (in_step, (INT,)),
    "SIGTERM in a step": (in_step, (TERM,)),
    "SIGTERM in the evaluation": (in_evaluation, (TERM,)),
    "SIGINT in the evaluation": (in_evaluation, (INT,)),
    "SIGTERM in the examples": (in_examples, (TERM,)),
    "SIGINT in a save": (in_save, (INT,)),
    "SIGINT twice in a save": (in_save, (INT, INT)),
    "SIGINT twice in a step": (in_step, (INT, INT)),
    "SIGTERM, then SIGINT in a step": (in_step, (TERM, INT)),
}


def finish(process: int) -> tuple[int, float]:
    """The exit code, with a shell's 128 + n for death by signal n, and when."""
    _, status = os.waitpid(process, 0)
    code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return code, time.monotonic()


def report(process: int, at: Path, errors: Path) -> dict[str, Any]:
    code, ended = finish(process)
    return {"code": code, "seconds": ended - float(at.read_text()), "said": errors.read_text()}


def in_training(folder: Path, name: str) -> dict[str, Any]:
    hook, signals = PLACES[name]
    out, at, errors = folder / "run", folder / "at", folder / "errors"

    def watch(trainer: Trainer) -> None:
        hook(trainer, lambda function, nth: Place(function, nth, signals, at))

    examples = 1 if hook is in_examples else 0
    loop.write_examples, kept = (lambda *arguments: None), loop.write_examples  # without a codec that decodes
    result = report(forked(lambda: train(out, watch=watch, examples=examples, **OPTIONS), errors), at, errors)
    finish(forked(lambda: train(out, **OPTIONS), errors))
    loop.write_examples = kept
    result["differing"] = differing(left_by(out), left_by(folder.parent / "alone"))[:10]
    return result


def in_encoding(folder: Path, signals: tuple[int, ...]) -> dict[str, Any]:
    """The whole command, which is told to stop while it encodes the second song."""
    songs, at, errors = folder / "songs", folder / "at", folder / "errors"
    songs.mkdir()
    for number in range(3):
        soundfile.write(songs / f"{number}.wav", np.random.default_rng(number).uniform(-0.5, 0.5, 32000), 16000)

    def command() -> None:
        sender = Place(original, 2, signals, at)
        LatentCache.frames = lambda self, path: sender(self, path)  # type: ignore[method-assign]  # a signal is sent from inside
        options = ["--cache", str(folder / "cache"), "--clip-seconds", "1", "--window-seconds", "0.5"]
        sys.exit(cli.main(["train", "--data", str(songs), "--out", str(folder / "run"), *options]))

    original = LatentCache.frames
    return {**report(forked(command, errors), at, errors), "differing": []}


def main() -> int:
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        finish(forked(lambda: train(root / "alone", **OPTIONS), root / "errors"))
        for name in PLACES:
            folder = root / "case"
            folder.mkdir()
            results[name] = in_training(folder, name)
            shutil.rmtree(folder)
        for name, signals in (("SIGTERM while encoding", (TERM,)), ("SIGINT while encoding", (INT,))):
            folder = root / "case"
            folder.mkdir()
            results[name] = in_encoding(folder, signals)
            shutil.rmtree(folder)
    print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
