"""The embedded codec: its filters, its frames, and how well sound survives the round trip."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch

from adaptive_window.audio.codec import load_codec
from adaptive_window.audio.files import read_audio
from adaptive_window.audio.mel import CEILING, FLOOR, SPREAD, MelCodec, hz_to_mel, mel_filters, mel_to_hz
from adaptive_window.audio.synthesis import synthesize_pair

CLIP = 24 * 16000


@pytest.fixture(scope="module")
def codec() -> MelCodec:
    return MelCodec()


def log_bands(codec: MelCodec, latents: torch.Tensor) -> torch.Tensor:
    return latents * SPREAD + codec._offset


def assert_survives(codec: MelCodec, audio: torch.Tensor) -> None:
    """The two acceptance figures: mean error of the log-mel spectrum, spectral convergence of the mel spectrum."""
    before = log_bands(codec, codec.encode(audio[None]))
    after = log_bands(codec, codec.encode(codec.decode(codec.encode(audio[None]))))
    assert (after - before).abs().mean() <= 0.12
    assert (after.exp() - before.exp()).norm() / before.exp().norm() <= 0.12


def test_filters_equal_torchaudio() -> None:
    functional = pytest.importorskip("torchaudio.functional", reason="torchaudio is an optional dependency")
    expected = functional.melscale_fbanks(641, 20.0, 8000.0, 128, 16000, norm="slaney", mel_scale="slaney").T
    ours = mel_filters(128, 1280, 16000, 20.0, 8000.0)
    # torchaudio computes in float32, where an edge at 8 kHz is off by 5e-4 Hz of a slope over 12.5 Hz and more.
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * float(expected.max()))


def test_filters_have_unit_area_and_no_gap() -> None:
    filters = mel_filters(128, 1280, 16000, 20.0, 8000.0)
    assert (filters.sum(1) > 0).all()
    area = mel_filters(10, 64000, 16000, 20.0, 8000.0).double().sum(1) * 0.25  # bins of 0.25 Hz
    torch.testing.assert_close(area, torch.ones(10, dtype=torch.float64), rtol=0, atol=1e-4)


def test_mel_scale_has_slaneys_anchors() -> None:
    np.testing.assert_allclose(hz_to_mel(np.array([0.0, 200.0, 1000.0, 6400.0])), [0, 3, 15, 42], atol=1e-12)
    hz = np.linspace(1, 8000, 500)
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(hz)), hz, rtol=1e-12)


def test_24_seconds_are_1200_frames(codec: MelCodec) -> None:
    assert (codec.sample_rate, codec.hop, codec.frame_rate, codec.dim) == (16000, 320, 50.0, 128)
    assert codec.frames(24) == 1200
    assert codec.seconds(800) == 16.0
    assert codec.encode(torch.zeros(2, 1, CLIP)).shape == (2, 128, 1200)
    assert codec.decode(torch.zeros(2, 128, 800)).shape == (2, 1, 256000)
    assert codec.encode(torch.zeros(1, 1, 321)).shape == (1, 128, 2)
    assert codec.encode(torch.zeros(1, 1, 1)).shape == (1, 128, 1)
    assert codec.decode(torch.zeros(1, 128, 1)).shape == (1, 1, 320)
    assert not codec.differentiable
    assert not codec.random


def test_a_tone_peaks_in_its_band_at_its_time(codec: MelCodec) -> None:
    audio = torch.zeros(1, 1, 32000)
    t = torch.arange(8000) / 16000
    audio[0, 0, 16000:24000] = 0.5 * torch.sin(2 * math.pi * 1000 * t)
    latents = codec.encode(audio)[0]
    edges = np.linspace(float(hz_to_mel(np.array(20.0))), float(hz_to_mel(np.array(8000.0))), 130)
    band = int(np.argmin(np.abs(mel_to_hz(edges[1:-1]) - 1000)))
    bands = log_bands(codec, latents)
    assert bands[:, 60].argmax() == band
    loud = bands[band] > bands[band, 60] - math.log(10)
    # frames 50 to 74 lie inside the tone, each window reaches 1.5 frames further, to less than a tenth at its edge
    assert abs(int(loud.nonzero()[0]) - 50) <= 1
    assert abs(int(loud.nonzero()[-1]) - 74) <= 1


@pytest.mark.parametrize("seed", [100, 101])
def test_synthesized_pieces_survive(codec: MelCodec, seed: int) -> None:
    piece = synthesize_pair(seed)
    for side in (piece.input, piece.target):
        assert_survives(codec, torch.from_numpy(soxr.resample(side, 32000, 16000))[None])


def test_music_survives(codec: MelCodec, music: list[Path]) -> None:
    for path in music:
        assert_survives(codec, read_audio(path, 16000)[:, 5 * 16000 :][:, :CLIP])


def test_latents_have_about_zero_mean_and_unit_spread(codec: MelCodec, music: list[Path]) -> None:
    latents = torch.cat([codec.encode(read_audio(path, 16000)[None, :, :CLIP])[0] for path in music], dim=1)
    assert abs(float(latents.mean())) < 0.4
    assert 0.75 < float(latents.std()) < 1.25


def test_decoding_is_deterministic_and_independent_of_the_batch(codec: MelCodec) -> None:
    latents = torch.randn(3, 128, 60, generator=torch.Generator().manual_seed(0))
    together = codec.decode(latents)
    torch.manual_seed(1)
    assert torch.equal(codec.decode(latents), together)
    alone = codec.decode(latents[1:2])
    # Matrix products of another size round otherwise, and 32 rounds of phases amplify that.
    assert (alone - together[1:2]).norm() / alone.norm() < 1e-2


@pytest.mark.parametrize("value", [50.0, -50.0])
def test_latents_out_of_range_stay_finite(codec: MelCodec, value: float) -> None:
    latents = torch.full((1, 128, 100), value)
    latents[:, ::2, ::3] *= -1
    audio = codec.decode(latents)
    assert bool(audio.isfinite().all())
    # At most every bin at what the ceiling allows: band sums of exp(3.5) over filters whose columns sum to some 0.04.
    assert audio.abs().max() < 1000


def test_clamping_is_no_part_of_what_is_in_range(codec: MelCodec) -> None:
    audio = torch.sin(2 * math.pi * 440 * torch.arange(16000) / 16000)[None, None]  # full scale
    bands = log_bands(codec, codec.encode(audio))
    assert bands.max() < CEILING
    silent = log_bands(codec, codec.encode(torch.zeros(1, 1, 3200)))
    torch.testing.assert_close(silent, torch.full_like(silent, FLOOR))
    assert codec.decode(codec.encode(torch.zeros(1, 1, 3200))).abs().max() < 1e-4


def test_resampled_latents_stretch_time_at_constant_pitch(codec: MelCodec) -> None:
    t = torch.arange(4 * 16000) / 16000
    latents = codec.encode(torch.sin(2 * math.pi * 800 * t)[None, None] * 0.5)
    longer = torch.nn.functional.interpolate(latents, size=300, mode="linear", align_corners=False)
    audio = codec.decode(longer)[0, 0]
    assert audio.shape == (6 * 16000,)
    spectrum = torch.fft.rfft(audio[16000 : 5 * 16000]).abs()
    assert abs(int(spectrum.argmax()) / 4 - 800) < 12.5  # one bin of the codec's own transform


def test_fingerprint_is_constant_and_of_the_constants(codec: MelCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    assert codec.fingerprint == load_codec("mel").fingerprint
    before = codec.fingerprint
    monkeypatch.setattr("adaptive_window.audio.mel.SPREAD", 2.0)
    assert codec.fingerprint != before


def test_encoding_is_differentiable_and_decoding_has_no_graph(codec: MelCodec) -> None:
    audio = torch.randn(1, 1, 3200, requires_grad=True)
    codec.encode(audio).sum().backward()
    assert audio.grad is not None
    assert bool(audio.grad.isfinite().all())
    assert not codec.decode(torch.zeros(1, 128, 10, requires_grad=True)).requires_grad


@pytest.mark.parametrize("shape", [(1, 16000), (1, 2, 16000), (1, 1, 0)])
def test_encode_names_a_wrong_shape(codec: MelCodec, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"audio must be \[B, 1, N\]"):
        codec.encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(128, 10), (1, 64, 10), (1, 128, 0)])
def test_decode_names_a_wrong_shape(codec: MelCodec, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"latents must be \[B, 128, T\]"):
        codec.decode(torch.zeros(shape))


def test_24_seconds_decode_in_a_few_seconds(codec: MelCodec) -> None:
    begun = time.perf_counter()
    codec.decode(torch.zeros(1, 128, 1200))
    assert time.perf_counter() - begun < 10  # 0.5 s on an idle core; a guard against losing the fast transforms
