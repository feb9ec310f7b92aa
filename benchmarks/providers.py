"""What is compared: one operation, written as its users would otherwise write it, and ours.

The operation cuts P windows out of every clip, resamples each to W frames and blends the tonality transform in:
`windowed_tonality`. Every provider takes the same inputs and returns `[B, P, C, W]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptive_window import kernels
from adaptive_window.kernels import reference
from adaptive_window.kernels.native import library

EPS = 1e-5
NAMES = ("x", "start", "ratio", "strength", "depthwise_weight", "depthwise_bias", "pointwise_weight", "pointwise_bias",
         "norm_weight", "norm_bias")  # fmt: skip
Call = Callable[..., Tensor]


class CannotRun(RuntimeError):
    """A provider that this machine, or this call, has no place for; says why."""


@dataclass(frozen=True)
class Case:
    """Sizes, dtype and precision of one comparison; frames and windows as in the kernels' documentation."""

    batch: int = 8
    pairs: int = 3
    channels: int = 128
    frames: int = 1200
    window: int = 800
    taps: int = 7
    dtype: str = "float32"
    tf32: bool = False
    device: str = "cpu"

    @property
    def title(self) -> str:
        precision = " tf32" if self.tf32 and self.dtype == "float32" else ""
        return (
            f"B={self.batch} P={self.pairs} C={self.channels} T={self.frames} W={self.window} {self.dtype}{precision}"
        )

    def describe(self) -> dict[str, object]:
        return asdict(self)


def make_inputs(case: Case, seed: int = 0) -> tuple[Tensor, ...]:
    """The ten inputs, in the order of NAMES; start and ratio stay float32 where x is 16-bit.

    Windows cover whole frames, as the original's `int(...)` needs them: starts are integers, ratios 17/16 to 24/16 (a
    window is a multiple of 16 frames). No such ratio puts a frame exactly on a sample, where the derivative of an
    interpolation depends on the last bit of its position.
    """
    if case.window % 16 or case.frames * 16 < case.window * 17:
        raise ValueError(f"window must be a multiple of 16 and at most 16/17 of frames, got {case.window} of "
                         f"{case.frames}")  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    place = torch.float64 if dtype == torch.float64 else torch.float32
    b, p, c, k = case.batch, case.pairs, case.channels, case.taps

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    longest = min(8, (case.frames - case.window) * 16 // case.window)  # sixteenths beyond W that fit
    ratio = 1 + torch.randint(1, longest + 1, (b, p), generator=generator).double() / 16
    room = case.frames - ratio * case.window
    start = (torch.rand(b, p, generator=generator, dtype=torch.float64) * (room + 1)).floor().clamp(max=room)
    strength = torch.rand(b, p, generator=generator, dtype=torch.float64).to(dtype)
    values = (
        normal(b, c, case.frames), start.to(place), ratio.to(place), strength,
        normal(c, 1, k, scale=0.4), normal(c, scale=0.1), normal(c, c, 1, scale=c**-0.5), normal(c, scale=0.1),
        1 + normal(c, scale=0.1), normal(c, scale=0.1),
    )  # fmt: skip
    return tuple(v.to(case.device).requires_grad_() for v in values)


def make_output_gradient(case: Case, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (case.batch, case.pairs, case.channels, case.window)
    return torch.randn(shape, generator=generator).to(case.device, getattr(torch, case.dtype))


# ---- the tonality transform on channels-first windows ----


def _blend(y: Tensor, z: Tensor, strength: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """What follows the depthwise convolution; y, z `[N, C, W]`, strength `[N]`."""
    pw, pb, gamma, beta = weights
    u = F.conv1d(z, pw, pb)
    v = F.layer_norm(u.transpose(1, 2), (u.shape[1],), gamma, beta, EPS).transpose(1, 2)
    s = strength.view(-1, 1, 1)
    return (1 - s) * y + s * v


def _depthwise_conv(y: Tensor, dw: Tensor, db: Tensor) -> Tensor:
    return F.conv1d(y, dw, db, padding=dw.shape[-1] // 2, groups=dw.shape[0])


def _depthwise_shifts(y: Tensor, dw: Tensor, db: Tensor) -> Tensor:
    taps, window = dw.shape[-1], y.shape[-1]
    padded = F.pad(y, (taps // 2, taps // 2))
    z = db[:, None] + dw[:, 0, 0, None] * padded[..., :window]
    for k in range(1, taps):
        z = z + dw[:, 0, k, None] * padded[..., k : k + window]
    return z


# ---- the ways to cut windows ----


def _gather_windows(x: Tensor, start: Tensor, ratio: Tensor, window: int) -> Tensor:
    """By indexing: what a compiler can fuse with what follows. `[B, P, C, W]`."""
    p = reference.window_positions(start, ratio, window, x.shape[2])
    left = p.detach().floor()
    f = (p - left).to(x.dtype)[:, :, None]
    left = left.long()
    right = (left + 1).clamp(max=x.shape[2] - 1)
    row = torch.arange(x.shape[0], device=x.device)[:, None, None, None]
    column = torch.arange(x.shape[1], device=x.device)[:, None]
    return (1 - f) * x[row, column, left[:, :, None]] + f * x[row, column, right[:, :, None]]


def _grid_windows(x: Tensor, start: Tensor, ratio: Tensor, window: int) -> Tensor:
    """By `F.grid_sample` of an image of one row; its grid has the dtype of x, so 16 bits are widened for it."""
    p = reference.window_positions(start, ratio, window, x.shape[2])  # [B, P, W]
    wide = x.to(p.dtype)
    across = 2 * p / (x.shape[2] - 1) - 1
    grid = torch.stack((across, torch.zeros_like(across)), dim=-1)
    y = F.grid_sample(wide[:, :, None], grid, mode="bilinear", padding_mode="border", align_corners=True)
    return y.transpose(1, 2).to(x.dtype)  # [B, P, C, W]


def _vectorized(cut: Call, depthwise: Call, window: int) -> Call:
    def call(
        x: Tensor, start: Tensor, ratio: Tensor, strength: Tensor, dw: Tensor, db: Tensor, *rest: Tensor
    ) -> Tensor:
        y = cut(x, start, ratio, window)
        rows = y.flatten(0, 1)
        return _blend(rows, depthwise(rows, dw, db), strength.flatten(), rest).view(y.shape)

    return call


def _loop(window: int) -> Call:
    """Pair after pair, sample after sample, as the original does it."""

    def call(
        x: Tensor, start: Tensor, ratio: Tensor, strength: Tensor, dw: Tensor, db: Tensor, *rest: Tensor
    ) -> Tensor:
        outputs = []
        for i in range(start.shape[1]):
            y = reference.interpolate_windows(x, start[:, i : i + 1], ratio[:, i : i + 1], window)[:, 0]
            outputs.append(_blend(y, _depthwise_conv(y, dw, db), strength[:, i], rest))
        return torch.stack(outputs, dim=1)

    return call


def _kernels(case: Case) -> str:
    """The backend that holds our kernels for the case's device: by name, so that nothing else is timed as ours."""
    if case.device == "cuda":
        return "triton"
    reason = library.why_not()
    if reason is not None:
        raise CannotRun(f"there are no compiled CPU kernels: {reason}")
    return "native"


def _compiled(call: Call) -> Call:
    return torch.compile(call, fullgraph=True, dynamic=False)


def _separate(case: Case) -> Call:
    backend = _kernels(case)

    def call(x: Tensor, start: Tensor, ratio: Tensor, *rest: Tensor) -> Tensor:
        y = kernels.resample_windows(x, start, ratio, case.window, backend=backend)
        return kernels.tonality_blend(y, *rest, eps=EPS, backend=backend)

    return call


def _fused(case: Case) -> Call:
    backend = _kernels(case)
    return lambda *inputs: kernels.windowed_tonality(*inputs, case.window, eps=EPS, backend=backend)


def _reference(case: Case) -> Call:
    return lambda *inputs: reference.windowed_tonality(*inputs, case.window, EPS)


# a is the original's way, b to d what PyTorch offers, e and f ours.
PROVIDERS: dict[str, Callable[[Case], Call]] = {
    "a loop": lambda case: _loop(case.window),
    "b grid_sample": lambda case: _vectorized(_grid_windows, _depthwise_conv, case.window),
    "c reference": _reference,
    "d compiled reference": lambda case: _compiled(_reference(case)),
    "d compiled conv": lambda case: _compiled(_vectorized(_gather_windows, _depthwise_conv, case.window)),
    "d compiled shifts": lambda case: _compiled(_vectorized(_gather_windows, _depthwise_shifts, case.window)),
    "e ours separate": _separate,
    "f ours fused": _fused,
}
BASELINE = "a loop"
OURS = "f ours fused"  # what a user of the package gets by default
WITHOUT_PLACE_GRADIENT = ("a loop",)  # its int(...) cuts the gradients of start and ratio: part of what it costs


def build(name: str, case: Case) -> Call:
    """Raises CannotRun with a reason."""
    return PROVIDERS[name](case)
