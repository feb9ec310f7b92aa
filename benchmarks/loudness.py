"""Do windows keep their beat when their tonality is transformed? `restore="none"` beside `restore="frame"`.

    python benchmarks/loudness.py [--audio DIR] [--json F]         # of new transforms, and of perturbed ones
    python benchmarks/loudness.py --train 300 --work DIR           # and after so many steps of training, both ways
    python benchmarks/loudness.py --checkpoint default RUN ...     # and of agents that were trained already

16 s of each of SONGS synthesized songs (numbers 200000 on, no number that trains the default weights), and of every
recording under `--audio`: latents of the mel codec, transformed at one strength throughout, decoded. Loudness is the
level of 20 ms frames in dB, not below 60 dB under the loudest; what is told is its correlation with that of the song
itself, mean over songs. `codec` is decoded untransformed: nothing can be better. `perturbed` has normal noise of NOISE
on every tap and on the pointwise matrix (of which every row then moves by about its own length).

Trained: small agents on songs 100000 on, from the same seed, on windows of 4 s; the transform is the input's, whose
rhythm patterns follow. `own` is the strength that the agent chose, `pattern` the composed 16 s beside the input's
window.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptive_window import AdaptiveWindowCreativeAgent, TonalityReducer
from adaptive_window.audio.files import find_audio, read_audio
from adaptive_window.audio.mel import MelCodec
from adaptive_window.audio.songs import synthesize_song, write_songs
from adaptive_window.config import TrainConfig
from adaptive_window.kernels import resample_windows
from adaptive_window.kernels.validation import RESTORE
from adaptive_window.losses.signals import pearson
from adaptive_window.training.ablation import REDUCED
from adaptive_window.training.checkpoint import build_agent, load_checkpoint
from adaptive_window.training.initial import checkpoint_at
from adaptive_window.training.run import run_training

SONGS, TRAINED_FROM, HELD_OUT_FROM = 8, 100_000, 200_000
CLIP, WINDOW = 1200, 800  # frames of 20 ms
STRENGTHS = (0.5, 1.0)
QUIETEST = 60.0  # dB below the loudest frame
NOISE = 0.1
Row = dict[str, Any]


def loudness(audio: Tensor, hop: int) -> Tensor:
    """Levels in dB `[N, frames]` of `[N, 1, samples]`."""
    level = 10 * audio.unflatten(2, (-1, hop)).square().mean(3)[:, 0].clamp(min=1e-12).log10()
    return level.maximum(level.amax(1, keepdim=True) - QUIETEST)


def clips(audio: Path | None, codec: MelCodec) -> Tensor:
    """24 s each `[N, 1, samples]`."""
    samples = CLIP * codec.hop
    songs = [synthesize_song(HELD_OUT_FROM + n, sample_rate=codec.sample_rate) for n in range(SONGS)]
    found = [torch.from_numpy(song.audio)[None] for song in songs]
    for file in find_audio(audio) if audio else ():
        found.append(read_audio(file, codec.sample_rate, start=10 * codec.sample_rate, length=samples))
    return torch.stack([one[:, :samples].float() for one in found])


class Listening:
    """The songs, and how much of their loudness is left in latents."""

    def __init__(self, audio: Path | None) -> None:
        self.codec = MelCodec()
        self.audio = clips(audio, self.codec)
        self.latents = torch.cat([self.codec.encode(one) for one in self.audio.split(1)])
        first = (CLIP - WINDOW) // 2
        self.windows = self.latents[..., first : first + WINDOW]
        ends = first * self.codec.hop, (first + WINDOW) * self.codec.hop
        self.loudness = loudness(self.audio[..., slice(*ends)], self.codec.hop)

    def heard(self, latents: Tensor) -> Tensor:
        """Loudness of decoded latents."""
        decoded = torch.cat([self.codec.decode(one) for one in latents.split(1)])
        return loudness(decoded[..., : latents.shape[-1] * self.codec.hop], self.codec.hop)

    def kept(self, latents: Tensor) -> float:
        """Of windows made of these songs' `windows`: mean correlation of loudness."""
        return float(pearson(self.heard(latents), self.loudness).mean())

    def rows(self, what: str, restore: str, reducer: TonalityReducer, strengths: Iterable[float]) -> Row:
        count = len(self.windows)
        kept = {f"{s:.2f}": self.kept(reducer(self.windows, torch.full((count,), s))) for s in strengths}
        return {"what": what, "restore": restore, "kept": kept}


def perturbed(reducer: TonalityReducer) -> TonalityReducer:
    generator = torch.Generator().manual_seed(0)
    for weight in (reducer.depthwise.weight, reducer.pointwise.weight):
        weight += NOISE * torch.randn(weight.shape, generator=generator)
    return reducer


def of_agent(listening: Listening, what: str, agent: AdaptiveWindowCreativeAgent) -> Row:
    """Of a trained agent: its transform, the strength it chooses, its patterns; targets are the next song's clip."""
    reducer = agent.eval().tonality_reducer_input
    row = listening.rows(what, reducer.restore, reducer, STRENGTHS)
    x, y = listening.latents, listening.latents.roll(-1, 0)
    agent.window_frames = agent.window_selector.window_frames = WINDOW
    strengths, patterns = [], []
    for a, b in zip(x.split(1), y.split(1), strict=True):
        outputs, _, metadata = agent(a, b)
        chosen = metadata["windows"]
        cut = resample_windows(a, chosen["start_input"], chosen["ratio_input"], WINDOW)[0]
        patterns.append(pearson(listening.heard(torch.cat(outputs)), listening.heard(cut)).mean())
        strengths.append(chosen["strength"])
    own = torch.cat(strengths).mean(1)
    row["own_strength"] = float(own.mean())
    row["kept"]["own"] = listening.kept(reducer(listening.windows, own))
    row["pattern"] = float(torch.stack(patterns).mean())
    return row


def train(restore: str, steps: int, work: Path, seed: int) -> AdaptiveWindowCreativeAgent:
    songs, out = work / "songs", work / restore
    if not songs.exists():
        write_songs(songs / "train", 32, seed=TRAINED_FROM)
        write_songs(songs / "val", 4, seed=HELD_OUT_FROM + 100)
    config = TrainConfig(
        data=songs, out=out, cache=work / "latents", restore=restore, clip_seconds=6.0, window_seconds=4.0,
        learning_rate=2e-3, warmup_steps=50, novelty_after=0.3, selector_rate=0.05, dropout=0.0, batch_size=4,
        max_steps=steps, clips_per_song=max(1, steps * 4 // 64), examples=0, tensorboard=False, seed=seed,
    )  # fmt: skip
    if not (out / "summary.json").exists():
        run_training(config, **REDUCED)
    return build_agent(load_checkpoint(out / "last.safetensors"), out)


def table(rows: Iterable[Row]) -> str:
    lines = [f"{'transform':28}{'restore':>9}{'strength 0.5':>14}{'1.0':>7}{'own':>7}{'(of)':>7}{'pattern':>9}"]
    for row in rows:
        found = [row["kept"].get(name) for name in ("0.50", "1.00", "own")] + [
            row.get("own_strength"), row.get("pattern")
        ]  # fmt: skip
        cells = (
            f"{'-' if value is None else f'{value:.2f}':>{w}}" for value, w in zip(found, (14, 7, 7, 7, 9), strict=True)
        )
        lines.append(f"{row['what']:28}{row['restore']:>9}{''.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, help="folder of recordings of 34 s and more")
    parser.add_argument("--train", type=int, metavar="STEPS", help="train small agents, both ways; needs --work")
    parser.add_argument("--work", type=Path, help="folder for songs, latents and runs; what is there is not made again")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument(
        "--checkpoint", type=Path, nargs="+", default=[], help="trained agents; `default`: the package's"
    )
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    if options.train and options.work is None:
        parser.error("--train needs --work")
    agents = []
    for path in map(checkpoint_at, options.checkpoint):
        agents.append((path.parent.name, build_agent(load_checkpoint(path), path)))
    for restore in RESTORE if options.train else ():
        agents.append((f"{options.train} steps", train(restore, options.train, options.work, options.seed)))
    with torch.no_grad():
        listening = Listening(options.audio)
        rows = [{"what": "codec", "restore": "-", "kept": {"1.00": listening.kept(listening.windows)}}]
        for restore in RESTORE:
            rows.append(listening.rows("new", restore, TonalityReducer(restore=restore), STRENGTHS))
            rows.append(listening.rows("perturbed", restore, perturbed(TonalityReducer(restore=restore)), STRENGTHS))
        rows += [of_agent(listening, name, agent) for name, agent in agents]
    print(f"{len(listening.windows)} songs")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
