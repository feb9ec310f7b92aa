"""Numerical derivatives of the public functions in float64, along random directions (element by element the kernels
are compared with autograd of the reference)."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from torch import Tensor
from window_cases import NAMES, arguments

from adaptive_window.kernels import tonality_blend, windowed_tonality

pytest.importorskip("triton")

gradcheck = partial(torch.autograd.gradcheck, eps=1e-6, atol=1e-5, rtol=1e-3, nondet_tol=0.0, fast_mode=True)


def small(device: torch.device) -> list[Tensor]:
    """One window inside the clip at a ratio above 1, one over its left edge below 1."""
    values = arguments(11, (2.3137, -1.2931), (1.1172, 0.4172), channels=3, taps=3)
    return [(v[:1] if n < 4 else v).to(device) for n, v in enumerate(values)]


@pytest.mark.parametrize("window", [6, 8])
@pytest.mark.parametrize(("seed", "restore"), [(0, "none"), (1, "none"), (2, "none"), (0, "frame"), (3, "frame")])
def test_subsets_and_layouts(seed: int, restore: str, window: int, device: torch.device) -> None:
    """Which tensors need a gradient, and which of them are strided, is drawn; the first time all are and do."""
    draw = random.Random(seed)
    values = small(device)
    strided = [seed == 0 or draw.random() < 0.5 for _ in NAMES]
    values = [torch.stack((v, v), -1)[..., 0] if yes else v for v, yes in zip(values, strided, strict=True)]
    needed = draw.sample(range(len(NAMES)), len(NAMES) if seed == 0 else draw.randint(1, 3))
    for n in needed:
        values[n].requires_grad_()
    assert gradcheck(lambda *v: windowed_tonality(*v, window, restore=restore, backend="triton"), values)


@pytest.mark.parametrize("restore", ["none", "frame"])
def test_blend(restore: str, device: torch.device) -> None:
    rest = small(device)[3:]
    y = torch.randn(1, 6, 3, 2, dtype=torch.float64, device=device).transpose(1, 3)
    values = [v.requires_grad_() for v in (y, *rest)]
    assert gradcheck(lambda *v: tonality_blend(*v, restore=restore, backend="triton"), values)
