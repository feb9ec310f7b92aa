"""What the training loop itself costs the host, with a model that does nothing.

    python benchmarks/loop.py

The ordinary `Trainer` runs; its agent is one number, so that what is left is the loop's: taking a batch from the
loader, the learning rate, moving, clipping, the fused optimizer, figures, signals, the progress line, a log entry every
ten steps, and the wait for a batch that another thread or process has loaded. Time is the processor's, in the
loop's own thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from clips import SMALL_AGENT, Clips, ConvolutionCodec, small_config

from adaptive_window.training.logging import RunLog
from adaptive_window.training.loop import Trainer


class Nothing(nn.Module):
    """Takes what the agent takes and gives what it gives, from one number."""

    def __init__(self, pairs: int) -> None:
        super().__init__()
        self.number, self.pairs = nn.Parameter(torch.zeros(())), pairs

    def forward(self, x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
        names = ("start_input", "start_target", "ratio_input", "ratio_target", "tonality_strength")
        means = self.number.detach().expand(5)
        pair = {f"{name}_mean": means[k] for k, name in enumerate(names)}
        losses = [self.number] * self.pairs
        return losses, losses, {"pairs": [pair] * self.pairs, "windows": {}}


class NoObjective:
    """The first output is the loss, and nothing more is asked of the agent."""

    agent_options: ClassVar[dict[str, Any]] = {}

    def __call__(self, outputs: list[Tensor], *rest: Any, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return outputs[0], {"spectral": outputs[0], "novelty": outputs[0]}


def measure(steps: int, batch: int, frames: int, workers: int) -> dict[str, float]:
    """Milliseconds of the loop's thread a step, medians: its own work, and taking the batch that was loaded."""
    clips = Clips(*(torch.zeros(batch, 128, frames) for _ in range(2)))
    clips.by_index = True  # type: ignore[attr-defined]  # as the package's data sets are
    loading: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        config = small_config(Path(folder), max_steps=steps, batch_size=batch, save_minutes=0.0, workers=workers)
        trainer = Trainer(config, ConvolutionCodec(), clips, clips, **SMALL_AGENT)
        step, nothing = trainer.take_step, Nothing(config.num_pairs)
        step.agent = step.compute.forward = nothing
        step.objective = NoObjective()
        step.optimizer = torch.optim.AdamW(nothing.parameters(), fused=True)
        own_load = trainer._load

        def timed(batches: list[list[int]]) -> Any:
            iterator = own_load(batches)
            while True:
                began = time.thread_time()
                item = next(iterator, None)
                loading.append(time.thread_time() - began)
                if item is None:
                    return
                yield item

        trainer._load = timed  # type: ignore[method-assign]  # the same, with a watch
        ends: list[float] = []
        read = trainer._read

        def timed_read(*args: Any, **options: Any) -> None:
            read(*args, **options)
            ends.append(time.thread_time())

        trainer._read = timed_read  # type: ignore[method-assign]  # at the end of every step
        order = [list(range(batch))] * steps
        trainer._order_of_epoch = lambda: order  # type: ignore[method-assign]  # one epoch
        log = RunLog(Path(folder), {}, tensorboard=False, mlflow=False)
        try:
            with trainer.stop, trainer.stop.deferred():
                from adaptive_window.console import Meter

                trainer._train(log, Meter(steps, what="training", unit="step", hidden=True))
        finally:
            log.close()
    whole = [b - a for a, b in itertools.pairwise(ends)][5:]
    load = statistics.median(loading[6:])
    return {"loop_ms": 1e3 * (statistics.median(whole) - load), "load_ms": 1e3 * load}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=1200)
    parser.add_argument("--workers", type=int, default=0, help="data loader processes; 0: a thread")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.steps, options.batch, options.frames, options.workers)
    print(f"B = {options.batch}, {options.workers} workers, processor time a step: the loop's own work "
          f"{found['loop_ms']:.2f} ms, taking the batch {found['load_ms']:.2f} ms")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
