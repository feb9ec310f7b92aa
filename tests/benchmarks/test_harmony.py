"""The harmony experiment: its pairs of keys, its bars, and the whole of it at a small size."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import harmony
from harmony import GROUPS, Music, judged

from adaptive_window.audio.mel import MelCodec


@pytest.fixture(scope="module")
def music() -> Music:
    return Music(7, 1, MelCodec())


def test_pairs_are_in_the_keys_that_are_asked_for(music: Music) -> None:
    def key_of(clip: torch.Tensor) -> int:
        return next(key for key, songs in enumerate(music.songs) if torch.equal(songs[0], clip))

    for step in (0, 1, 6):
        x, y = music.pairs([GROUPS[step]] * 4, np.random.default_rng(step))
        for a, b in zip(x, y, strict=True):
            assert (key_of(a) - key_of(b)) % 12 in {7 * step % 12, -7 * step % 12}
    x, y = music.pairs(["drums, chords", "noise, chords", "noise, noise"], np.random.default_rng(0))
    assert any(torch.equal(x[0], loop) for loop in music.drums)
    assert key_of(y[0]) >= 0
    assert key_of(y[1]) >= 0
    for clip in (x[1], x[2], y[2]):
        assert any(torch.equal(clip, noise) for noise in music.noise)


def rows(**changes: float) -> dict[str, dict[str, float]]:
    row = {"conflict": 2.0, "trained": 1.0, "strength": 0.8, "loudness": 0.5, "bands": 0.9}
    found = {name: dict(row) for name in GROUPS}
    found["0 fifths"] |= {"conflict": -4.0, "trained": -3.9, "strength": 0.1}
    found["drums, chords"] |= {"strength": 0.5}
    for name in GROUPS[-2:]:
        found[name] |= {"conflict": 0.0, "trained": 0.05}
    for name, value in changes.items():
        found["5 fifths"][name] = value
    return found


def test_bars_are_met_and_missed() -> None:
    assert all(met for _, met in judged(rows(), 0.8).values())
    assert next(iter(judged(rows(), 0.8).values()))[0] == pytest.approx(0.5)
    for name, value in (("trained", 4.0), ("loudness", 1.2), ("bands", 0.5)):
        assert sum(not met for _, met in judged(rows(**{name: value}), 0.8).values()) == 1, name


@pytest.mark.proof
def test_conflict_falls_in_training_and_loudness_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--each", 2, "--held-out", 6, "--steps", 60, "--batch", 4, "--restore", "frame"]
    harmony.main([str(o) for o in (*options, "--json", tmp_path / "found.json")])
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    lost, louder = ({name: list(found["bars"].values())[k]["found"] for name, found in results.items()} for k in (0, 1))
    assert lost["frame, 0.5"] > 0.3
    assert louder["frame, 0.5"] < 0.5 * louder["frame, 0"]  # without it they clash less only as they change in all
    assert "restore frame, conflict weight 0.5" in capsys.readouterr().out
