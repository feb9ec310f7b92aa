import json
import math
import os
import signal
from dataclasses import replace
from itertools import chain

import pytest
import torch
from clips import SMALL_AGENT, WINDOW, Clips, ConvolutionCodec, small_config, smooth_latents, white_latents

from adaptive_window.config import UsageError
from adaptive_window.kernels import resample_windows
from adaptive_window.training import loop
from adaptive_window.training.checkpoint import CheckpointError, build_agent, load_checkpoint
from adaptive_window.training.logging import RunLog
from adaptive_window.training.loop import Trainer, TrainingError
from adaptive_window.training.order import batches_of
from adaptive_window.training.state import optimizer_state
from adaptive_window.training.step import Stepper, learning_rate, problem_of


def train(config, inputs=None, targets=None, held_out=None):
    inputs = smooth_latents(4, seed=1) if inputs is None else inputs
    targets = smooth_latents(4, seed=2) if targets is None else targets
    held_out = held_out or Clips(smooth_latents(2, seed=5), smooth_latents(2, seed=6))
    trainer = Trainer(config, ConvolutionCodec(), Clips(inputs, targets), held_out, **SMALL_AGENT)
    log = RunLog(config.out, {}, tensorboard=False, mlflow=False)
    try:
        trainer.run(log)
    finally:
        log.close()
    return trainer


def state_of(trainer):
    return {
        **trainer.agent.state_dict(),
        **{f"{k}.{slot}": v for k, s in optimizer_state(trainer.optimizer, trainer.agent).items()
           for slot, v in s.items()},
    }  # fmt: skip


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.25), (3, 1.0), (4, 1.0), (12, 0.5), (20, 0.0), (25, 0.0)],
)
def test_cosine_schedule_with_warmup(tmp_path, step, expected):
    config = small_config(tmp_path, learning_rate=1.0, schedule="cosine", warmup_steps=4, max_steps=20)
    assert learning_rate(config, step) == pytest.approx(expected, abs=1e-12)


def test_constant_schedule(tmp_path):
    config = small_config(tmp_path, learning_rate=0.5, schedule="constant", max_steps=20)
    assert {learning_rate(config, step) for step in range(25)} == {0.5}


def test_an_epochs_order_is_a_function_of_seed_and_epoch():
    assert batches_of(10, 4, seed=1, epoch=2) == batches_of(10, 4, seed=1, epoch=2)
    assert batches_of(10, 4, seed=1, epoch=2) != batches_of(10, 4, seed=1, epoch=3)
    assert batches_of(10, 4, seed=1, epoch=2) != batches_of(10, 4, seed=2, epoch=2)
    assert sorted(chain(*batches_of(12, 4, seed=1, epoch=2))) == list(range(12))


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (3, 8)])
def test_the_last_batch_is_filled_from_the_epochs_beginning(count, batch_size):
    batches = batches_of(count, batch_size, seed=1, epoch=2)
    assert {len(batch) for batch in batches} == {batch_size}
    used = [*chain(*batches)]
    assert sorted(used[:count]) == list(range(count))
    assert all(used[i] == used[i - count] for i in range(count, len(used)))
    assert len(used) - count < batch_size


@pytest.mark.proof
def test_loss_falls_on_structure_and_not_on_white_noise(tmp_path):
    """Held-out error over that of the best constant: far below 1 where frames share structure, near 1 for noise."""

    def error(name, clips):
        config = small_config(tmp_path / name, max_steps=24, batch_size=4, learning_rate=2e-3, novelty_weight=0.0)
        held_out = Clips(clips(4, seed=5), clips(4, seed=6))
        trainer = train(config, clips(16, seed=1), clips(16, seed=2), held_out)
        last = trainer.evaluations[-1]
        start, ratio = (torch.tensor(last.windows.values[f"{key}_target"]).float() for key in ("start", "ratio"))
        wanted = resample_windows(held_out.targets, start, ratio, WINDOW)
        return last.parts["spectral"] / wanted.square().mean().item()

    assert error("structured", smooth_latents) < 0.75
    assert error("noise", white_latents) > 0.95


def test_training_moves_the_windows(tmp_path):
    trainer = train(small_config(tmp_path, max_steps=6, learning_rate=3e-3))
    first, last = trainer.evaluations[0].windows.values, trainer.evaluations[-1].windows.values
    for name in first:
        assert abs(last[name] - first[name]).max() > 1e-4, name


def test_resumed_run_equals_the_uninterrupted_one(tmp_path):
    """Stopped in the middle of an epoch (4 clips, batches of 2, 3 steps): parameters and optimizer are bit-equal."""
    straight = train(small_config(tmp_path / "straight", max_steps=7))
    train(small_config(tmp_path / "stopped", max_steps=3))
    saved = load_checkpoint(tmp_path / "stopped" / "last.safetensors")
    assert saved.info["progress"]["step"] == 3
    resumed = train(small_config(tmp_path / "stopped", max_steps=7, resume=True))
    place = [(t.progress.step, t.progress.epoch, t.progress.batch) for t in (resumed, straight)]
    assert place == [(7, 3, 1)] * 2
    assert_equal_states(state_of(resumed), state_of(straight))


def test_resume_refuses_another_agent(tmp_path):
    train(small_config(tmp_path, max_steps=1))
    with pytest.raises(CheckpointError, match="its num_pairs is 3, this run's is 2"):
        train(small_config(tmp_path, max_steps=2, num_pairs=2, resume=True))


def test_checkpoint_builds_the_trained_agent(tmp_path):
    trainer = train(small_config(tmp_path, max_steps=2))
    path = tmp_path / "last.safetensors"
    agent = build_agent(load_checkpoint(path), path)
    assert_equal_states(agent.state_dict(), trainer.agent.state_dict())


def test_best_holds_the_least_held_out_loss(tmp_path):
    trainer = train(small_config(tmp_path, max_steps=6, learning_rate=3e-2))  # too fast: later epochs may be worse
    best = load_checkpoint(tmp_path / "best.safetensors").info["progress"]
    assert best["best"] == min(evaluation.loss for evaluation in trainer.evaluations)
    assert best["step"] == min(trainer.evaluations, key=lambda evaluation: evaluation.loss).step


def test_a_step_on_nonsense_is_refused(tmp_path):
    """Parameters, BatchNorm statistics and optimizer stay as they were; the batch is named; the run goes on."""
    trainer = train(small_config(tmp_path, max_steps=2))
    before = {name: value.clone() for name, value in state_of(trainer).items()}
    batch = trainer.train_set[0]
    poisoned = {k: [v] if isinstance(v, str) else v[None].clone() for k, v in batch.items()}
    poisoned["input"][0, 5, 7] = math.nan
    record = trainer.take_step(poisoned, 2)
    assert problem_of(record.figures()) == "loss"
    assert_equal_states(state_of(trainer), before)
    healthy = {k: [v] if isinstance(v, str) else v[None] for k, v in batch.items()}
    assert problem_of(trainer.take_step(healthy, 3).figures()) is None
    assert any(not torch.equal(value, before[name]) for name, value in state_of(trainer).items())


def test_gives_up_after_refused_steps_in_a_row(tmp_path, capsys):
    inputs = torch.full((4, 128, 60), math.nan)
    with pytest.raises(TrainingError, match=r"3 steps in a row .*song"):
        train(small_config(tmp_path, max_refused=3, max_steps=50), inputs=inputs)
    errors = capsys.readouterr().err
    assert errors.count("refused: loss is not finite") == 3
    assert "_input.wav" in errors


def test_early_stop_after_patience(tmp_path, monkeypatch):
    """Better at the second epoch only: with patience 2 the fourth is the last."""
    script = iter([1.0, 0.9, 0.95, 0.9, 0.8])
    original = Trainer._evaluate
    monkeypatch.setattr(Trainer, "_evaluate", lambda self: replace(original(self), loss=next(script)))
    trainer = train(small_config(tmp_path, max_steps=20, batch_size=4, patience=2))
    assert trainer.progress.step == 4
    assert trainer.progress.best == 0.9


def test_gradient_is_clipped(tmp_path, monkeypatch):
    norms = []
    original = torch.optim.AdamW.step

    def step(self, *arguments):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])).item())
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train(small_config(tmp_path, max_steps=2, clip_gradient=1e-3))
    assert norms == [pytest.approx(1e-3, rel=1e-3)] * 2


def saves_of(config, monkeypatch):
    """The step of every save of `last`, the first of them before step 0."""
    steps = []
    original = loop.files.save_checkpoint

    def save(path, checkpoint, **options):
        if path.name == loop.files.LAST:
            steps.append(checkpoint.info["progress"]["step"])
        original(path, checkpoint, **options)

    monkeypatch.setattr(loop.files, "save_checkpoint", save)
    train(config)
    return steps


def test_checkpoints_come_every_so_many_steps(tmp_path, monkeypatch):
    config = small_config(tmp_path, max_steps=5, batch_size=1, save_every=2, save_minutes=0)
    assert saves_of(config, monkeypatch) == [0, 2, 4, 4, 5]  # the second 4 is the epoch's end


def test_checkpoints_come_every_so_many_minutes(tmp_path, monkeypatch):
    config = small_config(tmp_path / "a", max_steps=3, batch_size=1, save_minutes=1e-9)
    assert saves_of(config, monkeypatch) == [0, 1, 2, 3, 3]
    monkeypatch.undo()
    config = small_config(tmp_path / "b", max_steps=3, batch_size=1, save_minutes=60)
    assert saves_of(config, monkeypatch) == [0, 3]


def test_an_unwritable_folder_is_found_before_the_first_step(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(Stepper, "__call__", lambda *arguments: steps.append(1))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop.files, "_write_sealed", full)
    with pytest.raises(CheckpointError, match="No space left"):
        train(small_config(tmp_path))
    assert steps == []


@pytest.mark.proof
def test_a_damaged_last_costs_only_the_steps_since_the_one_before(tmp_path, capsys):
    straight = train(small_config(tmp_path / "straight", max_steps=6))
    train(small_config(tmp_path / "damaged", max_steps=4, save_every=1))
    path = tmp_path / "damaged" / "last.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(bytes(content))
    resumed = train(small_config(tmp_path / "damaged", max_steps=6, resume=True))
    assert "going on from the checkpoint before it" in capsys.readouterr().err
    assert_equal_states(state_of(resumed), state_of(straight))


def test_figures_are_read_when_the_next_step_is_queued(tmp_path):
    """As on CUDA; before a checkpoint and an evaluation all are read, so that counts and logs are whole there."""
    config = small_config(tmp_path, max_steps=5, batch_size=1, log_every=1, save_every=3)
    clips = Clips(smooth_latents(4, seed=1), smooth_latents(4, seed=2))
    trainer = Trainer(config, ConvolutionCodec(), clips, clips, **SMALL_AGENT)
    trainer._behind = 1
    events, take_step, save, evaluate = [], trainer.take_step, trainer.save, trainer._evaluate

    class Record:
        def __init__(self, record):
            self.__dict__.update(vars(record))
            self.inner = record

        def figures(self):
            events.append(f"read {self.step}")
            return self.inner.figures()

    def queued(batch, taken):
        events.append(f"queue {taken + 1}")
        return Record(take_step(batch, taken))

    queued.compute = take_step.compute
    trainer.take_step = queued
    trainer.save = lambda name: (events.append("save"), save(name))[1] if name == "last.safetensors" else save(name)
    trainer._evaluate = lambda: (events.append("evaluate"), evaluate())[1]
    log = RunLog(tmp_path, {}, tensorboard=False, mlflow=False)
    trainer.run(log)
    log.close()
    steps = "queue 1, queue 2, read 1, queue 3, read 2, read 3, save, queue 4, read 4, evaluate, save"
    assert ", ".join(events) == f"save, {steps}, queue 5, read 5, evaluate, save"
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "train/loss" in entry] == [1, 2, 3, 4, 5]


@pytest.mark.proof
def test_interrupt_saves_and_can_be_resumed(tmp_path, monkeypatch):
    calls = []
    original = Stepper.__call__

    def interrupted(self, batch, taken):
        record = original(self, batch, taken)
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return record

    monkeypatch.setattr(Stepper, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(small_config(tmp_path / "stopped", max_steps=5))
    monkeypatch.undo()
    resumed = train(small_config(tmp_path / "stopped", max_steps=5, resume=True))
    straight = train(small_config(tmp_path / "straight", max_steps=5))
    assert_equal_states(state_of(resumed), state_of(straight))


def test_bf16_autocast_trains(tmp_path):
    trainer = train(small_config(tmp_path, max_steps=2, precision="bf16"))
    assert math.isfinite(trainer.last_parts["loss"])
    assert {p.dtype for p in trainer.agent.parameters()} == {torch.float32}


def test_cuda_asked_for_and_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="finds no CUDA device"):
        loop.choose_device("cuda")


def test_optimizer_options_reach_the_optimizer(tmp_path):
    trainer = train(small_config(tmp_path, max_steps=1, weight_decay=0.25, learning_rate=0.125))
    (group,) = trainer.optimizer.param_groups
    assert (group["weight_decay"], group["lr"]) == (0.25, 0.125)


def test_loader_processes_change_nothing(tmp_path):
    alone = train(small_config(tmp_path / "alone", max_steps=2))
    helped = train(small_config(tmp_path / "helped", max_steps=2, workers=2))
    assert_equal_states(state_of(helped), state_of(alone))


def test_log_entries_come_as_often_as_asked(tmp_path):
    train(small_config(tmp_path, max_steps=6, log_every=2))
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "train/loss" in entry] == [2, 4, 6]
