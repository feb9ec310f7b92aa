"""One search for the page: what the command `refine` does, and the same files; and the match in one sound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch

from ..audio.files import read_audio, write_audio
from ..config import RefineConfig
from ..inference.compose import Engine
from ..inference.refine_songs import Match, match_songs, write_report
from ..plots import PairWindows
from .composing import LABELS
from .jobs import Step
from .picture import windows_picture
from .songs import Song

PAUSE = 0.5  # seconds between what is heard one after the other
FEATURES = {
    "All of the sound": "latent",
    "Loudness": "energy",
    "Changes of loudness": "difference",
    "Beat and tempo": "rhythm",
}


@dataclass(frozen=True)
class Search:
    """What is sought: where in song A the first window of song B's clip occurs."""

    songs: tuple[Song, Song]
    at: tuple[float, float]
    features: str
    seconds: float
    """How much of song A is searched, from where its clip begins."""


@dataclass(frozen=True)
class Matched:
    """A search's report, picture and, of a match, the sound of both windows one after the other, and mixed."""

    report: dict[str, Any]
    picture: go.Figure
    sound: Path | None
    files: list[Path]


def match(engine: Engine, search: Search, folder: Path, step: Step) -> Matched:
    """Writes everything into `folder`.

    Raises:
        AudioError, UsageError: as `refine_songs`.
    """
    step("Searching")
    songs, codec = search.songs, engine.codec
    config = RefineConfig(
        input=songs[0].path,
        target=songs[1].path,
        out=folder,
        at=search.at[0],
        at_target=search.at[1],
        clip_seconds=search.seconds,
        window_seconds=engine.window_seconds,
        features=search.features,  # type: ignore[arg-type]  # the layout's choices are the names
        codec=codec.name,  # type: ignore[arg-type]
        random_codec=engine.random_codec,
        device="cpu" if codec.device.type == "cpu" else "auto",
    )
    found = match_songs(config, codec)
    report = found.report
    for name, song in zip(("input", "target"), songs, strict=True):
        report[name]["file"] = song.name  # the name that visitors know it by, in place of where it lies here
    write_report(folder, report, overwrite=True)
    step("Drawing")
    sound = None
    if report["verdict"] == "match":
        sound = folder / "heard.wav"
        write_audio(sound, one_after_the_other(folder, codec.sample_rate), codec.sample_rate)
    return Matched(report, draw(found, search), sound, [folder / name for name in report["files"]])


def one_after_the_other(folder: Path, sample_rate: int) -> torch.Tensor:
    """A's window, B's, and both at once, `[1, N]`: in time with each other, since both were resampled to one length."""
    first, second = (read_audio(folder / f"window_{name}.wav", sample_rate) for name in ("input", "target"))
    pause = first.new_zeros(1, round(PAUSE * sample_rate))
    return torch.cat((first, pause, second, pause, (first + second) / 2), -1)


def draw(found: Match, search: Search) -> go.Figure:
    report, clips = found.report, found.clips
    places = report["input"], report["target"]
    starts = [place["start_s"] - place["clip_at_s"] for place in places]
    return windows_picture(
        (clips[0].latents[0].cpu().numpy(), clips[1].latents[0].cpu().numpy()),
        [PairWindows(starts[0], starts[1], places[0]["ratio"], places[1]["ratio"], 0.0)],
        names=LABELS,
        begins=search.at,
        clip_seconds=(places[0]["clip_seconds"], places[1]["clip_seconds"]),
        window_seconds=report["window_seconds"],
        labels=["match" if report["verdict"] == "match" else "best, no match"],
    )
