"""Harmony and groove against closed forms: what sounds, what moves, and what does neither."""

import math

import pytest
import torch

from adaptive_window.losses.composing import odd_frames, regrooved, slow, spread_matching
from adaptive_window.losses.harmony import chroma, harmony_likeness, harmony_matching, pitch_classes

W = 60
CENTRES = 440.0 * 2 ** (torch.arange(-14, 30) / 12.0)  # a band a semitone, G3 to D7
CLASSES = pitch_classes(CENTRES)


def chord(*semitones: int) -> torch.Tensor:
    """`[44, W]`: bands that many semitones above A stand out, in every octave."""
    x = torch.zeros(len(CENTRES), W)
    for k in range(len(CENTRES)):
        if (k - 14) % 12 in semitones:
            x[k] = 2.0
    return x


def test_each_class_counts_alike_and_bands_go_to_their_own() -> None:
    assert CLASSES.shape == (12, len(CENTRES))
    assert torch.allclose(CLASSES.sum(1), torch.ones(12))
    assert int(CLASSES[:, 14].argmax()) == 0  # 440 Hz is class 0, A
    assert int(CLASSES[:, 17].argmax()) == 3


def test_bands_out_of_range_count_nothing() -> None:
    wide = pitch_classes(torch.tensor([50.0, 440.0, 9000.0, *(440.0 * 2 ** (k / 12) for k in range(1, 12))]))
    assert wide[:, 0].abs().max() == 0
    assert wide[:, 2].abs().max() == 0


def test_profile_names_the_notes() -> None:
    profile = chroma(chord(0, 4, 7), CLASSES)
    assert set(profile.mean(1).topk(3).indices.tolist()) == {0, 4, 7}
    assert profile.sum(0).abs().max() < 1e-5


def test_loudness_and_tilt_do_not_matter_the_notes_do() -> None:
    x, other = chord(0, 4, 7), chord(2, 6, 9)
    tilt = torch.linspace(0, -3, len(CENTRES))[:, None]
    assert harmony_likeness(x, x, CLASSES).item() == pytest.approx(1.0, abs=1e-4)
    assert harmony_likeness(x, x + 5.0, CLASSES).item() == pytest.approx(1.0, abs=1e-4)
    assert harmony_likeness(x, x + tilt, CLASSES).item() > 0.97
    assert harmony_likeness(x, other, CLASSES).item() < 0
    assert harmony_matching(x[None], other[None], CLASSES).item() > 1


def test_flat_and_silent_have_no_harmony() -> None:
    flat = torch.full((len(CENTRES), W), 1.5).requires_grad_()
    likeness = harmony_likeness(flat, chord(0, 4, 7), CLASSES)
    assert abs(likeness.item()) < 1e-3
    likeness.backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_gradient_turns_a_chord_into_another() -> None:
    x = (0.5 * chord(0, 4, 7) + 0.5).clone().requires_grad_()
    wanted = chord(2, 6, 9)
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(60):
        loss = harmony_matching(x, wanted, CLASSES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert harmony_likeness(x.detach(), wanted, CLASSES).item() > 0.9


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="latents must have 44 bands"):
        chroma(torch.zeros(10, W), CLASSES)
    with pytest.raises(ValueError, match="rhythm must have the shape of harmony"):
        regrooved(torch.zeros(8, W), torch.zeros(8, W + 1), 5)


def test_slow_is_the_average() -> None:
    ramp = torch.arange(20.0).expand(3, 20)
    assert torch.allclose(slow(ramp, 5)[:, 2:-2], ramp[:, 2:-2])
    assert slow(ramp, 5)[0, 0].item() == pytest.approx(1.0)  # of 0, 1, 2


@pytest.mark.parametrize(("seconds", "rate", "frames"), [(0.5, 50.0, 25), (0.5, 75.0, 37), (0.01, 50.0, 1)])
def test_odd_frames(seconds: float, rate: float, frames: int) -> None:
    assert odd_frames(seconds, rate) == frames


def test_one_song_with_itself_in_equal_bands_is_that_song() -> None:
    common = torch.randn(1, W, generator=torch.Generator().manual_seed(0))
    song = common + torch.linspace(-2, 2, 16)[:, None]
    assert torch.allclose(regrooved(song, song, 9), song, atol=1e-5)


def test_pitch_of_one_hits_of_the_other() -> None:
    harmony = chord(0, 4, 7)
    rhythm = torch.zeros(len(CENTRES), W)
    rhythm[:, ::12] = 3.0
    both = regrooved(harmony, rhythm, 25)
    assert harmony_likeness(both, harmony, CLASSES).item() > 0.95
    flux = both.diff(dim=1).relu().mean(0)
    assert flux[11::12].min() > 10 * flux[5::12].abs().max()  # rises into every twelfth frame, none between


def test_spread_is_compared_band_by_band_whatever_is_played() -> None:
    x = torch.randn(2, 16, 400, generator=torch.Generator().manual_seed(0))
    assert spread_matching(x, x.roll(50, -1) + 3.0).item() == pytest.approx(0.0, abs=1e-5)
    assert spread_matching(0.5 * x, x).item() == pytest.approx(math.log(2), rel=0.02)
    assert spread_matching(x, 0.5 * x).item() == pytest.approx(math.log(2), rel=0.02)
    still = torch.zeros(1, 4, 50, requires_grad=True)
    spread_matching(still, torch.ones(1, 4, 50)).backward()
    assert still.grad is not None
    assert still.grad.isfinite().all()
