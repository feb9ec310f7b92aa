"""The derivation of the backward pass, as plain PyTorch, against autograd of the reference in float64."""

from __future__ import annotations

import adjoint
import pytest
import torch
from window_cases import EPS, GEOMETRY, NAMES, arguments

from adaptive_window.kernels import reference


@pytest.mark.parametrize("case", GEOMETRY)
@pytest.mark.parametrize(("channels", "taps"), [(5, 7), (1, 3)])
@pytest.mark.parametrize("restore", ["none", "frame"])
def test_closed_form_equals_autograd(case: str, channels: int, taps: int, restore: str) -> None:
    frames, window, starts, ratios = GEOMETRY[case]
    values = arguments(frames, starts, ratios, channels, taps)
    leaves = [v.clone().requires_grad_() for v in values]
    out = reference.windowed_tonality(*leaves, window, EPS, restore)
    grad_out = torch.randn_like(out)
    wanted = torch.autograd.grad(out, leaves, grad_out)
    got = adjoint.windowed_tonality_backward(grad_out, *values, window=window, eps=EPS, restore=restore)
    largest = max(float(w.abs().max()) for w in wanted)
    for name, g, w in zip(NAMES, got, wanted, strict=True):
        # an exactly vanishing gradient (C = 1: LayerNorm of one channel) is compared with the others' size
        assert float((g - w).abs().max()) <= 1e-10 * max(float(w.abs().max()), 1e-3 * largest), name


def test_right_hand_derivatives_at_ties() -> None:
    """start = 0 with ratio = 1 puts every frame on a whole position, the first on both clamps at once."""
    s = torch.zeros(1, 1, dtype=torch.float64)
    p, by_start, by_ratio = adjoint.positions(s, s + 1, 4, 6)
    assert p.flatten().tolist() == [0, 1, 2, 3]
    assert by_start.flatten().tolist() == [1, 1, 1, 1]
    assert by_ratio.flatten().tolist() == [0.5, 1.5, 2.5, 3.5]
    _, by_start, by_ratio = adjoint.positions(
        s + 2, s + 1, 4, 6
    )  # the last frame on the clip's end: held, to the right
    assert by_start.flatten().tolist() == [1, 1, 1, 0]
    assert by_ratio.flatten().tolist() == [0.5, 1.5, 2.5, 0]


def test_frames_that_touch_a_sample_are_one_interval() -> None:
    """What the gather form of dx rests on."""
    for frames, window, starts, ratios in GEOMETRY.values():
        p, _, _ = adjoint.positions(torch.tensor([starts]).double(), torch.tensor([ratios]).double(), window, frames)
        assert bool((p.diff(dim=-1) >= 0).all())
        touched = adjoint.hat(p, frames) > 0  # [1, P, W, T]
        edges = touched.to(torch.int8).diff(dim=2, prepend=torch.zeros_like(touched[:, :, :1], dtype=torch.int8)) == 1
        assert bool((edges.sum(2) <= 1).all())


def test_three_products_are_far_better_than_one() -> None:
    """Two bfloat16 parts leave 2⁻¹⁸ of a value, twice, and drop the product of the small parts, 2⁻¹⁸ again."""
    frames, window, starts, ratios = GEOMETRY["inside"]
    values = arguments(frames, starts, ratios, 64, 7)
    grad_out = torch.randn(2, 3, 64, window, dtype=torch.float64)
    truth = adjoint.windowed_tonality_backward(grad_out, *values, window=window, eps=EPS)
    narrow = [v.float() for v in values]
    split = adjoint.windowed_tonality_backward(
        grad_out.float(), *narrow, window=window, eps=EPS, product=adjoint.three_products
    )
    for name, g, w in zip(NAMES, split, truth, strict=True):
        # 3 · 2⁻¹⁸ for each of the two products in a row (u, then dz or dpw), relative to the whole gradient
        assert float((g - w).norm() / w.norm()) <= 2 * 3 * 2.0**-18, name
