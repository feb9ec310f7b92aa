"""Each command: what it runs, and what it prints. They import what they need when they run: `--help` is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ..config import (
    AblateConfig,
    ComposeConfig,
    DemoConfig,
    EncodeConfig,
    PlotConfig,
    RefineConfig,
    ServeConfig,
    TrainConfig,
    cache_folder,
)
from ..errors import UsageError
from ..storage import strict_json


def demo(config: DemoConfig) -> None:
    from ..demo import run_demo

    run_demo(config)


def encode(config: EncodeConfig) -> None:
    from ..audio.cache import LatentCache
    from ..audio.codec import load_codec
    from ..audio.files import AUDIO_SUFFIXES, list_audio
    from ..device import choose_device

    device = choose_device(config.device)
    paths, others = list_audio(config.data)
    others = f"; {others}" if others else ""
    if not paths:
        raise UsageError(f"no audio under {config.data} (searched for {' '.join(AUDIO_SUFFIXES)}){others}")
    codec = load_codec(config.codec, weights=config.weights, random=config.random_codec, device=str(device))
    folder = cache_folder(config.cache)
    frames, bad = LatentCache(folder, codec).encode_all(paths, progress=True)
    for path, reason in bad:
        print(f"skipped {str(path)!r}: {reason}", file=sys.stderr)
    if not frames:
        raise UsageError(f"none of the {len(bad)} audio files under {config.data} can be encoded")
    print(f"{len(frames)} files as {codec.name} latents in {folder}, {len(bad)} skipped{others}")


def train(config: TrainConfig) -> None:
    from ..training import distributed
    from ..training.run import run_training

    result = run_training(config)
    if not distributed.is_main():
        return
    best = result.summary["best_held_out_loss"]
    print(f"step {result.summary['steps']}: held-out loss {result.final.loss:.4f}, best {best:.4f}")
    print(result.final.windows.table())
    print(f"checkpoints, pictures and audio are in {result.out}")


def compose(config: ComposeConfig) -> None:
    from ..inference.compose import compose_file
    from ..training.measures import measures_line

    report = compose_file(config)
    print(f"{report['output']}: {report['seconds']:.2f} s, peak {report['peak']:.3f}, RMS {report['rms']:.3f}")
    print(f"by {report['agent']}; {measures_line(report['heard'])}")
    for warning in report["warnings"]:
        print(f"  {warning}", file=sys.stderr)


def refine(config: RefineConfig) -> None:
    from ..inference.refine_songs import refine_songs, summary

    report = refine_songs(config)
    print(summary(report), file=sys.stderr)
    print(strict_json.dumps(report, indent=2))


def plot(config: PlotConfig) -> None:
    from ..inference.compose import plot_file

    print(f"{config.output}: windows of {plot_file(config)}")


def ablate(config: AblateConfig) -> None:
    from ..training.ablation import run_ablation

    print(run_ablation(config))
    print(f"ablation.csv, ablation.md and ablation.png are in {config.out}")


def serve(config: ServeConfig) -> None:
    from ..page.server import serve as serve_page

    serve_page(config)


COMMANDS: dict[str, tuple[type, Callable[[Any], None], str]] = {
    "demo": (DemoConfig, demo, "make music, train on it, compose, and draw the windows: no data needed"),
    "encode": (EncodeConfig, encode, "fill the latent cache from a folder of songs"),
    "train": (TrainConfig, train, "train windows and composer on a folder of songs"),
    "compose": (ComposeConfig, compose, "compose a 16 s pattern from two songs"),
    "refine": (RefineConfig, refine, "find the windows of two songs that match, and say whether they do"),
    "plot": (PlotConfig, plot, "draw the windows chosen for two songs"),
    "ablate": (AblateConfig, ablate, "train without each part, and tabulate what the part adds"),
    "serve": (ServeConfig, serve, "serve a page that composes and matches songs (extra [page])"),
}
