"""The section experiment: tracks hold what they say, and what is counted is what the windows do."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import structure
from structure import SECTIONS, WINDOW, equal_pairs, measure, planted, section_of, white

from adaptive_window.kernels import resample_windows


@pytest.fixture(scope="module")
def tracks():
    return planted(6, torch.Generator().manual_seed(0))


def true_windows(tracks: structure.Tracks) -> dict[str, torch.Tensor]:
    """The same part of each section in both clips: its first 0.7, or a little less."""
    length_x, length_y = ((edges[..., 1] - edges[..., 0]) for edges in (tracks.edges_x, tracks.edges_y))
    ratio_y = 0.72 * length_y / WINDOW
    return {
        "start_target": tracks.edges_y[..., 0] + 0.1 * length_y,
        "ratio_target": ratio_y,
        "start_input": tracks.edges_x[..., 0] + 0.1 * length_x,
        "ratio_input": ratio_y * tracks.rho,
        "strength": torch.full_like(ratio_y, 0.5),
    }


class Chooses(torch.nn.Module):
    """Says what it was told, a share of the batch at a time."""

    def __init__(self, windows: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.windows, self.given = windows, 0

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = slice(self.given, self.given + len(x))
        self.given += len(x)
        return {name: value[rows] for name, value in self.windows.items()}


def test_sections_sound_alike_in_both_clips_and_like_nothing_else(tracks):
    windows = true_windows(tracks)
    cuts = [
        resample_windows(clip, windows[f"start_{name}"], windows[f"ratio_{name}"], WINDOW).flatten(2)
        for clip, name in ((tracks.x, "input"), (tracks.y, "target"))
    ]
    a, b = (cut - cut.mean(-1, keepdim=True) for cut in cuts)  # [B, 3, C·W]
    likeness = torch.einsum("bpn,bqn->bpq", a, b) / (a.norm(dim=-1)[:, :, None] * b.norm(dim=-1)[:, None])
    own = likeness.diagonal(dim1=1, dim2=2)
    assert float(own.min()) > 0.97
    assert float((likeness - torch.diag_embed(own)).abs().max()) < 0.7


def test_true_windows_are_counted_as_found(tracks):
    found = measure(Chooses(true_windows(tracks)), tracks)
    assert found["matched"] > 0.97
    assert (found["together"], found["own"]) == (1.0, 1.0)
    assert found["ratio off"] < 1e-5
    assert found["r(ρ)"] > 0.999
    assert found["std pairs"] > 200


def test_one_section_for_all_is_no_section_of_ones_own(tracks):
    windows = {name: value[:, :1].expand(-1, SECTIONS) for name, value in true_windows(tracks).items()}
    found = measure(Chooses(windows), tracks)
    assert (found["together"], found["own"], found["std pairs"]) == (1.0, 0.0, 0.0)


def test_exchanged_sections_are_not_together(tracks):
    windows = true_windows(tracks)
    windows |= {name: windows[name].roll(1, 1) for name in ("start_input", "ratio_input")}
    found = measure(Chooses(windows), tracks)
    assert (found["together"], found["own"]) == (0.0, 0.0)
    assert found["matched"] < 0.5


def test_section_of_a_window_that_lies_across():
    edges = torch.tensor([[[0.0, 300.0], [300.0, 600.0], [600.0, 900.0]]])
    start = torch.tensor([[10.0, 350.0, 310.0, 275.0, 200.0, 590.0]])
    assert section_of(start, torch.ones(1, 6), edges).tolist() == [[0, 1, 1, -1, -1, 2]]


def test_pairs_begin_equal_and_noise_has_no_sections():
    noise = white(4, torch.Generator().manual_seed(1))
    selector = equal_pairs()
    assert measure(selector, planted(4, torch.Generator().manual_seed(2)))["std pairs"] == 0.0
    assert measure(selector, noise)["matched"] < 0.3
