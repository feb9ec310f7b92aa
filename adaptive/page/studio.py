"""What the page works with: the engine, the uploads, the jobs and the examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..audio.files import write_audio
from ..audio.synthesis import synthesize_pair
from ..config import ServeConfig
from ..inference.compose import Engine, open_engine
from .composing import Wish, compose
from .jobs import Jobs, Step
from .songs import Refused, Song, read_song
from .uploads import EXAMPLES, Uploads

EXAMPLE_SECONDS = 48.0
EXAMPLE_COUNT = 3


@dataclass(frozen=True)
class Studio:
    engine: Engine
    weights: str
    uploads: Uploads
    jobs: Jobs
    waiting: int
    keep_minutes: float

    @property
    def clip_seconds(self) -> float:
        return self.engine.clip_seconds

    def read_song(self, path: Path, step: Step) -> Song:
        step("Reading the song")
        return read_song(path, self.engine.codec.sample_rate, self.clip_seconds)

    def example(self, number: int, step: Step) -> tuple[Path, Path]:
        """The two songs of a synthesized pair, which is made when it is first asked for."""
        folder = self.uploads.root / EXAMPLES
        folder.mkdir(exist_ok=True)
        paths = folder / f"example {number + 1} A.wav", folder / f"example {number + 1} B.wav"
        if number not in range(EXAMPLE_COUNT):
            raise Refused("There is no such example.")
        step("Playing the example")
        if not all(path.exists() for path in paths):
            piece = synthesize_pair(number, seconds=max(EXAMPLE_SECONDS, 2 * self.clip_seconds))
            for path, audio in zip(paths, (piece.input, piece.target), strict=True):
                write_audio(path, audio, piece.sample_rate)
        return paths

    def about(self) -> dict[str, Any]:
        codec = self.engine.codec
        return {"codec": codec.name, "codec_weights": codec.fingerprint, "weights": self.weights}


def open_studio(config: ServeConfig, uploads: Uploads, jobs: Jobs) -> Studio:
    """Loads the engine and composes once: after that a job can run, and how long one takes is known.

    Raises:
        UsageError, CodecUnavailable: each names the file or option at fault.
    """
    torch.set_num_threads(1)  # one job a core: more threads for each would only wait for one another
    engine = open_engine(
        config.checkpoint, weights=config.weights, random_codec=config.random_codec, device=config.device
    )
    weights = "default" if config.checkpoint is None else config.checkpoint.name  # of the file alone: visitors see it
    if config.checkpoint is not None:
        engine = replace(engine, weights=weights)  # goes into the JSON
    studio = Studio(engine, weights, uploads, jobs, config.waiting, config.keep_minutes)
    folder = uploads.job("warm-up")
    noise = np.random.default_rng(0).normal(0, 0.1, round(engine.codec.sample_rate * engine.clip_seconds) + 1)
    write_audio(folder / "noise.wav", noise, engine.codec.sample_rate)
    song = studio.read_song(folder / "noise.wav", _silently)
    wish = Wish((song, song), (0.0, 0.0), "mean")
    jobs.run("compose", lambda step: compose(engine, wish, folder, step), lambda share, text: None)
    uploads.end("warm-up")
    return studio


def _silently(text: str) -> None:
    pass
