"""Dropout that keeps a seed, not a mask: what was dropped is drawn anew where the backward pass needs it.

A mask of bytes costs a quarter of the float32 tensor that it is for, and the composer has eight of them a step. Only
the first draw takes numbers from PyTorch's default generator, so seeds, checkpointed generator states and
`torch.utils.checkpoint` work as with PyTorch's own dropout.

In a compiled graph on CUDA the mask is a hash of each pair of elements' place and two seeds (`hashed_mask`), which
costs a handful of integer operations where it is used, forward and backward, and no memory. TorchInductor's own draw
computes four Philox numbers of ten rounds for each element and uses one: more arithmetic than a GELU, twice a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plain import is_plain

LEVELS = 2**16  # dropout probabilities are rounded to multiples of 1/LEVELS
BLOCK = 2**18  # draws at a time: their random numbers stay in the cache
torch.library.define("adaptive_window::seeded_mask", "(Tensor like, Tensor seed, int zeros) -> Tensor")
seeded_mask = torch.ops.adaptive_window.seeded_mask.default


@torch.library.impl("adaptive_window::seeded_mask", "CPU")
def _seeded_mask(like: Tensor, seed: Tensor, zeros: int) -> Tensor:
    """A bool tensor of the shape of `like`: False with probability zeros/LEVELS, a function of `seed` (int64, 0-dim).

    Four 16-bit draws come from each 64-bit random number: four times as fast as `bernoulli_`.
    """
    generator = torch.Generator().manual_seed(int(seed))
    mask = torch.empty(like.shape, dtype=torch.bool)
    for part in mask.view(-1).split(BLOCK):
        bits = torch.empty((part.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=generator)
        draws = bits.view(torch.int16)[: part.numel()]  # uniform on −32768 ... 32767
        torch.ge(draws, zeros - LEVELS // 2, out=part)
    return mask


@torch.library.register_fake("adaptive_window::seeded_mask")
def _fake_seeded_mask(like: Tensor, seed: Tensor, zeros: int) -> Tensor:
    return like.new_empty(like.shape, dtype=torch.bool)


@dataclass(frozen=True)
class Mask:
    """Which elements of a tensor are kept, as little as it takes to draw them again."""

    probability: float
    factor: float
    """What the kept ones are multiplied by, so that means stay."""
    kept: Tensor
    """On a CPU a 0-dim int64 seed, on CUDA the generator's state; the mask itself on other devices, and within the
    capture of a CUDA graph, where a state is not to be had."""

    def of(self, x: Tensor) -> Tensor:
        """The mask for x, bool; every time the same."""
        if x.device.type == "cpu":
            return seeded_mask(x, self.kept, _zeros(self.probability))
        if self.kept.dtype == torch.bool:
            return self.kept
        if x.device.type == "meta":
            return _bernoulli(x, self.probability, None)
        generator = torch.Generator(x.device)
        generator.set_state(self.kept)
        return _bernoulli(x, self.probability, generator)


def draw(x: Tensor, probability: float) -> tuple[Mask | None, Tensor | None]:
    """A new mask for x, and what it is now (None twice for probability 0)."""
    if probability == 0.0:
        return None, None
    if x.device.type == "cpu":
        zeros = _zeros(probability)
        seed = torch.empty((), dtype=torch.int64).random_()
        mask = Mask(probability, LEVELS / (LEVELS - zeros), seed)  # exact for the rounded probability
        return mask, mask.of(x)
    state = None
    if x.device.type == "meta":
        state = torch.empty(16, dtype=torch.uint8, device="meta")
    elif x.device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        state = torch.cuda.get_rng_state(x.device)  # known to the host: no wait
    drawn = _bernoulli(x, probability, None)
    return Mask(probability, 1 / (1 - probability), drawn if state is None else state), drawn


def _zeros(probability: float) -> int:
    return min(round(probability * LEVELS), LEVELS - 1)


def _bernoulli(x: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - probability, generator=generator)


HASHED = 2**31  # elements of the largest tensor whose mask is a hash
_FACTORS = (0x7FEB352D, 0x846CA68B - 2**32)


def _mixed(h: Tensor) -> Tensor:
    """A bijection of int32 in which each bit of the result depends on every bit of h.

    Shifts, multiplications and constants are those of Wellons's hash-prospector ("lowbias32", public domain). int32
    products wrap around; its right shifts keep the sign, hence the masks.
    """
    h = (h ^ ((h >> 16) & 0xFFFF)) * _FACTORS[0]
    h = (h ^ ((h >> 15) & 0x1FFFF)) * _FACTORS[1]
    return h ^ ((h >> 16) & 0xFFFF)


def hashed_mask(x: Tensor, seeds: Tensor, probability: float) -> Tensor:
    """For x of fewer than 2³¹ elements a bool tensor of its shape: False with the probability, a function of the seeds.

    Two neighbours share a hash, of which each takes 16 bits; since `_mixed` is a bijection, the two are independent. A
    thread of TorchInductor's kernels has a few neighbours, and the compiler finds that they ask for the same hash.

    Args:
        x: of any shape.
        seeds: `[2]`, int32.
        probability: rounded to a multiple of 1/LEVELS.
    """
    place = torch.arange(x.numel(), device=x.device, dtype=torch.int32)
    drawn = _mixed(_mixed((place >> 1) ^ seeds[0]) + seeds[1]) >> ((place & 1) << 4)
    return ((drawn & (LEVELS - 1)) >= _zeros(probability)).view(x.shape)


def draw_hashed(x: Tensor, probability: float) -> tuple[Tensor, float]:
    """A mask for x by `hashed_mask`, with seeds from PyTorch's default generator, and what the kept are multiplied by.

    0 < probability < 1.
    """
    seeds = torch.randint(HASHED - 1, (2,), device=x.device, dtype=torch.int32)
    factor = LEVELS / (LEVELS - _zeros(probability))  # exact for the rounded probability: the mean is unbiased
    return hashed_mask(x, seeds, probability), factor


def hashed_dropout(x: Tensor, probability: float) -> Tensor:
    """Dropout by `draw_hashed`."""
    mask, factor = draw_hashed(x, probability)
    return x * mask * factor


def is_hashed(x: Tensor) -> bool:
    """Whether dropout of x is by `hashed_mask`."""
    return torch.compiler.is_compiling() and x.device.type == "cuda" and x.numel() < HASHED


def draw_for(layer: nn.Dropout, x: Tensor) -> tuple[Tensor | None, float] | None:
    """Mask and factor by which a plain layer may drop a tensor shaped as x; no mask where it drops nothing.

    None where it is to be called instead.
    """
    if not layer.training or layer.p == 0:
        return None, 1.0
    return draw_hashed(x, layer.p) if is_hashed(x) else None


class Dropout(nn.Dropout):
    """`nn.Dropout`, by `hashed_mask` in compiled graphs on CUDA."""

    def forward(self, input: Tensor) -> Tensor:  # the name that nn.Dropout gives it
        if self.training and 0 < self.p < 1 and not self.inplace and is_hashed(input):
            return hashed_dropout(input, self.p)
        return F.dropout(input, self.p, self.training, self.inplace)


def is_plain_dropout(layer: object) -> bool:
    """Dropout, ours or PyTorch's, as it was built, that keeps something."""
    return (is_plain(layer, Dropout) or is_plain(layer, nn.Dropout)) and layer.p < 1  # type: ignore[attr-defined]
