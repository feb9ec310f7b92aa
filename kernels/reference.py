"""The specification: window resampling and the tonality blend in plain PyTorch.

Any dtype, any device, differentiable by autograd in every argument. 16-bit inputs are computed in float32 and rounded
once, at the end. Positions are computed in float64 whatever the dtype, so that a long clip costs no accuracy: at
T = 200,000 frames a float32 position is already off by 1/128 of a frame.

`interpolate_windows` beside them is the loop that this package replaces: oracle for integer windows, and baseline of
the benchmarks. Nothing here checks its arguments (`functional` does) and nothing here imports Triton.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Any finite start or ratio beyond these clamps to the same frame; infinities are brought inside so that they do too
# (-inf + inf would be NaN). NaN passes and marks its own window.
START_LIMIT = 1e12
RATIO_LIMIT = 1e9


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for 16-bit and 32-bit inputs, float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _position_dtype(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64


def autocast_available(device: str) -> bool:
    """Whether `torch.autocast` knows this device type ("meta", for one, it does not).

    Dynamo cannot trace the question; it compiles for devices with autocast only.
    """
    return torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Autocast would run the convolutions in 16 bits, and round before the end."""
    return torch.autocast(device, enabled=False) if autocast_available(device) else nullcontext()


def _bounded(value: Tensor, limit: float) -> Tensor:
    """value within ±limit; NaN stays, and so does the gradient there, which a clamp would cut."""
    return torch.where(value.detach().abs() > limit, value.detach().clamp(-limit, limit), value)


def window_positions(start: Tensor, ratio: Tensor, window: int, frames: int) -> Tensor:
    """Source position of every output frame, in frames: `[..., W]` from `start`, `ratio` `[...]`.

    Convention
    ----------
    With v(t) = (t + 1/2)·ratio − 1/2 (frame centres at integers, as `align_corners=False`):

        u(t) = clamp(v(t), 0, max(ratio·W − 1, 0))        the window's own edges; idle for ratio ≥ 1
        p(t) = clamp(start + u(t), 0, frames − 1)         the clip's edges

    Derivatives are right-hand ones: ∂p/∂start = [0 ≤ start + u < frames − 1], and ∂p/∂ratio is that times 0 (v < 0),
    W (v beyond the last frame of the window; 0 if ratio·W < 1) or t + 1/2. `torch.where` pins them down; the gradient
    of `torch.clamp` at a tie differs between PyTorch versions. A window without a place (NaN in start or ratio) has NaN
    positions, and NaN derivatives to both.
    """
    start = _bounded(start, START_LIMIT)[..., None]
    ratio = _bounded(ratio, RATIO_LIMIT)[..., None]
    t = torch.arange(window, device=start.device, dtype=start.dtype)
    v = (t + 0.5) * ratio - 0.5  # [..., W]
    length = ratio * window
    last = torch.where(length >= 1, length - 1, 0.0)  # [..., 1]
    u = torch.where(v < 0, 0.0, torch.where(v > last, last, v))
    free = start + u
    held = free.detach().clamp(0, frames - 1)
    place = start + ratio  # finite, or NaN
    poison = torch.where(place.detach().isnan(), torch.nan, 0.0)
    return torch.where((free >= 0) & (free < frames - 1), free, held) + poison * place


def _resampled_rows(x: Tensor, start: Tensor, ratio: Tensor, window: int) -> Tensor:
    """Resampled windows with channels last, `[B, P, W, C]`, in float32 or float64."""
    batch, channels, frames = x.shape
    compute = compute_dtype(x.dtype)
    positions = _position_dtype(x)
    p = window_positions(start.to(positions), ratio.to(positions), window, frames)  # [B, P, W]
    left = p.detach().nan_to_num(0.0).floor()
    f = (p - left).to(compute)  # NaN marks its whole window
    left = left.long()
    both = torch.stack((left, (left + 1).clamp(max=frames - 1)), dim=-1)  # [B, P, W, 2]
    # A frame is a row of a table, an output frame a weighted bag of two rows. Of gather, grid_sample, embedding and
    # this, this is the fastest on CPUs, forward and backward: it reads and writes whole rows.
    table = x.to(compute).transpose(1, 2).reshape(batch * frames, channels)
    row = both + torch.arange(batch, device=x.device)[:, None, None, None] * frames
    weights = torch.stack((1 - f, f), dim=-1)
    y = F.embedding_bag(row.view(-1, 2), table, per_sample_weights=weights.view(-1, 2), mode="sum")  # [B·P·W, C]
    return y.view(*p.shape, channels)


class _Turned(torch.autograd.Function):
    """Swaps the last two axes into new memory, of gradients too.

    `transpose` would hand a strided gradient back, and every operation before it would read it across its rows.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.transpose(-2, -1).clone(memory_format=torch.contiguous_format)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _turned(grad)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _turned(tangent)


def _turned(x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # Dynamo takes no Function with a jvp, and fuses what reads its gradient
        return x.transpose(-2, -1).contiguous()
    return _Turned.apply(x)


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution of `[N, W, C]` over W with weights `[C, 1, K]`, zero beyond the ends.

    One clip is an image of C channels, W rows and one column, in channels-last memory: of five layouts the fastest on
    CPUs. The weight's gradient, Σ grad(t)·y(t + k − K/2) over clips and frames, is written out: oneDNN adds all frames
    up in one float32 number after the other and is 2.2e-6 off at 19,200 of them; this sums by halves, 2.6e-7, and
    `F.conv1d` is 3.0e-7 off (benchmarks/formulations.py prints times and errors).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, weight: Tensor) -> Tensor:
        return _convolved(y, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        y, weight = ctx.saved_tensors
        taps = weight.shape[-1]
        grad_y = grad_weight = None
        if ctx.needs_input_grad[0]:  # the same convolution with the taps turned round
            grad_y = _Depthwise.apply(grad, weight.flip(-1))
        if ctx.needs_input_grad[1]:
            window, sums = y.shape[1], []
            for shift in range(-(taps // 2), taps // 2 + 1):
                first = max(0, -shift)
                last = max(first, min(window, window - shift))
                sums.append((grad[:, first:last] * y[:, first + shift : last + shift]).sum((0, 1)))  # [C]
            grad_weight = torch.stack(sums, dim=-1)[:, None]
        return grad_y, grad_weight

    @staticmethod
    def jvp(ctx: Any, y_tangent: Tensor, weight_tangent: Tensor) -> Tensor:
        y, weight = ctx.saved_tensors
        return _convolved(y_tangent, weight) + _convolved(y, weight_tangent)


def _convolved(y: Tensor, weight: Tensor) -> Tensor:
    image = y[:, :, None].permute(0, 3, 1, 2)  # [N, C, W, 1], in what conv2d takes for channels-last strides
    with without_autocast(y.device.type):  # the backward pass may run beneath one too
        z = F.conv2d(image, weight[..., None], padding=(weight.shape[-1] // 2, 0), groups=len(weight))
    return z.permute(0, 2, 3, 1)[:, :, 0]  # [N, W, C]


def _depthwise(y: Tensor, weight: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # as in _turned
        return _convolved(y, weight)
    return _Depthwise.apply(y, weight)


def _blended_rows(y: Tensor, strength: Tensor, weights: tuple[Tensor, ...], eps: float, restore: str) -> Tensor:
    """The tonality blend with channels last, `[B, P, W, C]` to the same, in the dtype of y (float32 or float64)."""
    dw, db, pw, pb, gamma, beta = (w.to(y.dtype) for w in weights)
    # The depthwise bias goes through the pointwise product: the convolution's own bias doubles its backward pass.
    z = _depthwise(y.flatten(0, 1), dw).view(y.shape)
    mix = pw[:, :, 0]
    with without_autocast(y.device.type):
        u = F.linear(z, mix, pb + mix @ db)
    if restore == "frame":
        n = F.layer_norm(u, y.shape[-1:], eps=eps)
        variance, mean = torch.var_mean(y, -1, correction=0, keepdim=True)  # [B, P, W, 1]
        v = mean + torch.sqrt(variance + eps) * n * gamma + beta
    else:
        v = F.layer_norm(u, y.shape[-1:], gamma, beta, eps)
    return torch.lerp(y, v, strength.to(y.dtype)[:, :, None, None])  # (1 - s)·y + s·v, exactly y or v at 0 or 1


def resample_windows(x: Tensor, start: Tensor, ratio: Tensor, window: int) -> Tensor:
    """`[B, C, T]` -> `[B, P, C, W]`; see `functional.resample_windows`."""
    return _turned(_resampled_rows(x, start, ratio, window).to(x.dtype))


def tonality_blend(
    y: Tensor,
    strength: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float = 1e-5,
    restore: str = "none",
) -> Tensor:
    """`[B, P, C, W]` -> `[B, P, C, W]`; see `functional.tonality_blend`."""
    weights = (depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, norm_weight, norm_bias)
    rows = _turned(y.to(compute_dtype(y.dtype)))
    return _turned(_blended_rows(rows, strength, weights, eps, restore).to(y.dtype))


def windowed_tonality(
    x: Tensor,
    start: Tensor,
    ratio: Tensor,
    strength: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    window: int,
    eps: float = 1e-5,
    restore: str = "none",
) -> Tensor:
    """Both in turn, with channels last in between and 16-bit inputs rounded once, at the end; see `functional`."""
    weights = (depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, norm_weight, norm_bias)
    rows = _resampled_rows(x, start, ratio, window)
    return _turned(_blended_rows(rows, strength, weights, eps, restore).to(x.dtype))


def interpolate_windows(x: Tensor, start: Tensor, ratio: Tensor, window: int) -> Tensor:
    """The loop that `resample_windows` replaces: one slice and one `F.interpolate` per sample and pair.

    `[B, C, T]` -> `[B, P, C, W]`. `int(...)` truncates start and length to whole frames, waits for the device at each
    call, and cuts every gradient to start and ratio. Equal to `resample_windows` where both are whole already and the
    window lies inside the clip.
    """
    rows = []
    for b in range(start.shape[0]):
        for p in range(start.shape[1]):
            begin = int(start[b, p].item())
            length = int(ratio[b, p].item() * window)
            cut = x[b : b + 1, :, begin : begin + length]
            rows.append(F.interpolate(cut, size=window, mode="linear", align_corners=False))
    return torch.cat(rows).view(*start.shape, x.shape[1], window)
