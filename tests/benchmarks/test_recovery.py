"""The problems that `benchmarks/recovery.py` plants are what it says, and what it counts is counted right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

pytest.importorskip("torchaudio")
import recovery
import recovery_data as data

from adaptive_window.audio.mel import MelCodec


def test_synthetic_latents_have_the_correlation_asked_for():
    problems = data.synthetic(4, 5.0, seed=1)
    assert problems.x.shape == (4, 32, 1200)
    assert (problems.start >= 0).all()
    assert (problems.start + problems.ratio * 800 <= 1200).all()
    shifted = (problems.x[..., 5:] * problems.x[..., :-5]).mean() / problems.x.square().mean()
    assert shifted.item() == pytest.approx(torch.tensor(-0.25).exp().item(), abs=0.05)  # exp(-5²/(4·5²))


def test_noise_has_the_level_asked_for():
    y = 3 * torch.randn(2, 8, 1000)
    noise = data.with_noise(y, 10.0, torch.Generator().manual_seed(0)) - y
    assert (noise.square().mean() / y.square().mean()).item() == pytest.approx(0.1, rel=0.05)


def test_the_vocoder_keeps_pitch_and_shortens():
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(32000) / 16000)
    fast = data.stretch(tone, 1.25)
    assert len(fast) == 25600
    assert torch.fft.rfft(fast[4000:20000]).abs().argmax().item() == pytest.approx(1000, abs=2)


def test_clips_hold_their_windows():
    """The audio cut for the vocoder, encoded as it is (ratio 1 by force), equals the clip's latents from `start`."""
    codec = MelCodec()
    audio = {"a": 0.1 * torch.randn(26 * 16000, generator=torch.Generator().manual_seed(0))}
    problems, cuts = data.clips(audio, 2, codec, seed=3)
    assert problems.x.shape == (2, 128, 1200)
    for k in range(2):
        assert len(cuts[k]) == pytest.approx(problems.ratio[k].item() * 16 * 16000, abs=1)
        start = problems.start[k].item()
        latents = data.encoded([cuts[k]], codec)[0]
        begin = round(start)  # noise: a part of a frame off still correlates
        theirs, ours = latents[:, 4:700], problems.x[k][:, begin + 4 : begin + 700]
        assert torch.corrcoef(torch.stack((theirs.flatten(), ours.flatten())))[0, 1] > 0.8


def test_counts(monkeypatch, capsys):
    problems = data.Problems(torch.zeros(4, 2, 30), torch.tensor([1.0, 2, 3, 4]), torch.ones(4), torch.arange(4))
    found = torch.tensor([1.5, 2, 9, 4]), torch.tensor([1.0, 1.1, 1, 1]), torch.tensor([0.9, 0.1, 0.9, 0.9])
    monkeypatch.setattr(recovery, "refine_windows", lambda *args, **options: found)
    monkeypatch.setattr(recovery, "match_threshold", lambda features, window: 0.5)
    row = recovery.searched(problems, torch.zeros(4, 2, 20), "case", 1, 0.005, 0.99)
    assert (row["within"], row["rejected"]) == (0.5, 0.25)
    assert recovery.unrelated(problems, torch.zeros(4, 2, 20), "case")["accepted"] == 0.75
    assert "50.0% within 1 frames" in capsys.readouterr().out


def test_unrelated_is_never_the_same_piece(monkeypatch):
    piece = torch.tensor([0, 0, 0, 1, 1, 1])
    y = piece[:, None, None].expand(6, 2, 20).float()
    problems = data.Problems(y.repeat(1, 1, 2)[..., :30], torch.zeros(6), torch.ones(6), piece)

    def search(x, other, window):
        assert (x[:, 0, 0] != other[:, 0, 0]).all()
        return torch.zeros(6), torch.ones(6), torch.zeros(6)

    monkeypatch.setattr(recovery, "refine_windows", search)
    assert recovery.unrelated(problems, y, "case")["n"] == 6
