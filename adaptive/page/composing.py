"""One composition for the page: what the command `compose` does, and the same files; and the windows, to hear."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ..audio.files import write_audio
from ..config import ComposeConfig
from ..inference.compose import (
    Engine,
    Session,
    compose_clips,
    open_session,
    parse_pick,
    write_composition,
    write_report,
)
from ..inference.windows_audio import cut_window, hear_window
from ..plots import PairWindows
from .jobs import Step
from .picture import windows_picture
from .songs import Song

LABELS = ("Song A", "Song B")


@dataclass(frozen=True)
class Wish:
    """What is to be composed: two songs, the seconds at which their clips begin, and which pair is heard."""

    songs: tuple[Song, Song]
    at: tuple[float, float]
    pick: str


@dataclass(frozen=True)
class Composed:
    """A composition's files, picture and report."""

    wish: Wish
    report: dict[str, Any]
    pairs: list[PairWindows]
    picture: go.Figure
    pattern: Path
    clips: tuple[Path, Path]


def compose(engine: Engine, wish: Wish, folder: Path, step: Step) -> Composed:
    """Writes everything into `folder`.

    Raises:
        AudioError, UsageError: as `compose_file`.
    """
    step("Reading both songs")
    config = as_command(wish, folder)
    session = open_session(config, engine)
    step("Composing")
    composition = compose_clips(session, parse_pick(wish.pick, engine.agent.num_pairs))
    report = write_composition(config, session, composition)
    # the names that visitors know their files by, in place of where these lie here
    report |= {"input": wish.songs[0].name, "target": wish.songs[1].name, "output": config.output.name}
    write_report(config.output, report, overwrite=True)
    clips = []
    for letter, audio in zip("ab", session.audio, strict=True):
        clips.append(folder / f"clip_{letter}.wav")
        write_audio(clips[-1], audio, session.codec.sample_rate)
    step("Drawing")
    picture = windows_picture(
        (session.x[0].cpu().numpy(), session.y[0].cpu().numpy()),
        composition.pairs,
        names=LABELS,
        begins=wish.at,
        clip_seconds=(session.clip_seconds, session.clip_seconds),
        window_seconds=session.window_seconds,
    )
    return Composed(wish, report, composition.pairs, picture, config.output, (clips[0], clips[1]))


def as_command(wish: Wish, folder: Path) -> ComposeConfig:
    """The options of the command that does the same."""
    return ComposeConfig(
        input=wish.songs[0].path,
        target=wish.songs[1].path,
        checkpoint=folder,  # not read: the engine has it open
        at=wish.at[0],
        at_target=wish.at[1],
        output=folder / "pattern.wav",
        pick=wish.pick,
    )


def cut_windows(engine: Engine, made: Composed, step: Step) -> list[dict[str, Path]]:
    """Writes every pair's windows beside the pattern: `cut_a`, `compressed_a`, `cut_b` and `compressed_b` of each.

    Raises:
        AudioError: a song has gone.
    """
    folder = made.pattern.parent
    session = open_session(as_command(made.wish, folder), engine)
    files = []
    for number, pair in enumerate(made.pairs):
        step(f"Cutting the windows of pair {number}")
        files.append(_write_windows(session, pair, number, folder))
    return files


def _write_windows(session: Session, pair: PairWindows, number: int, folder: Path) -> dict[str, Path]:
    codec, window = session.codec, session.agent.window_frames
    files = {}
    for letter, audio, latents, start, ratio in (
        ("a", session.audio[0], session.x, pair.start_input, pair.ratio_input),
        ("b", session.audio[1], session.y, pair.start_target, pair.ratio_target),
    ):
        for kind, sound in (
            ("cut", cut_window(audio, codec, start, ratio, window)),
            ("compressed", hear_window(latents, codec, start, ratio, window)),
        ):
            files[f"{kind}_{letter}"] = path = folder / f"pair{number}_{kind}_{letter}.wav"
            write_audio(path, sound, codec.sample_rate)
    return files
