"""The selector experiments: their problems are what they say, and their rows are scored against the truth."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import window_selectors
from window_selectors import MAX_RATIO, Songs, T, W, constant, draw, noise, score


def test_problems_are_planted_windows() -> None:
    x, y, (start, ratio), names = draw(noise, 6, torch.Generator().manual_seed(0))
    assert x.shape == (6, 8, T)
    assert y.shape == (6, 8, W)
    assert names == ["noise"] * 6
    assert (start + ratio * W <= T).all()
    place = start[:, 0] + 0.5 * ratio[:, 0] * W - 0.5  # half way between the middle frames of y
    frame = place.floor().long()
    f = (place - frame)[:, None]
    middle = torch.stack([(1 - f[b]) * x[b, :, frame[b]] + f[b] * x[b, :, frame[b] + 1] for b in range(6)])
    # y's two middle frames lie a window's ratio apart; x is smooth over 60 frames
    torch.testing.assert_close(y[..., W // 2 - 1 : W // 2 + 1].mean(2), middle, rtol=0, atol=0.02)


def test_constant_is_the_median_of_the_task() -> None:
    unit = torch.rand(2, 200_000, generator=torch.Generator().manual_seed(0))
    ratio = 1 + (MAX_RATIO - 1) * unit[0]
    start, guess = constant(torch.zeros(1, 1, T), torch.zeros(1))
    # the median of n draws has a standard error of 1/(2·density·sqrt(n)): 0.2 frames
    assert (unit[1] * (T - ratio * W)).median().item() == pytest.approx(start.item(), abs=1.0)
    assert ratio.median().item() == pytest.approx(guess.item(), abs=0.005)


def test_still_clips_are_not_drawn() -> None:
    lively = torch.randn(4, 2 * T, generator=torch.Generator().manual_seed(0))
    source = Songs({"a": torch.cat([torch.zeros(4, T), lively], 1)}, {"synthesized b": lively})
    clips, names = source(40, torch.Generator().manual_seed(1))
    assert names == ["a", "synthesized b"] * 20
    assert min(clips[:, :, :200].std(2).mean(1).min(), clips[:, :, -200:].std(2).mean(1).min()) > 0.1


def test_scores_are_medians_by_kind() -> None:
    found = torch.tensor([[1.0], [2.0], [30.0]]), torch.full((3, 1), 1.2)
    truth = torch.zeros(3, 1), torch.ones(3, 1)
    rows = score(found, truth, ["piece", "synthesized 3 input", "synthesized 4 target"])
    assert {kind: row["problems"] for kind, row in rows.items()} == {"all": 3, "piece": 1, "synthesized": 2}
    assert rows["all"]["start"] == 2.0
    assert rows["piece"]["start"] == 1.0
    assert math.isclose(rows["all"]["ratio"], 0.2, rel_tol=1e-5)


def test_runs_and_writes_its_figures(tmp_path, capsys) -> None:
    path = tmp_path / "figures.json"
    few = ["--held-out", "16", "--refine", "0", "--steps", "1", "--batch", "2", "--correlation-steps", "1"]
    window_selectors.main(["synthetic", *few, "--json", str(path)])
    results = json.loads(path.read_text())["results"]
    assert list(results) == ["constant", "correlation, fresh", "correlation, trained", "mlp"]
    assert results["correlation, fresh"]["all"]["start"] < 5 < results["constant"]["all"]["start"]
    assert "correlation, fresh" in capsys.readouterr().out
