"""`make soak`: one long run that is killed and restarted all the time, and the run that was left alone.

    python -m soak --minutes 30 --seed 0

The first life takes a third of the time; the others, of 2 to 600 s (evenly on a logarithmic scale), end by SIGKILL,
SIGTERM or SIGINT; after some of them a bit of the newest checkpoint is flipped. Each clip takes `--pause` seconds to
load, so that the processor is mostly idle and the other run, which loads without pause and is never stopped, needs
minutes only. Prints a JSON object; fails unless both end bit-equal in weights, optimizer, random states, best
checkpoint, evaluations and log, and unless memory is flat (which takes 20 minutes or more to see):

    rss_kib_per_step    slope of the resident memory over steps, one for all lives, each with its own level, from the
                        1000th step of a life on (until then the allocator's heap settles); at most 1 KiB
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch.utils.tensorboard  # noqa: F401 - once, before processes are forked
from small_run import differing, forked, left_by, train

from adaptive_window.training.checkpoint import LAST, PREVIOUS, load_checkpoint
from adaptive_window.training.loop import Trainer

OPTIONS: dict[str, Any] = {"clips": 200, "log_every": 10}
UNSETTLED_STEPS = 1000
LIMIT_KIB_PER_STEP = 1.0
ENDS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def measure_memory(samples: Path, life: int) -> Any:
    """A `watch` for `train`: writes life, steps of this life, resident KiB every 10 steps."""

    def watch(trainer: Trainer) -> None:
        take_step, taken = trainer.take_step, 0

        def measured(batch: dict[str, Any], step: int) -> Any:
            nonlocal taken
            taken += 1
            if taken % 10 == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                with samples.open("a") as file:
                    file.write(f"{life} {taken} {pages * resource.getpagesize() // 1024}\n")
            return take_step(batch, step)

        measured.compute = take_step.compute  # type: ignore[attr-defined]  # what the loop notes of it
        trainer.take_step = measured  # type: ignore[assignment]  # same call, measured

    return watch


def slope(samples: Path) -> tuple[float, float, int]:
    """KiB per step, its standard error, and the number of samples."""
    life, steps, rss = np.loadtxt(samples, ndmin=2).T
    kept = steps > UNSETTLED_STEPS
    if kept.sum() < 3:
        return float("nan"), float("nan"), int(kept.sum())
    life, steps, rss = life[kept], steps[kept], rss[kept]
    for number in np.unique(life):
        one = life == number
        steps[one] -= steps[one].mean()
        rss[one] -= rss[one].mean()
    found = float(steps @ rss / (steps @ steps))
    rest = rss - found * steps
    freedom = max(1, len(rss) - len(np.unique(life)) - 1)
    return found, float(np.sqrt(rest @ rest / freedom / (steps @ steps))), len(rss)


def flip_a_bit(path: Path, draw: random.Random) -> None:
    with path.open("r+b") as file:
        place = draw.randrange(path.stat().st_size)
        file.seek(place)
        value = file.read(1)[0] ^ 1 << draw.randrange(8)
        file.seek(place)
        file.write(bytes([value]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds to load a clip")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    counts = {"lives": 0, "SIGKILL": 0, "SIGTERM": 0, "SIGINT": 0, "flipped_bits": 0, "fallbacks": 0}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        out, samples, errors = folder / "run", folder / "memory", folder / "errors"
        began = time.monotonic()
        end = began + 60 * arguments.minutes
        endless = {**OPTIONS, "max_steps": 10**9, "save_every": 25, "tensorboard": True, "pause": arguments.pause}
        while time.monotonic() < end:
            counts["lives"] += 1
            watch = measure_memory(samples, counts["lives"])
            process = forked(lambda watch=watch: train(out, watch=watch, **endless), errors)  # type: ignore[misc]  # bound now, not at the call
            life = 20 * arguments.minutes if counts["lives"] == 1 else 2 * 300 ** draw.random()
            time.sleep(min(life, max(0.0, end - time.monotonic())))
            number = draw.choice(ENDS)
            os.kill(process, number)
            _, status = os.waitpid(process, 0)
            code = os.waitstatus_to_exitcode(status)
            if code not in (-signal.SIGKILL, 143, 130):
                raise SystemExit(f"the run ended by itself with {code}:\n{errors.read_text()[-5000:]}")
            counts[number.name] += 1
            if draw.random() < 0.2 and (out / LAST).exists() and (out / PREVIOUS).exists():
                flip_a_bit(out / LAST, draw)
                counts["flipped_bits"] += 1
        minutes = (time.monotonic() - began) / 60
        cores = resource.getrusage(resource.RUSAGE_CHILDREN)
        counts["fallbacks"] = errors.read_text().count("going on from the checkpoint before it")
        try:
            steps = load_checkpoint(out / LAST).info["progress"]["step"]
        except ValueError:  # the last bit that was flipped
            steps = load_checkpoint(out / PREVIOUS).info["progress"]["step"]
        steps += 50
        for name, options in (("run", {}), ("alone", {"save_minutes": 0.0})):
            process = forked(lambda n=name, o=options: train(folder / n, max_steps=steps, **OPTIONS, **o), errors)  # type: ignore[misc]  # bound now, not at the call
            if status := os.waitpid(process, 0)[1]:
                raise SystemExit(f"{name} did not end well ({status}):\n{errors.read_text()[-5000:]}")
        different = differing(left_by(out), left_by(folder / "alone"))
        found, uncertainty, count = slope(samples)
    result = {
        "minutes": round(minutes, 1),
        "steps": steps,
        **counts,
        "cores_used": round((cores.ru_utime + cores.ru_stime) / 60 / minutes, 2),
        "differing": different[:10],
        "rss_kib_per_step": round(found, 4),
        "rss_standard_error": round(uncertainty, 4),
        "rss_samples": count,
    }
    print(json.dumps(result, indent=1))
    return int(bool(different) or not found <= LIMIT_KIB_PER_STEP)


if __name__ == "__main__":
    sys.exit(main())
