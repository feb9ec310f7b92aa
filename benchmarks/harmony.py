"""Do harmonies that clash align? Training with the conflict term, and without, on songs in keys 0 to 6 fifths apart.

    python benchmarks/harmony.py --restore frame --audio --json benchmarks/results/harmony/frame.json

Songs of 10 s in major (`synthesize_song`: band, piano, strings and plucked, 80 to 140 BPM, in every one of the 12 keys)
and drum loops (`synthesize_drums`), mel codec. A batch draws pairs of keys 0 to 6 steps apart on the circle of fifths,
up or down, and drums against chords. The reduced agent (16 channels a component, two layers of width 64, one pair of
8 s windows) is trained by the objective of `adaptive-window train` as it is by default, and by the same without
conflict; its content selector sets the strength by the clash of the two windows. Then, on songs of seeds of their own:

    conflict       of the two windows, percent (`losses.conflict`): as cut, transformed untrained, transformed trained
    strength       that the selector chose, mean and standard deviation
    loudness       |change of power| of the transform, dB, of every frame; with --audio also of decoded windows
    bands          correlation of the windows' bands, each about its mean over time, before and after the transform
    r(keys)        correlation of strength with the steps between the keys, over all pairs of songs

Two kinds of transform: `none`, LayerNorm as the original has it, and `frame`, which gives frames their level back.
White noise is in no key: nothing may happen there.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptive_window import AdaptiveWindowCreativeAgent
from adaptive_window.audio.mel import MelCodec
from adaptive_window.audio.songs import synthesize_song
from adaptive_window.audio.synthesis import synthesize_drums
from adaptive_window.config import TrainConfig
from adaptive_window.kernels import resample_windows
from adaptive_window.losses.conflict import harmonic_conflict, loudness_change
from adaptive_window.losses.signals import centred, pearson
from adaptive_window.training.objective import Objective

KEYS, FURTHEST, DISTANT = 12, 6, 4  # steps on the circle of fifths; from `DISTANT` on keys share at most three notes
STYLES = ("band", "piano", "strings", "plucked")
SECONDS, WINDOW_SECONDS = 10.0, 8.0
SMALL: dict[str, Any] = {"component_dim": 16, "composer_heads": 2, "composer_layers": 2, "composer_dim": 64}
TRAINED_FROM, HELD_OUT_FROM = 1_000_000, 2_000_000
GROUPS = (*(f"{k} fifths" for k in range(FURTHEST + 1)), "drums, chords", "noise, chords", "noise, noise")
COLUMNS = ("conflict", "fresh", "trained", "strength", "loudness", "bands")


class Music:
    """Latents `[128, T]`: `songs[key][number]`, loops of drums, and white noise."""

    def __init__(self, first: int, each: int, codec: MelCodec) -> None:
        rng = np.random.default_rng(first)

        def encoded(audio: np.ndarray) -> Tensor:
            return codec.encode(torch.from_numpy(audio)[None, None])[0]

        def tempo() -> float:
            return float(rng.uniform(80, 140))

        where = {"seconds": SECONDS, "sample_rate": codec.sample_rate}
        self.songs = [
            [
                encoded(
                    synthesize_song(
                        first + key * each + k,
                        bpm=tempo(),
                        style=str(rng.choice(STYLES)),
                        tonic=key,
                        mode="major",
                        **where,
                    ).audio
                )
                for k in range(each)
            ]
            for key in range(KEYS)
        ]
        self.drums = [encoded(synthesize_drums(first + k, tempo(), **where)) for k in range(2 * each)]
        length = round(SECONDS * codec.sample_rate)
        self.noise = [encoded(0.1 * rng.standard_normal(length).astype(np.float32)) for _ in range(4)]

    def pairs(self, groups: Sequence[str], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """One pair of clips for every name in `groups`: `[N, 128, T]` twice."""
        found = []
        for group in groups:
            key = int(rng.integers(KEYS))
            target = self._one(self.songs[key], rng)
            if group[0].isdigit():
                step = int(group[0]) * (1 if rng.random() < 0.5 else -1)
                found.append((self._one(self.songs[(key + 7 * step) % KEYS], rng), target))
            elif group == "drums, chords":
                found.append((self._one(self.drums, rng), target))
            else:
                found.append((self._one(self.noise, rng), self._one(self.noise, rng) if group[7] == "n" else target))
        x, y = zip(*found, strict=True)
        return torch.stack(x), torch.stack(y)

    @staticmethod
    def _one(of: list[Tensor], rng: np.random.Generator) -> Tensor:
        return of[int(rng.integers(len(of)))]


class Trial:
    """An agent and its objective, fresh."""

    def __init__(self, restore: str, weight: float, steps: int, seed: int, codec: MelCodec) -> None:
        torch.manual_seed(seed)
        nowhere = Path()
        self.config = TrainConfig(
            data=nowhere,
            out=nowhere,
            clip_seconds=SECONDS,
            window_seconds=WINDOW_SECONDS,
            max_ratio=SECONDS / WINDOW_SECONDS,
            max_steps=steps,
            conflict_weight=weight,
        )
        self.objective = Objective(codec, self.config)
        self.agent = AdaptiveWindowCreativeAgent(
            codec.dim,
            1,
            window_frames=codec.frames(WINDOW_SECONDS),
            max_ratio=self.config.max_ratio,
            dropout=0.0,
            selector="content",
            frame_rate=codec.frame_rate,
            strength="harmony",
            restore=restore,
            **SMALL,
        )
        self.agent.window_selector.hear(self.objective.listen.classes)

    def train(self, music: Music, steps: int, batch: int, rate: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        optimizer = torch.optim.AdamW(self.agent.parameters(), lr=rate, weight_decay=self.config.weight_decay)
        self.agent.train()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            x, y = music.pairs(rng.choice(GROUPS[: FURTHEST + 2], batch), rng)
            outputs, losses, metadata = self.agent(x, y, **self.objective.agent_options)
            given = (outputs, losses, metadata["windows"], x, y)
            loss, _ = self.objective(*given, step=step, transformed=metadata.get("transformed"))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.agent.parameters(), self.config.clip_gradient)
            optimizer.step()

    @torch.no_grad()
    def windows(self, x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Both windows as cut and transformed, `[N, 128, W]` each, and the strength `[N]`."""
        self.agent.eval()
        chosen = self.agent.window_selector(x, y)
        cut = [
            resample_windows(clip, chosen[f"start_{name}"], chosen[f"ratio_{name}"], self.agent.window_frames)[:, 0]
            for name, clip in (("input", x), ("target", y))
        ]
        transformed = self.agent.transform_windows(x, y, chosen)
        return cut, [transformed[name][:, 0] for name in ("input", "target")], chosen["strength"][:, 0]


def figures(trial: Trial, fresh: Trial, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """`COLUMNS` of every pair, `[N]` each."""
    hear = (trial.objective.listen.classes, trial.objective.listen.slow)
    cut, transformed, strength = trial.windows(x, y)
    _, untrained, _ = fresh.windows(x, y)
    both = list(zip(transformed, cut, strict=True))
    return {
        "conflict": harmonic_conflict(*cut, *hear),
        "fresh": harmonic_conflict(*untrained, *hear),
        "trained": harmonic_conflict(*transformed, *hear),
        "strength": strength,
        "loudness": torch.stack([loudness_change(a, b, trial.objective.listen.tilt) for a, b in both]).mean(0),
        "bands": torch.stack([pearson(centred(a).flatten(1), centred(b).flatten(1)) for a, b in both]).mean(0),
    }


def decoded_change(trial: Trial, codec: MelCodec, x: Tensor, y: Tensor) -> float:
    """Mean |change of RMS| of decoded windows, dB."""
    cut, transformed, _ = trial.windows(x, y)
    levels = [
        20 * codec.decode(torch.cat(windows)).square().mean((1, 2)).sqrt().log10() for windows in (transformed, cut)
    ]
    return float((levels[0] - levels[1]).abs().mean())


def share_lost(before: float, after: float) -> float:
    return (before - after) / abs(before)


def judged(rows: dict[str, dict[str, float]], r_keys: float) -> dict[str, tuple[float, bool]]:
    """Every bar: what was found, and whether it is met."""
    distant = [rows[GROUPS[k]] for k in range(DISTANT, FURTHEST + 1)]
    before, after = (float(np.mean([row[name] for row in distant])) for name in ("conflict", "trained"))
    lost = share_lost(before, after)
    loud, bands = max(row["loudness"] for row in distant), min(row["bands"] for row in distant)
    same = abs(share_lost(rows[GROUPS[0]]["conflict"], rows[GROUPS[0]]["trained"]))
    drums = rows["drums, chords"]["strength"] - rows[GROUPS[0]]["strength"]
    noise = max(abs(rows[name]["trained"]) for name in GROUPS[-2:]) / before
    return {
        "conflict of distant keys falls by at least 30 %": (lost, lost >= 0.3),
        "at a loudness change of at most 1 dB": (loud, loud <= 1),
        "and a band correlation of at least 0.6": (bands, bands >= 0.6),
        "same key: conflict changes by at most 5 %": (same, same <= 0.05),
        "strength of drums against chords, above chords in one key by": (drums, drums > 0),
        "strength and steps between keys: correlation": (r_keys, r_keys > 0.5),
        "noise: conflict, as a share of distant keys'": (noise, noise <= 0.05),
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    lines = [
        "| windows | conflict % | untrained | trained | strength | loudness, dB | bands |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['conflict']:.2f} | {row['fresh']:.2f} | {row['trained']:.2f} "
            f"| {row['strength']:.2f} ± {row['strength_spread']:.2f} | {row['loudness']:.2f} | {row['bands']:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=16, help="songs of every key to train on; a quarter is held out")
    parser.add_argument("--held-out", type=int, default=24, help="held-out pairs of every kind")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.5, 0.0], help="of the conflict")
    parser.add_argument("--restore", nargs="+", default=["frame", "none"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--audio", action="store_true", help="decode windows too, four pairs of every kind")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    began, codec = time.process_time(), MelCodec()
    music = Music(TRAINED_FROM, options.each, codec)
    held_out = Music(HELD_OUT_FROM, max(1, options.each // 4), codec)
    rng = np.random.default_rng(HELD_OUT_FROM)
    tested = {name: held_out.pairs([name] * options.held_out, rng) for name in GROUPS}
    results: dict[str, Any] = {}
    for restore in options.restore:
        for weight in options.weights:
            fresh, trial = (Trial(restore, weight, options.steps, options.seed, codec) for _ in range(2))
            trial.train(music, options.steps, options.batch, options.rate, options.seed)
            found = {name: figures(trial, fresh, x, y) for name, (x, y) in tested.items()}
            rows = {
                name: {
                    **{key: float(value.mean()) for key, value in columns.items()},
                    "strength_spread": float(columns["strength"].std(correction=0)),
                }
                for name, columns in found.items()
            }
            strengths = torch.cat([found[name]["strength"] for name in GROUPS[: FURTHEST + 1]]).numpy()
            r_keys = float(np.corrcoef(strengths, np.repeat(np.arange(FURTHEST + 1), options.held_out))[0, 1])
            bars = judged(rows, r_keys)
            print(f"\n**restore {restore}, conflict weight {weight:g}**\n\n{table(rows)}\n", flush=True)
            for bar, (value, met) in bars.items():
                print(f"- {bar}: {value:.3f}, {'met' if met else 'missed'}", flush=True)
            result: dict[str, Any] = {
                "rows": rows,
                "bars": {bar: {"found": v, "met": m} for bar, (v, m) in bars.items()},
            }
            if options.audio:
                distant = GROUPS[DISTANT : FURTHEST + 1]
                changes = [decoded_change(trial, codec, *(clip[:4] for clip in tested[name])) for name in distant]
                result["decoded_loudness"] = float(np.mean(changes))
                print(f"- decoded windows of distant keys: RMS changes by {np.mean(changes):.2f} dB", flush=True)
            results[f"{restore}, {weight:g}"] = result
    seconds = time.process_time() - began
    print(f"\n{seconds:.0f} CPU seconds")
    if options.json:
        record = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        text = json.dumps({"options": record, "cpu_seconds": round(seconds), "results": results}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
