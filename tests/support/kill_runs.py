"""`make kill`: runs killed by SIGKILL at random moments, resumed, and compared with the run that was left alone.

    python -m kill_runs --runs 200 --seed 0

Every run is killed one to three times: by its parent at a random time of its course, or by itself just before a random
one of the file operations by which a checkpoint is saved. Prints a JSON object and fails unless every run left
bit-equal weights, optimizer, random states, best checkpoint, evaluations and log.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from small_run import differing, forked, holds_run, left_by, train

from adaptive_window.storage import durable
from adaptive_window.training import checkpoint
from adaptive_window.training.checkpoint import LAST

OPTIONS = {"max_steps": 10, "save_every": 1, "log_every": 2}
FILE_OPERATIONS = 80  # that the saves of a whole run make: write, flush, move


def die_before(operation: int) -> None:
    """This process kills itself just before the n-th file operation of its saves."""
    left = [operation]

    def counted(function):  # type: ignore[no-untyped-def]  # wraps functions of any type
        def wrapper(*arguments, **options):  # type: ignore[no-untyped-def]  # wraps functions of any type
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return wrapper

    os.replace = counted(os.replace)
    durable.flush = counted(durable.flush)
    checkpoint.flush = durable.flush
    original = checkpoint._write_sealed

    def half_written(path: Path, content: bytes) -> None:
        path.write_bytes(content[: len(content) // 2])
        counted(original)(path, content)

    checkpoint._write_sealed = half_written


def run_once(out: Path, kill: float | int | None) -> bool:
    """One process of a run, killed after `kill` seconds or before that file operation; whether it was killed."""

    def action() -> None:
        if isinstance(kill, int):
            die_before(kill)
        train(out, **OPTIONS)

    process = forked(action, out.with_suffix(".err"))
    if isinstance(kill, float):
        time.sleep(kill)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"a run failed by itself:\n{out.with_suffix('.err').read_text()}")
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    result = {"runs": arguments.runs, "bit_equal": 0, "kills": 0, "kills_in_a_save": 0, "without_last": 0}
    unequal = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        began = time.monotonic()
        run_once(folder / "alone", None)
        duration = time.monotonic() - began
        alone = left_by(folder / "alone")
        for number in range(arguments.runs):
            out = folder / f"run{number}"
            kills = draw.randint(1, 3)
            while kills:
                by_itself = draw.random() < 0.5
                if run_once(out, draw.randrange(FILE_OPERATIONS) if by_itself else draw.random() * duration):
                    kills -= 1
                    result["kills"] += 1
                    names = [entry.name for entry in out.iterdir()] if out.is_dir() else []
                    result["kills_in_a_save"] += by_itself or any(name.endswith(".tmp") for name in names)
                    result["without_last"] += holds_run(out) and LAST not in names
                else:  # it came to its end before
                    shutil.rmtree(out)
            run_once(out, None)
            if different := differing(left_by(out), alone):
                unequal.append((number, different[:5]))
            else:
                result["bit_equal"] += 1
            shutil.rmtree(out)
    result["seconds_of_a_run"] = round(duration, 2)
    print(json.dumps(result))
    for number, different in unequal:
        print(f"run {number} differs in {', '.join(different)} ...", file=sys.stderr)
    return int(bool(unequal))


if __name__ == "__main__":
    sys.exit(main())
