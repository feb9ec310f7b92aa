"""A few steps by the conflict term alone: two chords a semitone apart come to clash less, at the loudness they had."""

import numpy as np
import pytest
import torch
from clips import SMALL_AGENT, ConvolutionCodec, small_config
from torch import Tensor

from adaptive_window import AdaptiveWindowCreativeAgent
from adaptive_window.audio.mel import MelCodec
from adaptive_window.model.content_selector import ContentSelector
from adaptive_window.training.objective import Objective
from adaptive_window.training.step import Stepper

STEPS, WINDOW = 30, 100


def chord(step: int) -> Tensor:
    """`[1, 128, 150]`."""
    t = np.arange(3 * 16000) / 16000
    hertz = [440 * 2 ** ((k + step) / 12) for k in (0, 4, 7)]
    sound = sum(0.05 * 0.6**h * np.sin(2 * np.pi * (h + 1) * hz * t) for hz in hertz for h in range(5))
    sound = sound + 1e-3 * np.random.default_rng(step).standard_normal(len(t))
    return MelCodec().encode(torch.from_numpy(sound.astype(np.float32))[None, None])


def test_conflict_falls(tmp_path):
    weights = {"spectral_weight": 0.0, "novelty_weight": 0.0, "conflict_weight": 1.0}
    config = small_config(tmp_path, clip_seconds=3.0, window_seconds=2.0, **weights)
    objective = Objective(MelCodec(), config)
    torch.manual_seed(0)
    agent = AdaptiveWindowCreativeAgent(
        128, 1, window_frames=WINDOW, selector="content", strength="harmony", dropout=0.0, **SMALL_AGENT
    )
    agent.window_selector.hear(objective.listen.classes)
    x, y = torch.cat([chord(0), chord(0)]), torch.cat([chord(1), chord(0)])
    learned = [*agent.tonality_reducer_input.parameters(), *agent.tonality_reducer_target.parameters()]
    optimizer = torch.optim.Adam([*learned, *agent.window_selector.parameters()], lr=1e-2)
    found = []
    for _ in range(STEPS):
        outputs, losses, metadata = agent(x, y, **objective.agent_options)
        loss, _ = objective(outputs, losses, metadata["windows"], x, y, transformed=metadata["transformed"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        patterns, windows = torch.stack(outputs, 1), metadata["windows"]
        heard = objective.measures(patterns, windows, x, y, metadata["transformed"])
        found.append({name: heard[name][:, 0] for name in ("conflict_before", "conflict")})
    clash, same = 0, 1
    assert found[0]["conflict_before"][clash] > 1
    assert found[-1]["conflict"][clash] < 0.7 * found[0]["conflict"][clash]
    assert found[-1]["conflict"][same] < 0.9 * found[-1]["conflict_before"][same] < 0  # what was consonant stays so
    strength = metadata["windows"]["strength"][:, 0]
    assert strength[clash] > strength[same] + 0.3


@pytest.mark.parametrize("codec", [MelCodec(), ConvolutionCodec()], ids=["mel", "decoded"])
def test_no_step_copies_to_the_device(codec, tmp_path):
    """What patterns are compared with lies where they do, from a step's first use on."""
    meta, agent = torch.device("meta"), torch.nn.Linear(1, 1)
    config = small_config(tmp_path)
    objective = Objective(codec, config)
    Stepper(agent, agent, torch.optim.AdamW(agent.parameters()), objective, config, meta)
    moved = {name: value.device for name, value in vars(objective.listen).items() if isinstance(value, Tensor)}
    assert {"classes", "roughness", "tilt"} <= moved.keys()
    assert set(moved.values()) == {meta}
    selector = ContentSelector(strength="harmony").to(meta)
    assert {buffer.device for buffer in selector.buffers()} == {meta}
    assert selector.roughness is not None
    assert "roughness" not in selector.state_dict()
