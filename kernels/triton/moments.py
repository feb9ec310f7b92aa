"""Each frame's mean over channels and its spread, sqrt(variance + eps): what `restore="frame"` gives back.

The fused forward kernel has a frame's channels at hand (`tile_moments`). Elsewhere programs see a block of channels
each: they leave its mean and its sum of squared deviations, and whoever needs the frame's puts them together, without
a difference of large numbers (Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances, 1979):

    mean = Σ_k n_k·mean_k / C,   C·variance = Σ_k square_k + n_k·(mean_k − mean)²,   n_k channels in block k
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .interpolation import channel_offsets


class Moments(NamedTuple):
    """Of every frame of every window, block by block of channels."""

    tensor: Tensor  # [B, P, blocks, 2, W]: mean, sum of squared deviations
    width: int  # channels of a block; the last one may have fewer


@triton.jit
def tile_moments(ys, c, C: tl.constexpr, PADDED: tl.constexpr, BLOCK_C: tl.constexpr, EPS: tl.constexpr):
    """(mean, spread) [BLOCK_T] of a tile whose channels c + n·BLOCK_C < PADDED lie in ys[n] [BLOCK_T, BLOCK_C]."""
    total = tl.where((c < C)[None, :], ys[0], 0.0) if C != PADDED else ys[0]
    for n in tl.static_range(1, 4):
        total += tl.where((c + n * BLOCK_C < C)[None, :], ys[n], 0.0) if C != PADDED else ys[n]
    mean = tl.sum(total, 1) / C
    square = tl.zeros_like(total)
    for n in tl.static_range(4):
        away = ys[n] - mean[:, None]
        if C != PADDED:
            away = tl.where((c + n * BLOCK_C < C)[None, :], away, 0.0)
        square += away * away
    return mean, tl.sqrt(tl.sum(square, 1) / C + EPS)


@triton.jit
def store_moments(moments_ptr, y, c, pair, block, BLOCKS, t, own, W: tl.constexpr, C: tl.constexpr, SPAN: tl.constexpr):
    """Of the channels c, of block `block` of BLOCKS, in y [BLOCK_T, BLOCK_C]; stored where `own`."""
    BLOCK_C: tl.constexpr = y.shape[1]
    count = tl.minimum(C - block * BLOCK_C, BLOCK_C)
    mean = tl.sum(tl.where((c < C)[None, :], y, 0.0) if C != SPAN else y, 1) / count
    away = y - mean[:, None]
    if C != SPAN:
        away = tl.where((c < C)[None, :], away, 0.0)
    row_ptr = moments_ptr + (pair.to(tl.int64) * BLOCKS + block) * (2 * W)
    tl.store(row_ptr + t, mean, mask=own)
    tl.store(row_ptr + W + t, tl.sum(away * away, 1), mask=own)


@triton.jit
def load_moments(
    moments_ptr,
    pair,
    t,
    inside,
    W: tl.constexpr,
    C: tl.constexpr,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """(mean, spread) [BLOCK_T] of frames t, from blocks of WIDTH channels; where not `inside`, 0 and sqrt(EPS)."""
    BLOCKS: tl.constexpr = (C + WIDTH - 1) // WIDTH
    row_ptr = moments_ptr + pair.to(tl.int64) * (2 * BLOCKS * W) + t
    mean = tl.zeros_like(t).to(COMPUTE)
    square = mean
    for k in tl.static_range(BLOCKS):
        block_ptr = row_ptr + channel_offsets(k, BLOCKS, BLOCKS, 2 * W)
        mean += tl.load(block_ptr, mask=inside, other=0.0) * min(WIDTH, C - k * WIDTH)
    mean = mean / C
    for k in tl.static_range(BLOCKS):
        block_ptr = row_ptr + channel_offsets(k, BLOCKS, BLOCKS, 2 * W)
        away = tl.load(block_ptr, mask=inside, other=0.0) - mean
        square += tl.load(block_ptr + W, mask=inside, other=0.0) + away * away * min(WIDTH, C - k * WIDTH)
    return mean, tl.sqrt(square / C + EPS)


@triton.jit
def store_restored(
    restored_ptr,  # out: [B, P, 3, W]
    pair,
    t,
    mean,
    spread,
    heard,
    level,
    strength,
    W: tl.constexpr,
    C: tl.constexpr,
):
    """Of frames t, with heard = Σ_c g·γ·n and level = Σ_c g: what `load_restored` makes dy of."""
    row_ptr = restored_ptr + pair.to(tl.int64) * (3 * W) + t
    tl.store(row_ptr, mean, mask=t < W)
    tl.store(row_ptr + W, strength * level / C, mask=t < W)
    tl.store(row_ptr + 2 * W, strength * heard / (spread * C), mask=t < W)


@triton.jit
def load_restored(restored_ptr, y, pair, t, own, W: tl.constexpr):
    """What restoring adds to dy [BLOCK_T, channels] of frames t: s·mean_c g + (y − m)·s·mean_c(g·γ·n)/σ."""
    row_ptr = restored_ptr + pair.to(tl.int64) * (3 * W) + t
    mean = tl.load(row_ptr, mask=own, other=0.0)
    level = tl.load(row_ptr + W, mask=own, other=0.0)
    slope = tl.load(row_ptr + 2 * W, mask=own, other=0.0)
    return level[:, None] + (y - mean[:, None]) * slope[:, None]
