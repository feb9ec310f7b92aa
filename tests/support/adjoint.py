"""The backward pass of the fused ops as plain PyTorch arithmetic: the mathematics, before any kernel.

It follows the kernels step by step (centred pointwise weight, folded clamps, gather form of dx), so that a test against
autograd of `kernels.reference` proves the formulas, and a test of the kernels then proves only their execution. The
derivation itself stands in `kernels/triton/transform.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor, Tensor], Tensor]  # a matrix product, so that its arithmetic can be exchanged


def positions(start: Tensor, ratio: Tensor, window: int, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """p, ∂p/∂start and ∂p/∂ratio, `[B, P, W]` each, by the two folded clamps."""
    s, r = start[..., None], ratio[..., None]
    t = torch.arange(window, dtype=s.dtype, device=s.device)
    v = (t + 0.5) * r - 0.5
    top = (r * window - 1).clamp(min=0)
    low, high = s.clamp(0, frames - 1), (s + top).clamp(0, frames - 1)
    p = torch.minimum(torch.maximum(s + v, low), high)
    free = s + torch.minimum(v.clamp(min=0), top)
    inside = ((free >= 0) & (free < frames - 1)).to(s.dtype)
    tail = torch.where(r * window >= 1, float(window), 0.0)
    slope = torch.where(v < 0, 0.0, torch.where(v > top, tail, t + 0.5))
    return p, inside, inside * slope


def hat(p: Tensor, frames: int) -> Tensor:
    """Weight of source frame i in output frame t, max(0, 1 − |p(t) − i|): `[B, P, W, T]`."""
    i = torch.arange(frames, dtype=p.dtype, device=p.device)
    return (1 - (p[..., None] - i).abs()).clamp(min=0)


def source_slope(x: Tensor, p: Tensor) -> Tensor:
    """dy/dp = x[i + 1] − x[i] at i = floor(p), 0 beyond the clip: `[B, P, C, W]`."""
    step = F.pad(x[..., 1:] - x[..., :-1], (0, 1))  # [B, C, T]
    index = p.floor().long()[:, :, None].expand(-1, -1, x.shape[1], -1)
    return step[:, None].expand(-1, p.shape[1], -1, -1).gather(3, index)


def tonality_blend_backward(
    grad_out: Tensor,
    y: Tensor,
    strength: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    product: Product = torch.matmul,
    restore: str = "none",
) -> tuple[Tensor, ...]:
    """Gradients of y, strength and the six weights, in that order."""
    channels = y.shape[2]
    taps = depthwise_weight.shape[-1]
    reach = taps // 2
    weight = pointwise_weight[..., 0]
    centred = weight - weight.mean(0)  # [out, in]
    bias = pointwise_bias + weight @ depthwise_bias
    bias = bias - bias.mean()
    shifted = F.pad(y, (reach, reach)).unfold(3, taps, 1)  # [B, P, C, W, K]: y[t + k − reach]
    z = (shifted * depthwise_weight[:, 0, None]).sum(-1)
    u = product(centred, z) + bias[:, None]  # mean over channels is zero
    inverse = torch.rsqrt(u.square().mean(2, keepdim=True) + eps)  # [B, P, 1, W]
    n = u * inverse
    s = strength[:, :, None, None]
    mean, spread = torch.zeros_like(inverse), torch.ones_like(inverse)  # [B, P, 1, W], of y where it is restored
    if restore == "frame":
        mean = y.mean(2, keepdim=True)
        spread = ((y - mean).square().mean(2, keepdim=True) + eps).sqrt()
    gamma, beta = norm_weight[:, None], norm_bias[:, None]

    d_strength = (grad_out * (mean + spread * n * gamma + beta - y)).sum((2, 3))
    d_gamma = (s * spread * grad_out * n).sum((0, 1, 3))
    d_beta = (s * grad_out).sum((0, 1, 3))
    dn = s * spread * gamma * grad_out
    du = inverse * (dn - n * (dn * n).mean(2, keepdim=True))  # no mean of dn: `centred` removes it
    dz = product(centred.T, du)
    d_centred = product(du.movedim(2, 0).reshape(channels, -1), z.movedim(2, 0).reshape(channels, -1).T)
    d_bias = du.sum((0, 1, 3))
    d_pointwise = d_centred + d_bias[:, None] * depthwise_bias
    d_pointwise = d_pointwise - d_pointwise.mean(0)
    d_depthwise_bias = centred.T @ d_bias
    d_depthwise = (dz[..., None] * shifted).sum((0, 1, 3))
    around = F.pad(dz, (reach, reach)).unfold(3, taps, 1)  # dz[t + k − reach]
    dy = (1 - s) * grad_out + (around * depthwise_weight[:, 0, None].flip(-1)).sum(-1)
    if restore == "frame":
        heard = (grad_out * gamma * n).mean(2, keepdim=True)
        dy = dy + s * grad_out.mean(2, keepdim=True) + (y - mean) * (s * heard / spread)
    weights = (
        d_depthwise[:, None],
        d_depthwise_bias,
        d_pointwise[..., None],
        d_bias - d_bias.mean(),
        d_gamma,
        d_beta,
    )
    return dy, d_strength, *weights


def windowed_tonality_backward(
    grad_out: Tensor,
    x: Tensor,
    start: Tensor,
    ratio: Tensor,
    strength: Tensor,
    *weights: Tensor,
    window: int,
    eps: float,
    product: Product = torch.matmul,
    restore: str = "none",
) -> tuple[Tensor, ...]:
    """Gradients of x, start, ratio, strength and the six weights, in that order."""
    frames = x.shape[-1]
    p, by_start, by_ratio = positions(start, ratio, window, frames)
    weight_of = hat(p, frames)
    y = torch.einsum("bpti,bci->bpct", weight_of, x)
    dy, d_strength, *d_weights = tonality_blend_backward(grad_out, y, strength, *weights, eps, product, restore)
    dx = torch.einsum("bpti,bpct->bci", weight_of, dy)
    dp = (dy * source_slope(x, p)).sum(2)  # [B, P, W]
    return dx, (dp * by_start).sum(-1), (dp * by_ratio).sum(-1), d_strength, *d_weights


def three_products(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of float32 by three bfloat16 products with float32 sums, as the kernels do it without TF32.

    With a = a₁ + a₂ in bfloat16 (8 significant bits each), a·b ≈ a₁b₁ + a₁b₂ + a₂b₁. Products of two bfloat16 values
    are exact in float32, so a float32 matmul of the parts is the tensor core's arithmetic up to the order of summation.
    """

    def split(value: Tensor) -> tuple[Tensor, Tensor]:
        high = value.bfloat16().float()
        return high, (value - high).bfloat16().float()

    (a1, a2), (b1, b2) = split(a), split(b)
    return a1 @ b2 + a2 @ b1 + a1 @ b1
