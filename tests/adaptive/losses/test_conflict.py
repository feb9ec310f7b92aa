"""Harmonic conflict against intervals whose order is known, and what it must not depend on."""

import numpy as np
import pytest
import torch
from torch import Tensor

from adaptive_window.audio.mel import SPREAD, MelCodec
from adaptive_window.audio.synthesis import synthesize_drums
from adaptive_window.losses import harmonic_alignment, harmonic_conflict, pitch_classes
from adaptive_window.losses.conflict import LOUDNESS, UNIT, interval_roughness, loudness_change, tonal_shares
from adaptive_window.training.listening import Listener

CENTRES = 440.0 * 2 ** (torch.arange(-14, 30) / 12.0)  # a band a semitone, G3 to D7
CLASSES = pitch_classes(CENTRES)
MEL = Listener(MelCodec()).classes
W = 60


def chord(*semitones: int) -> Tensor:
    """`[44, W]`: bands that many semitones above A stand out, in every octave."""
    x = torch.zeros(len(CENTRES), W)
    for k in range(len(CENTRES)):
        if (k - 14) % 12 in [s % 12 for s in semitones]:
            x[k] = 2.0
    return x


def conflict(a: Tensor, b: Tensor) -> float:
    return harmonic_conflict(a, b, CLASSES, 5).item()


def encoded(audio: np.ndarray) -> Tensor:
    return MelCodec().encode(torch.from_numpy(audio.astype(np.float32))[None, None])[0]


def tones(*midi: int) -> Tensor:
    """Latents of 4 s of tones with six harmonics each."""
    t = np.arange(4 * 16000) / 16000
    partials = [
        0.05 * 0.7**h * np.sin(2 * np.pi * (h + 1) * 440 * 2 ** ((m - 69) / 12) * t) for m in midi for h in range(6)
    ]
    return encoded(np.sum(partials, 0) + 1e-4 * np.random.default_rng(0).standard_normal(len(t)))


def test_roughness_orders_intervals_and_knows_no_direction() -> None:
    r = interval_roughness()
    assert r.sum().abs() < 1e-12
    assert torch.allclose(r[1:], r[1:].flip(0))
    assert r[1] == 1  # a semitone, then a whole tone and a tritone, then thirds, the fifth, the unison
    assert r[1] > r[2] > r[6] > r[5] > r[0]
    assert r[6] > 0 > r[7]
    assert (r[3:5] > r[7]).all()


def test_clashes_are_above_fifths_above_unisons() -> None:
    tone = chord(0)
    found = {k: conflict(tone, chord(k)) for k in range(12)}
    assert found[1] > found[6] > 0 > found[7] > found[0]
    assert conflict(chord(0, 4, 7), chord(1, 5, 8)) > 0 > conflict(chord(0, 4, 7), chord(0, 4, 7))


def test_real_tones_order_alike() -> None:
    root = tones(60)
    found = {k: harmonic_conflict(root, tones(60 + k), MEL).item() for k in (0, 1, 6, 7)}
    assert min(found[1], found[6]) > 0 > found[7] > found[0]


def test_both_transposed_is_the_same_one_transposed_is_not() -> None:
    a, b = (0, 4, 7), (2, 5, 9)
    here = conflict(chord(*a), chord(*b))
    up = [conflict(chord(*(k + step for k in a)), chord(*(k + step for k in b))) for step in range(1, 12)]
    # bands at the range's ends have fewer neighbours, of other classes each time
    assert up == pytest.approx([here] * 11, abs=0.15 * abs(conflict(chord(*a), chord(*a))))
    assert abs(conflict(chord(*a), chord(*(k + 1 for k in b))) - here) > 0.15 * abs(here)


def test_loudness_does_not_matter() -> None:
    a, b = tones(60, 64, 67), tones(61, 65, 68)
    here = harmonic_conflict(a, b, MEL)
    fading = torch.linspace(-3, 3, a.shape[-1])
    for x, y in ((a - 4.0, b), (a, b + 1e3), (a + fading, b - fading)):
        assert torch.allclose(harmonic_conflict(x, y, MEL), here, rtol=1e-4)


def test_noise_drums_and_silence_are_neutral() -> None:
    scale = abs(harmonic_conflict(tones(60, 64, 67), tones(61, 65, 68), MEL).item())
    chords = tones(60, 64, 67)
    noise = encoded(0.1 * np.random.default_rng(1).standard_normal(4 * 16000))
    drums = encoded(synthesize_drums(3, 100, seconds=4.0, sample_rate=16000))
    silence = encoded(np.zeros(4 * 16000))
    for other in (noise, drums, silence):
        assert abs(harmonic_conflict(chords, other, MEL).item()) < 0.1 * scale
    assert tonal_shares(silence, MEL).abs().max() == 0


def test_shares_are_parts_of_a_frame() -> None:
    shares = tonal_shares(tones(60, 64, 67), MEL)
    assert shares.min() >= 0
    assert 0.3 < shares.sum(0).mean() < 1
    assert UNIT == SPREAD


def test_gradient_is_exact_and_finite_in_silence() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(44, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, y: harmonic_conflict(x, y, CLASSES, 3), (a, b), fast_mode=True)
    source = (a.detach() + 0.3, b.detach() * 0.7)
    assert torch.autograd.gradcheck(lambda x, y: harmonic_alignment((x, y), source, CLASSES, 3), (a, b), fast_mode=True)
    flat = torch.full((44, 9), -30.0, requires_grad=True)
    harmonic_conflict(flat, chord(0)[:, :9], CLASSES).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_sixteen_bits_are_computed_wide() -> None:
    a, b = chord(0), chord(1)
    assert harmonic_conflict(a.bfloat16(), b.bfloat16(), CLASSES).dtype == torch.float32
    assert harmonic_conflict(a.bfloat16(), b.bfloat16(), CLASSES).item() == pytest.approx(
        harmonic_conflict(a, b, CLASSES).item(), rel=1e-4
    )


def test_loudness_change_is_in_decibels() -> None:
    x = tones(60)
    louder = x + 6.0206 / (20 / np.log(10)) / SPREAD
    assert loudness_change(louder, x).item() == pytest.approx(6.0206, rel=1e-3)
    t = np.arange(4 * 16000) / 16000
    low, high = (encoded(0.1 * np.sin(2 * np.pi * hz * t)) for hz in (200.0, 4000.0))
    tilt = Listener(MelCodec()).tilt
    heard = loudness_change(low, high, tilt)
    assert heard.item() == pytest.approx(20 * np.log10(3.1), abs=1)  # one amplitude, in bands 23 and 72 Hz wide
    assert loudness_change(low, high).item() > heard.item() + 5


def test_alignment_is_least_where_conflict_is_gone_and_nothing_else_changed() -> None:
    clash, fine = (chord(0, 4, 7), chord(1, 5, 8)), (chord(0, 4, 7), chord(0, 7))

    def loss(heard: tuple[Tensor, Tensor], source: tuple[Tensor, Tensor]) -> float:
        return harmonic_alignment(heard, source, CLASSES, 5).item()

    assert loss(fine, fine) == 0
    assert loss(clash, clash) == pytest.approx(conflict(*clash), rel=1e-5)
    quiet = (clash[0] - 3.0, clash[1] - 3.0)  # silence is no way out
    assert loss(quiet, clash) > loss(clash, clash) + LOUDNESS * 40
    drone = (chord(3), chord(3))  # nor is a common hum
    assert loss(drone, fine) > loss(fine, fine)
    assert loss(drone, clash) > abs(conflict(*drone)) - 1e-3


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="latents must have 44 bands"):
        tonal_shares(torch.zeros(10, W), CLASSES)
    with pytest.raises(ValueError, match="b must have the shape of a"):
        harmonic_conflict(torch.zeros(44, W), torch.zeros(44, W + 1), CLASSES)
