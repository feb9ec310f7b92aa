"""The six weights of the tonality transform."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Weights(NamedTuple):
    """The six weights of the transform, or something of each, in argument order."""

    depthwise_weight: Tensor  # [C, 1, K]
    depthwise_bias: Tensor  # [C]
    pointwise_weight: Tensor  # [C, C, 1]
    pointwise_bias: Tensor  # [C]
    norm_weight: Tensor  # [C]
    norm_bias: Tensor  # [C]
