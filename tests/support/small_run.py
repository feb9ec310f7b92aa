"""A training run of milliseconds a step, in a forked process, and what it leaves, to compare bit by bit.

Its data draw noise from Python's and NumPy's global generators, evaluations included, and its agent has dropout and
BatchNorm, so that what a resumed run gets wrong shows in its weights.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # the first optimizer step imports it, for seconds: once, before processes are forked
from clips import Clips, ConvolutionCodec, small_config, smooth_latents

from adaptive_window.training.checkpoint import BEST, LAST, PREVIOUS, load_checkpoint
from adaptive_window.training.logging import RunLog
from adaptive_window.training.loop import Trainer

CHANNELS = 8
AGENT = {"component_dim": 8, "composer_heads": 2, "composer_layers": 1, "composer_dim": 16}


class SmallCodec(ConvolutionCodec):
    dim = CHANNELS


class NoisyClips(Clips):
    """Clips with noise from the global generators; `pause` seconds each, as a slow disk would take."""

    def __init__(self, count: int, pause: float) -> None:
        super().__init__(*(smooth_latents(count, seed=seed)[:, :CHANNELS] for seed in (1, 2)))
        self.pause = pause

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(self.pause)
        item = super().__getitem__(index)
        noise = np.random.standard_normal(CHANNELS) + random.gauss(0, 1)  # noqa: NPY002 - the global one is meant
        return {**item, "input": item["input"] + 0.1 * torch.from_numpy(noise).float()[:, None]}


def holds_run(out: Path) -> bool:
    return any((out / name).exists() for name in (LAST, PREVIOUS))


def train(
    out: Path,
    *,
    clips: int = 12,
    pause: float = 0.0,
    watch: Callable[[Trainer], None] | None = None,
    **options: Any,
) -> None:
    """Begins the run in `out`, or goes on with it. `watch` gets the trainer before it runs."""
    torch.set_num_threads(1)
    config = small_config(out, resume=holds_run(out), **options)
    trainer = Trainer(config, SmallCodec(), NoisyClips(clips, pause), NoisyClips(2, 0.0), **AGENT)
    if watch is not None:
        watch(trainer)
    log = RunLog(
        out,
        {},
        tensorboard=config.tensorboard,
        mlflow=False,
        resumed=trainer.logged_until() if config.resume else None,
    )
    try:
        trainer.run(log)
    finally:
        log.close()


def forked(action: Callable[[], None], errors: Path) -> int:
    """Runs `action` in a forked process, whose standard error goes to a file; returns its id.

    Forking spares the seconds that importing PyTorch takes; the parent must not have computed anything with it.
    """
    if process := os.fork():
        return process
    code = 1
    try:
        with errors.open("a") as file:
            os.dup2(file.fileno(), 2)
        try:
            action()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def left_by(out: Path) -> dict[str, Any]:
    """All that a finished run left and that must not depend on where it was killed."""
    found: dict[str, Any] = {"half written": [entry.name for entry in out.iterdir() if entry.name.endswith(".tmp")]}
    for name in (LAST, BEST):
        checkpoint = load_checkpoint(out / name)
        found[name] = {key: checkpoint.info[key] for key in ("progress", "evaluations")}
        for part in ("model", "random", "evaluations"):
            found |= {f"{name}: {part}.{key}": value for key, value in getattr(checkpoint, part).items()}
        for parameter, slots in checkpoint.optimizer.items():
            found |= {f"{name}: optimizer.{parameter}.{key}": value for key, value in slots.items()}
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [{k: v for k, v in entry.items() if k != "train/step_seconds"} for entry in entries]
    return found


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The names of what is not bit-equal."""
    names = sorted(a.keys() | b.keys())
    return [name for name in names if name not in a or name not in b or not _same(a[name], b[name])]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
    return bool(a == b)
