"""Loader processes: what they load does not depend on them, and one that dies is named."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
import torch
from clips import Draws

from adaptive_window import cli
from adaptive_window.audio.cache import LatentCache
from adaptive_window.audio.dataset import ClipDataset, find_examples
from adaptive_window.audio.mel import MelCodec
from adaptive_window.training.loader import BatchLoader, one_ahead
from adaptive_window.training.order import batches_of
from adaptive_window.training.signals import StopSignals
from adaptive_window.training.step import Stepper


def test_a_forked_worker_does_not_keep_a_run_from_ending() -> None:
    """It holds the signals' pipe open; the thread that reads it must end all the same."""
    with StopSignals():
        worker = os.fork()
        if worker == 0:
            signal.pause()
        reader = next(thread for thread in threading.enumerate() if thread.name == "stop signals")
        leaving = threading.Timer(20, os.kill, (worker, signal.SIGKILL))
        leaving.start()
    alive = os.waitpid(worker, os.WNOHANG) == (0, 0)
    leaving.cancel()
    if alive:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
    assert alive
    assert not reader.is_alive()


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    for k in range(5):
        noise = np.random.default_rng(k).uniform(-0.5, 0.5, 5 * 16000).astype(np.float32)
        soundfile.write(folder / f"{k}.wav", noise, 16000)
    return folder


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_batches_do_not_depend_on_the_workers(songs: Path, tmp_path: Path, start: Literal["fork", "spawn"]) -> None:
    """Bit-equal for 0, 1 and 2 processes over two epochs, after another was left in the middle."""
    dataset = ClipDataset(
        find_examples(songs)[0], LatentCache(tmp_path, MelCodec()), clip_frames=50, clips_per_example=3
    )
    loaded = []
    counts = (0, 1, 2) if start == "fork" else (0, 2)  # a fresh interpreter takes seconds
    for workers in counts:
        loader = BatchLoader(dataset, workers, start)
        batches = []
        for epoch, first in ((1, 0), (0, 0), (1, 2)):
            dataset.set_epoch(epoch)
            wanted = batches_of(len(dataset), 2, seed=7, epoch=epoch)[first:]
            iterator = loader.batches(wanted, seed=epoch)
            if len(batches) == 0:
                next(iterator)  # and the rest is never asked for
            batches.append(list(iterator) if batches else [])
        loaded.append(batches[1] + batches[2])
    assert [len(batches) for batches in loaded] == [6 + 4] * len(counts)
    for batches in loaded[1:]:
        for one, other in zip(loaded[0], batches, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in ("input", "target"))
            assert one["input_file"] == other["input_file"]


@pytest.mark.proof
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_draw_from_seeds_of_their_own_and_live_on(start: Literal["fork", "spawn"]) -> None:
    """For whatever may draw in a worker one day: no two workers, ranks or seeds draw alike; a seed draws the same."""

    def first_draws(seed: int) -> tuple[set[tuple[int, ...]], set[int]]:
        loader = BatchLoader(Draws(), 2, start)  # type: ignore[arg-type]  # any data set
        found = [[int(x) for x in batch] for batch in loader.batches([[0], [1]], seed)]
        again = {int(batch[3]) for batch in loader.batches([[0], [1]], seed)}
        assert again == {pid for *_, pid in found}
        return {tuple(numbers) for *numbers, _ in found}, again

    (one, pids), (other, _) = (first_draws(seed) for seed in (1, 2))
    assert len(pids) == 2
    assert os.getpid() not in pids
    if start == "fork":
        assert first_draws(1)[0] == one
    values = [number for numbers in one | other for number in numbers]
    assert len(set(values)) == len(values) == 12


@pytest.mark.proof
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_dead_worker_ends_the_run_and_is_named(
    songs: Path,
    tmp_path: Path,
    start: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Killed by SIGKILL, as the kernel does for memory; the run goes on with --resume."""
    step, killed = Stepper.__call__, []

    def interfered(self: Stepper, *arguments: Any) -> Any:
        if not killed:
            killed.extend(child.pid for child in multiprocessing.active_children())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        return step(self, *arguments)

    out = tmp_path / "run"
    command = ["train", "--data", songs, "--out", out, "--cache", tmp_path / "cache", "--max-steps", 40]
    command += ["--clip-seconds", 1.5, "--window-seconds", 1, "--batch-size", 1, "--spectral", "latent"]
    command += ["--examples", 0, "--no-tensorboard", "--workers", 2, "--worker-start", start]
    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "__call__", interfered)
        assert cli.main([str(argument) for argument in command]) == 1
    assert time.monotonic() - began < 60
    assert len(killed) == 2
    said = capfd.readouterr().err
    found = re.search(r"error: loader process ([\d, ]+) .*; where the kernel killed it for memory, take fewer", said)
    assert found, said
    assert {int(pid) for pid in found[1].split(",")} <= set(killed)
    assert "Traceback" not in said
    assert (out / "last.safetensors").exists()


def test_one_batch_ahead():
    """By another thread, one and no more; what it raises comes in its place; the thread ends with the iterator."""
    taken, threads, enough = [], set(), threading.Event()

    def items():
        for number in range(4):
            taken.append(number)
            threads.add(threading.current_thread())
            if number == 1:
                enough.set()
            if number == 3:
                raise OSError("item 3 is gone")
            yield number

    loaded = one_ahead(items())
    assert next(loaded) == 0
    assert enough.wait(10)
    assert taken == [0, 1]
    assert [next(loaded), next(loaded)] == [1, 2]
    with pytest.raises(OSError, match="item 3 is gone"):
        next(loaded)
    assert threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


class Counting(torch.utils.data.Dataset):
    """Draws from the global generator, as a data set of one's own may; counts what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.asked.append(index)
        return {"input": torch.rand(1)}


def test_what_draws_is_not_loaded_ahead():
    """A resumed run would draw other numbers; `by_index` says that an item draws nothing."""
    clips, batches = Counting(), [[0, 1], [2, 3], [4, 5]]
    next(BatchLoader(clips, 0, "fork").batches(batches, seed=0))  # type: ignore[arg-type]  # any data set
    assert clips.asked == [0, 1]
    clips.asked, clips.by_index = [], True
    loaded = BatchLoader(clips, 0, "fork").batches(batches, seed=0)  # type: ignore[arg-type]  # any data set
    next(loaded)
    loaded.close()  # its thread has ended
    assert clips.asked == [0, 1, 2, 3]
    assert ClipDataset.by_index


def test_a_loader_left_midway_ends_its_thread():
    loaded = one_ahead(iter(range(10)))
    next(loaded)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("load_")]
    loaded.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("load_")]
    assert list(one_ahead(iter([]))) == []
