"""What `adaptive-window train` does, with the small agent, for torchrun to start: `torchrun_worker.py RUN [RUN ...]`.

Each RUN is JSON: any of `TrainConfig`; `agent`, more arguments of the agent; and `signals`, a list of [attempt, rank,
step, signal]: in that attempt of torchrun's, the process of that rank sends itself that signal at the beginning of that
step. `signals` may stand in one run only. Each rank prints a line of JSON about each run.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from clips import SMALL_AGENT

from adaptive_window.config import TrainConfig
from adaptive_window.training import distributed
from adaptive_window.training.run import run_training
from adaptive_window.training.step import Stepper

PATHS = ("data", "out", "cache")
DEFAULTS = {
    "clip_seconds": 2.0,
    "window_seconds": 1.0,
    "batch_size": 4,
    "clips_per_song": 2,
    "schedule": "constant",
    "log_every": 1,
    "examples": 0,
    "tensorboard": False,
    "device": "cpu",
}


def send_signals(signals: list[tuple[int, int, int, str]]) -> None:
    original = Stepper.__call__

    def take(self, batch, taken):
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        for when, rank, step, name in signals:
            if (when, rank, step) == (attempt, distributed.rank(), taken):
                print(json.dumps({"signal": name, "time": time.time()}), flush=True)
                os.kill(os.getpid(), signal.Signals[name])
        return original(self, batch, taken)

    Stepper.__call__ = take


def run(options: dict) -> None:
    if signals := options.pop("signals", None):
        send_signals(signals)
    agent = {**SMALL_AGENT, **options.pop("agent", {})}
    values = {name: Path(value) if name in PATHS else value for name, value in {**DEFAULTS, **options}.items()}
    result = run_training(TrainConfig(**values), **agent)
    found = {"rank": distributed.rank(), "steps": result.summary["steps"], "loss": result.final.loss}
    print(json.dumps({"out": result.out.name, **found}), flush=True)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        run(json.loads(argument))
