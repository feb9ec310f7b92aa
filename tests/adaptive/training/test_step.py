"""One optimizer step: what it refuses, what a refused step leaves, and that the host waits for nothing."""

import math

import pytest
import torch
from clips import SMALL_AGENT, Clips, ConvolutionCodec, small_config, smooth_latents
from torch.utils._python_dispatch import TorchDispatchMode

from adaptive_window.training import step as step_module
from adaptive_window.training.loop import Trainer
from adaptive_window.training.state import optimizer_state
from adaptive_window.training.step import problem_of


@pytest.fixture
def trainer(tmp_path):
    clips = Clips(smooth_latents(2, seed=1), smooth_latents(2, seed=2))
    return Trainer(small_config(tmp_path), ConvolutionCodec(), clips, clips, **SMALL_AGENT)


def batch_of(trainer):
    item = trainer.train_set[0]
    return {key: [value] if isinstance(value, str) else value[None].clone() for key, value in item.items()}


def whole_state(trainer):
    state = dict(trainer.agent.state_dict())
    for name, slots in optimizer_state(trainer.optimizer, trainer.agent).items():
        state |= {f"{name}.{slot}": value for slot, value in slots.items()}
    return {name: value.clone() for name, value in state.items()}


def changed(before, after):
    assert before.keys() == after.keys()
    return [name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38])
def test_a_batch_of_nonsense_changes_nothing(trainer, value):
    trainer.take_step(batch_of(trainer), 0)
    before = whole_state(trainer)
    poisoned = batch_of(trainer)
    poisoned["input"][0, 5, 7] = value
    record = trainer.take_step(poisoned, 1)
    assert problem_of(record.figures()) in ("loss", "gradient_norm")
    assert changed(before, whole_state(trainer)) == []
    assert record.files == ("song0_input.wav", "song0_target.wav")


def test_a_gradient_of_nonsense_under_a_finite_loss(trainer):
    """The loss is finite, one parameter's gradient is not: what a division in a backward formula does."""
    trainer.take_step(batch_of(trainer), 0)
    before = whole_state(trainer)
    parameter = next(trainer.agent.parameters())
    handle = parameter.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), math.inf))
    record = trainer.take_step(batch_of(trainer), 1)
    handle.remove()
    assert math.isfinite(record.figures()["loss"])
    assert problem_of(record.figures()) == "gradient_norm"
    assert changed(before, whole_state(trainer)) == []


def test_the_step_after_a_refused_one_is_as_if_it_had_not_been(tmp_path):
    """Moments and their bias corrections too: AdamW's count of steps does not see the refused one."""
    clips = Clips(smooth_latents(2, seed=1), smooth_latents(2, seed=2))
    states = []
    for refused in (False, True):
        agent = {**SMALL_AGENT, "dropout": 0.0}
        trainer = Trainer(small_config(tmp_path / str(refused)), ConvolutionCodec(), clips, clips, **agent)
        trainer.take_step(batch_of(trainer), 0)
        if refused:
            poisoned = batch_of(trainer)
            poisoned["target"].fill_(math.nan)
            trainer.take_step(poisoned, 1)
        trainer.take_step(batch_of(trainer), 1)
        states.append(whole_state(trainer))
    assert changed(*states) == []


def test_a_healthy_step_changes_weights_statistics_and_moments(trainer):
    trainer.take_step(batch_of(trainer), 0)
    before = whole_state(trainer)
    assert problem_of(trainer.take_step(batch_of(trainer), 1).figures()) is None
    different = changed(before, whole_state(trainer))
    for part in ("running_mean", "num_batches_tracked", "exp_avg", "exp_avg_sq", "weight"):
        assert any(name.endswith(part) for name in different), part


def test_a_step_refused_elsewhere_is_refused_here(trainer, monkeypatch):
    """With several processes the figures are the mean of theirs: one rank's nonsense is nobody's step."""
    trainer.take_step(batch_of(trainer), 0)
    before = whole_state(trainer)

    def with_another_rank(ours):  # whose loss, the first figure, is NaN, and who refuses, the last
        other = ours.new_zeros(len(ours))
        other[0], other[-1] = math.nan, 1.0
        return (ours + other) / 2

    monkeypatch.setattr(step_module.distributed, "mean", with_another_rank)
    record = trainer.take_step(batch_of(trainer), 1)
    assert problem_of(record.figures()) == "loss"
    assert changed(before, whole_state(trainer)) == []


class NoValueIsRead(TorchDispatchMode):
    """Fails where a tensor's value is asked for on the host: on a GPU each such read waits for the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "the host reads a value"
        return function(*args, **(kwargs or {}))


def test_no_value_is_read_on_the_host(trainer):
    batch = batch_of(trainer)
    with NoValueIsRead():
        record = trainer.take_step(batch, 0)
    assert math.isfinite(record.figures()["loss"])
    with pytest.raises(AssertionError, match="the host reads a value"), NoValueIsRead():
        float(torch.ones(()))


@pytest.mark.gpu
def test_no_step_waits_for_the_device(tmp_path):
    clips = Clips(smooth_latents(2, seed=1), smooth_latents(2, seed=2))
    trainer = Trainer(small_config(tmp_path, device="cuda"), ConvolutionCodec(), clips, clips, **SMALL_AGENT)
    batch = {k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in batch_of(trainer).items()}
    trainer.take_step(batch, 0).figures()
    torch.cuda.set_sync_debug_mode("error")
    try:
        records = [trainer.take_step(batch, step) for step in (1, 2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [problem_of(record.figures()) for record in records] == [None, None]
