"""The tempo experiment: its starts, its count, and the passages of recordings that it compares."""

import json
import sys
from pathlib import Path

import pytest
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import rhythm
from rhythm import WANTED, T, W, passages, share, spread

from adaptive_window.audio.synthesis import synthesize_drums


def test_starts_spread_over_the_range_without_its_ends():
    assert spread(2).tolist() == pytest.approx([1.125, 1.375], abs=1e-6)
    assert spread(10).diff().tolist() == pytest.approx([0.05] * 9, abs=1e-6)


def test_share_counts_within_one_percent():
    assert share(torch.tensor([1.25, 1.26, 1.24, 1.27, 1.23, 1.0])) == pytest.approx(3 / 6)
    assert share(torch.tensor([1.75, 1.5]), 1.75) == pytest.approx(1 / 2)


def test_passages_are_another_part_of_the_piece_faster_by_the_ratio():
    """A ramp shows where each frame is from."""
    frames = 4000
    ramp = torch.arange(float(frames)).expand(1, 2, frames)
    couples = passages(ramp, 3)
    assert [x[0, 0, 0].item() for x, _ in couples] == [0, 900, 1800]
    for x, y in couples:
        assert (x.shape, y.shape) == ((1, 2, T), (1, 2, W))
        assert y[0, 0, 0].item() == x[0, 0, -1].item() + 1 + WANTED / 2 - 0.5  # what follows x, from its first frame
        assert y[0, 0].diff().allclose(torch.tensor(WANTED), atol=1e-3)


@pytest.mark.proof
def test_command(tmp_path, capsys):
    """One couple of drum loops, and a recording of steady tempo."""
    drums = synthesize_drums(3, 100, seconds=60.0, sample_rate=16000)
    soundfile.write(tmp_path / "steady.wav", drums, 16000)
    options = ["--loops", 1, "--starts", 2, "--trained", 1, "--steps", 2, "--clips", 1]
    rhythm.main([str(o) for o in (*options, "--audio", tmp_path, "--json", tmp_path / "found.json")])
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    assert found["drums, refine"]["shares"] == [1.0]
    assert found["drums, training"]["shares"] == [0.0]  # two steps move nothing
    assert found["steady"] == {"starts": 1.0, "restarts": 1.0}
    assert found["80 and 140 BPM, max_ratio 1.5"]["told"][0] == pytest.approx(1.75, abs=0.02)
    assert "drums, refine" in said
