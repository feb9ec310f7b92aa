"""The latent cache: equal to encoding the whole, keyed by content, whole or not there at all."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from adaptive_window.audio import cache as cache_module
from adaptive_window.audio.cache import CacheError, LatentCache, encode_file
from adaptive_window.audio.files import AudioError, read_audio
from adaptive_window.audio.mel import MelCodec


@pytest.fixture(scope="module")
def codec() -> MelCodec:
    return MelCodec()


def song(path: Path, seconds: float = 2.0, seed: int = 0, gain: float = 0.3) -> Path:
    noise = gain * np.random.default_rng(seed).uniform(-1, 1, round(seconds * 16000))
    soundfile.write(path, noise.astype(np.float32), 16000)
    return path


@pytest.mark.parametrize("seconds", [0.01, 0.99, 1.0, 1.04, 2.0, 3.333])
def test_chunks_equal_the_whole(
    tmp_path: Path, codec: MelCodec, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    path = song(tmp_path / "a.wav", seconds)
    whole = codec.encode(read_audio(path, 16000)[None])[0]
    monkeypatch.setattr(cache_module, "_CHUNK_SECONDS", 0.5)
    chunked = encode_file(path, codec)
    assert chunked.shape == whole.shape
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-5)  # rounding of products of other sizes


@pytest.mark.parametrize("block_seconds", [0.02, 0.31, 0.77])
def test_blocks_and_chunks_do_not_have_to_fit(
    tmp_path: Path, codec: MelCodec, monkeypatch: pytest.MonkeyPatch, block_seconds: float
) -> None:
    path = song(tmp_path / "a.wav", 4.0)
    monkeypatch.setattr(cache_module, "_CHUNK_SECONDS", 0.3)
    monkeypatch.setattr("adaptive_window.audio.files._BLOCK_SECONDS", block_seconds)
    whole = codec.encode(read_audio(path, 16000)[None])[0]
    torch.testing.assert_close(encode_file(path, codec), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("in_memory", [False, True])
def test_latents_are_computed_once(
    tmp_path: Path, codec: MelCodec, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    path = song(tmp_path / "a.wav")
    cache = LatentCache(None if in_memory else tmp_path / "cache", codec)
    first = cache.latents(path)

    def fail(*_: object) -> None:
        raise AssertionError("encoded twice")

    monkeypatch.setattr(cache_module, "encode_file", fail)
    assert torch.equal(cache.latents(path), first)
    if not in_memory:
        moved = path.rename(tmp_path / "renamed.wav")
        assert torch.equal(LatentCache(tmp_path / "cache", codec).latents(moved), first)


def test_other_content_and_other_codecs_have_other_entries(
    tmp_path: Path, codec: MelCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = LatentCache(tmp_path / "cache", codec)
    path = song(tmp_path / "a.wav", seed=0)
    first = cache.latents(path)
    song(path, seed=1)
    os.utime(path, ns=(0, 0))
    assert not torch.equal(cache.latents(path), first)
    entry = cache.entry(cache.key(path))
    monkeypatch.setattr("adaptive_window.audio.mel.SPREAD", 3.0)
    other = LatentCache(tmp_path / "cache", MelCodec())
    assert other.entry(other.key(path)) != entry


def test_clip_is_a_part_of_the_latents(tmp_path: Path, codec: MelCodec) -> None:
    path = song(tmp_path / "a.wav")
    for cache in (LatentCache(tmp_path / "cache", codec), LatentCache(None, codec)):
        whole = cache.latents(path).clone()
        clip = cache.clip(cache.key(path), 13, 40)
        assert torch.equal(clip, whole[:, 13:53])
        clip += 1  # the caller's own
        assert torch.equal(cache.latents(path), whole)


def test_any_flipped_bit_is_found_and_mended(tmp_path: Path, codec: MelCodec, caplog: pytest.LogCaptureFixture) -> None:
    path = song(tmp_path / "a.wav", 0.5)
    cache = LatentCache(tmp_path / "cache", codec)
    whole = cache.latents(path)
    entry = cache.entry(cache.key(path))
    assert entry is not None
    good = entry.read_bytes()
    begin = 8 + int.from_bytes(good[:8], "little")  # of the data; the header is tried apart
    rng = np.random.default_rng(0)
    for at in [*rng.integers(begin, len(good), 20), len(good) - 1, 0, 3, 9]:
        bad = bytearray(good)
        bad[at] ^= 1 << int(rng.integers(8))
        entry.write_bytes(bad)
        caplog.clear()
        assert torch.equal(LatentCache(tmp_path / "cache", codec).latents(path), whole)
        assert "damaged" in caplog.text
        caplog.clear()
        assert torch.equal(LatentCache(tmp_path / "cache", codec).latents(path), whole)
        assert "damaged" not in caplog.text


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_cut_entry_is_mended(tmp_path: Path, codec: MelCodec, keep: int, caplog: pytest.LogCaptureFixture) -> None:
    path = song(tmp_path / "a.wav", 0.5)
    cache = LatentCache(tmp_path / "cache", codec)
    whole = cache.latents(path)
    entry = cache.entry(cache.key(path))
    assert entry is not None
    entry.write_bytes(entry.read_bytes()[:keep])
    assert torch.equal(LatentCache(tmp_path / "cache", codec).latents(path), whole)
    assert "damaged" in caplog.text


def test_nothing_half_written_stays(tmp_path: Path, codec: MelCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    path = song(tmp_path / "a.wav", 0.5)
    cache = LatentCache(tmp_path / "cache", codec)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CacheError, match=r"latent cache .* cannot be written \(No space.*--cache"):
        cache.latents(path)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


def test_silence_and_bad_files_are_refused_and_not_kept(tmp_path: Path, codec: MelCodec) -> None:
    cache = LatentCache(tmp_path / "cache", codec)
    with pytest.raises(AudioError, match=r"quiet\.wav.*silent"):
        cache.latents(song(tmp_path / "quiet.wav", gain=3e-5))
    with pytest.raises(AudioError, match=r"nowhere\.wav.*no such file"):
        cache.latents(tmp_path / "nowhere.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match=r"pipe\.wav.*not a regular file"):
        cache.latents(tmp_path / "pipe.wav")
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


def test_encode_all_gives_lengths_and_reasons(tmp_path: Path, codec: MelCodec) -> None:
    good, bad = song(tmp_path / "good.wav", 1.0), tmp_path / "bad.wav"
    bad.write_text("no audio")
    frames, failed = LatentCache(None, codec).encode_all([good, bad])
    assert frames == {good: 50}
    assert [path for path, _ in failed] == [bad]
    assert "no audio" in failed[0][1]


def test_a_copy_for_a_worker_reads_but_does_not_encode(tmp_path: Path, codec: MelCodec) -> None:
    path, other = song(tmp_path / "a.wav"), song(tmp_path / "b.wav", seed=1)
    cache = LatentCache(tmp_path / "cache", codec)
    whole = cache.latents(path)
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.codec is None
    assert torch.equal(copy.latents(path), whole)
    with pytest.raises(AudioError, match=r"b\.wav.*no codec"):
        copy.latents(other)
    with pytest.raises(CacheError, match="emptied"):
        copy.clip("0" * 64, 0, 10)


def test_an_entry_is_plain_safetensors(tmp_path: Path, codec: MelCodec) -> None:
    path = song(tmp_path / "a.wav", 3.0)
    cache = LatentCache(tmp_path / "cache", codec)
    whole = cache.latents(path)
    entry = cache.entry(cache.key(path))
    assert entry is not None
    assert torch.equal(load_file(entry)["frames"].T, whole)
    assert cache.frames(path) == whole.shape[1] == 150


def gone_for_torch(monkeypatch: pytest.MonkeyPatch, entry: Path) -> None:
    """The file goes after safetensors has opened it and before torch does."""
    opened = torch.UntypedStorage.from_file

    def gone(*arguments: Any, **options: Any) -> Any:
        entry.unlink(missing_ok=True)
        return opened(*arguments, **options)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", gone)


def test_an_entry_that_goes_as_it_is_looked_at_is_computed_anew(
    tmp_path: Path, codec: MelCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = song(tmp_path / "a.wav")
    whole = LatentCache(tmp_path / "cache", codec).latents(path)
    cache = LatentCache(tmp_path / "cache", codec)
    with monkeypatch.context() as patch:
        gone_for_torch(patch, cache.entry(cache.key(path)) or path)
        cache.frames(path)
    assert torch.equal(cache.latents(path), whole)


@pytest.mark.parametrize("damage", ["deleted", "cut", "emptied", "deleted as it is read"])
@pytest.mark.parametrize("in_a_worker", [False, True])
def test_an_entry_that_goes_during_the_run_is_named(
    tmp_path: Path, codec: MelCodec, damage: str, in_a_worker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = song(tmp_path / "a.wav")
    cache = LatentCache(tmp_path / "cache", codec)
    key, entry = cache.key(path), cache.entry(cache.key(path))
    assert entry is not None
    cache.frames(path)
    if in_a_worker:
        cache = pickle.loads(pickle.dumps(cache))
    assert cache.clip(key, 0, 10).shape == (128, 10)
    if damage == "deleted":
        entry.unlink()
    elif damage == "deleted as it is read":
        gone_for_torch(monkeypatch, entry)
    else:
        entry.write_bytes(entry.read_bytes()[: 1000 if damage == "cut" else 0])
    with pytest.raises(CacheError, match=r"a\.wav' are gone from the cache .*--resume"):
        cache.clip(key, 0, 10)
    assert not entry.exists() or not damage.startswith("deleted")
    monkeypatch.undo()
    if not in_a_worker:
        cache.frames(path)  # as the resumed run does
        assert cache.clip(key, 0, 10).shape == (128, 10)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, codec: MelCodec, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    """Its key is that of the old bytes: the entry would be another song's."""
    path = song(tmp_path / "a.wav", seed=0)
    stream = cache_module.stream_latents

    def interfered(*arguments: object) -> object:
        song(path, 2.5, seed=1)
        return stream(*arguments)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(cache_module, "stream_latents", interfered)
    cache = LatentCache(None if in_memory else tmp_path / "cache", codec)
    with pytest.raises(AudioError, match=r"a\.wav.*changed while it was read"):
        cache.frames(path)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


TEN_HOURS = """
import resource, sys
import torch
from adaptive_window.audio.cache import LatentCache

class Means:
    # over 20 ms, in 32 channels
    name, fingerprint, sample_rate, hop, context = "means", "0", 8000, 160, 0
    def frames(self, seconds): return round(seconds * 50)
    def encode(self, audio):
        audio = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % 160))
        return audio.view(1, 1, -1, 160).mean(-1).expand(1, 32, -1)

cache = LatentCache(sys.argv[1], Means())
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
frames = [cache.frames(sys.argv[2])]
before = peak()
frames.append(cache.frames(sys.argv[3]))
assert cache.clip(cache.key(sys.argv[3]), frames[1] - 10, 10).shape == (32, 10)
print(*frames, round(peak() - before))
"""


@pytest.mark.proof
def test_ten_hours_take_no_more_memory_than_one_minute(tmp_path: Path) -> None:
    """288 million samples, 1.1 GB as float32, and latents of 230 MB; the file is sparse."""
    rate, files = 8000, []
    for seconds in (60, 36_000):
        size = rate * seconds
        header = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", size + 36, b"WAVE", b"fmt ", 16, 1, 1, rate, rate, 1, 8)
        files.append(tmp_path / f"{seconds}.wav")
        with files[-1].open("wb") as file:
            file.write(header + struct.pack("<4sI", b"data", size))
            file.truncate(44 + size)  # zeros, which in unsigned 8 bits are full scale
    done = subprocess.run(
        [sys.executable, "-c", TEN_HOURS, tmp_path / "cache", *files],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    short, long, megabytes = (int(number) for number in done.stdout.split())
    assert (short, long) == (60 * 50, 36_000 * 50)
    assert megabytes < 40


SHARED = """
import sys
from adaptive_window.audio.cache import LatentCache
from adaptive_window.audio.mel import MelCodec
frames, bad = LatentCache(sys.argv[1], MelCodec()).encode_all(sys.argv[2:])
print(sorted(frames.values()), bad)
"""


def test_two_processes_fill_one_folder(tmp_path: Path, codec: MelCodec) -> None:
    songs = [song(tmp_path / f"{k}.wav", seed=k) for k in range(4)]
    command = [sys.executable, "-c", SHARED, tmp_path / "cache", *songs]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in running] == ["[100, 100, 100, 100] []"] * 2
    cache = LatentCache(tmp_path / "cache", codec)
    assert all(torch.equal(cache.latents(path), encode_file(path, codec)) for path in songs)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 4
