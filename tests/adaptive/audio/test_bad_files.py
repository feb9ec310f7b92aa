"""Audio files that are refused: each refusal names the file and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from wav_files import RATE, tone, wav_bytes

from adaptive_window.audio.files import AudioError, find_audio, read_audio, write_audio


def _empty(path: Path) -> None:
    path.touch()


def _no_samples(path: Path) -> None:
    soundfile.write(path, np.zeros(0, np.float32), RATE)


def _truncated(path: Path) -> None:
    path.write_bytes(wav_bytes(tone())[: RATE // 2])


def _claims_4_gb(path: Path) -> None:
    path.write_bytes(wav_bytes(tone(), claim=2**32 - 1))


def _text(path: Path) -> None:
    path.write_text("these are not the samples\n" * 100)


def _header_only(path: Path) -> None:
    path.write_bytes(b"RIFF\x24\x00\x00\x00WAVE")


def _nan(path: Path) -> None:
    soundfile.write(path, np.where(np.arange(RATE) == 4000, np.nan, tone()), RATE, subtype="FLOAT")


def _infinite(path: Path) -> None:
    soundfile.write(path, np.where(np.arange(RATE) == 4000, np.inf, tone()), RATE, subtype="FLOAT")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _missing(path: Path) -> None:
    pass


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def _slow_rate(path: Path) -> None:
    path.write_bytes(wav_bytes(tone(), rate=1))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_empty, "empty file"),
        (_no_samples, "no samples"),
        (_truncated, "truncated"),
        (_claims_4_gb, "claims 4294967295 bytes"),
        (_text, "no audio"),
        (_header_only, "no audio"),
        (_nan, "1 NaN or infinite samples near"),
        (_infinite, "1 NaN or infinite samples near"),
        (_fifo, "not a regular file"),
        (_folder, "not a regular file"),
        (_missing, "no such file"),
        (_link_to_itself, "cannot be opened"),
        (_slow_rate, "sample rate of 1 Hz"),
    ],
)
def test_bad_files_are_named_with_what_is_wrong(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    path = tmp_path / "bad song.wav"
    make(path)
    with pytest.raises(AudioError, match=reason) as caught:
        read_audio(path, RATE)
    assert "bad song.wav" in str(caught.value)
    assert caught.value.path == path


@pytest.mark.parametrize("suffix", [".flac", ".mp3", ".aiff", ".au", ".caf"])
def test_truncated_files_of_other_formats_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 3 * 44100).astype(np.float32), 44100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"truncated|damaged|no audio"):
        read_audio(path, 44100)


def test_no_permission(unprivileged: Path) -> None:
    path = unprivileged / "a.wav"
    soundfile.write(path, tone(), RATE)
    path.chmod(0)
    with pytest.raises(AudioError, match=r"a\.wav.*no permission"):
        read_audio(path, RATE)
    folder = unprivileged / "folder"
    folder.mkdir(mode=0)
    try:
        with pytest.raises(AudioError, match=r"b\.wav.*cannot be opened \(Permission denied\)"):
            read_audio(folder / "b.wav", RATE)
        with pytest.raises(AudioError, match=r"folder.*cannot be listed \(Permission denied\)"):
            find_audio(unprivileged)
        with pytest.raises(AudioError, match=r"a\.wav.*cannot be written"):
            write_audio(folder / "a.wav", tone(), RATE)
    finally:
        folder.chmod(0o700)
