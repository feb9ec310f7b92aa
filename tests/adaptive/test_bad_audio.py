"""A data folder with every kind of bad file, through the command line: what is bad is named and counted, nothing hangs.

What makes each file bad, and the message for it, is tested file by file in tests/adaptive/audio/test_files.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from command import run

from adaptive_window.training.checkpoint import load_checkpoint
from adaptive_window.training.step import Stepper

RATE = 16000
SHORT = ("--clip-seconds", 1.5, "--window-seconds", 1, "--clips-per-song", 1, "--batch-size", 1)
SHORT = (*SHORT, "--examples", 0, "--no-tensorboard", "--spectral", "latent")

BAD = {
    b"empty.wav": "an empty file",
    b"truncated.wav": "truncated",
    b"text.wav": "no audio that libsndfile can read",
    b"claims_4_gb.wav": "truncated: its header claims 4294967295 bytes",
    b"nan.wav": "NaN or infinite samples",
    b"silent.wav": "silent",
    b"short.wav": "shorter than a clip of 1.50 s",
    b"folder.wav": None,  # a folder by such a name is entered, and holds nothing
    b"link_to_nowhere.wav": "no such file",
    b"link_to_itself.wav": "cannot be opened",
    b"pipe.wav": "not a regular file",
    b"two\nlines.wav": "an empty file",
    b"-dash.wav": "an empty file",
    b"caf\xe9.wav": "an empty file",
}
GOOD = {
    b"8bit.wav": ("WAV", "PCM_U8", 1),
    b"24bit.wav": ("WAV", "PCM_24", 2),
    b"float.wav": ("WAV", "FLOAT", 1),
    b"6channels.flac": ("FLAC", "PCM_16", 6),
    b"--help.ogg": ("OGG", "VORBIS", 2),
    b"na\xefve\n.wav": ("WAV", "PCM_16", 1),
}


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    """A test that hangs is killed: a pipe that was opened waits for ever."""

    def stop(*_: object) -> None:
        raise TimeoutError("120 s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def noise(seconds: float, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (round(seconds * RATE), channels)).astype(np.float32)


def path_of(folder: Path, name: bytes) -> Path:
    return folder / os.fsdecode(name)


def add_good(folder: Path) -> None:
    for seed, (name, (kind, subtype, channels)) in enumerate(GOOD.items()):
        with path_of(folder, name).open("wb") as file:
            soundfile.write(file, noise(2.0, channels, seed), RATE, format=kind, subtype=subtype)


def add_bad(folder: Path) -> None:
    def at(name: bytes) -> Path:
        return path_of(folder, name)

    for name in (b"empty.wav", b"two\nlines.wav", b"-dash.wav", b"caf\xe9.wav"):
        at(name).touch()
    soundfile.write(at(b"truncated.wav"), noise(2.0), RATE)
    data = at(b"truncated.wav").read_bytes()
    at(b"truncated.wav").write_bytes(data[: len(data) // 2])
    at(b"claims_4_gb.wav").write_bytes(data[:40] + b"\xff" * 4 + data[44:])
    at(b"text.wav").write_text("not audio\n" * 1000)
    soundfile.write(at(b"nan.wav"), np.full(2 * RATE, np.nan), RATE, subtype="FLOAT")
    soundfile.write(at(b"silent.wav"), np.zeros(2 * RATE), RATE)
    soundfile.write(at(b"short.wav"), noise(1.4), RATE)
    at(b"folder.wav").mkdir()
    at(b"link_to_nowhere.wav").symlink_to(folder / "nowhere.wav")
    at(b"link_to_itself.wav").symlink_to(at(b"link_to_itself.wav"))
    os.mkfifo(at(b"pipe.wav"))


COUNT = sum(reason is not None for reason in BAD.values())


def named(text: str) -> None:
    """Every bad file in the text, its name in one line that can be printed, with its reason."""
    for name, reason in BAD.items():
        if reason is not None:
            (line,) = [line for line in text.splitlines() if repr(os.fsdecode(name))[1:-1] in line]
            assert reason in line
    text.encode()


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    add_good(folder)
    add_bad(folder)
    return folder


@pytest.fixture
def good(tmp_path: Path) -> Path:
    folder = tmp_path / "songs"
    folder.mkdir()
    add_good(folder)
    return folder


def test_encode_skips_names_and_counts(songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("encode", "--data", songs, "--cache", tmp_path / "cache") == 0
    printed = capsys.readouterr()
    assert (
        f"{len(GOOD) + 1} files as mel latents" in printed.out
    )  # short.wav is whole: only training is too long for it
    assert f"{COUNT - 1} skipped" in printed.out
    lines = [line for line in printed.err.splitlines() if line.startswith("skipped ")]
    named("\n".join([*lines, "short.wav: shorter than a clip of 1.50 s"]))


def test_more_than_5_percent_bad_ends_the_run_with_the_list(
    songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run("train", "--data", songs, "--out", out, "--cache", tmp_path / "cache", *SHORT) == 2
    message = capsys.readouterr().err.partition("error: ")[2]
    assert f"{COUNT} of {COUNT + len(GOOD)} audio files cannot be used" in message
    assert "more than 5%: mend or remove them, or raise --max-bad" in message
    named(message)
    assert not (out / "last.safetensors").exists()


@pytest.mark.proof
def test_training_goes_on_with_the_rest_and_without_files_that_are_deleted(
    songs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The bad ones are allowed; once encoded, a song is not needed any more: all are deleted at the first step."""
    folder = tmp_path / "songs"
    shutil.copytree(songs, folder, symlinks=True, ignore=shutil.ignore_patterns("pipe.wav"))
    os.mkfifo(folder / "pipe.wav")
    on_first_step(monkeypatch, lambda: shutil.rmtree(folder))
    out = tmp_path / "run"
    options = ("--max-bad", 0.9, "--max-steps", 3, "--workers", 1)
    assert run("train", "--data", folder, "--out", out, "--cache", tmp_path / "cache", *options, *SHORT) == 0
    assert not folder.exists()
    assert load_checkpoint(out / "last.safetensors").info["progress"]["step"] == 3
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert f"{COUNT} of {COUNT + len(GOOD)} audio files cannot be used" in text
    named(text)
    assert "5 training and 1 held-out songs" in capsys.readouterr().err


@pytest.mark.proof
@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_that_is_deleted_during_the_run_is_named_and_the_run_goes_on_later(
    good: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cache = tmp_path / "run", tmp_path / "cache"
    command = ("train", "--data", good, "--out", out, "--cache", cache, "--max-steps", 8, *SHORT, "--workers", workers)
    with monkeypatch.context() as patch:
        on_first_step(patch, lambda: shutil.rmtree(cache))
        assert run(*command) == 2
    message = capsys.readouterr().err
    assert "are gone from the cache" in message
    assert "--resume" in message
    assert "Traceback" not in message
    if workers == 0:
        assert run(*command, "--resume") == 0
        assert load_checkpoint(out / "last.safetensors").info["progress"]["step"] == 8


def on_first_step(monkeypatch: pytest.MonkeyPatch, action: Any) -> None:
    step = Stepper.__call__

    def interfered(self: Stepper, *arguments: Any) -> Any:
        if arguments[1] == 0:
            action()
        return step(self, *arguments)

    monkeypatch.setattr(Stepper, "__call__", interfered)


def test_names_that_are_no_text_do_not_end_a_command(tmp_path: Path) -> None:
    """On a terminal that is strict about its encoding, and with names that begin with a dash, from their folder."""
    folder = path_of(tmp_path, b"m\xfcsik")
    folder.mkdir()
    for name in (b"-a.wav", b"\xff\n.wav"):
        with path_of(folder, name).open("wb") as file:
            soundfile.write(file, noise(2.0), RATE, format="WAV")
    path_of(folder, b"-\xe9.wav").touch()
    done = subprocess.run(
        [sys.executable, "-m", "adaptive_window", "encode", "--data", ".", "--cache", path_of(folder, b"\xe9")],
        cwd=folder,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert b"2 files as mel latents in" in done.stdout
    assert b"\\udce9, 1 skipped" in done.stdout
    assert b"'-\\udce9.wav': an empty file" in done.stderr
