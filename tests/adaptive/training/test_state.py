"""What a checkpoint remembers, and what a run refuses to go on with."""

import json
import math
import random

import numpy as np
import pytest
import torch
from clips import SMALL_AGENT, Clips, ConvolutionCodec, small_config, smooth_latents
from safetensors.torch import save_file

from adaptive_window.training import state
from adaptive_window.training.checkpoint import KEY, LAST, CheckpointError, build_agent, load_checkpoint
from adaptive_window.training.logging import RunLog
from adaptive_window.training.loop import Trainer, TrainingError

CPU = torch.device("cpu")


def build(config, seed=1, held_out_seed=5):
    clips = Clips(smooth_latents(4, seed=seed), smooth_latents(4, seed=2))
    held_out = Clips(smooth_latents(2, seed=held_out_seed), smooth_latents(2, seed=6))
    return Trainer(config, ConvolutionCodec(), clips, held_out, **SMALL_AGENT)


def run(trainer):
    log = RunLog(trainer.config.out, {}, tensorboard=False, mlflow=False)
    try:
        trainer.run(log)
    finally:
        log.close()
    return trainer


def draw():
    """A number of every generator; Python's and NumPy's Gaussian draws keep every second one for later."""
    return [
        torch.rand(()).item(),
        random.random(),
        random.gauss(0, 1),
        np.random.random(),  # noqa: NPY002 - the global one is meant
        np.random.standard_normal(),  # noqa: NPY002 - the global one is meant
    ]


@pytest.mark.parametrize("draws_before", [0, 1])
def test_every_generator_goes_on_where_it_was(draws_before):
    state.seed_all(3)
    for _ in range(draws_before):
        draw()
    kept = {name: value.clone() for name, value in state.random_state(CPU).items()}
    expected = [draw() for _ in range(3)]
    assert expected != [draw() for _ in range(3)]
    state.restore_random(kept, CPU)
    assert [draw() for _ in range(3)] == expected


def test_seeds_decide_all_draws():
    first = []
    for _ in range(2):
        state.seed_all(7)
        first.append(draw())
    state.seed_all(8)
    other = draw()
    assert first[0] == first[1]
    assert all(a != b for a, b in zip(first[0], other, strict=True))


def draw_and_fail():
    with state.random_kept(CPU):
        draw()
        raise KeyboardInterrupt


def test_random_kept_leaves_no_trace_even_when_it_is_left_by_a_signal():
    state.seed_all(3)
    expected = draw()
    state.seed_all(3)
    with pytest.raises(KeyboardInterrupt):
        draw_and_fail()
    assert draw() == expected


def test_differences_are_named():
    assert state.differences({"a": 1, "b": 2}, {"a": 1, "b": 3}) == ["its b is 2, this run's is 3"]
    assert state.differences({}, {"a": 1}) == ["its a is None, this run's is 1"]


@pytest.fixture
def stopped(tmp_path):
    """A run that has come to step 3 of 4, in the middle of its second epoch."""
    run(build(small_config(tmp_path, max_steps=3)))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "data", "named"),
    [
        ({"batch_size": 1}, {}, "its batch size is 2, this run's is 1"),
        ({"seed": 1}, {}, "its seed is 0, this run's is 1"),
        ({}, {"seed": 11}, "its training set is 4 clips, .* this run's is 4 clips"),
        ({}, {"held_out_seed": 11}, "its held-out set is 2 clips, .* this run's is 2 clips"),
    ],
)
def test_another_order_of_the_data_is_refused_without_force(stopped, capsys, changes, data, named):
    config = small_config(stopped, max_steps=4, resume=True, **changes)
    with pytest.raises(CheckpointError, match=rf"cannot resume .*last\.safetensors: {named}.*add --force"):
        build(config, **data)
    forced = small_config(stopped, max_steps=4, resume=True, force=True, **changes)
    trainer = build(forced, **data)
    assert (trainer.progress.step, trainer.progress.epoch, trainer.progress.batch) == (3, 1, 0)
    assert "--force" in capsys.readouterr().err
    assert run(trainer).progress.step == 4


def test_another_world_size_is_refused_without_force(stopped, monkeypatch):
    original = state.data_order
    monkeypatch.setattr(state, "data_order", lambda trainer: {**original(trainer), "world size": 2})
    with pytest.raises(CheckpointError, match="its world size is 1, this run's is 2"):
        build(small_config(stopped, max_steps=4, resume=True))


def test_format_1_cannot_be_resumed(tmp_path):
    info = {"format": 1, "agent": {}, "codec": {}, "progress": {}}
    save_file({"model.w": torch.ones(1)}, tmp_path / LAST, metadata={KEY: json.dumps(info)})
    with pytest.raises(CheckpointError, match=r"checkpoint format 1, which lacks .* a run cannot go on from it"):
        build(small_config(tmp_path, resume=True))


def test_evaluations_so_far_are_remembered(stopped):
    """For the picture of the trajectory, and for `best` and patience."""
    straight = run(build(small_config(stopped / "straight", max_steps=3)))
    resumed = build(small_config(stopped, max_steps=3, resume=True))
    assert [e.step for e in resumed.evaluations] == [2, 3]
    for ours, theirs in zip(resumed.evaluations, straight.evaluations, strict=True):
        assert (ours.step, ours.loss, ours.parts) == (theirs.step, theirs.loss, theirs.parts)
        assert ours.windows.table() == theirs.windows.table()
    assert resumed.progress == straight.progress


def test_counts_of_refused_steps_go_on(tmp_path):
    """Two in a row before the stop and one after it are three in a row."""
    bad = Clips(torch.full((4, 128, 60), math.nan), smooth_latents(4, seed=2))
    held_out = Clips(smooth_latents(2, seed=5), smooth_latents(2, seed=6))

    def trainer(**changes):
        config = small_config(tmp_path, max_refused=3, **changes)
        return Trainer(config, ConvolutionCodec(), bad, held_out, **SMALL_AGENT)

    stopped = run(trainer(max_steps=2))
    assert (stopped.progress.refused, stopped.progress.refused_in_a_row) == (2, 2)
    with pytest.raises(TrainingError, match="3 steps in a row"):
        run(trainer(max_steps=20, resume=True))


def test_the_device_of_the_optimizers_slots():
    """The fused AdamW wants its count of steps where the parameter is."""
    module = torch.nn.Linear(2, 2, device="meta")
    optimizer = torch.optim.AdamW(module.parameters())
    slots = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 2), "exp_avg_sq": torch.ones(2, 2)}
    state.restore_optimizer(optimizer, module, {"weight": slots})
    assert {value.device.type for value in optimizer.state[module.weight].values()} == {"meta"}
    assert module.bias not in optimizer.state


def test_options_newer_than_a_checkpoint_have_todays_defaults(tmp_path):
    """A new option of the agent does not forbid the --resume of every run before it; another value of it does."""
    run(build(small_config(tmp_path, max_steps=1)))
    saved = load_checkpoint(tmp_path / LAST)
    for name in ("novelty", "selector", "max_strength", "restore"):
        del saved.info["agent"][name]
    state.give_state(build(small_config(tmp_path, max_steps=1)).state, saved, tmp_path)
    other = build(small_config(tmp_path, max_steps=1, novelty="corrected")).state
    with pytest.raises(CheckpointError, match="its novelty is original, this run's is corrected"):
        state.give_state(other, saved, tmp_path)
    other = build(small_config(tmp_path, max_steps=1, restore="frame")).state
    with pytest.raises(CheckpointError, match="its restore is none, this run's is frame"):
        state.give_state(other, saved, tmp_path)


def test_the_transform_is_the_checkpoints(tmp_path):
    """What was trained to restore is loaded so, wherever its weights go."""
    trainer = build(small_config(tmp_path, max_steps=1, restore="frame"))
    saved = load_checkpoint(trainer.save(LAST))
    agent = build_agent(saved, tmp_path)
    assert agent.tonality_reducer_input.restore == agent.tonality_reducer_target.restore == "frame"
    del saved.info["agent"]["restore"]
    assert build_agent(saved, tmp_path).tonality_reducer_input.restore == "none"


def test_a_checkpoint_is_strict_json_before_any_evaluation(tmp_path):
    """No loss yet is an infinite one, which JSON does not have."""
    trainer = build(small_config(tmp_path, max_steps=1))
    path = trainer.save(LAST)
    header = path.read_bytes()
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"][KEY]
    info = json.loads(metadata, parse_constant=lambda name: pytest.fail(f"{name} in the metadata"))
    assert info["progress"]["best"] is None
    again = build(small_config(tmp_path, max_steps=1, resume=True))
    assert again.progress.best == math.inf
