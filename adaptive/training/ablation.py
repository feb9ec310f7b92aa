"""`adaptive-window ablate`: what each part of the window selection adds, by training without it.

Four variants, each with one part more than the one before:

    single window         one pair, ratio 1, strength 0
    + multiple windows    P pairs
    + compression         ratios from 1 to max_ratio
    + tonality            strengths from 0 to 1: the whole agent

Every variant is trained by the ordinary `Trainer` for the same steps on the same clips, once a seed (initialization,
order and dropout), and judged with its final weights on the same held-out clips by

    skill = 1 − Σ d(pattern) / Σ d(constant)

d is training's spectral term (`objective`: the distance to what the pattern is asked to be), `constant` the mean over
time, channel by channel, of the pair's own window of the song that harmony comes from; the sums run over held-out clips
and the pairs of each. 1 is a perfect pattern, 0 one that is no better than knowing the window's mean spectrum. A plain
distance would favour a variant that chooses windows in which little happens, and would compare windows of different
ones; the quotient takes that out, and a mean over pairs favours neither one nor many. A step of P pairs costs about P
times as much: steps and clips are equal here, not time.
"""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from adaptive_window.kernels import resample_windows

from ..audio.codec import Codec
from ..audio.dataset import ClipDataset
from ..audio.synthesis import write_demo_set
from ..config import AblateConfig, TrainConfig, check, command_line, reads, to_plain, to_yaml
from ..console import note
from ..device import choose_device
from ..errors import UsageError
from ..plots import ablation_figure, save_figure
from ..storage import outputs
from ..storage.lock import FolderLock
from .checkpoint import BEST, LAST, PREVIOUS
from .folder import CONFIG, holds_run, prepare_folder, save_config
from .logging import RunLog
from .loop import Trainer
from .run import check_options, prepare_data

VARIANTS = ("single window", "+ multiple windows", "+ compression", "+ tonality")
SMALL: dict[str, Any] = {"component_dim": 16, "composer_heads": 4, "composer_layers": 2, "composer_dim": 64}
REDUCED: dict[str, Any] = {**SMALL, "component_dim": 32, "composer_dim": 128}
SIZES: dict[str, dict[str, Any]] = {"reduced": REDUCED, "small": SMALL, "full": {}}
FILES = (CONFIG, "ablation.csv", "ablation.md", "ablation.png")
ELSEWHERE = {"data", "out", "cache", "weights", "device", "workers", "seeds"}  # a resumed ablation may differ in these
HELD_OUT_CLIPS = 4  # of every held-out song
HEARD = ("fluctuation", "onsets_input", "harmony_target", "copies")


@dataclass(frozen=True)
class Score:
    """One run: the skill of its final weights, the distances it is made of, and the run's seconds a step."""

    variant: str
    seed: int
    skill: float
    distance: float
    constant: float
    seconds_per_step: float
    fluctuation: float = float("nan")  # and the following of `measures`, over the held-out clips
    onsets_input: float = float("nan")
    harmony_target: float = float("nan")
    copies: float = float("nan")


@outputs.acting("ablate")
def run_ablation(config: AblateConfig) -> str:
    """Trains all variants and seeds; writes `ablation.csv`, `.md`, `.png` and `config.yaml`, and returns the table.

    Raises:
        UsageError, and the errors of codecs, audio and data: what the user has to change, named.
    """
    check(config)
    check_options(base_config(config))
    with FolderLock(config.out) as lock:
        prepare_folder(config.out, lock, resume=False, files=FILES, folders=("runs", "songs"), reads=reads(config))
        begun = any((config.out / name).exists() for name in ("ablation.csv", "runs"))
        if begun and not config.resume:
            raise UsageError(f"{config.out} holds an ablation already: name another --out, or add --resume")
        if config.resume and not begun:
            raise UsageError(f"--resume: {config.out} holds no ablation to go on with")
        if config.resume:
            check_same(config)
        return _run_ablation(config)


def check_same(config: AblateConfig) -> None:
    """Raises `UsageError` where the ablation in the folder was begun with other options."""
    path = config.out / CONFIG
    if config.force or not path.exists():
        return
    ours = yaml.safe_load(to_yaml(config))
    unsaid = {field.name: field.default for field in dataclasses.fields(TrainConfig)}  # before it could be told
    theirs = unsaid | yaml.safe_load(path.read_text(encoding="utf-8"))
    changed = [
        f"its {key} is {theirs[key]}, here {ours[key]}"
        for key in sorted(theirs.keys() & ours.keys() - ELSEWHERE)
        if theirs[key] != ours[key]
    ]
    if changed:
        raise UsageError(f"cannot resume {config.out}: {'; '.join(changed)}. Set it as it was, or add --force")


def _run_ablation(config: AblateConfig) -> str:
    base = base_config(config)
    if config.data is None:
        note(f"synthesizing {config.songs} training and {config.held_out_songs} held-out pairs of 24 s pieces")
        write_demo_set(base.data, pairs=config.songs, val=config.held_out_songs, seed=config.seed)
    save_config(config, config.out / CONFIG)
    codec, train_set, held_out = prepare_data(
        base,
        choose_device(config.device),
        HELD_OUT_CLIPS,
        lambda **lengths: command_line("ablate", config, **lengths),
    )
    scores = read_csv(config.out / "ablation.csv") if config.resume else []
    done = {(score.variant, score.seed) for score in scores}
    for seed in range(config.seed, config.seed + config.seeds):
        for variant in VARIANTS:
            if (variant, seed) in done:
                continue
            scores.append(run_variant(config, base, variant, seed, codec, train_set, held_out))
            note(f"{variant}, seed {seed}: skill {scores[-1].skill:.4f}, {scores[-1].seconds_per_step:.2f} s a step")
            write_csv(scores, config.out / "ablation.csv")  # after each: what a run that is stopped has found
    table = as_table(scores)
    outputs.write_text(config.out / "ablation.md", table + "\n")
    by_variant = {variant: [s.skill for s in scores if s.variant == variant] for variant in VARIANTS}
    figure = ablation_figure(by_variant, f"{config.max_steps} steps of {config.batch_size}, {config.seeds} seeds")
    save_figure(figure, config.out / "ablation.png", into=outputs.writing)
    return table


def base_config(config: AblateConfig) -> TrainConfig:
    """What the runs share; the data's seed is the first one's in all of them."""
    shared = {field.name for field in dataclasses.fields(AblateConfig)} & {
        field.name for field in dataclasses.fields(TrainConfig)
    }
    values: dict[str, Any] = {name: getattr(config, name) for name in shared}
    songs = config.out / "songs" if config.data is None else config.data
    return TrainConfig(**{**values, "data": songs, "examples": 0, "tensorboard": False})


@outputs.acting("ablate")
def run_variant(
    config: AblateConfig,
    base: TrainConfig,
    variant: str,
    seed: int,
    codec: Codec,
    train_set: ClipDataset,
    held_out: ClipDataset,
) -> Score:
    """Trains one variant with one seed. Its log stays under `out/runs`, its checkpoints do not."""
    parts = VARIANTS.index(variant)
    out = config.out / "runs" / f"{parts}-seed{seed}"
    changed = dataclasses.replace(
        base,
        out=out,
        seed=seed,
        num_pairs=config.num_pairs if parts >= 1 else 1,
        max_ratio=config.max_ratio if parts >= 2 else 1.0,
        max_strength=1.0 if parts >= 3 else 0.0,
        ratio_diversity_weight=config.ratio_diversity_weight if parts >= 2 else 0.0,  # there is one ratio alone
    )
    changed = dataclasses.replace(changed, resume=holds_run(out))  # where an ablation that is resumed was interrupted
    prepare_folder(out, resume=changed.resume)
    if not changed.resume:
        outputs.remove(out / "metrics.jsonl")  # of one that was interrupted before its first checkpoint
    trainer = Trainer(changed, codec, train_set, held_out, **SIZES[config.agent])
    resumed = trainer.logged_until() if changed.resume else None
    log = RunLog(out, to_plain(changed), tensorboard=False, mlflow=False, resumed=resumed)
    try:
        heard = trainer.run(log).heard
    finally:
        log.close()
    for name in (BEST, LAST, PREVIOUS):
        outputs.remove(out / name)
    distance, constant = distances(trainer)
    seconds = float(np.median(trainer.step_seconds))
    kept = {name: heard[name] for name in HEARD}
    return Score(variant, seed, 1 - distance / constant, distance, constant, seconds, **kept)


@torch.no_grad()
def distances(trainer: Trainer) -> tuple[float, float]:
    """Mean spectral term of patterns, and of constants, over the held-out clips."""
    agent, objective = trainer.agent.eval(), trainer.objective
    sums, count = np.zeros(2), 0
    for batch in DataLoader(trainer.held_out, batch_size=trainer.config.batch_size, generator=torch.Generator()):
        x, y = (batch[key].to(trainer.device) for key in ("input", "target"))
        outputs, losses, metadata = agent(x, y, transformed=True)
        windows, song = metadata["windows"], objective.like
        clip = x if song == "input" else y
        cut = resample_windows(clip, windows[f"start_{song}"], windows[f"ratio_{song}"], outputs[0].shape[-1]).float()
        constant = cut.mean(-1, keepdim=True).expand_as(cut)
        for k, candidate in enumerate((outputs, list(constant.unbind(1)))):
            _, parts = objective(
                candidate, losses, windows, x, y, random_stretch=False, transformed=metadata["transformed"]
            )
            sums[k] += len(x) * float(parts["spectral"])
        count += len(x)
    distance, constant_distance = sums / count
    return float(distance), float(constant_distance)


def read_csv(path: Path) -> list[Score]:
    """What `write_csv` wrote; nothing where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kinds = {"variant": str, "seed": int}
    return [Score(**{name: kinds.get(name, float)(value) for name, value in row.items()}) for row in rows]


def write_csv(scores: list[Score], path: Path) -> None:
    with outputs.writing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Score)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(score) for score in scores)


def as_table(scores: list[Score]) -> str:
    """Markdown: mean skill ± standard deviation over seeds, what the part added, and in how many seeds it helped."""
    lines = [
        "| variant | skill | added by the part | seeds in which it helped | distance | of a constant | s/step "
        + "".join(f"| {name.replace('_', ' ')} " for name in HEARD)
        + "|",
        "|---" * (7 + len(HEARD)) + "|",
    ]
    before: NDArray[np.float64] | None = None
    for variant in VARIANTS:
        rows = [score for score in scores if score.variant == variant]
        skill = np.array([row.skill for row in rows])
        added, helped = "", ""
        if before is not None:
            gain = skill - before
            added = f"{gain.mean():+.4f} ± {spread(gain):.4f}"
            if abs(before.mean()) > spread(before):  # a share of what may as well be 0 says nothing
                share = 100 * gain / abs(before.mean())
                added += f" ({share.mean():+.1f} ± {spread(share):.1f} %)"
            helped = f"{int((gain > 0).sum())} of {len(gain)}"
        distance, constant, seconds = (
            np.mean([getattr(row, name) for row in rows]) for name in ("distance", "constant", "seconds_per_step")
        )
        lines.append(
            f"| {variant} | {skill.mean():.4f} ± {spread(skill):.4f} | {added} | {helped} "
            f"| {distance:.4f} | {constant:.4f} | {seconds:.2f} "
            + "".join(f"| {np.mean([getattr(row, name) for row in rows]):.2f} " for name in HEARD)
            + "|"
        )
        before = skill
    return "\n".join(lines)


def spread(values: NDArray[np.float64]) -> float:
    """Standard deviation over seeds; 0 for one seed."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
