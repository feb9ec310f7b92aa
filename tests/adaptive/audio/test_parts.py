"""Files that hold more than their first header says: joined, chained, without a length, with a wrong one."""

from __future__ import annotations

import io
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from command import run

from adaptive_window.audio import files, mp3
from adaptive_window.audio.files import AudioError, find_audio, read_audio
from adaptive_window.audio.parts import Part, PartFile, parts_of

RATE = 44100


def song(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Chords that change every half second, loud first: an MP3's first frames take more bits than the rest."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tones = 110 * 2 ** (rng.integers(0, 36, (round(seconds * 2) + 1, 3)) / 12)
    sound = np.sin(2 * np.pi * tones[(time * 2).astype(int)] * time[:, None]).mean(1) * 0.5
    sound[: rate // 2] += 0.4 * rng.standard_normal(rate // 2)
    sound[round(0.7 * len(sound)) :] *= 0.01
    return sound


def mp3_bytes(tmp_path: Path, sound: np.ndarray, *, header: bool, mode: str = "VARIABLE", rate: int = RATE) -> bytes:
    soundfile.write(tmp_path / "made.mp3", sound, rate, bitrate_mode=mode, compression_level=0.5)
    data = (tmp_path / "made.mp3").read_bytes()
    if header:
        return data
    with io.BytesIO(data) as file:
        frame = mp3.frame_at(file, 0)
    assert frame is not None
    return data[frame.length :]


def id3(size: int) -> bytes:
    length = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + length + np.random.default_rng(0).bytes(size)


def test_a_part_reads_as_a_file(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    with (tmp_path / "a").open("rb") as file:
        part = PartFile(file, Part(10, 20, before=b"abc"))
        assert part.read() == b"abc" + bytes(range(10, 20))
        assert part.read(5) == b""
        part.seek(2)
        assert part.read(3) == b"c" + bytes((10, 11))
        assert part.seek(-2, io.SEEK_END) == 11
        assert part.read(10) == bytes((18, 19))
        assert part.tell() == 13


@pytest.mark.parametrize("art", [0, 100_000])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_is_read_to_its_end_whatever_its_header(tmp_path, mode, header, art):
    sound = song(20)
    data = mp3_bytes(tmp_path, sound, header=header, mode=mode)
    (tmp_path / "a.mp3").write_bytes((id3(art) if art else b"") + data + b"TAG" + bytes(125))
    assert read_audio(tmp_path / "a.mp3", RATE).shape[1] == pytest.approx(len(sound), abs=0 if header else 3000)


@pytest.mark.parametrize("headers", [(True, True), (False, False), (True, False), (False, True)])
@pytest.mark.parametrize("between", [b"", id3(3000)])
def test_joined_mp3s_are_read_to_the_last_ones_end(tmp_path, headers, between):
    songs = song(8, 1), song(5, 2), song(3, 3)
    first, second = (mp3_bytes(tmp_path, s, header=h) for s, h in zip(songs[:2], headers, strict=True))
    third = mp3_bytes(tmp_path, songs[2], header=True)
    (tmp_path / "a.mp3").write_bytes(first + between + second + between + third)
    audio = read_audio(tmp_path / "a.mp3", RATE)[0].numpy()
    expected = np.concatenate(songs)
    assert len(audio) == pytest.approx(len(expected), abs=sum(not h for h in headers) * 3000)
    burst = np.abs(audio[len(audio) - len(songs[2]) :][: RATE // 4]).mean()  # the third one's loud beginning
    assert burst > 0.15


def test_a_joined_mp3_of_two_rates_is_read(tmp_path):
    parts = mp3_bytes(tmp_path, song(4), header=True), mp3_bytes(tmp_path, song(4, rate=22050), header=True, rate=22050)
    (tmp_path / "a.mp3").write_bytes(b"".join(parts))
    assert read_audio(tmp_path / "a.mp3", 16000).shape[1] == 8 * 16000


def test_a_cut_mp3_is_still_refused(tmp_path):
    data = mp3_bytes(tmp_path, song(10), header=True)
    (tmp_path / "a.mp3").write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=r"a.mp3.*truncated"):
        read_audio(tmp_path / "a.mp3", RATE)


@pytest.mark.parametrize("kind", ["ogg", "opus", "flac", "wav", "aiff", "au", "caf", "w64", "rf64"])
def test_joined_files_of_every_kind(tmp_path, kind):
    """Three, of which the last is the first again: streams of one serial number."""
    rate = 48000 if kind == "opus" else RATE
    options = {"ogg": {"format": "OGG"}, "opus": {"format": "OGG", "subtype": "OPUS"}}.get(kind, {})
    for name, seconds in (("1", 3), ("2", 4)):
        soundfile.write(tmp_path / f"{name}.{kind}", song(seconds, seconds, rate), rate, **options)
    one, two = ((tmp_path / f"{name}.{kind}").read_bytes() for name in "12")
    (tmp_path / f"all.{kind}").write_bytes(one + two + one)
    alone = [read_audio(tmp_path / f"{name}.{kind}", rate)[0].numpy() for name in "121"]
    audio = read_audio(tmp_path / f"all.{kind}", rate)[0].numpy()
    np.testing.assert_array_equal(audio, np.concatenate(alone))
    with (tmp_path / f"1.{kind}").open("rb") as file:
        assert [part.whole for part in parts_of(file)] == [True]


def wav(sound: np.ndarray, claim: int, riff: int) -> bytes:
    data = (sound * 32767).astype("<i2").tobytes()
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return head + struct.pack("<4sI", b"data", claim) + data


@pytest.mark.parametrize("claim", [0, RATE])
@pytest.mark.parametrize("riff", [0, RATE + 36, 4 * RATE + 36, 2**32 - 1])
def test_audio_behind_what_the_header_counts_is_named(tmp_path, claim, riff):
    (tmp_path / "a.wav").write_bytes(wav(song(2), claim, riff))
    with pytest.raises(AudioError, match=r"a wrong header: after the 0\.[05]0 s that it counts, \d+ bytes follow"):
        read_audio(tmp_path / "a.wav", RATE)


def test_audio_behind_what_an_aiff_counts_is_named(tmp_path):
    soundfile.write(tmp_path / "a.aiff", song(2), RATE)
    data = bytearray((tmp_path / "a.aiff").read_bytes())
    at = data.find(b"SSND")
    data[at + 4 : at + 8] = struct.pack(">I", RATE + 8)
    (tmp_path / "a.aiff").write_bytes(data)
    with pytest.raises(AudioError, match="a wrong header"):
        read_audio(tmp_path / "a.aiff", RATE)


def test_other_kinds_are_counted_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(files, "_named", set())
    soundfile.write(tmp_path / "a.wav", song(1), RATE)
    (tmp_path / "below").mkdir()
    for name in ("b.m4a", "c.M4A", "below/d.wma", "notes.txt", ".hidden.m4a"):
        (tmp_path / name).write_bytes(b"?")
    with caplog.at_level(logging.WARNING):
        assert find_audio(tmp_path) == [tmp_path / "a.wav"]
        find_audio(tmp_path)
    assert len(caplog.messages) == 1
    assert "3 files of kinds that are not read left out (2 .m4a, 1 .wma): convert them once" in caplog.messages[0]
    assert "ffmpeg -i SONG.m4a SONG.flac" in caplog.messages[0]


def test_a_song_of_another_kind_says_what_converts_it(tmp_path):
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0 ftypM4A " + bytes(100))
    with pytest.raises(AudioError, match=r"ffmpeg -i SONG\.m4a SONG\.flac"):
        read_audio(tmp_path / "a.m4a", RATE)


def test_encode_names_other_kinds(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", song(1), RATE)
    (tmp_path / "b.m4a").write_bytes(b"?")
    assert run("encode", "--data", tmp_path, "--cache", tmp_path / "cache") == 0
    assert "0 skipped; 1 file of kinds that are not read left out (1 .m4a): convert it" in capsys.readouterr().out
    (tmp_path / "a.wav").unlink()
    assert run("encode", "--data", tmp_path, "--cache", tmp_path / "cache") == 2
    assert "1 file of kinds that are not read left out (1 .m4a)" in capsys.readouterr().err


def test_train_names_other_kinds(tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(files, "_named", set())
    (tmp_path / "songs").mkdir()
    (tmp_path / "songs" / "b.wma").write_bytes(b"?")
    with caplog.at_level(logging.WARNING):
        assert run("train", "--data", tmp_path / "songs", "--out", tmp_path / "run") == 2
    assert any("1 file of kinds that are not read left out (1 .wma): convert it" in text for text in caplog.messages)
    assert "no audio" in capsys.readouterr().err
