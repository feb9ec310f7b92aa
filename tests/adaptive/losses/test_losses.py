"""Each loss against its closed form, and finite gradients at silence."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adaptive_window import losses
from adaptive_window.kernels import resample_windows


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
        ([0.0, 50.0], [1.0, 1.0], 50 / 100),  # shared frames over the mean length
        ([0.0, 100.0], [1.5, 1.0], 50 / 125),
        ([0.0, 25.0], [1.5, 1.0], 1.0),  # one inside the other, around one centre
        ([0.0, 40.0], [1.5, 1.0], 1 - 15 / 125),  # inside, the centres 15 frames apart
        ([0.0, 50.0, 200.0], [1.0, 1.0, 1.0], (50 / 100 + 0 + 0) / 3),
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


def descend(loss: Callable[[dict[str, Tensor]], Tensor], given: dict[str, Tensor], rate: float, steps: int) -> None:
    """Plain gradient descent; ratios are kept in [1, 1.5] as a selector's are."""
    for _ in range(steps):
        gradients = torch.autograd.grad(loss(given), tuple(given.values()), materialize_grads=True)
        with torch.no_grad():
            for (name, value), gradient in zip(given.items(), gradients, strict=True):
                value -= rate * gradient * (1e4 if name.startswith("start") else 1.0)  # frames and ratios
                if name.startswith("ratio"):
                    value.clamp_(1, 1.5)


def test_overlap_separates_equal_windows() -> None:
    """Both Jaccard's and Dice's index have derivative 0 here, or the same for all: equal pairs would stay equal."""
    given = windows([150.0, 150.0, 150.0], [1.2, 1.2, 1.2])
    descend(lambda w: losses.window_overlap_penalty(w, 100), given, 0.03, 300)
    for stream in ("input", "target"):
        start, ratio = given[f"start_{stream}"][0], given[f"ratio_{stream}"][0]
        assert (start[1:] >= (start + 100 * ratio)[:-1] - 2).all()  # one after the other; a step is 1 frame
    assert losses.window_overlap_penalty(given, 100).item() < 0.02


def test_overlap_moves_a_window_out_of_another() -> None:
    """No plateau: a short window inside a long one is pushed towards the nearer end."""
    given = windows([100.0, 130.0], [1.5, 1.0])
    losses.window_overlap_penalty(given, 100).backward()
    assert given["start_input"].grad[0, 0] > 0 > given["start_input"].grad[0, 1]
    assert (given["ratio_input"].grad != 0).all()


def test_ratio_diversity() -> None:
    assert losses.ratio_diversity(windows([0.0, 0.0], [1.0, 1.5])).item() == 1.0
    assert losses.ratio_diversity(windows([0.0, 0.0], [1.3, 1.2]), 0.4).item() == pytest.approx(0.25)
    assert losses.ratio_diversity(windows([0.0, 0.0], [1.2, 1.2])).item() == 0.0
    assert losses.ratio_diversity(windows([0.0, 0.0, 0.0], [1.0, 1.05, 1.5])).item() == pytest.approx(2.5 / 3)
    assert losses.ratio_diversity(windows([0.0], [1.2])).item() == 0.0
    with pytest.raises(ValueError, match=r"spread must be positive and finite, got 0"):
        losses.ratio_diversity(windows([0.0, 0.0], [1.0, 1.0]), 0.0)


def test_ratio_diversity_moves_unused_ratios_and_lets_go_inside_the_range() -> None:
    given = windows([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    descend(lambda w: -losses.ratio_diversity(w, 0.1), given, 4e-4, 600)
    ratio = given["ratio_input"][0]
    assert ratio.diff().tolist() == pytest.approx([0.1, 0.1], abs=5e-3)
    assert ratio[2] < 1.21  # not the end of the range, 1.5
    # whoever differs enough is left alone, wherever it is
    given = windows([0.0, 0.0], [1.22, 1.35])
    assert all(
        g is None or not g.any()
        for g in torch.autograd.grad(losses.ratio_diversity(given), tuple(given.values()), allow_unused=True)
    )


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


def test_reconstruction_finds_the_planted_window() -> None:
    """A pattern that is a window of the target: descent takes start and ratio from 6 frames and 0.04 off to it."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(1, 16, 2400, generator=generator, dtype=torch.float64)
    target = F.avg_pool1d(F.avg_pool1d(noise, 21, 1), 21, 1)  # correlated over about 20 frames
    target = target / target.std()
    truth = torch.tensor([[100.0]], dtype=torch.float64), torch.tensor([[1.2]], dtype=torch.float64)
    pattern = resample_windows(target, *truth, 800)
    start, shift = (torch.tensor([[v]], dtype=torch.float64, requires_grad=True) for v in (94.0, 1.24 * 800))
    optimizer = torch.optim.Adam([start, shift], lr=0.2)  # the ratio by what it does to the end, in frames
    for _ in range(600):
        optimizer.zero_grad()
        losses.reconstruction_loss(pattern, resample_windows(target, start, shift / 800, 800)).backward()
        optimizer.step()
    assert abs(start.item() - 100) < 0.5
    assert abs(shift.item() / 800 - 1.2) < 1e-3


def test_envelope_copy_penalty_lets_go_of_a_copied_envelope() -> None:
    """A gain over the 20 segments, trained against the penalty alone, leaves the source's loudness behind."""
    source = torch.rand(1, 20, dtype=torch.float64).repeat_interleave(50, 1) * torch.randn(1, 1000).sign()
    gain = torch.zeros(1, 20, dtype=torch.float64, requires_grad=True)

    def penalty() -> Tensor:
        return losses.envelope_copy_penalty(source * gain.exp().repeat_interleave(50, 1), source, 20)

    optimizer = torch.optim.Adam([gain], lr=0.05)
    before = penalty().item()
    for _ in range(100):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    assert before == pytest.approx(1.0, abs=1e-5)
    assert penalty().item() < 0.05


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
