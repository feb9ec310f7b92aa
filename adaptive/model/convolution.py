"""Convolutions over time whose channels lie next to each other, where a step is compiled for CUDA.

cuDNN's kernels want channels next to each other and turn whatever is not so, tensor by tensor: at 48 windows of 800
frames 108 of a step's kernels do nothing else. PyTorch makes frames of a one-dimensional convolution contiguous before
it asks cuDNN, so these are two-dimensional, of height 1. Turned once, by what comes before, all between them stays so.
Biases are added by what reads the convolution's output, which is written once so and kept as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bias import add_bias


def channels_together(x: Tensor) -> bool:
    """Whether convolutions of x are computed so."""
    return torch.compiler.is_compiling() and x.device.type == "cuda"


class _Weight(torch.autograd.Function):
    """A weight whose gradient is laid out as it is.

    cuDNN's has channels next to each other here; PyTorch would copy it, for each weight with a launch from the host.
    """

    @staticmethod
    def forward(weight: Tensor) -> Tensor:
        return weight.view(weight.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, spread: Tensor | None = None) -> Tensor:
    """`F.conv1d(x, weight, bias, padding=padding)`, whose result's channels lie next to each other in memory."""
    flat = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)  # [N, C, 1, W]
    out = F.conv2d(flat, _Weight.apply(weight).unsqueeze(2), None, padding=(0, padding)).squeeze(2)
    return out if bias is None else add_bias(out.transpose(1, 2), bias, spread).transpose(1, 2)


class Convolution(nn.Conv1d):
    """`nn.Conv1d` of stride 1 with "same" zero padding; odd kernels."""

    def __init__(self, channels_in: int, channels_out: int, taps: int) -> None:
        super().__init__(channels_in, channels_out, taps, padding=taps // 2)

    def forward(self, input: Tensor) -> Tensor:  # the name that nn.Conv1d gives it
        if channels_together(input):
            return convolve(input, self.weight, self.bias, self.kernel_size[0] // 2)
        return super().forward(input)
