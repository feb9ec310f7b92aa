"""What stands in the way of a run is said before step 0 where it can be, by exit code 2; what was saved stays whole."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from command import run

from adaptive_window.audio.mel import MelCodec
from adaptive_window.storage.lock import FolderLock
from adaptive_window.training.checkpoint import load_checkpoint, save_checkpoint
from adaptive_window.training.step import Stepper

SHORT = ("--clip-seconds", 1.5, "--window-seconds", 1, "--batch-size", 2, "--examples", 0, "--no-tensorboard")
SHORT = (*SHORT, "--spectral", "latent", "--clips-per-song", 1)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    folder.chmod(0o755)
    for k in range(3):
        noise = np.random.default_rng(k).uniform(-0.5, 0.5, 2 * 16000).astype(np.float32)
        soundfile.write(folder / f"{k}.wav", noise, 16000)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(songs: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    assert run("train", "--data", songs, "--out", out, "--cache", cache, "--max-steps", 1, *SHORT) == 0
    return out


@pytest.fixture
def train(songs: Path, cache: Path) -> tuple[object, ...]:
    return ("train", "--data", songs, "--cache", cache, "--max-steps", 3, *SHORT)


@pytest.fixture
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a step was taken")

    monkeypatch.setattr(Stepper, "__call__", fail)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text.partition("error: ")[2]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.safetensors"))}


# Where nothing can be written


@pytest.mark.parametrize("out", ["/proc/self/run", "/proc/self/status/run", "/dev/null/run"])
@pytest.mark.usefixtures("no_step")
def test_a_place_for_the_run_that_cannot_be_written(
    train: tuple[object, ...], out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*train, "--out", out) == 2
    assert f"--out {out} cannot be written" in said(capsys)


@pytest.mark.usefixtures("no_step")
def test_read_only_folders(
    songs: Path, cache: Path, trained: Path, unprivileged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the run, for the cache, for what compose and plot write."""
    data, closed = unprivileged / "songs", unprivileged / "closed"
    checkpoint = unprivileged / "best.safetensors"
    os.seteuid(os.getuid())  # the fixtures' folders are private
    shutil.copytree(songs, data)
    shutil.copy(trained / "best.safetensors", checkpoint)
    if os.geteuid() == 0:
        for path in (checkpoint, data, *data.iterdir()):
            os.chown(path, 65534, 65534)
        os.seteuid(65534)
    closed.mkdir(mode=0o555)
    train = ("train", "--data", data, "--max-steps", 1, *SHORT)
    pair = (data / "0.wav", data / "1.wav", "--checkpoint", checkpoint)
    for arguments, message in (
        ((*train, "--out", closed, "--cache", unprivileged / "cache"), f"--out {closed} cannot be written"),
        ((*train, "--out", closed / "run", "--cache", unprivileged / "cache"), "Permission denied"),
        ((*train, "--out", unprivileged / "run", "--cache", closed), f"latent cache {closed} cannot be written"),
        (("encode", "--data", data, "--cache", closed / "c"), "name another --cache"),
        (("compose", *pair, "-o", closed / "o.wav"), "o.wav': cannot be written"),
        (("plot", *pair, "-o", closed / "o.png"), "o.png': cannot be written (Permission denied"),
    ):
        assert run(*arguments) == 2
        assert message in said(capsys)
    assert not (unprivileged / "cache").exists()  # found before anything was encoded


@pytest.mark.parametrize(("command", "suffix"), [("compose", ".wav"), ("plot", ".png")])
def test_an_output_that_is_a_folder(
    songs: Path, trained: Path, tmp_path: Path, command: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"o{suffix}").mkdir()
    pair = (songs / "0.wav", songs / "1.wav", "--checkpoint", trained / "best.safetensors")
    assert run(command, *pair, "-o", tmp_path / f"o{suffix}") == 2
    assert f"o{suffix}" in said(capsys)


# A full disk


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """No file of this process may grow beyond a size: writing more fails (EFBIG; Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_during_a_save_leaves_the_checkpoint_before(
    train: tuple[object, ...],
    trained: Path,
    tmp_path: Path,
    small_files: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    before = digests(out)
    small_files(20 << 20)
    assert run(*train, "--out", out, "--resume") == 2
    message = said(capsys)
    assert "last.safetensors cannot be written" in message or "best.safetensors cannot be written" in message
    assert "make room, then --resume" in message
    assert digests(out) == before
    assert load_checkpoint(out / "last.safetensors").info["progress"]["step"] == 1
    assert [p.name for p in out.iterdir() if p.name.endswith(".tmp")] == []


@pytest.mark.usefixtures("no_step")
def test_a_disk_that_is_full_shows_itself_before_step_0(
    train: tuple[object, ...], tmp_path: Path, small_files: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    small_files(20 << 20)
    assert run(*train, "--out", tmp_path / "run") == 2
    assert "last.safetensors cannot be written" in said(capsys)


@pytest.mark.usefixtures("no_step")
def test_a_disk_that_fills_up_during_encoding(
    songs: Path, tmp_path: Path, small_files: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    small_files(20_000)
    options = ("--out", tmp_path / "run", "--cache", tmp_path / "cache", "--max-steps", 1)
    assert run("train", "--data", songs, *options, *SHORT) == 2
    assert "latent cache" in said(capsys)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


# Two runs in one folder


def held_by_child(folder: Path) -> tuple[int, int]:
    """A process that holds the folder, and one that it forked; both sleep."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        lock = FolderLock(folder)
        lock.take()
        grandchild = os.fork()
        if grandchild == 0:
            signal.pause()
        os.write(writer, str(grandchild).encode())
        signal.pause()
    grandchild = int(os.read(reader, 20))
    os.close(reader), os.close(writer)
    return child, grandchild


@pytest.mark.usefixtures("no_step")
def test_a_folder_in_use_is_refused_until_its_process_is_dead(
    train: tuple[object, ...], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL frees it at once, even where a process that it had started lives on."""
    child, grandchild = held_by_child(trained)
    try:
        for command in (train, (*train, "--resume"), ("demo",), ("ablate",)):
            assert run(*command, "--out", trained) == 2
            message = said(capsys)
            assert f"{trained} is in use by process {child} on " in message
            assert "name another folder, or wait" in message
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert run(*train, "--out", trained) == 2
        assert "holds a run already: add --resume" in said(capsys)
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_runs_may_share_a_cache(train: tuple[object, ...], cache: Path, songs: Path, trained: Path) -> None:
    child, grandchild = held_by_child(trained)
    try:
        assert run("encode", "--data", songs, "--cache", cache) == 0
    finally:
        for process in (child, grandchild):
            os.kill(process, signal.SIGKILL)
        os.waitpid(child, 0)


# What does not fit


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (
            ("--num-pairs", 2, "--window-seconds", 0.5),
            ("its num_pairs is 3, this run's is 2", "its window_frames is 50, this run's is 25"),
        ),
        (
            ("--batch-size", 1, "--seed", 5),
            ("its batch size is 2, this run's is 1", "its seed is 0, this run's is 5", "add --force"),
        ),
    ],
)
@pytest.mark.usefixtures("no_step")
def test_what_a_resumed_run_has_otherwise_is_named(
    train: tuple[object, ...],
    trained: Path,
    options: tuple[object, ...],
    messages: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = digests(trained)
    assert run(*train, "--out", trained, "--resume", *options) == 2
    text = said(capsys)
    assert "cannot resume" in text
    assert all(message in text for message in messages)
    assert "max_ratio" not in text  # what is as it was is not listed
    assert digests(trained) == before


@pytest.mark.usefixtures("no_step")
def test_another_codec_than_the_checkpoints(
    train: tuple[object, ...],
    songs: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = MelCodec().fingerprint
    monkeypatch.setattr(MelCodec, "fingerprint", property(lambda _: "0123456789abcdef"))
    assert run(*train, "--out", trained, "--resume") == 2
    changed = f"its codec is mel (fingerprint {ours}), this run's is mel (fingerprint 0123456789abcdef)"
    assert changed in said(capsys)
    pair = (songs / "0.wav", songs / "1.wav", "--checkpoint", trained / "best.safetensors")
    assert run("compose", *pair, "-o", tmp_path / "o.wav") == 2
    message = said(capsys)
    assert "was trained with other mel weights" in message
    assert ours in message


def test_weights_that_do_not_fit_are_listed(
    songs: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(trained / "best.safetensors")
    del checkpoint.model["tonality_reducer_input.norm.bias"]
    other = next(name for name in checkpoint.model if name.startswith("window_selector."))
    shape = list(checkpoint.model[other].shape)
    checkpoint.model[other] = torch.zeros(7, 7, 7)
    save_checkpoint(tmp_path / "c.safetensors", checkpoint)
    pair = (songs / "0.wav", songs / "1.wav", "--checkpoint", tmp_path / "c.safetensors")
    assert run("compose", *pair, "-o", tmp_path / "o.wav") == 2
    message = said(capsys)
    for part in ("c.safetensors", "tonality_reducer_input.norm.bias", other, "[7, 7, 7]", f"{shape}"):
        assert part in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--window-seconds", 2), "--clip-seconds 1.5 is shorter than --window-seconds 2"),
        (("--max-ratio", 1.6), "--clip-seconds 1.5: clips of 1.6 s, or a --max-ratio of at most 1.5"),
        (("--clip-seconds", 0.004, "--window-seconds", 0.002), "--clip-seconds 0.004 is less than one frame"),
        (("--clip-seconds", 1e9), "--clip-seconds: must be > 0.0 and <= 86400.0, got 1000000000.0"),
        (("--clip-seconds", 86400), "shorter than a clip of 86400.00 s"),
    ],
)
@pytest.mark.usefixtures("no_step")
def test_lengths_that_do_not_go_together(
    train: tuple[object, ...],
    tmp_path: Path,
    options: tuple[object, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*train, "--out", tmp_path / "run", *options) == 2
    assert message in said(capsys)


# CUDA


@pytest.mark.parametrize("command", ["train", "encode", "compose", "plot"])
def test_cuda_asked_for_and_absent(
    command: str,
    songs: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    pair = (songs / "0.wav", songs / "1.wav", "--checkpoint", trained / "best.safetensors")
    arguments: dict[str, tuple[object, ...]] = {
        "train": ("--data", songs, "--out", tmp_path / "run"),
        "encode": ("--data", songs),
        "compose": (*pair, "-o", tmp_path / "o.wav"),
        "plot": (*pair, "-o", tmp_path / "o.png"),
    }
    assert run(command, *arguments[command], "--device", "cuda") == 2
    assert "finds no CUDA device; use --device cpu" in said(capsys)


def test_cuda_out_of_memory_in_a_step(
    train: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free.\nIf ...")

    monkeypatch.setattr(Stepper, "__call__", fail)
    out = tmp_path / "run"
    assert run(*train, "--out", out) == 2
    message = said(capsys)
    assert message.startswith("out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert "Take a smaller --batch-size than 2" in message
    assert load_checkpoint(out / "last.safetensors").info["progress"]["step"] == 0


def test_the_lock_is_dropped_at_the_end_and_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with FolderLock(tmp_path) as lock:
        lock.take()
    child, grandchild = held_by_child(tmp_path)  # it can be had again
    for process in (child, grandchild):
        os.kill(process, signal.SIGKILL)
    os.waitpid(child, 0)

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    lock.take()
    assert "no locks here (No locks available): nothing keeps a second run out" in caplog.text
    lock.release()
