"""The curves' gradients are those of the windows' logits, and a run of a step becomes data and a picture."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import learning_curves
from learning_curves import CLIP, PAIRS, PULLED, SHOWN, WINDOW, Pulls, rounded


def windows_of(logits: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the pulls suppose: ratio = 1 + σ/2, start = σ · (clip − ratio · window)."""
    unit = {name: value.sigmoid() for name, value in logits.items()}
    ratios = {name: 1 + unit[name] / 2 for name in PULLED if name.startswith("ratio")}
    starts = {
        name: unit[name] * (CLIP - ratios[name.replace("start", "ratio")].detach() * WINDOW)
        for name in PULLED
        if name.startswith("start")
    }
    return starts | ratios | {"strength": torch.full_like(unit["start_input"], 0.5)}


def test_a_pull_is_the_gradient_of_a_logit() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = {name: torch.randn(2, PAIRS, dtype=torch.float64, generator=generator).requires_grad_() for name in PULLED}

    def objective(outputs, losses, windows, x, y):
        return None, {"first": windows["start_input"].square().sum(), "second": (windows["ratio_target"] ** 3).sum()}

    objective.agent_options = {}
    agent = SimpleNamespace(
        window_selector=lambda x, y: windows_of(logits),
        compose_windows=lambda x, y, windows: (torch.zeros(2, PAIRS, 1, 1), torch.zeros(2, PAIRS, 3)),
    )
    pulls = Pulls(agent, objective)(torch.zeros(2, 1, 1), torch.zeros(2, 1, 1))
    _, parts = objective(None, None, windows_of(logits), None, None)
    for term, name, other in (("first", "start_input", "ratio_input"), ("second", "ratio_target", "start_target")):
        (wanted,) = torch.autograd.grad(parts[term], logits[name], retain_graph=True)
        assert pulls[term][name] == pytest.approx(wanted.sum(0).tolist())
        assert pulls[term][other] == [0.0] * PAIRS


def test_a_short_run_becomes_data_and_a_picture(tmp_path, monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(learning_curves, "songs", lambda first, count: torch.randn(2, 128, CLIP, generator=generator))
    monkeypatch.setattr(
        learning_curves, "REDUCED", {**learning_curves.REDUCED, "composer_dim": 16, "composer_layers": 1}
    )
    data, picture = tmp_path / "curves.json", tmp_path / "curves.svg"
    shared = ["learning_curves.py", "--json", str(data), "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", [*shared, "--steps", "1", "--every", "1", "--recipes", "default"])
    learning_curves.main()
    curves = json.loads(data.read_text())
    assert [row["step"] for row in curves["default"]] == [0, 1]
    assert set(curves["default"][-1]["pulls"]) == {"spectral", "novelty", "onsets", "harmony", "conflict"}
    assert set(SHOWN) <= set(curves["default"][-1])
    drawn = picture.read_text()
    assert drawn.startswith("<?xml")
    picture.unlink()
    monkeypatch.setattr(sys, "argv", [*shared, "--recipes"])  # draws again and trains nothing
    learning_curves.main()
    assert picture.exists()
    assert json.loads(data.read_text()) == curves


def test_the_full_agents_skill_is_drawn_beside(tmp_path) -> None:
    rows = [{"step": 0} | dict.fromkeys(SHOWN, 0.5) | {"pulls": {"spectral": {key: [0.1] for key in PULLED}}}]
    full = {"device": "a GPU", "curve": [{"step": 0, "skill": -0.3}, {"step": 100, "skill": 0.4}]}
    alone, beside = tmp_path / "alone.svg", tmp_path / "beside.svg"
    learning_curves.draw({"default": rows}, alone)
    learning_curves.draw({"default": rows}, beside, full)
    assert "a GPU" not in alone.read_text()
    assert "full agent, original's objective," in beside.read_text()
    assert "a GPU" in beside.read_text()


def test_an_unknown_recipe_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["learning_curves.py", "--recipes", "hottest"])
    with pytest.raises(SystemExit):
        learning_curves.main()
    assert "--recipes hottest: must be among original" in capsys.readouterr().err


def test_rows_are_kept_to_five_digits() -> None:
    assert rounded({"a": [1.23456789, 2], "b": "c"}) == {"a": [1.2346, 2], "b": "c"}
