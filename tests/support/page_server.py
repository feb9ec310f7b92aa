"""A served page with a small agent, and a visitor of it who speaks HTTP as the browser does."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from adaptive_window.audio.files import write_audio
from adaptive_window.audio.mel import MelCodec
from adaptive_window.model.agent import AdaptiveWindowCreativeAgent
from adaptive_window.training.checkpoint import Checkpoint, save_checkpoint

CLIP, WINDOW = 6.0, 4.0  # seconds
SMALL = {"component_dim": 8, "composer_heads": 2, "composer_layers": 1, "composer_dim": 32}


def small_checkpoint(path: Path, *, clip: float = CLIP, window: float = WINDOW, **agent: Any) -> Path:
    """A checkpoint as `train` writes it, of an agent that was never trained."""
    torch.manual_seed(0)
    codec = MelCodec()
    arguments = {"encoding_dim": 128, "num_pairs": 3, "window_frames": codec.frames(window), **(agent or SMALL)}
    info = {
        "agent": arguments,
        "codec": {"name": codec.name, "fingerprint": codec.fingerprint, "random": False},
        "clip_frames": codec.frames(clip),
    }
    save_checkpoint(path, Checkpoint(AdaptiveWindowCreativeAgent(**arguments).state_dict(), info))
    return path


def write_song(path: Path, seconds: float, *, seed: int = 0, rate: int = 16_000) -> Path:
    """Beats of noise and tones: not silent anywhere, and not the same anywhere."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tones = np.sin(2 * np.pi * np.cumsum(rng.uniform(100, 900, len(time) // 4000 + 1).repeat(4000)[: len(time)]) / rate)
    sound = 0.3 * tones + 0.1 * rng.standard_normal(len(time)) * np.exp(-8 * (time % 0.5))
    write_audio(path, sound.astype(np.float32), rate)
    return path


def served_files(folder: Path, first: str = "a.wav", second: str = "b.wav") -> Path:
    """The folder, with the checkpoint `small.safetensors` and two songs of 20 and 15 s by these names."""
    small_checkpoint(folder / "small.safetensors")
    write_song(folder / first, 20.0, seed=1)
    write_song(folder / second, 15.0, seed=2)
    return folder


class Server:
    """`adaptive-window serve` in a process of its own; `lines` is what it has printed."""

    def __init__(self, *options: str | Path) -> None:
        command = [
            sys.executable,
            "-m",
            "adaptive_window",
            "serve",
            "--port",
            "0",
            "--device",
            "cpu",
            *map(str, options),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.lines: list[str] = []
        self._new: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            self._new.put(line.rstrip())
        self._new.put(None)

    def wait_for(self, text: str, seconds: float = 180) -> str:
        """The next line with this text in it."""
        until = time.monotonic() + seconds
        try:
            while (line := self._new.get(timeout=max(0.1, until - time.monotonic()))) is not None:
                if text in line:
                    return line
        except queue.Empty:
            raise AssertionError(f"no {text!r} in {seconds:.0f} s:\n" + "\n".join(self.lines)) from None
        self._new.put(None)  # whoever asks next is told as soon
        raise AssertionError(f"the server ended without {text!r}:\n" + "\n".join(self.lines))

    @property
    def url(self) -> str:
        if not hasattr(self, "_url"):
            self._url = self.wait_for("page on http").rpartition(" ")[2]
        return self._url

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.partition("VmRSS:")[2].split()[0])


@contextlib.contextmanager
def serving(*options: str | Path) -> Iterator[Server]:
    server = Server(*options)
    try:
        yield server
    finally:
        server.terminate()
        try:
            server.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()


class Visitor:
    """One browser's session, without the browser."""

    def __init__(self, url: str, *, timeout: float = 300) -> None:
        self.session = uuid.uuid4().hex[:12]
        self.http = httpx.Client(base_url=url, timeout=timeout)
        self.config = self.http.get("/config").raise_for_status().json()
        self.events = {
            (component["props"].get("elem_id") or component["props"].get("label"), target[1]): call["id"]
            for call in self.config["dependencies"]
            for target in call["targets"]
            for component in self.config["components"]
            if component["id"] == target[0]
        }

    def upload(self, path: Path, name: str | None = None) -> httpx.Response:
        with path.open("rb") as file:
            return self.http.post("/gradio_api/upload", files={"files": (name or path.name, file)})

    def join(self, element: str, event: str, data: list[Any]) -> httpx.Response:
        call = {"data": data, "fn_index": self.events[element, event], "session_hash": self.session}
        return self.http.post("/gradio_api/queue/join", json=call)

    def messages(self) -> Iterator[dict[str, Any]]:
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    yield message
                    if message["msg"] in ("process_completed", "close_stream"):
                        return

    def call(self, element: str, event: str, data: list[Any]) -> list[Any]:
        """What an event's function returns."""
        answer = self.join(element, event, data)
        assert answer.status_code == 200, answer.text
        last = list(self.messages())[-1]
        assert last["msg"] == "process_completed", last
        assert last["success"], last
        return list(last["output"]["data"])

    def give(self, label: str, path: Path, name: str | None = None) -> dict[str, Any]:
        """Uploads a song: what its strip shows then."""
        [where] = self.upload(path, name).raise_for_status().json()
        file = {"path": where, "orig_name": name or path.name, "meta": {"_type": "gradio.FileData"}}
        strip: dict[str, Any] = self.call(label, "change", [file])[1]
        return strip

    def compose(self, a: dict[str, Any], b: dict[str, Any], pick: str = "mean") -> list[Any]:
        return self.call("compose", "click", [None, a, None, b, pick])

    def match(self, a: dict[str, Any], b: dict[str, Any], features: str, seconds: float) -> list[Any]:
        return self.call("match", "click", [None, a, None, b, features, seconds])

    def fetch(self, link: str) -> httpx.Response:
        return self.http.get("/" + link)
