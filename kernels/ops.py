"""The kernels as PyTorch operators `torch.ops.adaptive_window.*`: schemas, implementations, fakes. No gradient rules.

An operator is what `torch.compile` keeps as one node, whose shapes, dtypes and strides the fake implementation states.
Backward operators take a list of flags, one per differentiable input, and return only the gradients that are asked for.
Triton is imported when one of them first runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .weights import Weights


@contextmanager
def _running_on(x: Tensor) -> Iterator[None]:
    """x's device is the current one, and autocast, which `functional` has dealt with, changes nothing."""
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        yield


def _returned(grads: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Those that exist, contiguous and each in memory of its own, as an operator must return them."""
    owned = []
    for grad in grads:
        if grad is not None:
            alone = grad.is_contiguous() and grad.untyped_storage().nbytes() == grad.numel() * grad.element_size()
            owned.append(grad if alone else grad.clone(memory_format=torch.contiguous_format))
    return owned


def _gradients_like(inputs: tuple[Tensor, ...], needs: list[bool]) -> list[Tensor]:
    return [torch.empty(v.shape, dtype=v.dtype, device=v.device) for v, need in zip(inputs, needs, strict=True) if need]


@torch.library.custom_op("adaptive_window::resample_windows", mutates_args=())
def resample_windows(x: Tensor, start: Tensor, ratio: Tensor, window: int) -> Tensor:
    from .triton import resample

    with _running_on(x):
        return resample.resample(x, start, ratio, window)


@resample_windows.register_fake
def _(x: Tensor, start: Tensor, ratio: Tensor, window: int) -> Tensor:
    return x.new_empty(*start.shape, x.shape[1], window)


@torch.library.custom_op("adaptive_window::resample_windows_backward", mutates_args=())
def resample_windows_backward(
    grad_out: Tensor, x: Tensor, start: Tensor, ratio: Tensor, needs: list[bool]
) -> list[Tensor]:
    from .triton import resample

    need_x, need_start, need_ratio = needs
    grads = []
    with _running_on(x):
        if need_x:
            grads.append(resample.resample_dx_of(grad_out, x, start, ratio))
        if need_start or need_ratio:
            by_start, by_ratio = resample.resample_place_gradient(grad_out, x, start, ratio)
            grads += [by_start.sum(-1, dtype=start.dtype)] if need_start else []
            grads += [by_ratio.sum(-1, dtype=ratio.dtype)] if need_ratio else []
    return grads


@resample_windows_backward.register_fake
def _(grad_out: Tensor, x: Tensor, start: Tensor, ratio: Tensor, needs: list[bool]) -> list[Tensor]:
    return _gradients_like((x, start, ratio), needs)


@torch.library.custom_op("adaptive_window::tonality_blend", mutates_args=())
def tonality_blend(
    y: Tensor,
    strength: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> Tensor:
    from .triton import transform
    from .triton.source import Source

    weights = Weights(depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, norm_weight, norm_bias)
    with _running_on(y):
        return transform.forward(Source.of_windows(y), strength, weights, y.shape[3], eps)


@tonality_blend.register_fake
def _(
    y: Tensor,
    strength: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> Tensor:
    return y.new_empty(y.shape)


@torch.library.custom_op("adaptive_window::tonality_blend_backward", mutates_args=())
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
    needs: list[bool],
) -> list[Tensor]:
    from .triton import transform

    weights = (depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, norm_weight, norm_bias)
    with _running_on(y):
        grads = transform.tonality_blend_backward(grad_out, y, strength, *weights, eps, tuple(needs))
    return _returned(grads)


@tonality_blend_backward.register_fake
def _(
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
    needs: list[bool],
) -> list[Tensor]:
    weights = (depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, norm_weight, norm_bias)
    return _gradients_like((y, strength, *weights), needs)


@torch.library.custom_op("adaptive_window::windowed_tonality", mutates_args=())
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
    eps: float,
) -> Tensor:
    from .triton import transform
    from .triton.source import Source

    weights = Weights(depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, norm_weight, norm_bias)
    with _running_on(x):
        return transform.forward(Source.of_clips(x, start, ratio), strength, weights, window, eps)


@windowed_tonality.register_fake
def _(
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
    eps: float,
) -> Tensor:
    return x.new_empty(*start.shape, x.shape[1], window)


@torch.library.custom_op("adaptive_window::windowed_tonality_backward", mutates_args=())
def windowed_tonality_backward(
    grad_out: Tensor,
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
    eps: float,
    needs: list[bool],
) -> list[Tensor]:
    from .triton import transform

    weights = (depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, norm_weight, norm_bias)
    with _running_on(x):
        grads = transform.windowed_tonality_backward(
            grad_out, x, start, ratio, strength, *weights, window, eps, tuple(needs)
        )
    return _returned(grads)


@windowed_tonality_backward.register_fake
def _(
    grad_out: Tensor,
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
    eps: float,
    needs: list[bool],
) -> list[Tensor]:
    weights = (depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias, norm_weight, norm_bias)
    return _gradients_like((x, start, ratio, strength, *weights), needs)
