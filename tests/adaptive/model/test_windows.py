"""TemporalCompressor and TonalityReducer: their own shapes and errors; what they compute is the kernels' to test."""

import pytest
import torch
import torch.nn.functional as F

from adaptive_window import TemporalCompressor, TonalityReducer


def test_compressor_with_numbers_is_interpolate() -> None:
    x = torch.randn(3, 5, 60, dtype=torch.float64)
    out = TemporalCompressor()(x, 1.5, target_length=20, start=7)
    torch.testing.assert_close(out, F.interpolate(x[..., 7:37], size=20, mode="linear"), rtol=0, atol=1e-12)


def test_compressor_defaults() -> None:
    x = torch.randn(1, 2, 1000, dtype=torch.float64)
    torch.testing.assert_close(TemporalCompressor()(x, 1.0), x[..., :800], rtol=0, atol=0)


@pytest.mark.parametrize("start", ["number", "tensor"])
@pytest.mark.parametrize("ratio", ["number", "tensor"])
@pytest.mark.parametrize("pairs", [None, 1, 4])
def test_compressor_shapes_agree(pairs: int | None, ratio: str, start: str) -> None:
    x = torch.randn(3, 5, 60, dtype=torch.float64)
    shape = (3,) if pairs is None else (3, pairs)
    wide = torch.full(shape, 1.25, dtype=torch.float64), torch.full(shape, 3.5, dtype=torch.float64)
    out = TemporalCompressor()(
        x, wide[0] if ratio == "tensor" else 1.25, 20, start=wide[1] if start == "tensor" else 3.5
    )
    one = TemporalCompressor()(x, 1.25, 20, 3.5)
    if pairs is None or (ratio, start) == ("number", "number"):
        expected = one
    else:
        expected = one[:, None].expand(-1, pairs, -1, -1)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_compressor_gradients() -> None:
    x = torch.randn(2, 3, 40, dtype=torch.float64, requires_grad=True)
    ratio = torch.tensor([1.17, 0.83], dtype=torch.float64, requires_grad=True)
    start = torch.tensor([2.3, 11.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, r, s: TemporalCompressor()(x, r, 9, s), (x, ratio, start))


def test_compressor_positions_of_16_bit_clips_are_not_16_bit() -> None:
    x = torch.randn(1, 1, 1200)  # bfloat16 would round 1023 to 1024
    out = TemporalCompressor()(x.bfloat16(), 1.0, 4, start=1023.0)
    torch.testing.assert_close(out.float(), x[..., 1023:1027].bfloat16().float(), rtol=0, atol=0)
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ratio": 0.0}, ValueError, "ratio must be positive and finite, got 0.0"),
        ({"ratio": float("nan")}, ValueError, "ratio must be positive"),
        ({"ratio": "1"}, TypeError, "ratio must be a number or a tensor"),
        ({"ratio": True}, TypeError, "ratio must be a number or a tensor"),
        ({"ratio": torch.ones(2, 3, 4)}, ValueError, r"ratio must be a number, \[B\] or \[B, P\]"),
        ({"ratio": torch.ones(3)}, ValueError, "B = 2"),
        ({"ratio": torch.ones(2), "start": torch.ones(2, 1)}, ValueError, "ratio and start must have one shape"),
        ({"ratio": 1.0, "start": None}, TypeError, "start must be a number or a tensor"),
        ({"ratio": 1.0, "target_length": 0}, ValueError, "window must be at least 1"),
    ],
)
def test_compressor_errors(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TemporalCompressor()(torch.zeros(2, 3, 40), **arguments)
    with pytest.raises(ValueError, match=r"x must have shape \[B, C, T\]"):
        TemporalCompressor()(torch.zeros(3, 40), 1.0)


def test_fresh_tonality_is_layer_norm_blended_in() -> None:
    reducer, x = TonalityReducer(6, 5).double(), torch.randn(3, 6, 20, dtype=torch.float64)
    strength = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    normed = F.layer_norm(x.transpose(1, 2), (6,)).transpose(1, 2)
    blend = strength.view(-1, 1, 1)
    torch.testing.assert_close(reducer(x, strength), (1 - blend) * x + blend * normed, rtol=0, atol=1e-12)
    torch.testing.assert_close(reducer(x, strength)[0], x[0], rtol=0, atol=0)


def test_tonality_takes_pairs_and_fuses() -> None:
    reducer, x = TonalityReducer(6, 5).double(), torch.randn(3, 6, 40, dtype=torch.float64)
    for parameter in reducer.parameters():
        torch.nn.init.normal_(parameter)
    start, ratio, strength = (torch.rand(3, 2, dtype=torch.float64) + offset for offset in (4, 1, 0))
    cut = TemporalCompressor()(x, ratio, 16, start)  # [3, 2, 6, 16]
    blended = reducer(cut, strength)
    for i in range(2):
        torch.testing.assert_close(blended[:, i], reducer(cut[:, i], strength[:, i]), rtol=0, atol=1e-12)
    torch.testing.assert_close(reducer.windowed(x, start, ratio, strength, 16), blended, rtol=0, atol=1e-12)


def test_tonality_errors() -> None:
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        TonalityReducer(6, 4)
    reducer = TonalityReducer(6)
    with pytest.raises(ValueError, match=r"strength must have shape \[2\]"):
        reducer(torch.zeros(2, 6, 20), torch.zeros(3))
    with pytest.raises(ValueError, match=r"strength must have shape \[B\]"):
        reducer(torch.zeros(2, 6, 20), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"y must have shape \[B, P, C, W\]"):
        reducer(torch.zeros(6, 20), torch.zeros(2))
    with pytest.raises(ValueError, match="backend must be one of"):
        TonalityReducer(6, backend="fast")(torch.zeros(2, 6, 20), torch.zeros(2))
