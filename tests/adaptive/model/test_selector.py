"""Windows stay inside the clip, start where the documentation says, and move with every raw output."""

import math

import pytest
import torch
from torch import Tensor

from adaptive_window import WindowSelector
from adaptive_window.model import windows_from_logits
from adaptive_window.model.correlation_selector import CorrelationSelector

NAMES = ("start_input", "start_target", "ratio_input", "ratio_target", "strength")


def clips(batch: int = 2, frames: int = 1200, channels: int = 128, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    return scale * torch.randn(batch, channels, frames), scale * torch.randn(batch, channels, frames)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("training", [False, True])
def test_fresh_windows_at_any_input(scale: float, training: bool) -> None:
    selector = WindowSelector().train(training)
    windows = selector(*clips(4, scale=scale))
    assert tuple(windows) == NAMES
    for stream in ("input", "target"):
        expected = torch.tensor([0.0, 200.0, 400.0]).expand(4, 3)  # 0, 4, 8 s at 50 frames/s
        torch.testing.assert_close(windows[f"start_{stream}"], expected, rtol=0, atol=10.0)
        torch.testing.assert_close(windows[f"ratio_{stream}"], torch.ones(4, 3), rtol=0, atol=0.02)
    # a logit moves by at most 16 (the norm of 256 LayerNorm outputs; dropout: /sqrt(0.9)) times a weight row's norm,
    # 5e-4·sqrt(256) = 0.008; a sigmoid by a quarter of that, and a random direction uses a sixteenth of it
    torch.testing.assert_close(windows["strength"], torch.full((4, 3), 0.5), rtol=0, atol=0.01)


def test_fresh_windows_at_75_frames_per_second() -> None:
    windows = WindowSelector(window_frames=1200)(*clips(frames=1800))
    expected = torch.tensor([0.0, 300.0, 600.0]).expand(2, 3)  # 0, 4, 8 s
    torch.testing.assert_close(windows["start_input"], expected, rtol=0, atol=15.0)  # 0.2 s


@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_fresh_pairs_are_evenly_spaced(pairs: int) -> None:
    start = WindowSelector(num_pairs=pairs)(*clips())["start_input"][0]
    assert start.shape == (pairs,)
    expected = torch.linspace(4.0, 392.0, pairs) if pairs > 1 else torch.tensor([198.0])
    torch.testing.assert_close(start, expected, rtol=0, atol=4.0)


def test_formula() -> None:
    logits = torch.randn(4, 10, dtype=torch.float64)
    windows = windows_from_logits(logits, frames=1200, window_frames=800, max_ratio=1.5)
    unit = logits.sigmoid().view(4, 2, 5)  # pair-major
    ratio_input, ratio_target = 1 + 0.5 * unit[..., 2], 1 + 0.5 * unit[..., 3]
    expected = (
        unit[..., 0] * (1200 - 800 * ratio_input),
        unit[..., 1] * (1200 - 800 * ratio_target),
        ratio_input,
        ratio_target,
        unit[..., 4],
    )
    for name, value in zip(NAMES, expected, strict=True):
        torch.testing.assert_close(windows[name], value, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("frames", "window", "max_ratio"), [(1200, 800, 1.5), (1000, 700, 3.0), (97, 96, 1.75),
                                                              (800, 800, 1.5), (1200, 800, 0.57)])  # fmt: skip
def test_always_inside_the_clip(dtype: torch.dtype, frames: int, window: int, max_ratio: float) -> None:
    values = torch.tensor([-math.inf, -200.0, -3.0, 0.0, 3.0, 20.0, 200.0, math.inf], dtype=dtype)
    grid = torch.cartesian_prod(values, values)  # start, ratio
    logits = torch.stack([grid[:, 0], grid[:, 0], grid[:, 1], grid[:, 1], grid[:, 0]], dim=1)
    windows = windows_from_logits(logits, frames, window, max_ratio)
    start, ratio = windows["start_input"], windows["ratio_input"]
    rounding = 4 * torch.finfo(dtype).eps  # three operations, each within half an eps
    low, high = min(1.0, max_ratio), max(1.0, min(max_ratio, frames / window))
    assert (start >= 0).all()
    assert (ratio >= low * (1 - rounding)).all()
    assert (ratio <= high * (1 + rounding)).all()
    assert (start + ratio * window <= frames * (1 + rounding)).all()


def test_windows_are_never_computed_in_16_bits() -> None:
    selector = WindowSelector(8, window_frames=16)
    x, y = clips(frames=24, channels=8)
    pooled = torch.nn.functional.adaptive_avg_pool1d(torch.cat([x, y], dim=1), 50)
    expected = windows_from_logits(selector.eval().mlp(pooled.flatten(1)), 24, 16, 1.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = selector(x, y)
    for name in NAMES:
        torch.testing.assert_close(under_autocast[name], expected[name], rtol=0, atol=0)
    half = selector.to(torch.bfloat16)(x.bfloat16(), y.bfloat16())
    assert all(value.dtype == torch.float32 for value in half.values())


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        ((2, 8, 15), (2, 8, 15), ValueError, "x_input must have at least 16 frames, got 15"),
        ((2, 7, 24), (2, 7, 24), ValueError, "x_input must have 8 channels .* got 7"),
        ((2, 8, 24), (2, 8, 25), ValueError, r"x_target must have shape \[2, 8, 24\].*got \[2, 8, 25\]"),
        ((2, 8, 24), (3, 8, 24), ValueError, r"x_target must have shape \[2, 8, 24\].*got \[3, 8, 24\]"),
        ((8, 24), (8, 24), ValueError, "x_input must have shape"),
        ((0, 8, 24), (0, 8, 24), ValueError, "x_input must hold at least one clip"),
    ],
)
def test_wrong_shapes(x: tuple[int, ...], y: tuple[int, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        WindowSelector(8, window_frames=16)(torch.zeros(x), torch.zeros(y))


def test_wrong_types() -> None:
    selector, x = WindowSelector(8, window_frames=16), torch.zeros(1, 8, 24)
    with pytest.raises(TypeError, match=r"x_input must be a torch\.Tensor .* got list"):
        selector([x], x)
    with pytest.raises(TypeError, match=r"x_target must have a floating dtype .* got int64"):
        selector(x, x.long())
    with pytest.raises(TypeError, match=r"x_input must have the dtype of the module's weights .*float32.*float64"):
        selector(x.double(), x)
    with pytest.raises(ValueError, match="x_input must be on the device of the module's weights"):
        selector(x.to("meta"), x)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"num_pairs": 0}, ValueError, "num_pairs"),
        ({"num_pairs": 3.0}, TypeError, "num_pairs"),
        ({"encoding_dim": 0}, ValueError, "encoding_dim"),
        ({"window_frames": 0}, ValueError, "window_frames"),
        ({"max_ratio": 0}, ValueError, "max_ratio"),
        ({"max_strength": 1.1}, ValueError, "max_strength"),
        ({"max_strength": True}, TypeError, "max_strength"),
        ({"max_ratio": math.inf}, ValueError, "max_ratio"),
        ({"max_ratio": "1.5"}, TypeError, "max_ratio"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"dropout": None}, TypeError, "dropout"),
    ],
)
def test_wrong_sizes(arguments: dict, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name} must be"):
        WindowSelector(**arguments)


@pytest.mark.parametrize("kind", [WindowSelector, CorrelationSelector])
def test_strength_keeps_to_its_limit(kind: type[WindowSelector] | type[CorrelationSelector]) -> None:
    x, y = torch.randn(2, 3, 8, 60).unbind(0)
    assert kind(8, 2, window_frames=40, max_strength=0.0)(x, y)["strength"].tolist() == [[0.0, 0.0]] * 3
    half = kind(8, 2, window_frames=40, max_strength=0.5)(x, y)["strength"]
    torch.testing.assert_close(half, torch.full((3, 2), 0.25), rtol=0, atol=0.02)  # half of a fresh 0.5
