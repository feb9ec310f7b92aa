"""The training loop: AdamW on the agent, evaluation after each epoch, checkpoints `last` and `best`."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..audio.codec import Codec
from ..audio.dataset import ClipDataset
from ..config import TrainConfig, UsageError, to_plain
from ..model.agent import AdaptiveWindowCreativeAgent
from . import checkpoint as files
from .evaluation import Evaluation, evaluate, write_examples
from .logging import RunLog, note
from .objective import Objective


class TrainingError(RuntimeError):
    """The run cannot go on: too many steps in a row with a loss or gradient that is not finite."""


@dataclass
class Progress:
    """Where a run is: all that a resumed run needs beside tensors."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches of this epoch already used
    best: float = math.inf
    epochs_without_gain: int = 0


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then constant or half a cosine down to zero at `max_steps`. Steps count from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def choose_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this PyTorch finds no CUDA device; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def batches_of(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The order of an epoch: a function of seed and epoch alone, so that a resumed run goes on in it."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
    return [order[i : i + batch_size] for i in range(0, count, batch_size)]


class Trainer:
    """One run. `out/` receives checkpoints, logs, pictures and audio.

    `agent_options` are further arguments of `AdaptiveWindowCreativeAgent`; the checkpoint keeps them.

    A step with a non-finite loss or gradient is refused: parameters, BatchNorm statistics and optimizer stay as they
    were, the files of the batch are named, and after `max_refused` such steps in a row the run ends.
    """

    def __init__(
        self, config: TrainConfig, codec: Codec, train: ClipDataset, held_out: ClipDataset, **agent_options: Any
    ) -> None:
        self.config, self.codec, self.train_set, self.held_out = config, codec, train, held_out
        self.device = choose_device(config.device)
        torch.manual_seed(config.seed)
        self.window = codec.frames(config.window_seconds)
        self.agent_arguments: dict[str, Any] = {
            "encoding_dim": codec.dim,
            "num_pairs": config.num_pairs,
            "window_frames": self.window,
            "max_ratio": config.max_ratio,
            **agent_options,
        }
        self.agent = AdaptiveWindowCreativeAgent(**self.agent_arguments).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.agent.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.objective = Objective(codec, config)
        self.progress = Progress()
        self.step_seconds: list[float] = []
        self.last_parts: dict[str, float] = {}
        self.evaluations: list[Evaluation] = []
        if config.resume:
            self._resume()
        # compiled after the weights are in place; shares them with self.agent, which is what is saved
        self.forward: nn.Module = torch.compile(self.agent) if config.compile else self.agent  # type: ignore[assignment]  # compile is typed as any callable

    def run(self, log: RunLog) -> Evaluation:
        """Trains to `max_steps` or early stop; returns the last evaluation."""
        config, progress = self.config, self.progress
        bar = tqdm(total=config.max_steps, initial=progress.step, desc="training", unit="step", disable=None)
        refused = 0
        try:
            while progress.step < config.max_steps and not self._should_stop():
                batches = self._order_of_epoch()
                for batch in self._load(batches[progress.batch :]):
                    problem = self._step(batch)
                    progress.batch += 1
                    refused = self._count_refused(refused, problem, batch)
                    if problem is None:
                        progress.step += 1
                        self._after_step(log, bar)
                    if progress.step >= config.max_steps:
                        break
                if progress.batch == len(batches):
                    progress.epoch, progress.batch = progress.epoch + 1, 0
                self._after_epoch(log)
        except KeyboardInterrupt:
            self.save("last")
            note(f"interrupted at step {progress.step}: saved; go on with --resume")
            raise
        finally:
            bar.close()
        if not self.evaluations:  # resumed at its end: nothing was left to train
            self.evaluations.append(self._evaluate())
        return self.evaluations[-1]

    def save(self, name: str) -> Path:
        path = self.config.out / f"{name}.safetensors"
        checkpoint = files.Checkpoint(
            model=self.agent.state_dict(),
            optimizer=files.optimizer_state(self.optimizer, self.agent),
            random=files.random_state(),
            info={
                "agent": self.agent_arguments,
                "codec": {
                    "name": self.codec.name,
                    "fingerprint": self.codec.fingerprint,
                    "random": self.codec.random,
                    "frame_rate": self.codec.frame_rate,
                },
                "clip_frames": self.codec.frames(self.config.clip_seconds),
                "config": to_plain(self.config),
                "progress": vars(self.progress),
            },
        )
        files.save_checkpoint(path, checkpoint)
        return path

    def _resume(self) -> None:
        path = self.config.out / "last.safetensors"
        saved = files.load_checkpoint(path)
        for key, ours in (("agent", self.agent_arguments), ("codec", self.codec.fingerprint)):
            theirs = saved.info["agent"] if key == "agent" else saved.info["codec"]["fingerprint"]
            if theirs != ours:
                raise files.CheckpointError(f"cannot resume {path}: its {key} is {theirs}, this run's is {ours}")
        files.load_weights(self.agent, saved.model, path)
        files.restore_optimizer(self.optimizer, self.agent, saved.optimizer)
        files.restore_random(saved.random)
        self.progress = Progress(**saved.info["progress"])

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
        # a generator of its own: the loader draws a seed for its workers, which must not disturb dropout's sequence
        generator = torch.Generator().manual_seed(self.config.seed + self.progress.epoch)
        yield from DataLoader(
            self.train_set, batch_sampler=batches, num_workers=self.config.workers, generator=generator
        )

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        wanted = self.config.precision
        if wanted == "auto":
            wanted = "bf16" if self.device.type == "cuda" else "float32"
        if wanted == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _step(self, batch: dict[str, Any]) -> str | None:
        """One optimizer step; what was not finite, or None."""
        began = time.perf_counter()
        self.agent.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.progress.step)
        before = [buffer.clone() for buffer in self.agent.buffers()]
        x, y = (batch[key].to(self.device, non_blocking=True) for key in ("input", "target"))
        with self._autocast():
            outputs, losses, metadata = self.forward(x, y)
        loss, parts = self.objective(outputs, losses, metadata["windows"], x, y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.agent.parameters(), self.config.clip_gradient)
        values = torch.stack([loss.detach(), norm, *(part.detach() for part in parts.values())]).tolist()
        self.last_parts = dict(zip(("loss", "gradient_norm", *parts), values, strict=True))
        problem = next((name for name in ("loss", "gradient_norm") if not math.isfinite(self.last_parts[name])), None)
        if problem is None:
            self.optimizer.step()
        else:
            _put_back(self.agent, before)
        self.optimizer.zero_grad(set_to_none=True)
        self.step_seconds.append(time.perf_counter() - began)
        return problem

    def _count_refused(self, refused: int, problem: str | None, batch: dict[str, Any]) -> int:
        if problem is None:
            return 0
        names = ", ".join(sorted({*batch["input_file"], *batch["target_file"]}))
        note(f"step refused: {problem.replace('_', ' ')} is not finite; batch: {names}")
        if refused + 1 >= self.config.max_refused:
            self.save("last")
            raise TrainingError(f"{refused + 1} steps in a row with a non-finite loss or gradient; last batch: {names}")
        return refused + 1

    def _after_step(self, log: RunLog, bar: Any) -> None:
        step = self.progress.step
        shown = {key: f"{self.last_parts[key]:.3f}" for key in ("loss", "spectral", "novelty")}
        bar.update()
        bar.set_postfix(shown, refresh=False)
        if step % self.config.log_every == 0 or step == self.config.max_steps:
            scalars = {f"train/{key}": value for key, value in self.last_parts.items()}
            scalars["train/learning_rate"] = self.optimizer.param_groups[0]["lr"]
            scalars["train/step_seconds"] = self.step_seconds[-1]
            log.scalars(step, scalars)
            if bar.disable:  # no terminal: plain lines instead of a bar
                left = (self.config.max_steps - step) * self.step_seconds[-1]
                rest = "  ".join(f"{key} {value}" for key, value in shown.items())
                pace = f"{self.step_seconds[-1]:.2f} s/step  {left:.0f} s left"
                note(f"step {step}/{self.config.max_steps}  {rest}  {pace}")

    def _evaluate(self) -> Evaluation:
        config = self.config
        return evaluate(
            self.agent,
            self.objective,
            self.held_out,
            config.batch_size,
            self.device,
            config.window_seconds,
            self.progress.step,
        )

    def _after_epoch(self, log: RunLog) -> None:
        progress = self.progress
        found = self._evaluate()
        self.evaluations.append(found)
        better = found.loss < progress.best
        progress.best = min(progress.best, found.loss)
        progress.epochs_without_gain = 0 if better else progress.epochs_without_gain + 1
        parts = ", ".join(f"{name} {value:.4f}" for name, value in found.parts.items())
        mark = ", best" if better else ""
        note(f"epoch {progress.epoch}, step {progress.step}: held-out loss {found.loss:.4f} ({parts}){mark}")
        note(found.windows.table())
        for warning in found.windows.warnings():
            note(f"  {warning}")
        held_out = {f"held_out/{key}": value for key, value in found.parts.items()}
        log.scalars(progress.step, {"held_out/loss": found.loss, **held_out, **found.windows.scalars()})
        if self.config.examples:
            write_examples(self, log)
        self.save("last")
        if better:
            self.save("best")


def _put_back(module: nn.Module, buffers: list[Tensor]) -> None:
    with torch.no_grad():
        for buffer, value in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(value)


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
    }
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary
