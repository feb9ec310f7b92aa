"""`adaptive-window refine`: two songs in; the windows that match, whether they do, a picture and their sound out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..audio.cache import SILENCE
from ..audio.codec import Codec, load_codec
from ..audio.files import AudioError, read_audio, write_audio
from ..config import RefineConfig, check, reads
from ..console import note
from ..device import choose_device
from ..errors import UsageError
from ..plots import PairWindows, save_figure, windows_figure
from ..storage import outputs, strict_json
from .matching import lag_one_autocorrelation, match_threshold
from .refine import refine_windows
from .refine_rhythm import better_out_of_range, tempo_scan
from .windows_audio import cut_window, hear_window

SOUNDS = tuple(f"{kind}_{name}.wav" for kind in ("cut", "window") for name in ("input", "target"))
FILES = ("refine.json", "windows.png", *SOUNDS)
MOVES = {"input": ("x",), "target": ("y",), "both": ("x", "y")}
WHITE = 0.5  # lag-one autocorrelation that latents white in time stay below: mel has 0.9, at 0.2 nothing is found


@dataclass(frozen=True)
class Clip:
    """A stretch of a song: audio `[1, N]`, latents `[1, C, T]`, and the second of the song at which it begins."""

    path: Path
    at: float
    audio: Tensor
    latents: Tensor


def read_clip(path: Path, at: float, longest: float, least: float, codec: Codec) -> Clip:
    """At most `longest` seconds of a song from second `at`.

    Raises:
        AudioError: unreadable, silent, or less than `least` seconds are left.
    """
    begin, most = round(at * codec.sample_rate), codec.frames(longest) * codec.hop
    audio = read_audio(path, codec.sample_rate, start=begin, length=most, allow_short=True)
    if audio.numel() and (peak := float(audio.abs().max())) < SILENCE:
        raise AudioError(path, f"silent from {at:g} s on (peak {peak:.1e}): nothing to match")
    frames = audio.shape[-1] // codec.hop  # a last frame that is not full has no latent of its own
    if frames < codec.frames(least):
        have = frames / codec.frame_rate
        raise AudioError(path, f"only {have:.2f} s from {at:g} s on, but the window is {least:g} s long")
    audio = audio[:, : frames * codec.hop]
    with torch.no_grad():
        return Clip(path, at, audio, codec.encode(audio[None]))


@dataclass(frozen=True)
class Match:
    """What a search found: the report that refine.json holds, and the two clips."""

    report: dict[str, Any]
    clips: tuple[Clip, Clip]


@outputs.acting("refine")
def refine_songs(config: RefineConfig) -> dict[str, Any]:
    """Searches and writes, as `match_songs` does; returns what refine.json holds."""
    return match_songs(config).report


def match_songs(config: RefineConfig, codec: Codec | None = None) -> Match:
    """Searches, and writes into `config.out`: refine.json, windows.png and, of a match only, the windows as WAV.

    cut_input.wav and cut_target.wav are the windows as recorded; window_input.wav and window_target.wav are the same,
    resampled in latent space to `window_seconds` and decoded: in time with each other. Those that an earlier run left
    are removed. `codec` is that of the config, where it is loaded already.

    Raises:
        UsageError, AudioError, CodecUnavailable: each names the file or option at fault.
    """
    if config.out.exists() and not config.out.is_dir():
        raise UsageError(f"--out {config.out} is a file; name a folder")
    check(config)
    claim_folder(config)
    device = choose_device(config.device)
    if codec is None:
        codec = load_codec(config.codec, weights=config.weights, random=config.random_codec, device=str(device))
    window = codec.frames(config.window_seconds)
    if window < 2:
        raise UsageError(f"--window-seconds {config.window_seconds:g} is less than two frames of {codec.name}")
    at_target = config.at if config.at_target is None else config.at_target
    clips = []
    for path, at, name in ((config.input, config.at, "input"), (config.target, at_target, "target")):
        moved = config.move in (name, "both")
        longest = config.clip_seconds if moved else config.window_seconds
        clips.append(read_clip(path, at, longest, config.window_seconds, codec))

    x, y = (clip.latents.to(device) for clip in clips)
    autocorrelation = float(lag_one_autocorrelation(torch.cat((x, y), -1)))
    white = autocorrelation < WHITE
    if white and config.features == "latent":
        note(
            f"latents of {codec.name} are white in time here (lag-one autocorrelation {autocorrelation:.4f}): "
            "neighbouring frames have little in common, and a search on them cannot work. Try --features energy or "
            "difference"
        )
    move = MOVES[config.move]
    if config.features == "rhythm":
        ratios, fits = tempo_scan(x, y, window)
        other = better_out_of_range(ratios, fits[0], config.max_ratio)
        if other is not None:
            note(f"the tempos fit at a ratio of {other:.2f}, beyond --max-ratio {config.max_ratio:g}")
    *found, score = refine_windows(x, y, window, move=move, features=config.features, max_ratio=config.max_ratio)
    zero, one = torch.zeros_like(score), torch.ones_like(score)
    start_x, ratio_x = (found[0], found[1]) if "x" in move else (zero, one)
    start_y, ratio_y = (found[-2], found[-1]) if "y" in move else (zero, one)
    threshold = match_threshold(config.features, window)
    match = bool(score[0] >= threshold)

    config.out.mkdir(parents=True, exist_ok=True)
    claim_folder(config)
    for stale in SOUNDS:
        outputs.remove(config.out / stale)
    into = partial(outputs.writing, overwrite=config.overwrite)
    report: dict[str, Any] = {
        "verdict": "match" if match else "no match",
        "score": float(score[0]),
        "threshold": threshold,
        "features": config.features,
        "codec": codec.name,
        "random_codec": config.random_codec,
        "lag_one_autocorrelation": autocorrelation,
        "white_in_time": white,
        "window_seconds": codec.seconds(window),
        "moved": config.move,
    }
    found_windows = (
        ("input", clips[0], x, float(start_x[0]), float(ratio_x[0])),
        ("target", clips[1], y, float(start_y[0]), float(ratio_y[0])),
    )
    for name, clip, _, start, ratio in found_windows:
        begin = clip.at + codec.seconds(start)
        report[name] = {
            "file": str(clip.path),
            "start_s": begin,
            "end_s": begin + ratio * codec.seconds(window),
            "ratio": ratio,
            "clip_at_s": clip.at,
            "clip_seconds": codec.seconds(clip.latents.shape[-1]),
        }
    files = []
    if match:
        comment = "made with random codec weights" if config.random_codec else None
        for name, clip, latents, start, ratio in found_windows:
            place = codec.seconds(start), ratio, window
            cut, decoded = cut_window(clip.audio, codec, *place), hear_window(latents, codec, *place)
            for kind, audio in (("cut", cut), ("window", decoded)):
                files.append(f"{kind}_{name}.wav")
                write_audio(config.out / files[-1], audio, codec.sample_rate, comment=comment, into=into)
    report["files"] = [*files, "windows.png", "refine.json"]
    write_report(config.out, report, overwrite=config.overwrite)
    draw(config, report, clips, codec)  # last: what was found is not to hang on a picture
    return Match(report, (clips[0], clips[1]))


def write_report(out: Path, report: dict[str, Any], *, overwrite: bool) -> None:
    """The JSON of what a search found."""
    outputs.write_text(out / "refine.json", strict_json.dumps(report, indent=2) + "\n", overwrite=overwrite)


def claim_folder(config: RefineConfig) -> None:
    """Raises `UsageError` where a file in `config.out` would be lost, whatever the search finds."""
    if config.out.is_dir():
        advice = "name another --out" if config.overwrite else "name another --out, or add --overwrite to replace it"
        paths = (config.out / name for name in FILES)
        outputs.claim(*paths, reads=reads(config), overwrite=config.overwrite, advice=advice)


def draw(config: RefineConfig, report: dict[str, Any], clips: list[Clip], codec: Codec) -> None:
    """windows.png: both clips' latents, the windows over them, and the time warp between."""
    places = [report["input"], report["target"]]
    pair = PairWindows(places[0]["start_s"], places[1]["start_s"], places[0]["ratio"], places[1]["ratio"], 0.0)
    images = [clip.latents[0].cpu().numpy() for clip in clips]
    figure = windows_figure(
        images[0],
        images[1],
        [pair],
        clip_seconds=places[0]["clip_seconds"],
        target_seconds=places[1]["clip_seconds"],
        window_seconds=report["window_seconds"],
        begins=(places[0]["clip_at_s"], places[1]["clip_at_s"]),
        labels=["window" if report["verdict"] == "match" else "best, no match"],
        title=f"{config.input.name} and {config.target.name}: {report['verdict']} (score {report['score']:.2f}, "
        f"a match from {report['threshold']:.2f})",
    )
    into = partial(outputs.writing, overwrite=config.overwrite)
    save_figure(figure, config.out / "windows.png", into=into)


def summary(report: dict[str, Any]) -> str:
    """One line for a reader."""
    places = [
        f"{n} {p['start_s']:.2f} s to {p['end_s']:.2f} s (×{p['ratio']:.3f})"
        for n, p in (("input", report["input"]), ("target", report["target"]))
    ]
    sign = "at least" if report["verdict"] == "match" else "below"
    return f"{report['verdict']}: {' and '.join(places)}; score {report['score']:.3f}, {sign} {report['threshold']:.3f}"
