"""Audio in and out: what is read exactly, and what is written. What is refused has test_bad_files.py."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from wav_files import RATE, tone

from adaptive_window.audio import files
from adaptive_window.audio.files import AudioError, find_audio, read_audio, stream_audio, write_audio


@pytest.mark.parametrize(
    ("suffix", "subtype", "bits"),
    [
        (".wav", "PCM_U8", 8),
        (".wav", "PCM_16", 16),
        (".wav", "PCM_24", 24),
        (".wav", "PCM_32", 24),
        (".wav", "FLOAT", 24),
        (".wav", "DOUBLE", 24),
        (".flac", "PCM_16", 16),
        (".aiff", "PCM_16", 16),
        (".caf", "PCM_16", 16),
        (".au", "PCM_16", 16),
        (".w64", "PCM_16", 16),
    ],
)
def test_samples_come_back_to_half_a_step(tmp_path: Path, suffix: str, subtype: str, bits: int) -> None:
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, tone(), RATE, subtype=subtype)
    audio = read_audio(path, RATE)
    assert audio.shape == (1, RATE)
    assert audio.dtype == torch.float32
    # Writing scales by 2^(bits-1) - 1 or 2^(bits-1), reading by the latter: one step of rounding and scale together.
    assert np.abs(audio[0].numpy() - tone()).max() <= 2.0 ** (1 - bits)


@pytest.mark.parametrize("suffix", [".ogg", ".mp3"])
def test_lossy_formats_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, tone(2.0, 16000), 16000)
    audio = read_audio(path, 16000)[0].numpy()
    assert abs(len(audio) - 32000) < 2500
    middle = slice(8000, 24000)
    spectrum = np.abs(np.fft.rfft(audio[middle]))
    assert np.argmax(spectrum) == 440  # 1 s: bins of 1 Hz
    assert audio[middle].std() == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_channels_are_averaged(tmp_path: Path) -> None:
    channels = np.random.default_rng(0).uniform(-0.5, 0.5, (1000, 6)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", channels, RATE, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav", RATE)[0].numpy()
    np.testing.assert_allclose(audio, channels.mean(axis=1), atol=6 * 2**-25)  # six float32 roundings below 1


def test_another_rate_is_resampled(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(24.0, 44100), 44100, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav", 16000)[0].numpy()
    assert len(audio) == 24 * 16000
    expected = tone(24.0, 16000)
    assert np.abs(audio - expected)[200:-200].max() < 1e-4  # soxr HQ: 20 bits, except where its filter meets an end


def test_what_the_new_rate_cannot_hold_is_removed(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0, 44100, hz=12000.0), 44100, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav", 16000)[0].numpy()
    assert np.abs(audio)[200:-200].max() < 1e-5  # soxr HQ: 20 bits of rejection


def test_blocks_equal_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (44100 * 2, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", noise, 44100, subtype="FLOAT")
    whole = read_audio(tmp_path / "a.wav", 16000)
    monkeypatch.setattr(files, "_BLOCK_SECONDS", 0.05)
    blocks = list(stream_audio(tmp_path / "a.wav", 16000))
    assert len(blocks) > 10
    assert np.array_equal(np.concatenate(blocks), whole[0].numpy())


@pytest.mark.parametrize(("start", "length"), [(0, 500), (1000, 1), (3000, 2500), (30_999, 1001), (0, 32_000)])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_part_is_that_part_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, length: int, rate: int
) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 2 * rate), rate)
    monkeypatch.setattr(files, "_BLOCK_SECONDS", 0.2)
    whole = read_audio(tmp_path / "a.wav", 16000)
    assert torch.equal(
        read_audio(tmp_path / "a.wav", 16000, start=start, length=length), whole[:, start : start + length]
    )


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_what_comes_before_a_part_is_skipped_where_that_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, rate: int
) -> None:
    path = tmp_path / f"a{suffix}"
    with soundfile.SoundFile(path, "w", rate, 1) as sound:
        for block in np.random.default_rng(0).uniform(-0.5, 0.5, (60, rate)):  # libvorbis takes no minute at once
            sound.write(block)
    whole = read_audio(path, 16000)
    counts, read = [], soundfile.SoundFile.read

    def counted(self: soundfile.SoundFile, frames: int = -1, *args: object, **options: object) -> np.ndarray:
        block = read(self, frames, *args, **options)
        counts.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    monkeypatch.setattr(files, "_BLOCK_SECONDS", 1.0)
    part = read_audio(path, 16000, start=45 * 16000 + 7, length=32000)
    assert sum(counts) <= (60 if suffix == ".ogg" else 5) * rate
    assert torch.allclose(part, whole[:, 45 * 16000 + 7 :][:, :32000], rtol=0, atol=2.0**-20)  # soxr HQ: 20 bits
    beyond = read_audio(path, 16000, start=59 * 16000, length=32000, allow_short=True)
    assert beyond.shape == (1, 16000)
    assert read_audio(path, 16000, start=100 * 16000, length=32000, allow_short=True).shape == (1, 0)
    with pytest.raises(AudioError, match=r"60\.00 s long, but the clip at 100 s ends at 102\.00 s"):
        read_audio(path, 16000, start=100 * 16000, length=32000)


ONE_HOUR = """
import resource, sys
from adaptive_window.audio import files
from adaptive_window.audio.codec import load_codec
from adaptive_window.inference import compose, refine_songs

codec = load_codec("mel")
engine = compose.Engine(None, codec, 1200, False, "")
def read(path, at):
    codec.encode(compose.read_clip(path, at, engine)[None])
    refine_songs.read_clip(path, at, 24.0, 16.0, codec)

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
read(sys.argv[1], 1.0)
before = peak()
for seekable in (files._SEEKABLE, set()):
    files._SEEKABLE = seekable
    for at in (0.0, 1800.0):
        read(sys.argv[2], at)
print(round(peak() - before))
"""


def test_a_clip_of_an_hour_takes_no_more_memory_than_one_of_a_minute(tmp_path: Path) -> None:
    """What `compose` and `refine` read; 115 MB as float32, 230 MB as they would resample it. The files are sparse."""
    names = []
    for seconds in (60, 3600):
        size = RATE * seconds
        header = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, RATE, RATE, 1, 8)
        names.append(tmp_path / f"{seconds}.wav")
        with names[-1].open("wb") as file:
            file.write(header + struct.pack("<4sI", b"data", size))
            file.truncate(44 + size)  # zeros, which in unsigned 8 bits are full scale
    done = subprocess.run(
        [sys.executable, "-c", ONE_HOUR, *names],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 25  # MB


def test_a_part_beyond_the_end_is_refused_and_one_before_damage_is_not(tmp_path: Path) -> None:
    sound = np.where(np.arange(30 * RATE) > 25 * RATE, np.nan, 0.1)
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype="FLOAT")
    assert read_audio(tmp_path / "a.wav", RATE, start=RATE, length=RATE).shape == (1, RATE)
    soundfile.write(tmp_path / "b.wav", tone(2.0), RATE)
    with pytest.raises(AudioError, match=r"b\.wav': 2\.00 s long, but the clip at 1\.5 s ends at 2\.50 s"):
        read_audio(tmp_path / "b.wav", RATE, start=12000, length=8000)


@pytest.mark.parametrize("name", [b"-rf.wav", b"two\nlines.wav", b"caf\xe9.wav", b"sp ace'\".wav"])
def test_odd_names_are_written_read_and_found(tmp_path: Path, name: bytes) -> None:
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    write_audio(path, tone(), RATE)
    assert read_audio(path, RATE).shape == (1, RATE)
    assert find_audio(tmp_path) == [path]
    path.write_bytes(b"")
    with pytest.raises(AudioError) as caught:
        read_audio(path, RATE)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()  # can be printed


def test_error_survives_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(AudioError("a.wav", "silent")))
    assert (error.path, error.reason) == (Path("a.wav"), "silent")
    assert "'a.wav': silent" in str(error)


@pytest.mark.parametrize("shape", [(1000,), (1, 1000)])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_written_audio_comes_back(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    audio = torch.from_numpy(tone(0.125)).reshape(shape)
    path = tmp_path / f"a{suffix}"
    write_audio(path, audio, RATE, comment="made with ü")
    assert (read_audio(path, RATE)[0] - audio.flatten()).abs().max() <= 2.0**-15
    with soundfile.SoundFile(path) as sound:
        assert sound.comment == "made with ü"
        assert (sound.subtype, sound.channels, sound.samplerate) == ("PCM_16", 1, RATE)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no temporary file stays


def test_float_wav_is_exact_and_not_scaled(tmp_path: Path) -> None:
    audio = torch.from_numpy(tone(gain=3.0))
    write_audio(tmp_path / "a.wav", audio, RATE, subtype="FLOAT")
    assert torch.equal(read_audio(tmp_path / "a.wav", RATE)[0], audio)


def test_what_would_clip_is_scaled_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audio = torch.from_numpy(tone(gain=4.0))
    write_audio(tmp_path / "loud.wav", audio, RATE)
    back = read_audio(tmp_path / "loud.wav", RATE)[0]
    factor = 0.999 / float(audio.abs().max())
    assert (back - audio * factor).abs().max() <= 2.0**-15
    assert "loud.wav" in caplog.text
    assert "peak 4.0" in caplog.text


@pytest.mark.parametrize(
    ("name", "audio", "reason"),
    [
        ("a.wav", torch.zeros(0), "empty"),
        ("a.wav", torch.tensor([0.0, float("nan")]), "1 NaN"),
        ("a.mp3", torch.zeros(10), ".wav or .flac"),
        ("missing/a.wav", torch.zeros(10), "no such folder"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str, audio: torch.Tensor, reason: str) -> None:
    with pytest.raises(AudioError, match=reason):
        write_audio(tmp_path / name, audio, RATE)
    assert list(tmp_path.iterdir()) == []


def test_writing_refuses_more_than_one_channel(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[N\] or \[1, N\], got shape \[2, 100\]"):
        write_audio(tmp_path / "a.wav", torch.zeros(2, 100), RATE)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    write_audio(path, tone(), RATE)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", fail)
    with pytest.raises(AudioError, match="No space left"):
        write_audio(path, tone(hz=880), RATE)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_find_audio_is_sorted_recursive_and_ends(tmp_path: Path) -> None:
    for name in ("b.wav", "a.FLAC", "sub/c.ogg", "notes.txt", ".hidden.wav", ".git/d.wav", "wav"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.mp3").symlink_to(tmp_path / "nowhere")
    found = [str(path.relative_to(tmp_path)) for path in find_audio(tmp_path)]
    assert found == ["a.FLAC", "b.wav", "gone.mp3", "sub/c.ogg"]


def test_find_audio_names_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"nowhere.*no such folder"):
        find_audio(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(AudioError, match=r"file.*not a folder"):
        find_audio(tmp_path / "file")
