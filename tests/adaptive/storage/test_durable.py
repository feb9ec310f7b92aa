"""Files are whole or not there; a disk that is full is had by the kernel itself, through the limit on a file's size."""

import contextlib
import os
import resource

import numpy as np
import pytest
import soundfile
import torch

from adaptive_window.audio import weights
from adaptive_window.audio.cache import CacheError, LatentCache
from adaptive_window.audio.codec import load_codec
from adaptive_window.audio.files import AudioError, write_audio
from adaptive_window.storage import durable
from adaptive_window.training.checkpoint import Checkpoint, CheckpointError, save_checkpoint

ROOM = 4096  # bytes


@contextlib.contextmanager
def full_disk(room=ROOM):
    """Writing beyond `room` bytes of a file fails (EFBIG: Python ignores the signal that comes with it)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_flushes_the_file_then_moves_it_then_flushes_the_folder(tmp_path, monkeypatch):
    path, calls = tmp_path / "a", []
    names = {}
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        names[descriptor] = os.readlink(f"/proc/self/fd/{descriptor}")
        calls.append(("fsync", "folder" if names[descriptor] == str(tmp_path) else "file"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("replace", b.name)), replace(a, b)))
    durable.write_bytes(path, b"new")
    assert calls == [("fsync", "file"), ("replace", "a"), ("fsync", "folder")]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("failing", ["body", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_beside(tmp_path, monkeypatch, failing):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    def write():
        with durable.replacing(path) as temporary:
            temporary.write_bytes(b"new")
            if failing == "body":
                fail()

    if failing != "body":
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_are_those_of_the_name(tmp_path):
    path = tmp_path / "last.safetensors"
    with contextlib.suppress(KeyboardInterrupt), durable.replacing(path) as temporary:
        left = temporary.name
        raise KeyboardInterrupt
    others = [tmp_path / name for name in (".best.safetensors.0123456789ab.tmp", "last.safetensors", ".x.tmp")]
    for entry in (tmp_path / left, *others):
        entry.write_bytes(b"")
    assert durable.remove_leftovers(path) == [tmp_path / left]
    assert sorted(tmp_path.iterdir()) == sorted(others)


def save_to(kind, path, value):
    """Writes something of this value, larger than `full_disk` has room for, as each part of the package does it."""
    if kind == "checkpoint":
        save_checkpoint(path, Checkpoint(model={"w": torch.full((1 << 17,), value)}, info={}))
    elif kind == "audio":
        write_audio(path, np.full(1 << 18, value, dtype=np.float32), 16000)
    elif kind == "latents":
        cache = LatentCache(path.parent, load_codec("mel"))
        cache.entry = lambda key: path
        path.unlink(missing_ok=True)  # an entry is never replaced by other latents
        cache.latents(path.parent.parent / f"{value}.wav")
    else:
        source = weights.Source((), (), (path.parent.parent / f"{value}.wav").as_uri(), path.name)
        weights._download(source, timeout=10)


@pytest.mark.parametrize("kind", ["checkpoint", "audio", "latents", "weights"])
def test_full_disk_leaves_what_was_there(tmp_path, monkeypatch, kind):
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setattr(weights, "download_folder", lambda: folder)
    for value in (0.25, 0.5):  # a song, and as good as any file of weights
        soundfile.write(tmp_path / f"{value}.wav", np.random.default_rng(0).uniform(-value, value, 16000), 16000)
    path = folder / "file.wav"
    save_to(kind, path, 0.25)
    before = path.read_bytes()
    assert len(before) > 2 * ROOM
    expected = {"checkpoint": CheckpointError, "audio": AudioError, "latents": CacheError}.get(kind, OSError)
    with full_disk(), pytest.raises(expected, match=r"too large|cannot be written"):
        save_to(kind, path, 0.5)
    if kind == "latents":
        assert list(folder.iterdir()) == []
    else:
        assert path.read_bytes() == before
        assert list(folder.iterdir()) == [path]
    save_to(kind, path, 0.5)
    assert path.read_bytes() != before
