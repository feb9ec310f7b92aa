"""Host side of the forward kernels and of the resampling adjoint: sizes, grids, outputs. No call waits for a device."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from ..reference import compute_dtype
from .configurations import Target, configuration
from .launch import (
    FUSED_CHANNELS,
    TRITON_TYPE,
    Prepared,
    Source,
    Split,
    Weights,
    launch,
    precision_of,
    prepare,
    target_of,
)
from .launch_wide import multiply_wide
from .resample import resample_dx, resample_forward, resample_position_gradient
from .windowed_tonality_backward import recompute_windows
from .windowed_tonality_forward import norm_blend, windowed_tonality_forward


def overlap(taps: int) -> int:
    """HALO: frames on either side of a tile that only feed the convolution; whole 16 bytes, so that stores align."""
    return max(4, triton.cdiv(taps // 2, 4) * 4)


def resample(x: Tensor, start: Tensor, ratio: Tensor, window: int) -> Tensor:
    """y [B, P, C, W]."""
    batch, channels, frames = x.shape
    pairs = start.shape[1]
    out = torch.empty(batch, pairs, channels, window, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    target, compute = target_of(x.device), compute_dtype(x.dtype)
    config = configuration("resample_forward", target, "fp64" if compute == torch.float64 else "", channels, window)
    block_t, block_c = config.constants["BLOCK_T"], config.constants["BLOCK_C"]
    arguments = {
        "x_ptr": x,
        "start_ptr": start.contiguous(),
        "ratio_ptr": ratio.contiguous(),
        "out_ptr": out,
        "T": frames,
        "P": pairs,
        "stride_xb": x.stride(0),
        "W": window,
        "C": channels,
        "STRIDE_XC": x.stride(1),
        "STRIDE_XT": 0 if frames == 1 else x.stride(2),
        "COMPUTE": TRITON_TYPE[compute],
    }
    programs = batch * pairs * triton.cdiv(window, block_t) * triton.cdiv(channels, block_c)
    launch(resample_forward, (programs,), config, arguments, outputs=block_t * block_c)
    return out


def resample_dx_of(grad: Tensor, x: Tensor, start: Tensor, ratio: Tensor) -> Tensor:
    """dx [B, C, T], contiguous, from the gradient [B, P, C, W] of resampled windows (any strides, any dtype)."""
    batch, channels, frames = x.shape
    pairs, window = grad.shape[1], grad.shape[3]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if grad.numel() == 0:
        return dx.zero_()
    target, compute = target_of(x.device), compute_dtype(x.dtype)
    precision = "fp64" if compute == torch.float64 else "16 bits" if grad.dtype.itemsize == 2 else ""
    config = configuration("resample_dx", target, precision, channels, window, frames)
    block_x, block_c = config.constants["BLOCK_X"], config.constants["BLOCK_C"]
    arguments = {
        "grad_ptr": grad,
        "start_ptr": start.contiguous(),
        "ratio_ptr": ratio.contiguous(),
        "dx_ptr": dx,
        "T": frames,
        "P": pairs,
        "stride_gb": grad.stride(0),
        "stride_gp": grad.stride(1),
        "W": window,
        "C": channels,
        "STRIDE_GC": grad.stride(2),
        "STRIDE_GW": grad.stride(3),
        "T_STEP": math.gcd(frames, 4),
        "COMPUTE": TRITON_TYPE[compute],
    }
    programs = batch * triton.cdiv(frames, block_x) * triton.cdiv(channels, block_c)
    launch(resample_dx, (programs,), config, arguments, outputs=block_x * block_c)
    return dx


def resample_place_gradient(grad: Tensor, x: Tensor, start: Tensor, ratio: Tensor) -> Tensor:
    """[2, B, P, tiles]: the gradients of start and ratio, to be summed over tiles, in the compute dtype."""
    batch, channels, frames = x.shape
    pairs, window = grad.shape[1], grad.shape[3]
    target, compute = target_of(x.device), compute_dtype(x.dtype)
    if grad.numel() == 0:
        return torch.zeros(2, batch, pairs, 1, dtype=compute, device=x.device)
    config = configuration(
        "resample_position_gradient", target, "fp64" if compute == torch.float64 else "", channels, window
    )
    block_t = config.constants["BLOCK_T"]
    tiles = triton.cdiv(window, block_t)
    partial = torch.empty(2, batch, pairs, tiles, dtype=compute, device=x.device)
    arguments = {
        "grad_ptr": grad,
        "x_ptr": x,
        "start_ptr": start.contiguous(),
        "ratio_ptr": ratio.contiguous(),
        "partial_ptr": partial,
        "T": frames,
        "P": pairs,
        "stride_xb": x.stride(0),
        "stride_gb": grad.stride(0),
        "stride_gp": grad.stride(1),
        "W": window,
        "C": channels,
        "STRIDE_XC": x.stride(1),
        "STRIDE_XT": 0 if frames == 1 else x.stride(2),
        "STRIDE_GC": grad.stride(2),
        "STRIDE_GW": grad.stride(3),
        "COMPUTE": TRITON_TYPE[compute],
    }
    launch(
        resample_position_gradient,
        (batch * pairs * tiles,),
        config,
        arguments,
        outputs=block_t * config.constants["BLOCK_C"],
        looped=True,
    )
    return partial


def transform(source: Source, strength: Tensor, weights: Weights, window: int, eps: float) -> Tensor:
    """out [B, P, C, W] of `windowed_tonality` or `tonality_blend`, in the dtype of the source."""
    channels, _, taps = weights.depthwise_weight.shape
    batch, pairs = strength.shape
    dtype, device = source.tensor.dtype, source.tensor.device
    out = torch.empty(batch, pairs, channels, window, dtype=dtype, device=device)
    if out.numel() == 0:
        return out
    target = target_of(device)
    precision = precision_of(dtype, target)
    prepared = prepare(weights, target, precision)
    padded = prepared.bias.shape[0]
    halo = overlap(taps)
    config = configuration(
        "windowed_tonality_forward",
        target,
        precision,
        channels,
        window,
        frame_stride=source.tensor.stride(-1),
        resample=source.resample,
    )
    arguments = {
        **source.arguments(pairs),
        "strength_ptr": strength.contiguous(),
        "norm_weight_ptr": prepared.norm,
        "norm_bias_ptr": prepared.norm_bias,
        "out_ptr": out,
        "W": window,
        "C": channels,
        "EPS": eps,
        "COMPUTE": TRITON_TYPE[compute_dtype(dtype)],
    }
    if channels > FUSED_CHANNELS or 4 * halo > config.constants["BLOCK_T"]:
        _transform_in_steps(source, prepared, arguments, taps, halo, target, precision)
        return out
    own = config.constants["BLOCK_T"] - 2 * halo
    tiles = batch * pairs * triton.cdiv(window, own)
    arguments |= {
        "depthwise_ptr": prepared.depthwise,
        "pointwise_hi_ptr": prepared.pointwise.hi,
        "pointwise_lo_ptr": prepared.pointwise.lo,
        "pointwise_bias_ptr": prepared.bias,
        "tiles": tiles,
        "K": taps,
        "PADDED": padded,
        "HALO": halo,
        "PRECISION": precision,
    }
    programs = min(tiles, target.processors * config.per_processor)
    launch(windowed_tonality_forward, (programs,), config, arguments, outputs=own * channels, looped=True)
    return out


def _transform_in_steps(
    source: Source,
    prepared: Prepared,
    blend: dict[str, Any],
    taps: int,
    halo: int,
    target: Target,
    precision: str,
) -> None:
    """More channels or taps than one tile holds: depthwise, product, and LayerNorm with blend, one after another.

    `blend` holds the arguments of the last step.
    """
    batch, pairs, channels, window = blend["out_ptr"].shape
    config = configuration("recompute_windows", target, precision, channels, window)
    block_t = max(config.constants["BLOCK_T"], triton.next_power_of_2(4 * halo))
    z = Split.empty(blend["out_ptr"].shape, prepared.pointwise.hi, precision)
    shared = {key: blend[key] for key in (*source.arguments(pairs), "W", "C", "COMPUTE")}
    arguments = {
        **shared,
        "depthwise_ptr": prepared.depthwise,
        "z_ptr": z.hi,
        "z_lo_ptr": z.lo,
        "K": taps,
        "PADDED": prepared.bias.shape[0],
        "HALO": halo,
        "PRECISION": precision,
    }
    config = replace(config, constants={**config.constants, "BLOCK_T": block_t})
    own, block_c = block_t - 2 * halo, config.constants["BLOCK_C"]
    grid = (batch * pairs * triton.cdiv(window, own), triton.cdiv(channels, block_c))
    launch(recompute_windows, grid, config, arguments, outputs=own * block_c)
    u = multiply_wide(z, prepared, target, precision)
    config = configuration("norm_blend", target, precision, channels, window)
    block_t = config.constants["BLOCK_T"]
    programs = batch * pairs * triton.cdiv(window, block_t)
    launch(norm_blend, (programs,), config, {**blend, "u_ptr": u}, outputs=block_t * channels)
