"""Synthesized songs: of the length, tempo and key they say, seeded, and of many kinds."""

from pathlib import Path

import numpy as np
import pytest

from adaptive_window.audio.files import read_audio
from adaptive_window.audio.songs import FASTEST, MODES, SLOWEST, STYLES, synthesize_song, write_songs
from adaptive_window.audio.synthesis import NOTE_NAMES

RATE = 16000


def test_seed_says_everything() -> None:
    a, again, other = (synthesize_song(seed, sample_rate=RATE, seconds=6.0) for seed in (5, 5, 6))
    assert np.array_equal(a.audio, again.audio)
    assert not np.array_equal(a.audio, other.audio)


@pytest.mark.parametrize("style", list(STYLES))
def test_every_style_sounds_and_does_not_click(style: str) -> None:
    song = synthesize_song(3, sample_rate=RATE, seconds=8.0, style=style)
    assert song.audio.shape == (8 * RATE,)
    assert song.audio.dtype == np.float32
    assert 0.2 < np.abs(song.audio).max() <= 0.86
    assert song.audio.std() > 0.01
    assert abs(song.audio[0]) < 1e-3
    assert song.sections[0][1] == 0.0


def test_tempos_modes_and_styles_vary() -> None:
    songs = [synthesize_song(seed, sample_rate=8000, seconds=1.0) for seed in range(60)]
    tempos = np.array([song.bpm for song in songs])
    assert SLOWEST <= tempos.min() < 85
    assert 145 < tempos.max() <= FASTEST
    assert {song.style for song in songs} == set(STYLES)
    assert {song.key.split(maxsplit=1)[1] for song in songs} == set(MODES)


@pytest.mark.parametrize("bpm", [76.0, 131.0])
def test_onsets_repeat_at_the_tempo(bpm: float) -> None:
    song = synthesize_song(11, sample_rate=RATE, bpm=bpm, style="drums")
    energy = np.square(song.audio[: 24 * RATE]).reshape(-1, RATE // 100).sum(1)
    onset = np.maximum(0, np.diff(np.log(energy + 1e-3)))
    onset -= onset.mean()
    bar = 100 * 240 / bpm
    lags = np.arange(int(0.9 * bar), int(1.1 * bar))
    likeness = [onset[lag:] @ onset[:-lag] for lag in lags]
    assert lags[np.argmax(likeness)] == pytest.approx(bar, rel=0.015)


def test_pitches_are_in_the_key() -> None:
    song = synthesize_song(4, sample_rate=RATE, style="strings")
    tonic, mode = song.key.split(maxsplit=1)
    inside = {(NOTE_NAMES.index(tonic) + step) % 12 for step in MODES[mode]}
    spectrum = np.abs(np.fft.rfft(song.audio * np.hanning(len(song.audio)))) ** 2
    hz = np.arange(len(spectrum)) * RATE / len(song.audio)
    wanted = (hz > 100) & (hz < 1000)
    pitch = 69 + 12 * np.log2(hz[wanted] / 440)
    near = np.abs(pitch - np.round(pitch)) < 0.15
    energy = np.bincount(np.round(pitch[near]).astype(int) % 12, spectrum[wanted][near], 12)
    assert sum(energy[list(inside)]) > 4 * sum(np.delete(energy, list(inside)))


def test_a_key_that_is_given_changes_nothing_else() -> None:
    drawn = synthesize_song(4, sample_rate=RATE, style="strings")
    asked = synthesize_song(4, sample_rate=RATE, style="strings", tonic=7, mode="dorian")
    assert asked.key == "G dorian"
    assert (asked.bpm, asked.sections) == (drawn.bpm, drawn.sections)
    tonic, mode = drawn.key.split(maxsplit=1)
    same = synthesize_song(4, sample_rate=RATE, style="strings", tonic=NOTE_NAMES.index(tonic), mode=mode)
    assert np.array_equal(same.audio, drawn.audio)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="tonic must be from 0 to 11, got 12"):
        synthesize_song(0, tonic=12)
    with pytest.raises(ValueError, match="mode must be one of major, minor"):
        synthesize_song(0, mode="blues")
    with pytest.raises(ValueError, match="style must be one of band, dance"):
        synthesize_song(0, style="polka")
    with pytest.raises(ValueError, match="bpm must be from 20 to 400, got 900"):
        synthesize_song(0, bpm=900)
    with pytest.raises(ValueError, match="seconds must be positive"):
        synthesize_song(0, seconds=0)
    with pytest.raises(ValueError, match="count must be at least 1"):
        write_songs("nowhere", 0)


def test_written_songs_are_read_back(tmp_path: Path) -> None:
    written = write_songs(tmp_path / "songs", 2, seed=7, seconds=2.0)
    assert [path.name for path in written] == ["song_000007.wav", "song_000008.wav"]
    assert read_audio(written[0], RATE).shape == (1, 2 * RATE)
