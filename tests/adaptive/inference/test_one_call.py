"""Picture, JSON and audio of one composition show and sound the windows of one call of the selector, in eval mode."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from clips import SMALL_AGENT, Clips, ConvolutionCodec, small_config, smooth_latents
from command import run
from torch import Tensor

from adaptive_window.audio.synthesis import write_demo_set
from adaptive_window.config import ComposeConfig
from adaptive_window.inference import compose
from adaptive_window.inference.compose import compose_clips, draw_windows, open_session, write_composition
from adaptive_window.model.agent import AdaptiveWindowCreativeAgent
from adaptive_window.model.content_selector import ContentSelector
from adaptive_window.model.correlation_selector import CorrelationSelector
from adaptive_window.model.selector import WindowSelector
from adaptive_window.training import evaluation
from adaptive_window.training.logging import RunLog
from adaptive_window.training.loop import Trainer


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every call of the selector: its mode, and the windows that it gave."""
    made: list[dict[str, Any]] = []
    for kind in (WindowSelector, CorrelationSelector, ContentSelector):

        def watched(self: Any, *clips: Tensor, forward: Any = kind.forward) -> dict[str, Tensor]:
            windows: dict[str, Tensor] = forward(self, *clips)
            made.append({"training": self.training} | {name: v.detach().clone() for name, v in windows.items()})
            return windows

        monkeypatch.setattr(kind, "forward", watched)
    return made


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The pairs of every picture of windows."""
    pictures: list[list[Any]] = []
    for module in (compose, evaluation):
        figure = module.windows_figure

        def watched(x: Any, y: Any, pairs: list[Any], figure: Any = figure, **options: Any) -> Any:
            pictures.append(list(pairs))
            return figure(x, y, pairs, **options)

        monkeypatch.setattr(module, "windows_figure", watched)
    return pictures


@pytest.fixture
def composed_from(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The windows from which patterns were made."""
    made: list[dict[str, Tensor]] = []
    original = AdaptiveWindowCreativeAgent.compose_windows

    def watched(self: Any, x: Tensor, y: Tensor, windows: dict[str, Tensor]) -> Any:
        made.append({name: value.detach().clone() for name, value in windows.items()})
        return original(self, x, y, windows)

    monkeypatch.setattr(AdaptiveWindowCreativeAgent, "compose_windows", watched)
    return made


def starts(pairs: list[Any], frame_rate: float) -> Tensor:
    return torch.tensor([pair.start_input * frame_rate for pair in pairs], dtype=torch.float64)


def test_examples_of_a_run(tmp_path, calls, drawn, composed_from):
    """The trainer is in training mode when it writes them, with dropout that would move the windows."""
    latents = smooth_latents(2, seed=1), smooth_latents(2, seed=2)
    config = small_config(tmp_path, examples=2)
    trainer = Trainer(config, ConvolutionCodec(), Clips(*latents), Clips(*latents), **SMALL_AGENT)
    with torch.no_grad():  # as initialized, windows hardly depend on anything
        for parameter in trainer.agent.window_selector.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    trainer.agent.train()
    log = RunLog(tmp_path, {}, tensorboard=False, mlflow=False)
    evaluation.write_examples(trainer.state, log)
    log.close()
    assert trainer.agent.training
    assert [call["training"] for call in calls] == [False, False]
    assert len(drawn) == len(composed_from) == 2
    rate = trainer.codec.frame_rate
    for call, picture, used in zip(calls, drawn, composed_from, strict=True):
        assert torch.equal(call["start_input"], used["start_input"])
        torch.testing.assert_close(starts(picture, rate), used["start_input"][0].double())
    random = trainer.agent.window_selector(*(clip[:1] for clip in latents))["start_input"]
    assert not torch.equal(random, calls[0]["start_input"]), "the selector's training mode has to differ to be seen"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_call")
    write_demo_set(folder / "songs", pairs=1, val=1, seconds=6.0, seed=3)
    sizes = ["--clip-seconds", 3, "--window-seconds", 2, "--clips-per-song", 1, "--no-tensorboard"]
    options = ["--max-steps", 1, "--batch-size", 1, "--cache", folder / "cache", "--examples", 0]
    assert run("train", "--data", folder / "songs", "--out", folder / "run", *options, *sizes) == 0
    val = folder / "songs" / "val"
    return {
        "input": next(val.glob("*_input.wav")),
        "target": next(val.glob("*_target.wav")),
        "checkpoint": folder / "run" / "best.safetensors",
        "device": "cpu",
    }


@pytest.mark.parametrize("pick", ["mean", "best", "1"])
def test_a_composition(trained, tmp_path, calls, drawn, composed_from, pick):
    session = open_session(ComposeConfig(output=tmp_path / "a.wav", **trained))
    composition = compose_clips(session, int(pick) if pick.isdecimal() else pick)
    report = write_composition(ComposeConfig(output=tmp_path / "a.wav", **trained), session, composition)
    draw_windows(session, composition.pairs, tmp_path / "a.png", title="a")
    assert [call["training"] for call in calls] == [False]
    assert len(drawn) == len(composed_from) == 1
    rate = session.codec.frame_rate
    chosen, used = calls[0]["start_input"][0].double(), composed_from[0]["start_input"][0].double()
    torch.testing.assert_close(starts(drawn[0], rate), chosen)
    written = json.loads((tmp_path / "a.json").read_text())
    assert written == report
    assert [pair["start_input_s"] for pair in written["pairs"]] == [pair.start_input for pair in composition.pairs]
    assert torch.equal(used, chosen[1:2] if pick == "1" else chosen)
    audio = soundfile.read(tmp_path / "a.wav")[0]
    np.testing.assert_allclose(audio, composition.audio[0].numpy(), atol=2**-15)


def test_the_command_asks_the_selector_once(trained, tmp_path, calls):
    names = "input", "target", "checkpoint"
    a, b, best = (trained[name] for name in names)
    assert run("compose", a, b, "-o", tmp_path / "a.wav", "--checkpoint", best, "--device", "cpu") == 0
    assert [call["training"] for call in calls] == [False]
    report = json.loads((tmp_path / "a.json").read_text())
    found = [pair["start_input_s"] * 50 for pair in report["pairs"]]
    torch.testing.assert_close(torch.tensor(found), calls[0]["start_input"][0])
    assert run("plot", a, b, "-o", tmp_path / "a.png", "--checkpoint", best, "--device", "cpu") == 0
    assert [call["training"] for call in calls] == [False, False]
    assert torch.equal(calls[0]["start_input"], calls[1]["start_input"])
