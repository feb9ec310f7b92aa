"""The curves of a recipe: what is judged, where each term pulls, and that they can be drawn."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def curves():
    spec = importlib.util.spec_from_file_location("learning_curves", ROOT / "benchmarks" / "learning_curves.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["learning_curves"] = module
    spec.loader.exec_module(module)
    return module


def test_rows_tell_what_is_heard_and_where_terms_pull(curves, monkeypatch, tmp_path):
    small = {"component_dim": 4, "composer_heads": 2, "composer_layers": 1, "composer_dim": 16}
    monkeypatch.setattr(curves, "SIZES", small)
    songs = torch.randn(3, 128, 320, generator=torch.Generator().manual_seed(0))
    options = argparse.Namespace(steps=1, every=1, seed=0)
    rows = {name: curves.curve(name, options, songs, songs) for name in ("original", "default")}
    for name, of in rows.items():
        assert [row["step"] for row in of] == [0, 1]
        pulls = of[0]["pulls"]
        assert set(pulls["spectral"]) == set(curves.PULLED)
        assert any(any(pull) for pull in pulls["spectral"].values()), "no window moves the pattern"
        assert ("onsets" in pulls) == (name == "default")
        assert -2 < of[0]["skill"] < 1
    curves.draw(rows, tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").stat().st_size > 5000
