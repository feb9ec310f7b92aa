"""What a visitor's file may be: each refusal is one sentence that names the file and nothing of the machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from page_server import write_song

from adaptive_window.page import songs
from adaptive_window.page.songs import Refused, read_song

RATE, LEAST = 16_000, 6.0


def write(
    path: Path, seconds: float, *, rate: int = RATE, channels: int = 1, level: float = 0.3, **options: str
) -> Path:
    rng = np.random.default_rng(0)
    soundfile.write(path, level * rng.uniform(-1, 1, (round(seconds * rate), channels)), rate, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("high rate.wav", {"rate": 192_000}),
        ("six channels.wav", {"channels": 6}),
        ("a.flac", {"rate": 44_100, "channels": 2}),
        ("a.ogg", {"rate": 48_000, "channels": 2}),
        ("a.mp3", {"rate": 44_100}),
        ("deep.wav", {"rate": 96_000, "subtype": "FLOAT"}),
    ],
)
def test_taken(tmp_path, name, options):
    song = read_song(write(tmp_path / name, 8.0, **options), RATE, LEAST)
    assert song.name == name
    assert song.seconds == pytest.approx(8.0, abs=0.1)
    assert 100 <= len(song.peaks) <= songs.COLUMNS
    assert 0.15 < max(song.peaks) < 0.5


def spoiled(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.wav"
    if kind == "short":
        return write(path, 3.0)
    if kind == "silent":
        return write(path, 8.0, level=0.0)
    if kind == "text":
        path = folder / "text.mp3"
        path.write_text("no song at all\n" * 100)
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        whole = write(path, 8.0).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "damaged":
        whole = bytearray(write(path.with_suffix(".flac"), 8.0).read_bytes())
        whole[len(whole) // 2 :] = bytes(len(whole) - len(whole) // 2)
        path = path.with_suffix(".flac")
        path.write_bytes(whole)
    elif kind == "infinite":
        sound = np.full(8 * RATE, 0.1, np.float32)
        sound[1000] = np.inf
        soundfile.write(path, sound, RATE, subtype="FLOAT")
    elif kind == "tags":
        path = folder / "<img src=x onerror=alert(1)>.mp3"
        path.write_bytes(b"\0" * 100)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("short", "3.0 s long; at least 6 s"),
        ("silent", "is silent"),
        ("text", "is no audio that can be read"),
        ("empty", "an empty file"),
        ("truncated", "truncated"),
        ("damaged", "cannot be used"),
        ("infinite", "NaN or infinite"),
        ("tags", "is no audio"),
    ],
)
def test_refused(tmp_path, kind, words):
    path = spoiled(tmp_path, kind)
    with pytest.raises(Refused, match=words) as refusal:
        read_song(path, RATE, LEAST)
    sentence = str(refusal.value)
    assert sentence.startswith(path.name)
    assert sentence.endswith(".")
    assert str(tmp_path) not in sentence
    assert "\n" not in sentence


def test_too_long_by_its_header_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(songs, "MOST_SECONDS", 10)
    monkeypatch.setattr(songs, "stream_audio", lambda *_: pytest.fail("read all the same"))
    with pytest.raises(Refused, match="longer than"):
        read_song(write(tmp_path / "a.wav", 11.0), RATE, LEAST)


def test_too_long_whatever_its_header_says(tmp_path, monkeypatch):
    read = []
    stream = songs.stream_audio

    def counted(*arguments):
        for block in stream(*arguments):
            read.append(len(block) / RATE)
            yield block

    path = write(tmp_path / "a.wav", 45.0)
    monkeypatch.setattr(songs, "stream_audio", counted)
    monkeypatch.setattr(songs, "MOST_SECONDS", 12)
    monkeypatch.setattr(songs, "_claimed_seconds", lambda path: 1.0)
    with pytest.raises(Refused, match="longer than"):
        read_song(path, RATE, LEAST)
    assert sum(read) < 25, "no more is read than shows that it is too long"


def test_too_many_bytes_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(songs, "MOST_BYTES", 1000)
    monkeypatch.setattr(songs, "stream_audio", lambda *_: pytest.fail("read all the same"))
    with pytest.raises(Refused, match="more than"):
        read_song(write(tmp_path / "a.wav", 8.0), RATE, LEAST)


def test_peaks_are_where_the_sound_is(tmp_path):
    sound = np.zeros(20 * RATE, np.float32)
    sound[15 * RATE : 15 * RATE + 100] = 0.7  # crosses the reader's blocks of 10 s
    soundfile.write(tmp_path / "a.wav", sound, RATE)
    peaks = np.array(read_song(tmp_path / "a.wav", RATE, LEAST).peaks)
    assert np.argmax(peaks) / len(peaks) == pytest.approx(0.75, abs=0.005)
    assert np.count_nonzero(peaks > 0.1) == 1


def test_the_tests_own_song_is_taken(tmp_path):
    assert read_song(write_song(tmp_path / "a.wav", 8.0), RATE, LEAST).seconds == 8.0
