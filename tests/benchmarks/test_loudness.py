"""The loudness experiment: levels of known signals, and that restoring is what keeps them."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import loudness

from adaptive_window import TonalityReducer


def test_levels() -> None:
    """A sine of amplitude a has 20·log10 a − 3 dB; what is far below the loudest frame counts as quiet, not as −∞."""
    t = torch.arange(320) / 320
    sine = torch.sin(2 * math.pi * 8 * t)
    audio = torch.cat([sine, 0.1 * sine, 1e-5 * sine, 0 * sine])[None, None]
    found = loudness.loudness(audio, 320)[0]
    wanted = torch.tensor([-3.01, -23.01, -3.01 - loudness.QUIETEST, -3.01 - loudness.QUIETEST])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.01)


def test_restored_windows_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loudness, "SONGS", 1)
    with torch.no_grad():
        listening = loudness.Listening(None)
        ceiling = listening.kept(listening.windows)
        rows = [listening.rows("new", r, TonalityReducer(restore=r), [1.0]) for r in ("none", "frame")]
    without, kept = (row["kept"]["1.00"] for row in rows)
    assert ceiling > 0.9
    assert kept == pytest.approx(ceiling, abs=0.01)
    assert without < kept - 0.2
    shown = loudness.table(rows).splitlines()
    assert len(shown) == 3
    assert f"{without:.2f}" in shown[1]
    assert "frame" in shown[2]
