"""Each loss against its closed form, and finite gradients at silence."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adaptive_window.model import losses


def windows(starts: list[float], ratios: list[float], batch: int = 1) -> dict[str, Tensor]:
    start, ratio = (torch.tensor([v] * batch, dtype=torch.float64) for v in (starts, ratios))
    live = {"start_input": start, "start_target": start.clone(), "ratio_input": ratio, "ratio_target": ratio.clone()}
    return {name: value.requires_grad_() for name, value in live.items()}


@pytest.mark.parametrize(
    ("starts", "ratios", "expected"),
    [
        ([5.0, 5.0], [1.0, 1.0], 1.0),  # the same window
        ([0.0, 100.0], [1.0, 1.0], 0.0),  # touching
        ([0.0, 300.0], [1.0, 1.0], 0.0),  # apart
        ([0.0, 50.0], [1.0, 1.0], 50 / 150),
        ([0.0, 25.0], [1.5, 1.0], 100 / 150),  # one inside the other
        ([0.0, 50.0, 200.0], [1.0, 1.0, 1.0], (50 / 150 + 0 + 0) / 3),
        ([3.0], [1.2], 0.0),  # one pair has nothing to overlap with
    ],
)
def test_overlap(starts: list[float], ratios: list[float], expected: float) -> None:
    assert losses.window_overlap_penalty(windows(starts, ratios, 2), 100).item() == pytest.approx(expected)


def test_overlap_pushes_pairs_apart() -> None:
    given = windows([10.0, 30.0], [1.0, 1.0])
    losses.window_overlap_penalty(given, 100).backward()
    first, second = given["start_input"].grad[0]
    assert first > 0 > second  # descent moves the first down and the second up


def test_overlap_gradients() -> None:
    given = windows([10.0, 30.0, 77.0], [1.0, 1.3, 1.1], 2)
    assert torch.autograd.gradcheck(
        lambda *values: losses.window_overlap_penalty(dict(zip(given, values, strict=True)), 100), tuple(given.values())
    )


def test_ratio_diversity() -> None:
    assert losses.ratio_diversity(windows([0.0, 0.0], [1.0, 1.5])).item() == pytest.approx(0.0625)
    assert losses.ratio_diversity(windows([0.0, 0.0], [1.2, 1.2])).item() == pytest.approx(0.0)
    assert losses.ratio_diversity(windows([0.0], [1.2])).item() == 0.0


def clicks(every: int, offset: int = 0) -> Tensor:
    x = torch.zeros(1, 4, 64)
    x[..., offset::every] = 1.0
    return x


def test_rhythm_matching() -> None:
    assert losses.rhythm_matching(clicks(8), 3 * clicks(8) - 5).item() == pytest.approx(0.0, abs=1e-4)
    assert losses.rhythm_matching(clicks(8), clicks(8, 4)).item() > 1.0  # onsets where the other has none
    # only rises are onsets: falling steps correlate with nothing
    falling = -torch.arange(64.0).expand(1, 4, -1)
    assert losses.rhythm_matching(clicks(8), falling).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="W >= 3"):
        losses.rhythm_matching(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2))


def test_reconstruction() -> None:
    a, b = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    assert losses.reconstruction_loss(a, b).item() == pytest.approx((a - b).pow(2).mean().item())


def test_envelope_copy() -> None:
    noise = torch.randn(2, 1, 8000)
    envelope = torch.rand(2, 1, 10).repeat_interleave(800, dim=2)
    copy = envelope * torch.randn_like(noise).sign()  # another signal, the same envelope
    assert losses.envelope_copy_penalty(copy, envelope * noise.sign(), 10).item() == pytest.approx(1.0, abs=1e-5)
    assert losses.envelope_copy_penalty(copy, -2 * copy[..., ::2], 10).item() == pytest.approx(1.0, abs=1e-5)
    # a mirrored envelope is copied as well: the square forgets the sign
    assert losses.envelope_copy_penalty(copy, 2 - envelope, 10).item() == pytest.approx(1.0, abs=1e-5)
    # magnitudes count: here every other segment is negative throughout
    flipped = envelope * torch.tensor([1.0, -1.0]).repeat(5).repeat_interleave(800)
    assert losses.envelope_copy_penalty(copy, flipped, 10).item() == pytest.approx(1.0, abs=1e-5)
    assert losses.envelope_copy_penalty(copy, torch.ones_like(copy), 10).item() == pytest.approx(0.0, abs=1e-5)
    first, second = torch.rand(2, 10, dtype=torch.float64)
    expected = torch.corrcoef(torch.stack([first, second]))[0, 1].square().item()
    assert losses.envelope_copy_penalty(first[None], second[None], 10).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="source must have at least 10 samples"):
        losses.envelope_copy_penalty(copy, copy[..., :9], 10)
    with pytest.raises(ValueError, match="segments must be at least 2"):
        losses.envelope_copy_penalty(copy, copy, 1)
    with pytest.raises(ValueError, match="leading dimensions"):
        losses.envelope_copy_penalty(copy, copy[:1], 10)


def test_stft_loss() -> None:
    audio = torch.randn(2, 1, 4096)
    assert losses.multi_resolution_stft_loss(audio, audio).item() == 0.0
    # twice the magnitude everywhere: convergence 1, logarithms differ by log 2 (floor 1e-4 against about 10)
    assert losses.multi_resolution_stft_loss(2 * audio, audio).item() == pytest.approx(1 + math.log(2), rel=1e-3)
    # phase does not count
    assert losses.multi_resolution_stft_loss(-audio, audio).item() == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match=r"audio_b must have the shape of audio_a"):
        losses.multi_resolution_stft_loss(audio, audio[..., 1:])
    with pytest.raises(ValueError, match="audio_a must have at least 1025 samples"):
        losses.multi_resolution_stft_loss(audio[..., :1024], audio[..., :1024])
    with pytest.raises(ValueError, match="fft_sizes must name at least one"):
        losses.multi_resolution_stft_loss(audio, audio, ())


def test_stft_loss_sees_detail_at_each_resolution() -> None:
    """A click and a tone: the short window separates clicks in time, the long one tones in frequency."""
    t = torch.arange(8192.0)
    tones = [torch.sin(2 * math.pi * f * t)[None] for f in (0.100, 0.101)]
    by_size = [losses.multi_resolution_stft_loss(*tones, (size,)).item() for size in (128, 4096)]
    assert by_size[1] > 2 * by_size[0]


def test_latent_loss() -> None:
    a = torch.randn(2, 3, 20)
    assert losses.multi_scale_latent_loss(a, a).item() == 0.0
    assert losses.multi_scale_latent_loss(a + 2, a).item() == pytest.approx(2.0, rel=1e-5)
    # alternating +1, −1: differs at one frame, vanishes in every average of an even number of frames
    sign = torch.tensor([1.0, -1.0]).repeat(10)
    assert losses.multi_scale_latent_loss(a + sign, a, (1,)).item() == pytest.approx(1.0, rel=1e-5)
    assert losses.multi_scale_latent_loss(a + sign, a, (2, 4)).item() == pytest.approx(0.0, abs=1e-6)
    # 20 frames by 16: groups of 16 and 4 frames, each averaged over what it has
    step = torch.cat([torch.zeros(16), torch.ones(4)])
    assert losses.multi_scale_latent_loss(a + step, a, (16,)).item() == pytest.approx(0.5, rel=1e-5)
    for scales in ((), (0,), (21,)):
        with pytest.raises(ValueError, match="scales must be one or more of 1 to 20 frames"):
            losses.multi_scale_latent_loss(a, a, scales)


SIGNALS = [
    losses.rhythm_matching,
    losses.reconstruction_loss,
    lambda a, b: losses.envelope_copy_penalty(a, b, 8),
    lambda a, b: losses.multi_resolution_stft_loss(a, b, (16, 64)),
    losses.multi_scale_latent_loss,
]


@pytest.mark.parametrize("loss", SIGNALS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silence_gives_finite_losses_and_gradients(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    signal = torch.randn(2, 3, 64)
    for a, b in ((torch.zeros(2, 3, 64), torch.zeros(2, 3, 64)), (signal, torch.zeros(2, 3, 64)),
                 (torch.zeros(2, 3, 64), signal), (signal, signal.clone())):  # fmt: skip
        a, b = a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()
        value = loss(a, b)
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert all(g.isfinite().all() for g in torch.autograd.grad(value, (a, b)))


@pytest.mark.parametrize("loss", SIGNALS)
def test_gradients(loss: Callable[..., Tensor]) -> None:
    a, b = (torch.randn(1, 2, 64, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(loss, (a, b))
