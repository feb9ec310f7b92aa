"""The training loop: AdamW on the agent, evaluation after each epoch, checkpoints `last` and `best`."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch

from ..audio.codec import Codec
from ..audio.dataset import ClipDataset
from ..config import TrainConfig
from ..console import Meter, note
from ..device import choose_device
from ..errors import RunError
from ..model.agent import AdaptiveWindowCreativeAgent
from ..model.content_selector import ContentSelector
from ..storage import outputs, strict_json
from . import checkpoint as files
from . import data_parallel, distributed
from .evaluation import evaluate, write_examples
from .initial import begin_with, load_initial, sizes_of, strength_of
from .loader import BatchLoader
from .logging import RunLog
from .measures import measures_line, measures_warnings
from .objective import Objective
from .order import batches_of
from .report import Evaluation
from .run_state import Run
from .signals import StopSignals, Terminated
from .state import give_state, random_kept, random_kept_on_stop, seed_all, take_state
from .step import Stepper, StepRecord, parameter_groups, problem_of

T = TypeVar("T")


class TrainingError(RunError):
    """The run cannot go on: too many steps in a row with a loss or gradient that is not finite."""


class Trainer:
    """One run. `out/` receives checkpoints, logs, pictures and audio.

    `agent_options` are further arguments of `AdaptiveWindowCreativeAgent`; the checkpoint keeps them.

    A step with a non-finite loss or gradient is refused (see `step.py`): parameters, BatchNorm statistics and optimizer
    stay as they were, the files of the batch are named, and after `max_refused` such steps in a row the run ends. A
    refused step counts as one of `max_steps`.

    Wherever the run is killed, resuming gives what it would have given: evaluations leave no trace in the random
    state, what they found becomes part of the state in one move with the checkpoints, and `best` is written before
    `last`, which says what `best` holds.
    """

    def __init__(
        self,
        config: TrainConfig,
        codec: Codec,
        train: ClipDataset,
        held_out: ClipDataset,
        stop: StopSignals | None = None,
        **agent_options: Any,
    ) -> None:
        self.stop = stop or StopSignals()
        device = choose_device(config.device)
        seed_all(config.seed)
        init = config.init
        initial = None if init is None else distributed.main_first(lambda: load_initial(init))
        arguments: dict[str, Any] = {
            "encoding_dim": codec.dim,
            "num_pairs": config.num_pairs,
            "window_frames": codec.frames(config.window_seconds),
            "max_ratio": config.max_ratio,
            "max_strength": config.max_strength,
            "restore": config.restore,
            "selector": config.selector,
            "novelty": config.novelty,
            "dropout": config.dropout,
            **({"frame_rate": codec.frame_rate} if config.selector == "content" else {}),
            "strength": strength_of(config, codec),
            **(sizes_of(initial) if initial is not None else {}),
            **agent_options,
        }
        dtype = torch.float64 if config.precision == "float64" else torch.float32
        agent = AdaptiveWindowCreativeAgent(**arguments).to(device, dtype)
        agent.recompute = config.recompute
        optimizer = torch.optim.AdamW(
            parameter_groups(agent, config), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        objective = distributed.main_first(lambda: Objective(codec, config))  # it refuses what does not fit
        if arguments["strength"] == "harmony":
            cast(ContentSelector, agent.window_selector).hear(objective.listen.classes)
        run = self.state = Run(config, codec, train, held_out, device, arguments, agent, optimizer, objective)
        self.config, self.device, self.codec = config, device, codec
        self.train_set, self.held_out = train, held_out
        self.agent, self.optimizer, self.objective = agent, optimizer, objective
        self.progress, self.evaluations = run.progress, run.evaluations
        self.loader = BatchLoader(train, config.workers, config.worker_start, pin_memory=device.type == "cuda")
        self.step_seconds: deque[float] = deque(maxlen=1000)
        self.last_parts: dict[str, float] = {}
        if not distributed.is_main():  # dropout of its own
            seed_all(distributed.rank_seed(config.seed))
        if initial is not None and config.init is not None and not config.resume:
            begin_with(agent, arguments, initial, config.init)
        if config.resume:
            distributed.main_first(lambda: give_state(run, *files.load_last(config.out)))
        # wrapped and compiled after the weights are in place; shares them with self.agent, which is what is saved
        forward = data_parallel.wrap(agent, sync_batchnorm=config.sync_batchnorm)
        self.take_step = Stepper(agent, forward, optimizer, objective, config, device)
        self._unread: deque[StepRecord] = deque()  # steps whose figures have not been read
        self._behind = 1 if device.type == "cuda" else 0  # so many of them while the next one is queued
        self._settled = self._saved = time.perf_counter()
        self._on_disk = config.resume  # whether the state is what a checkpoint holds

    def run(self, log: RunLog) -> Evaluation:
        """Trains to `max_steps` or early stop; returns the last evaluation.

        Raises:
            TrainingError: `max_refused` steps in a row were refused.
            KeyboardInterrupt, Terminated: SIGINT or SIGTERM came; the state is saved.
        """
        config, progress = self.config, self.progress
        hidden = not distributed.is_main()
        bar = Meter(config.max_steps, what="training", unit="step", done=progress.step, hidden=hidden)
        try:
            with self.stop, self.stop.deferred():
                if not self._on_disk:  # a disk that is full shows itself now, and a run killed early can be resumed
                    self.save(files.LAST)
                try:
                    while not (self._complete() or self._should_stop()):
                        self._train(log, bar)
                        self._after_epoch(log)
                        if self._ask_all()[0]:
                            self.stop.check()
                except (KeyboardInterrupt, Terminated):
                    if not self._on_disk:
                        self.save(files.LAST)
                    note(f"interrupted at step {progress.step}: saved; go on with --resume")
                    raise
        finally:
            bar.close()
        return self.evaluations[-1]

    def save(self, name: str) -> Path:
        path = self.config.out / name
        previous = path.with_name(files.PREVIOUS) if name == files.LAST else None
        state = take_state(self.state)
        distributed.on_main(lambda: files.save_checkpoint(path, state, previous=previous))
        if name == files.LAST:
            self._saved, self._on_disk = time.perf_counter(), True
        return path

    def logged_until(self) -> tuple[int, int]:
        """The steps whose figures, and whose evaluation, a resumed run does not log again."""
        return self.progress.step, self.evaluations[-1].step if self.evaluations else -1

    def _complete(self) -> bool:
        """All steps are done, and the evaluation at the end too."""
        done = self.progress.step >= self.config.max_steps
        return done and bool(self.evaluations) and self.evaluations[-1].step == self.progress.step

    def _should_stop(self) -> bool:
        patience = self.config.patience
        if patience and self.progress.epochs_without_gain >= patience:
            note(f"early stop: {patience} epochs without a better held-out loss")
            return True
        return False

    def _order_of_epoch(self) -> list[list[int]]:
        self.train_set.set_epoch(self.progress.epoch)
        return batches_of(len(self.train_set), self.config.batch_size, self.config.seed, self.progress.epoch)

    def _load(self, batches: list[list[int]]) -> Iterator[dict[str, Any]]:
        """This process's share of each batch."""
        shares = [distributed.share(batch) for batch in batches]
        return self.loader.batches(shares, distributed.rank_seed(self.config.seed) + self.progress.epoch)

    def _train(self, log: RunLog, bar: Meter) -> None:
        """To the end of the epoch or of the run."""
        progress = self.progress
        batches = self._load(self._order_of_epoch()[progress.batch :])
        while progress.step < self.config.max_steps:
            with random_kept_on_stop(self.device), self._leavable():
                batch = next(batches, None)
            if batch is None:
                break
            with contextlib.ExitStack() as mode:
                if self._on_disk:  # nothing is lost by leaving, and the first step may compile for minutes
                    mode.enter_context(self._leavable())
                self._unread.append(self.take_step(batch, progress.step))
                self._on_disk = False
                self._note_mode()
            progress.step, progress.batch = progress.step + 1, progress.batch + 1
            self._read(log, bar, leave=self._behind)
            stopping, save = self._ask_all()
            if stopping or save:
                self._read(log, bar, leave=0)
                if stopping:
                    self.stop.check()
                self.save(files.LAST)
        self._read(log, bar, leave=0)

    def _note_mode(self) -> None:
        """What is compiled is known after a process's first step."""
        mode, before = self.take_step.compute.mode, self.state.mode
        if mode != before and self.config.resume:
            note(f"this run was trained with {before} computation and goes on with {mode}: last bits may differ")
        self.state.mode = mode

    def _leavable(self) -> contextlib.AbstractContextManager[object]:
        """A part that one process can leave at any point; of several none leaves while others wait for it."""
        return self.stop.immediate() if distributed.size() == 1 else self.stop.deferred()

    def _ask_all(self) -> tuple[bool, bool]:
        """Whether any process has a signal to stop, and whether any has a save due: the same answer on all."""
        number, due = distributed.largest(self.stop.requested or 0, self._save_due())
        if number:
            self.stop.requested = number
        return bool(number), bool(due)

    def _save_due(self) -> bool:
        every, minutes = self.config.save_every, self.config.save_minutes
        late = minutes > 0 and time.perf_counter() - self._saved > 60 * minutes
        return late or (every > 0 and self.progress.step % every == 0)

    def _read(self, log: RunLog, bar: Meter, *, leave: int) -> None:
        """Reads the figures of all steps but the last `leave`, which the device may still be busy with."""
        while len(self._unread) > leave:
            record = self._unread.popleft()
            figures = record.figures()
            now = time.perf_counter()
            self.step_seconds.append(now - max(record.began, self._settled))
            self._settled = now
            problem = problem_of(figures)
            figures.pop("refused")
            self.last_parts = figures
            self._count_refused(problem, record)
            if problem is None:
                self._after_step(record, log, bar)

    def _count_refused(self, problem: str | None, record: StepRecord) -> None:
        progress = self.progress
        if problem is None:
            progress.refused_in_a_row = 0
            return
        progress.refused += 1
        progress.refused_in_a_row += 1
        names = ", ".join(sorted({*chain(*distributed.gather(record.files))}))
        note(f"step {record.step} refused: {problem.replace('_', ' ')} is not finite; batch: {names}")
        if progress.refused_in_a_row >= self.config.max_refused:
            self._unread.clear()
            self.save(files.LAST)
            distributed.on_main(lambda: self._give_up(names))

    def _give_up(self, names: str) -> NoReturn:
        count = self.progress.refused_in_a_row
        raise TrainingError(f"{count} steps in a row with a non-finite loss or gradient; last batch: {names}")

    def _after_step(self, record: StepRecord, log: RunLog, bar: Meter) -> None:
        step = record.step
        shown = (f"{key} {self.last_parts[key]:.3f}" for key in ("loss", "spectral", "novelty"))
        bar.advance("  ".join(shown), to=step)
        if step % self.config.log_every == 0 or step == self.config.max_steps:
            scalars = {f"train/{key}": value for key, value in self.last_parts.items()}
            scalars["train/learning_rate"] = record.learning_rate
            scalars["train/step_seconds"] = self.step_seconds[-1]
            scalars["train/refused"] = self.progress.refused
            log.scalars(step, scalars)

    def _evaluate(self) -> Evaluation:
        return evaluate(self.state)

    def _after_epoch(self, log: RunLog) -> None:
        progress = self.progress
        found = self._on_main(self._evaluate)
        better = found.loss < progress.best
        parts = ", ".join(f"{name} {value:.4f}" for name, value in found.parts.items())
        mark = ", best" if better else ""
        note(f"epoch {progress.epoch + 1}, step {progress.step}: held-out loss {found.loss:.4f} ({parts}){mark}")
        note(found.windows.table())
        note(f"  {found.windows.summary()}")
        note(f"  patterns: {measures_line(found.heard)}")
        for warning in (*found.windows.warnings(), *measures_warnings(found.heard)):
            note(f"  {warning}")
        held_out = {f"held_out/{key}": value for key, value in found.parts.items()}
        held_out |= {f"heard/{key}": value for key, value in found.heard.items()}
        log.scalars(progress.step, {"held_out/loss": found.loss, **held_out, **found.windows.scalars()})
        if self.config.examples:
            self._on_main(lambda: write_examples(self.state, log))
        self._keep(found, better)

    def _on_main(self, function: Callable[[], T]) -> T:
        """On rank 0, which can leave it at any point (the others leave with it), with the result for all ranks."""

        def leavable() -> T:
            with random_kept(self.device), self.stop.immediate():
                return function()

        return distributed.on_main(leavable)

    def _keep(self, found: Evaluation, better: bool) -> None:
        """The evaluation becomes part of the state, and the state is saved."""
        progress = self.progress
        self._on_disk = False
        self.evaluations.append(found)
        progress.best = min(progress.best, found.loss)
        progress.epochs_without_gain = 0 if better else progress.epochs_without_gain + 1
        if progress.batch == len(self._order_of_epoch()):
            progress.epoch, progress.batch = progress.epoch + 1, 0
        if better:
            self.save(files.BEST)
        self.save(files.LAST)


def write_summary(trainer: Trainer, final: Evaluation, path: Path) -> dict[str, Any]:
    """The run's figures as JSON: steps, losses, seconds a step (median), windows over the held-out set."""
    seconds = sorted(trainer.step_seconds)
    summary = {
        "steps": trainer.progress.step,
        "epochs": trainer.progress.epoch,
        "held_out_loss": final.loss,
        "best_held_out_loss": trainer.progress.best,
        "train": trainer.last_parts,
        "seconds_per_step": seconds[len(seconds) // 2] if seconds else None,
        "codec": trainer.codec.name,
        "random_codec": trainer.codec.random,
        "windows": final.windows.scalars(),
        "heard": final.heard,
    }
    outputs.write_text(path, strict_json.dumps(summary, indent=2) + "\n")
    return summary
