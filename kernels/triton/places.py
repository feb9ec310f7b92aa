"""Partial sums of each window become gradients of its start, ratio and strength; by themselves where it was resampled
alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import Target, configuration
from .launch import TRITON_TYPE, host, launch
from .loops import runtime_range


@triton.jit
def finish_window(
    pair,
    heard_ptr,
    sums_ptr,
    scalars_ptr,
    norm_bias_ptr,
    dstart_ptr,
    dratio_ptr,
    dstrength_ptr,
    TILES: tl.constexpr,
    C: tl.constexpr,
    CHUNKS: tl.constexpr,
    NEED_START: tl.constexpr,
    NEED_RATIO: tl.constexpr,
    NEED_STRENGTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dstart, dratio, and dstrength = Σ g·(v − β) + Σ_c β·Σ_t g − Σ g·y, of one window."""
    pair = pair.to(tl.int64)
    j = tl.arange(0, BLOCK)
    start = tl.zeros((BLOCK,), COMPUTE)
    ratio = start
    strength = start
    for first in runtime_range(0, CHUNKS, BLOCK, num_stages=1):
        chunk = first + j
        scalars = scalars_ptr + (pair * CHUNKS + chunk) * 3
        if NEED_START:
            start += tl.load(scalars, mask=chunk < CHUNKS, other=0.0)
        if NEED_RATIO:
            ratio += tl.load(scalars + 1, mask=chunk < CHUNKS, other=0.0)
        if NEED_STRENGTH:
            strength -= tl.load(scalars + 2, mask=chunk < CHUNKS, other=0.0)
    if NEED_START:
        tl.store(dstart_ptr + pair, tl.sum(start, 0).to(dstart_ptr.dtype.element_ty))
    if NEED_RATIO:
        tl.store(dratio_ptr + pair, tl.sum(ratio, 0).to(dratio_ptr.dtype.element_ty))
    if NEED_STRENGTH:
        for first in runtime_range(0, C, BLOCK, num_stages=1):
            c = first + j
            beta = tl.load(norm_bias_ptr + c, mask=c < C, other=0.0).to(COMPUTE)
            strength += beta * tl.load(sums_ptr + pair * C + c, mask=c < C, other=0.0)
        for first in runtime_range(0, TILES, BLOCK, num_stages=1):
            tile = first + j
            strength += tl.load(heard_ptr + pair * TILES + tile, mask=tile < TILES, other=0.0)
        tl.store(dstrength_ptr + pair, tl.sum(strength, 0).to(dstrength_ptr.dtype.element_ty))


@triton.jit
def finish_places(
    scalars_ptr,  # [B, P, CHUNKS, 3], as in `finish_window`
    dstart_ptr,  # out: [B, P]
    dratio_ptr,
    CHUNKS: tl.constexpr,
    NEED_START: tl.constexpr,
    NEED_RATIO: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dstart and dratio of resampling alone. Grid (B·P,)."""
    finish_window(
        tl.program_id(0),
        scalars_ptr,
        scalars_ptr,
        scalars_ptr,
        scalars_ptr,
        dstart_ptr,
        dratio_ptr,
        dstart_ptr,
        1,
        1,
        CHUNKS,
        NEED_START,
        NEED_RATIO,
        False,
        COMPUTE,
        BLOCK,
    )


def empty_gradient(like: Tensor) -> Tensor:
    """A gradient: contiguous whatever `like` is, as `torch.compile` is told."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def zeros(like: Tensor) -> Tensor:
    """A gradient of nothing."""
    made = empty_gradient(like)
    host(torch.Tensor.zero_, made)
    return made


def place_gradients(
    partial: Tensor, start: Tensor, ratio: Tensor, asked: tuple[bool, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of start and ratio from those of tiles, [B, P, tiles, 3]."""
    dstart, dratio = (empty_gradient(v) if need else None for v, need in zip((start, ratio), asked, strict=True))
    _, _, channels, window = grad.shape
    arguments = {
        "scalars_ptr": partial,
        "dstart_ptr": partial if dstart is None else dstart,
        "dratio_ptr": partial if dratio is None else dratio,
        "CHUNKS": partial.shape[2],
        "NEED_START": dstart is not None,
        "NEED_RATIO": dratio is not None,
        "COMPUTE": TRITON_TYPE[partial.dtype],
    }
    config = configuration("finish_places", Target(0, 1), "", channels, window)
    launch(finish_places, (start.numel(),), config, arguments, outputs=channels * window)
    return dstart, dratio
