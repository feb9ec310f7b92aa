"""Rhythm profiles: phase drops out, compression is a shift, and the gradient of a ratio finds a tempo from afar."""

import math

import pytest
import torch
from torch import Tensor

from adaptive_window.audio.mel import MelCodec
from adaptive_window.audio.synthesis import synthesize_drums
from adaptive_window.kernels import resample_windows
from adaptive_window.losses.rhythm import (
    FINE_BLUR,
    WIDE_BLUR,
    annealed_rhythm_blur,
    rhythm_profile,
    tempo_matching,
)
from adaptive_window.losses.signals import pearson
from adaptive_window.model import windows_from_logits

T, W = 1200, 800


def at(start: float, ratio: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([[start]]), torch.tensor([[ratio]])


def loop(period: float, offset: float = 0.0, frames: int = T) -> Tensor:
    """`[1, 1, T]`: a hit at every period and a weaker one at 3/8 of it, each rising over two frames."""
    t = torch.arange(frames).float() - offset

    def hits(shift: float) -> Tensor:
        phase = (t - shift * period) % period
        return torch.exp(-phase / 3)

    return (hits(0.0) + 0.6 * hits(0.375))[None, None]


def drums(seed: int, bpm: float) -> Tensor:
    codec = MelCodec()
    audio = synthesize_drums(seed, bpm, sample_rate=codec.sample_rate)
    return codec.encode(torch.from_numpy(audio)[None, None])  # [1, 128, 1200]


def test_phase_drops_out() -> None:
    profiles = [rhythm_profile(loop(80, offset), *at(start, 1.0), W) for offset, start in ((0, 100.0), (37, 211.0))]
    assert pearson(*profiles).item() > 0.98
    other = rhythm_profile(loop(93), *at(100.0, 1.0), W)
    assert pearson(profiles[0], other).item() < 0.5


@pytest.mark.parametrize("ratio", [1.1, 1.25, 1.5])
def test_compression_is_a_shift(ratio: float) -> None:
    """The profile at ratio r is the profile of what r compresses to, which was made by resampling."""
    x = loop(80)
    compressed = resample_windows(x, *at(0.0, ratio), W)[:, 0]
    expected = rhythm_profile(compressed, *at(0.0, 1.0), W, blur=0.03)
    assert pearson(rhythm_profile(x, *at(0.0, ratio), W, blur=0.03), expected).item() > 0.98
    assert pearson(rhythm_profile(x, *at(0.0, 1.03 * ratio), W, blur=0.03), expected).item() < 0.95


def test_peaks_stand_where_the_loop_repeats() -> None:
    profile = rhythm_profile(loop(80), *at(50.0, 1.25), W)[0, 0]
    lags = 8 * torch.exp(0.02 * torch.arange(len(profile)))
    assert lags[-1].item() == pytest.approx(190, rel=0.02)
    best = lags[profile.argmax()].item()
    nearest = min((64, 128), key=lambda lag: abs(lag - best))  # 80/1.25 and twice that
    assert best == pytest.approx(nearest, rel=0.02)
    # an onset of one frame repeats at one lag; read by a Gaussian of sqrt((0.01·80)² + 0.5²) frames, 1/(σ·sqrt(2π))
    assert profile.max().item() == pytest.approx(0.42, abs=0.05)


def test_gradients_are_those_of_finite_differences() -> None:
    x = torch.randn(2, 3, 90, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    windows = {
        "start_input": torch.tensor([[3.3, 11.2], [8.1, 0.4]]),
        "start_target": torch.tensor([[7.7, 2.2], [1.6, 9.4]]),
        "ratio_input": torch.tensor([[1.1, 1.3], [1.2, 1.05]]),
        "ratio_target": torch.tensor([[1.2, 1.02], [1.15, 1.4]]),
    }
    places = [value.double().requires_grad_() for value in windows.values()]

    def run(x: Tensor, *places: Tensor) -> Tensor:
        return tempo_matching(x, x.flip(2), dict(zip(windows, places, strict=True)), 50, blur=0.05, lags=(2.0, 20.0))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *places), fast_mode=True)
    run(x, *places).backward()
    assert all((place.grad != 0).all() for place in places)


def test_the_gradient_finds_the_tempo_from_nearly_anywhere() -> None:
    """Different patterns at 100 and 125 BPM: the ratio goes to 1.25 within 1 %, from 9 of 10 starts at least."""
    ratios, steps = [], 50
    for number in (0, 1):
        x, y = drums(2 * number, 100), drums(2 * number + 1, 125)
        raw = torch.logit((torch.arange(10) + 0.5) / 10).requires_grad_()  # of ratios 1.025 to 1.475
        fixed = {"start_target": torch.full((1, 10), 200.0), "ratio_target": torch.ones(1, 10)}
        optimizer = torch.optim.Adam([raw], lr=0.1, betas=(0.9, 0.99))
        for step in range(steps):
            logits = torch.stack([0 * raw, raw, raw, raw, raw], dim=1).flatten()[None]
            windows = windows_from_logits(logits, T, W, 1.5) | fixed
            loss = 10 * tempo_matching(x, y, windows, W, blur=annealed_rhythm_blur(step / (steps - 1)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ratios.append(windows["ratio_input"][0].detach())
    aligned = (torch.cat(ratios) / 1.25 - 1).abs() < 0.01
    assert aligned.float().mean().item() >= 0.9


def test_schedule() -> None:
    assert annealed_rhythm_blur(0.0) == WIDE_BLUR
    assert annealed_rhythm_blur(0.5) == pytest.approx(math.sqrt(WIDE_BLUR * FINE_BLUR))
    assert annealed_rhythm_blur(1.0) == pytest.approx(FINE_BLUR)
    assert annealed_rhythm_blur(7.0) == pytest.approx(FINE_BLUR)


def test_silence_has_no_rhythm_and_finite_gradients() -> None:
    windows = {name: torch.full((1, 2), 1.2, requires_grad=True)
               for name in ("start_input", "start_target", "ratio_input", "ratio_target")}  # fmt: skip
    loss = tempo_matching(torch.zeros(1, 4, T), loop(80).expand(1, 4, T), windows, W)
    loss.backward()
    assert loss.item() == pytest.approx(1.0, abs=1e-3)
    assert all(value.grad.isfinite().all() for value in windows.values())


def test_16_bits_are_computed_in_32() -> None:
    x = loop(80).bfloat16()
    profile = rhythm_profile(x, *at(50.0, 1.25), W)
    assert profile.dtype == torch.float32
    torch.testing.assert_close(profile, rhythm_profile(x.float(), *at(50.0, 1.25), W))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lags": (0.5, 190.0)}, r"lags must be 1 <= shortest < longest <= window_frames / 2 = 400.0, got \(0.5, 190"),
        ({"lags": (8.0, 401.0)}, "lags must be"),
        ({"lags": (8.0, 8.0)}, "lags must be"),
        ({"blur": 0.0}, "blur must be positive and finite, got 0.0"),
        ({"blur": math.inf}, "blur must be positive and finite, got inf"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rhythm_profile(loop(80), *at(0.0, 1.0), W, **arguments)
