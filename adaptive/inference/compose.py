"""`adaptive-window compose` and `plot`: two songs and a checkpoint in, a 16 s pattern or a picture out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptive_window.kernels import resample_windows

from ..audio.codec import Codec, load_codec
from ..audio.files import read_audio, write_audio
from ..config import ComposeConfig, PlotConfig, SongPairOptions, reads
from ..device import choose_device
from ..errors import UsageError
from ..hub.contents import build, read_any
from ..model.agent import AdaptiveWindowCreativeAgent
from ..model.content_selector import ContentSelector
from ..model.tempo import FOUND
from ..plots import SUFFIXES, PairWindows, save_figure, windows_figure
from ..storage import outputs, strict_json
from ..training.evaluation import pairs_in_seconds
from ..training.initial import checkpoint_at, described
from ..training.listening import Listener
from ..training.measures import conflict_measures, measures_warnings, music_measures


@dataclass(frozen=True)
class Engine:
    """A checkpoint opened: what composes, ready for any two songs."""

    agent: AdaptiveWindowCreativeAgent
    codec: Codec
    clip_frames: int
    random_codec: bool
    weights: str
    """Which weights the agent has, in words."""

    @property
    def window_seconds(self) -> float:
        return self.agent.window_frames / self.codec.frame_rate

    @property
    def clip_seconds(self) -> float:
        return self.clip_frames / self.codec.frame_rate


@dataclass(frozen=True)
class Session:
    """An engine and two songs' clips: audio `[1, N]`, and latents `[1, C, T]` on the engine's device."""

    engine: Engine
    audio: tuple[Tensor, Tensor]
    x: Tensor
    y: Tensor

    @property
    def agent(self) -> AdaptiveWindowCreativeAgent:
        return self.engine.agent

    @property
    def codec(self) -> Codec:
        return self.engine.codec

    @property
    def random_codec(self) -> bool:
        return self.engine.random_codec

    @property
    def weights(self) -> str:
        return self.engine.weights

    @property
    def window_seconds(self) -> float:
        return self.engine.window_seconds

    @property
    def clip_seconds(self) -> float:
        return self.engine.clip_seconds


def open_engine(
    checkpoint_file: Path | None, *, weights: Path | None = None, random_codec: bool = False, device: str = "auto"
) -> Engine:
    """Loads a checkpoint, or a published agent (the package's for None), and the codec that it was trained with.

    Raises:
        UsageError, CodecUnavailable: each names the file or option at fault.
    """
    where = choose_device(device)
    path = checkpoint_at(checkpoint_file)
    checkpoint = read_any(path)
    made_with, clip_frames = checkpoint.info["codec"], checkpoint.info["clip_frames"]
    if made_with is None or clip_frames is None:  # published by hand
        raise UsageError(
            f"{path} does not say on which codec's latents, or on clips of how many frames, its agent was trained: "
            "save it anew by save_pretrained(..., codec=..., clip_frames=...)"
        )
    if made_with["random"] and not random_codec:
        raise UsageError(
            f"{path} was trained on a randomly initialized codec: what it composes is noise. "
            "Add --random-codec to run it all the same"
        )
    codec = load_codec(made_with["name"], weights=weights, random=made_with["random"], device=str(where))
    if codec.fingerprint != made_with["fingerprint"]:
        raise UsageError(
            f"{path} was trained with other {codec.name} weights (fingerprint "
            f"{made_with['fingerprint']}, these have {codec.fingerprint}); name the right ones with --weights"
        )
    agent = build(checkpoint, path).to(where, torch.float32).eval()
    return Engine(agent, codec, clip_frames, made_with["random"], described(path))


def open_session(options: SongPairOptions, engine: Engine | None = None) -> Session:
    """Loads both clips, and checkpoint and codec where no `engine` has them already.

    Raises:
        UsageError, AudioError, CodecUnavailable: each names the file or option at fault.
    """
    if engine is None:
        engine = open_engine(
            options.checkpoint, weights=options.weights, random_codec=options.random_codec, device=options.device
        )
    at_target = options.at if options.at_target is None else options.at_target
    clips = [read_clip(path, at, engine) for path, at in ((options.input, options.at), (options.target, at_target))]
    with torch.no_grad():
        x, y = (engine.codec.encode(audio[None]) for audio in clips)
    return Session(engine, (clips[0], clips[1]), x, y)


def read_clip(path: Path, at: float, engine: Engine) -> Tensor:
    """The engine's clip that begins at second `at` of a song, as audio `[1, N]` at the codec's rate.

    Raises:
        AudioError: unreadable, or the song ends before the clip does.
    """
    codec = engine.codec
    length = engine.clip_frames * codec.hop
    return read_audio(path, codec.sample_rate, start=round(at * codec.sample_rate), length=length)


def parse_pick(text: str, num_pairs: int) -> str | int:
    if text in ("mean", "best"):
        return text
    if text.isdecimal() and int(text) < num_pairs:
        return int(text)
    raise UsageError(f"--pick {text}: must be mean, best or a pair's number from 0 to {num_pairs - 1}")


@dataclass(frozen=True)
class Composition:
    """What one call of the agent gave, on the CPU: reports and pictures of it come from nowhere else."""

    audio: Tensor
    """The pattern, `[1, N]`."""
    pairs: list[PairWindows]
    """The windows that the selector chose in that call, of all pairs, in seconds."""
    pick: str | int
    picked: int | None
    """The pair heard; None for the mean of all."""
    heard: dict[str, float]
    """`measures.MEASURES` of the audio beside its pair's windows, and `CONFLICTS` of those; of the mean of all,
    averaged over the pairs."""


def compose_clips(session: Session, pick: str | int) -> Composition:
    """One pattern, its windows, and which pair it is: all from one call of the agent, in eval mode."""
    latents, metadata = session.agent.compose_with_metadata(session.x, session.y, pick=pick)  # [1, C, W]
    with torch.no_grad():
        audio = session.codec.decode(latents)[0].cpu()
    picked = None if metadata["picked"] is None else int(metadata["picked"][0])
    windows = metadata["all_windows"]
    heard = measured(session, latents, audio, windows, picked)
    return Composition(audio, pairs_in_seconds(windows, session.codec), pick, picked, heard)


@torch.no_grad()
def measured(
    session: Session, latents: Tensor, audio: Tensor, windows: dict[str, Tensor], picked: int | None
) -> dict[str, float]:
    """`Composition.heard`: of the decoded audio, so that what the codec loses counts too."""
    codec, listen = session.codec, Listener(session.codec)
    pattern = listen(latents) if listen.decodes else codec.encode(audio[None])
    chosen = slice(None) if picked is None else slice(picked, picked + 1)
    cuts = [
        listen(resample_windows(clip, windows[f"start_{name}"][:, chosen], windows[f"ratio_{name}"][:, chosen], frames))
        for clip, name, frames in ((session.x, "input", latents.shape[-1]), (session.y, "target", latents.shape[-1]))
    ]
    pattern = pattern.to(cuts[0].device)[:, None, :, : cuts[0].shape[-1]].expand_as(cuts[0])
    found = music_measures(pattern, cuts[0], cuts[1], listen.classes, listen.slow)
    heard = session.agent.transform_windows(
        session.x, session.y, {name: value[:, chosen] for name, value in windows.items()}
    )
    transformed = [listen(heard[song]) for song in ("input", "target")]
    found |= conflict_measures(transformed, cuts, listen.classes, listen.slow, listen.roughness)
    return {name: float(value.mean()) for name, value in found.items()}


def claim(config: ComposeConfig | PlotConfig, *paths: Path) -> None:
    """Raises `UsageError`, before any work, where these files cannot be written without a loss."""
    advice = "name another -o" if config.overwrite else "name another -o, or add --overwrite to replace it"
    outputs.claim(*paths, reads=reads(config), overwrite=config.overwrite, advice=advice)


@outputs.acting("compose")
def compose_file(config: ComposeConfig) -> dict[str, Any]:
    """Writes the pattern as WAV and its windows, in seconds, as JSON beside it; returns what the JSON holds."""
    if config.output.suffix.lower() != ".wav":
        raise UsageError(f"-o {config.output}: the pattern is written as WAV, so its name must end in .wav")
    claim(config, config.output, config.output.with_suffix(".json"))
    session = open_session(config)
    composition = compose_clips(session, parse_pick(config.pick, session.agent.num_pairs))
    return write_composition(config, session, composition)


def write_composition(config: ComposeConfig, session: Session, composition: Composition) -> dict[str, Any]:
    """The WAV and the JSON of a composition of the session's clips; returns what the JSON holds."""
    audio = composition.audio
    comment = "made with random codec weights" if session.random_codec else None
    into = partial(outputs.writing, overwrite=config.overwrite)
    write_audio(config.output, audio, session.codec.sample_rate, comment=comment, into=into)
    report = {
        "input": str(config.input),
        "target": str(config.target),
        "output": str(config.output),
        "pick": str(composition.pick),
        "picked_pair": composition.picked,
        "agent": session.weights,
        "codec": session.codec.name,
        "random_codec": session.random_codec,
        "clip_seconds": session.clip_seconds,
        "clip_at": {
            "input": config.at,
            "target": config.at if config.at_target is None else config.at_target,
        },
        "seconds": audio.shape[-1] / session.codec.sample_rate,
        "sample_rate": session.codec.sample_rate,
        "peak": float(audio.abs().max()),
        "rms": float(audio.square().mean().sqrt()),
        "heard": composition.heard,
        "warnings": measures_warnings(composition.heard),
        "tempo": found_tempo(session),
        "pairs": [
            {
                "start_input_s": pair.start_input,
                "end_input_s": pair.start_input + pair.ratio_input * session.window_seconds,
                "ratio_input": pair.ratio_input,
                "start_target_s": pair.start_target,
                "end_target_s": pair.start_target + pair.ratio_target * session.window_seconds,
                "ratio_target": pair.ratio_target,
                "strength": pair.strength,
            }
            for pair in composition.pairs
        ],
    }
    write_report(config.output, report, overwrite=config.overwrite)
    return report


@torch.no_grad()
def found_tempo(session: Session) -> dict[str, Any] | None:
    """How much slower the input is than the target, how clear both beats are (0 to 1), and whether that is a find.

    None for agents whose selector does not look for a tempo.
    """
    selector = session.agent.window_selector
    if not isinstance(selector, ContentSelector):
        return None
    tempo, beat = selector.tempo(session.x, session.y)
    return {"ratio": float(tempo.exp()), "beat": float(beat), "found": float(beat) > FOUND}


def write_report(output: Path, report: dict[str, Any], *, overwrite: bool) -> None:
    """The JSON beside a pattern."""
    outputs.write_text(output.with_suffix(".json"), strict_json.dumps(report, indent=2) + "\n", overwrite=overwrite)


@outputs.acting("plot")
def plot_file(
    config: PlotConfig,
    *,
    sections_input: Sequence[tuple[str, float]] = (),
    sections_target: Sequence[tuple[str, float]] = (),
) -> str:
    """Writes the picture of an agent's windows over two songs, with their sections where these are known.

    Returns which weights chose them.
    """
    if config.output.suffix.lower() not in SUFFIXES:
        raise UsageError(f"-o {config.output}: a picture's name must end in .png, .svg or .pdf")
    claim(config, config.output)
    session = open_session(config)
    with torch.no_grad():
        windows = session.agent.window_selector(session.x, session.y)
    draw_windows(
        session,
        pairs_in_seconds(windows, session.codec),
        config.output,
        title=f"{config.input.name} and {config.target.name}",
        overwrite=config.overwrite,
        sections_input=sections_input,
        sections_target=sections_target,
    )
    return session.weights


def draw_windows(
    session: Session,
    pairs: Sequence[PairWindows],
    path: Path,
    *,
    title: str,
    overwrite: bool = False,
    sections_input: Sequence[tuple[str, float]] = (),
    sections_target: Sequence[tuple[str, float]] = (),
) -> None:
    """The picture of these windows over the session's clips; of a composition's, give its own (`Composition.pairs`)."""
    figure = windows_figure(
        session.x[0].cpu().numpy(),
        session.y[0].cpu().numpy(),
        pairs,
        clip_seconds=session.clip_seconds,
        window_seconds=session.window_seconds,
        title=title,
        sections_input=sections_input,
        sections_target=sections_target,
    )
    save_figure(figure, path, into=partial(outputs.writing, overwrite=overwrite))
