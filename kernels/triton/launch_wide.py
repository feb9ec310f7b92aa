"""Host side of the products of more than 128 channels: forward and backward call it."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .configurations import Target, configuration
from .launch import TRITON_TYPE, Prepared, Split, launch
from .wide import wide_product, wide_weight


def multiply_wide(a: Split, prepared: Prepared, target: Target, precision: str, *, transposed: bool = False) -> Tensor:
    """Â·a + â `[B, P, C, W]` in the compute dtype; `transposed`: Âᵀ·a."""
    batch, pairs, channels, window = a.hi.shape
    compute = prepared.bias.dtype
    out = torch.empty(a.hi.shape, dtype=compute, device=a.hi.device)
    config = configuration("wide_product", target, precision, channels, window)
    block_t, block_c = config.constants["BLOCK_T"], config.constants["BLOCK_C"]
    arguments = {
        "a_ptr": a.hi,
        "a_lo_ptr": a.lo,
        "weight_ptr": prepared.pointwise.hi,
        "weight_lo_ptr": prepared.pointwise.lo,
        "bias_ptr": prepared.bias,
        "out_ptr": out,
        "W": window,
        "C": channels,
        "TRANSPOSED": transposed,
        "BIASED": not transposed,
        "PADDED": prepared.bias.shape[0],
        "PRECISION": precision,
        "COMPUTE": TRITON_TYPE[compute],
    }
    grid = (batch * pairs * triton.cdiv(window, block_t), triton.cdiv(channels, block_c))
    launch(wide_product, grid, config, arguments, outputs=block_t * block_c)
    return out


def weight_product_wide(du: Split, z: Split, compute: torch.dtype, target: Target, precision: str) -> Tensor:
    """dÂ = Σ du·zᵀ over the frames of all windows, `[C, C]`."""
    batch, pairs, channels, window = z.hi.shape
    config = configuration("wide_weight", target, precision, channels, window)
    block_t, block_c = config.constants["BLOCK_T"], config.constants["BLOCK_C"]
    tiles = batch * pairs * triton.cdiv(window, block_t)
    blocks = triton.cdiv(channels, block_c)
    shares = min(tiles, max(1, target.processors * config.per_processor // blocks**2))
    partial = torch.empty(shares, channels, channels, dtype=compute, device=z.hi.device)
    arguments = {
        "du_ptr": du.hi,
        "du_lo_ptr": du.lo,
        "z_ptr": z.hi,
        "z_lo_ptr": z.lo,
        "partial_ptr": partial,
        "tiles": tiles,
        "W": window,
        "C": channels,
        "PRECISION": precision,
        "COMPUTE": TRITON_TYPE[compute],
    }
    launch(wide_weight, (shares, blocks, blocks), config, arguments, outputs=block_t * block_c, looped=True)
    return partial.sum(0)
