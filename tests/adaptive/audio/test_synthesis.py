"""The synthesized pieces: their length, tempo, key, sections, and that they are music enough to be told apart."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from adaptive_window.audio import synthesis
from adaptive_window.audio.files import find_audio, read_audio
from adaptive_window.audio.synthesis import NOTE_NAMES, SCALES, Piece, synthesize_drums, synthesize_pair, write_demo_set


@pytest.fixture(scope="module")
def pieces() -> list[Piece]:
    return [synthesize_pair(seed) for seed in range(4)]


def test_length_and_peak(pieces: list[Piece]) -> None:
    for piece in pieces:
        for audio in (piece.input, piece.target):
            assert audio.shape == (24 * 32000,)
            assert audio.dtype == np.float32
            assert np.abs(audio).max() == pytest.approx(0.85, abs=1e-4)
            assert 0.05 < audio.std() < 0.5


def test_same_seed_same_pair_other_seed_other_pair(pieces: list[Piece]) -> None:
    again = synthesize_pair(1)
    assert np.array_equal(again.input, pieces[1].input)
    assert np.array_equal(again.target, pieces[1].target)
    assert not np.array_equal(pieces[0].input, pieces[1].input)
    assert not np.array_equal(pieces[1].input, pieces[1].target)


def test_onsets_repeat_every_bar(pieces: list[Piece]) -> None:
    """Between 0.9 and 1.1 bars, the rises in energy are most like themselves at one bar, to 1 %."""
    for piece in pieces:
        for audio in (piece.input, piece.target):
            energy = np.square(audio).reshape(-1, 320).sum(1)  # 100 per second
            onset = np.maximum(0, np.diff(np.log(energy + 1e-3)))
            onset -= onset.mean()
            bar = 100 * 240 / piece.bpm
            lags = np.arange(int(0.9 * bar), int(1.1 * bar))
            likeness = [onset[lag:] @ onset[:-lag] for lag in lags]
            assert lags[np.argmax(likeness)] == pytest.approx(bar, rel=0.01)


def test_pitches_are_in_the_key(pieces: list[Piece]) -> None:
    """Energy near the key's seven pitch classes against that near the other five, 100 Hz to 1 kHz."""
    for piece in pieces:
        tonic, mode = piece.key.split()
        inside = {(NOTE_NAMES.index(tonic) + step) % 12 for step in SCALES[mode]}
        spectrum = np.abs(np.fft.rfft(piece.target * np.hanning(len(piece.target)))) ** 2
        hz = np.arange(len(spectrum)) / 24
        wanted = (hz > 100) & (hz < 1000)
        pitch = 69 + 12 * np.log2(hz[wanted] / 440)
        near = np.abs(pitch - np.round(pitch)) < 0.15
        classes = np.round(pitch[near]).astype(int) % 12
        energy = np.bincount(classes, spectrum[wanted][near], 12)
        assert sum(energy[list(inside)]) > 8 * sum(np.delete(energy, list(inside)))


def test_sections_are_the_same_song_in_another_order(pieces: list[Piece]) -> None:
    for piece in pieces:
        assert [letter for letter, _ in piece.input_sections] == ["A", "B", "C"]
        assert sorted(letter for letter, _ in piece.target_sections) == ["A", "B", "C"]
        assert piece.target_sections != piece.input_sections
        for sections in (piece.input_sections, piece.target_sections):
            assert all((start * piece.bpm / 240) % 1 == pytest.approx(0, abs=1e-9) for _, start in sections)


def test_nothing_clicks(pieces: list[Piece]) -> None:
    """Both ends are silent, and every note and drum begins and ends at zero."""
    for piece in pieces:
        assert abs(piece.input[0]) < 1e-4
        assert abs(piece.input[-1]) < 1e-4
    band = synthesis._Band(32000, np.random.default_rng(0))
    sounds = [band.kick, band.snare, band.hat, *(band.note(voice, 60, 0.4) for voice in synthesis._VOICES)]
    for sound in sounds:
        assert abs(sound[0]) < 1e-6
        assert abs(sound[-1]) < 1e-3
        assert 0.5 < np.abs(sound).max() < 3


def test_a_piece_takes_less_than_a_second_or_so() -> None:
    begun = time.perf_counter()
    synthesize_pair(0)
    assert time.perf_counter() - begun < 10  # 0.15 s for each side on an idle core


@pytest.mark.parametrize(("seconds", "rate"), [(1.0, 16000), (7.3, 24000), (40.0, 8000)])
def test_other_lengths_and_rates(seconds: float, rate: int) -> None:
    piece = synthesize_pair(5, seconds=seconds, sample_rate=rate)
    assert len(piece.input) == len(piece.target) == round(seconds * rate)
    assert np.abs(piece.input).max() <= 0.9
    assert np.isfinite(piece.input).all()


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="seconds must be positive, got 0"):
        synthesize_pair(0, seconds=0)
    with pytest.raises(ValueError, match="sample_rate must be at least 8000, got 100"):
        synthesize_pair(0, sample_rate=100)
    with pytest.raises(ValueError, match="pairs must be at least 1"):
        write_demo_set("nowhere", pairs=0)


def test_demo_set_is_pairs_of_wavs(tmp_path: Path) -> None:
    written = write_demo_set(tmp_path, pairs=2, val=1, seed=3, seconds=2.0, sample_rate=16000)
    assert sorted(written) == find_audio(tmp_path)
    names = [str(path.relative_to(tmp_path)) for path in written]
    assert names == [
        *("train/song_00_input.wav", "train/song_00_target.wav", "train/song_01_input.wav"),
        *("train/song_01_target.wav", "val/song_02_input.wav", "val/song_02_target.wav"),
    ]
    audio = [read_audio(path, 16000) for path in written]
    assert all(a.shape == (1, 32000) for a in audio)
    assert len({a.sum().item() for a in audio}) == 6


@pytest.mark.parametrize("bpm", [100, 125.0])
def test_drums_repeat_every_bar(bpm: float) -> None:
    drums = synthesize_drums(3, bpm, seconds=10.0, sample_rate=16000)
    assert drums.shape == (160000,)
    assert drums.dtype == np.float32
    assert 0.1 < np.abs(drums).max() <= 0.85
    bar = round(240 / bpm * 16000)
    repeated = np.corrcoef(drums[:-bar], drums[bar:])[0, 1]
    shifted = np.corrcoef(drums[: -bar - 700], drums[bar + 700 :])[0, 1]
    assert repeated > 0.98  # but for the hiss
    assert shifted < 0.5
    assert np.array_equal(drums, synthesize_drums(3, bpm, seconds=10.0, sample_rate=16000))
    assert not np.array_equal(drums, synthesize_drums(4, bpm, seconds=10.0, sample_rate=16000))
