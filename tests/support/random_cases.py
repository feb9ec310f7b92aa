"""Random calls of the public functions, forward and backward: small, odd, strided and absurd.

A case is a pure function of its seed, so a report's seed is all that is needed to see it again:

    python -m sanitize_kernels --seed 1234 --cases 1
"""

from __future__ import annotations

import math
import random
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptive_window.kernels import resample_windows, tonality_blend, windowed_tonality
from adaptive_window.kernels.triton.configurations import Target
from adaptive_window.kernels.triton.launch import use_target

FUNCTIONS = {
    "windowed_tonality": windowed_tonality,
    "resample_windows": resample_windows,
    "tonality_blend": tonality_blend,
}
ABSURD = (math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38, 1e-30, -0.0)
# float64 sums of at most a few hundred terms of order one: far above their rounding, far below any wrong term
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Case:
    seed: int
    function: str
    dtype: torch.dtype
    batch: int
    pairs: int
    channels: int
    frames: int
    window: int
    taps: int
    layout: str  # of x or y
    grad_layout: str  # of the output's gradient
    absurd: bool  # some start or ratio is NaN, infinite or astronomic
    needs: frozenset[str]  # arguments whose gradients are asked for
    arch: int = 0  # whose block sizes: the interpreter's (0), or those shipped for sm_80 and sm_90
    restore: str = "none"

    @classmethod
    def draw(cls, seed: int) -> Case:
        rng = random.Random(seed)
        function = rng.choices(list(FUNCTIONS), (4, 4, 1))[0]
        names = argument_names(function)
        few = [n for n in names if rng.random() < 0.3]
        needs = rng.choices((names, few, [rng.choice(names)], []), (2, 3, 4, 1))[0]
        layouts = ("plain", "sliced", "transposed", "expanded", "offset")
        return cls(
            seed=seed,
            function=function,
            dtype=rng.choices((torch.float64, torch.float32), (2, 1))[0],
            batch=rng.choices((1, 2), (3, 1))[0],
            pairs=rng.choices((1, 2, 3), (3, 2, 1))[0],
            channels=rng.choices((1, 2, 3, 8, 17, 64, 65, 128, 129, 160), (8, 8, 8, 8, 4, 1, 1, 1, 1, 1))[0],
            frames=rng.choice((1, 2, 3, 7, 16, 33, 61)),
            window=rng.choices((1, 2, 5, 16, 23, 40, 121, 130), (6, 6, 8, 8, 8, 4, 1, 1))[0],
            taps=rng.choices((1, 3, 7, 9), (4, 4, 2, 1))[0],
            layout=rng.choice(layouts),
            grad_layout=rng.choice(layouts),
            absurd=rng.random() < 0.25,
            needs=frozenset(needs),
            arch=rng.choices((0, 80, 90), (18, 1, 1))[0],  # larger blocks take the interpreter longer
            restore=rng.choice(("none", "frame")) if function != "resample_windows" else "none",
        )


def argument_names(function: str) -> list[str]:
    weights = ["depthwise_weight", "depthwise_bias", "pointwise_weight", "pointwise_bias", "norm_weight", "norm_bias"]
    source = ["y"] if function == "tonality_blend" else ["x", "start", "ratio"]
    return source if function == "resample_windows" else [*source, "strength", *weights]


def laid_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Random numbers whose memory around them, and in their holes, is NaN."""

    def filled(*size: int) -> Tensor:
        return torch.full(size, math.nan, dtype=dtype)

    values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    *lead, last = shape
    if layout == "sliced":
        view = filled(*lead, 3 * last + 2)[..., 1 : 3 * last + 1 : 3]
    elif layout == "transposed":
        view = filled(*lead[:-1], last, lead[-1]).transpose(-1, -2)
    elif layout == "offset":
        view = filled(values.numel() + 14)[7:-7].view(shape)
    elif layout == "expanded":
        return values[:1].expand(shape)
    else:
        return values
    return view.copy_(values)


def places(case: Case, rng: random.Random) -> tuple[Tensor, ...]:
    """start and ratio [B, P]: inside, over the edges, on ties, frames piled up, and absurd ones."""
    window, frames = case.window, case.frames
    starts, ratios = [], []
    for _ in range(case.batch * case.pairs):
        ratio = rng.choice(
            (1.0, 2.0, 0.5, rng.uniform(1, 1.5), rng.uniform(1, 5), rng.uniform(0.01, 1), 0.8 / window, 0.003)
        )
        start = rng.choice(
            (
                0.0,
                float(rng.randrange(-3, frames + 3)),
                rng.uniform(-window * ratio, frames),
                rng.uniform(0, max(frames - window * ratio, 0)),
                frames - rng.uniform(0, window * ratio),
            )
        )
        if case.absurd and rng.random() < 0.7:
            start, ratio = rng.choice(((rng.choice(ABSURD), ratio), (start, rng.choice(ABSURD)), (math.nan, math.inf)))
        starts.append(start)
        ratios.append(ratio)
    shape = (case.pairs, case.batch)  # transposed: neither is contiguous
    return tuple(torch.tensor(values, dtype=case.dtype).view(shape).T for values in (starts, ratios))


def arguments(case: Case) -> dict[str, Tensor]:
    rng, generator = random.Random(~case.seed), torch.Generator().manual_seed(case.seed)
    b, p, c, t, w = case.batch, case.pairs, case.channels, case.frames, case.window
    start, ratio = places(case, rng)

    def normal(*size: int) -> Tensor:
        return laid_out(size, "plain", case.dtype, generator)

    made = {
        "x": laid_out((b, c, t), case.layout, case.dtype, generator),
        "y": laid_out((b, p, c, w), case.layout, case.dtype, generator),
        "start": start,
        "ratio": ratio,
        "strength": torch.rand(p, b, generator=generator, dtype=torch.float64).to(case.dtype).T,
        "depthwise_weight": normal(c, 1, case.taps),
        "depthwise_bias": normal(c),
        "pointwise_weight": normal(c, c, 1) / math.sqrt(c),
        "pointwise_bias": normal(c),
        "norm_weight": normal(c),
        "norm_bias": normal(c),
    }
    return {name: made[name] for name in argument_names(case.function)}


def run(case: Case, backend: str, grad: Tensor, values: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and the gradients asked for."""
    given = {name: value.detach().requires_grad_(name in case.needs) for name, value in values.items()}
    extra: dict[str, Any] = {} if case.function == "tonality_blend" else {"window": case.window}
    if case.function != "resample_windows":
        extra["restore"] = case.restore
    # three programs; float32 products as the interpreter computes them (float64 ones are the same anywhere)
    with use_target(Target(case.arch, 3, "ieee")) if case.arch else nullcontext():
        out = FUNCTIONS[case.function](**given, **extra, backend=backend)
        names = sorted(case.needs)
        if not names:
            return out, {}
        grads = torch.autograd.grad(out, [given[name] for name in names], grad)
    return out.detach(), dict(zip(names, grads, strict=True))


def check(case: Case, backend: str = "triton") -> None:
    """`backend` on `case`; raises AssertionError where it differs from the specification.

    Float64: every value and gradient. Float32: no NaN where the specification has none (its accuracy is another
    test's). With an absurd window: the windows without NaN; gradients only have to come out.
    """
    values = arguments(case)
    generator = torch.Generator().manual_seed(case.seed + 1)
    shape = (case.batch, case.pairs, case.channels, case.window)
    grad = laid_out(shape, case.grad_layout, case.dtype, generator)
    out, grads = run(case, backend, grad, values)
    want, want_grads = run(case, "reference", grad, values)
    assert torch.equal(out.isnan(), want.isnan()), f"{case}: NaN elsewhere than in the specification"
    for name, value in grads.items():
        assert value.shape == values[name].shape, f"{case}: the gradient of {name} has shape {list(value.shape)}"
        assert value.dtype == values[name].dtype, f"{case}: the gradient of {name} is {value.dtype}"
    if not case.absurd:
        assert all(value.isfinite().all() for value in grads.values()), f"{case}: gradients are not finite"
    if case.dtype != torch.float64:
        return
    close(case, "output", out.nan_to_num(0.0), want.nan_to_num(0.0))
    if "x" in grads:  # a window without a place spoils two frames of its clip, whatever its gradient
        spoilt = torch.equal(grads["x"].isnan(), want_grads["x"].isnan())
        assert spoilt, f"{case}: the gradient of x is NaN elsewhere than in the specification"
    if not case.absurd:
        for name, value in grads.items():
            close(case, f"gradient of {name}", value, want_grads[name])


def close(case: Case, what: str, got: Tensor, want: Tensor) -> None:
    scale = max(want.abs().max().item(), 1.0) if want.numel() else 1.0
    error = (got - want).abs().max().item() if want.numel() else 0.0
    assert error <= TOLERANCE * scale, f"{case}: {what} is off by {error:.2e}, of {scale:.2e}"
