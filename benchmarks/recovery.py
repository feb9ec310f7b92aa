"""Does `refine_windows` find planted windows, and does its score tell a match from no match? Prints a table.

    python benchmarks/recovery.py [--audio DIR]

Windows of 16 s in clips of 24 s (800 of 1200 frames at 50 frames/s), ratio uniform in [1, 1.5], start uniform in what
fits. Synthetic latents are blurred white noise. Pieces are clips of the recordings in DIR (without it, of synthesized
pieces) through the mel codec: the window of the same latents; stretched as audio by a phase vocoder before encoding;
with random equalization, gain and white noise at 10 dB besides. `unrelated` searches the window of one piece in
another. `first or last` clips sound there alone, and their windows begin or end with them: start 0 or start + ratio·W =
T. Every random number follows from --seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recovery_data import Problems, clips, corner_clips, degrade, encoded, pieces, stretch, synthetic, with_noise
from torch import Tensor

from adaptive_window import refine_windows
from adaptive_window.audio.codec import Codec, CodecUnavailable, load_codec
from adaptive_window.inference.matching import lag_one_autocorrelation, match_threshold

Row = dict[str, Any]


def searched(
    problems: Problems, y: Tensor, name: str, frames: float, ratio: float, bar: float | None, **options: Any
) -> Row:
    """Searches, and counts what lies within `frames` and `ratio` of the truth."""
    began, cpu = time.perf_counter(), time.process_time()
    start, found, score = refine_windows(problems.x, y, problems.window, **options)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    off, wrong = (start - problems.start).abs(), (found - problems.ratio).abs()
    row = {
        "case": name,
        "n": len(start),
        "within": float(((off < frames) & (wrong < ratio)).float().mean()),
        "frames": frames,
        "ratio": ratio,
        "bar": bar,
        "median_frames": float(off.median()),
        "median_ratio": float(wrong.median()),
        "rejected": float((score < match_threshold(options.get("features", "latent"), problems.window)).float().mean()),
        "least_score": float(score.min()),
        "seconds": seconds,
        "cpu_seconds": cpu,
    }
    print(table_line(row), flush=True)
    return row


def unrelated(problems: Problems, y: Tensor, name: str, **options: Any) -> Row:
    """Every y against a clip of another piece."""
    count = len(y)
    other = [  # from half the list away on, the first of another piece
        next(
            k
            for k in ((i + count // 2 + step) % count for step in range(count))
            if problems.piece[k] != problems.piece[i]
        )
        for i in range(count)
    ]
    score = refine_windows(problems.x, y[other], problems.window, **options)[2]
    threshold = match_threshold(options.get("features", "latent"), problems.window)
    row = {
        "case": name,
        "n": len(score),
        "accepted": float((score >= threshold).float().mean()),
        "median_score": float(score.median()),
        "largest_score": float(score.max()),
    }
    print(
        f"{name:<44} {row['n']:>4}  accepted {row['accepted']:6.1%}  score: median {row['median_score']:.2f}, "
        f"largest {row['largest_score']:.2f}",
        flush=True,
    )
    return row


def table_line(row: Row) -> str:
    bar = "" if row["bar"] is None else f"(bar {row['bar']:.0%})"
    return (
        f"{row['case']:<44} {row['n']:>4}  {row['within']:6.1%} within {row['frames']:g} frames, {row['ratio']:g} "
        f"{bar:<9}  median {row['median_frames']:.2f} frames, {row['median_ratio']:.5f}  "
        f"rejected {row['rejected']:.1%}, least score {row['least_score']:.2f}  {row['seconds']:.0f} s"
    )


def synthetic_rows(count: int, seed: int) -> list[Row]:
    rows = []
    for correlation in (1.5, 5.0, 20.0):
        problems = synthetic(count, correlation, seed)
        y, name = problems.planted(), f"synthetic, correlation {correlation:g}"
        rows.append(searched(problems, y, name, 1, 0.005, 0.99))
        noisy = with_noise(y, 10.0, torch.Generator().manual_seed(seed + 1))
        rows.append(searched(problems, noisy, f"{name}, 10 dB noise", 2, 0.01, 0.95))
        rows.append(unrelated(problems, y, f"{name}, unrelated"))
    return rows


def middle_rows(count: int, seed: int) -> list[Row]:
    """What the blur is for: gradient alone, from the middle of the range."""
    problems = synthetic(count, 1.5, seed)
    middle = {"start_x": 100.0, "ratio_x": 1.25, "restarts": 1}
    y = problems.planted()
    return [
        searched(problems, y, "correlation 1.5, from the middle, no blur", 1, 0.005, None, blur=0.0, **middle),
        searched(problems, y, "correlation 1.5, from the middle, blurred", 1, 0.005, None, **middle),
    ]


def audio_rows(audio: dict[str, Tensor], per_piece: int, codec: Codec, seed: int, kind: str) -> list[Row]:
    problems, cuts = clips(audio, per_piece, codec, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    sped = [stretch(cut, r) for cut, r in zip(cuts, problems.ratio.tolist(), strict=True)]
    degraded = [degrade(a, generator) for a in sped]
    y, worse = encoded(sped, codec), encoded(degraded, codec)
    return [
        searched(problems, problems.planted(), f"{kind}, same recording", 1, 0.005, 0.99),
        searched(problems, y, f"{kind}, phase vocoder", 5, 0.01, 0.98),
        searched(problems, worse, f"{kind}, and EQ, gain, noise", 5, 0.01, 0.95),
        unrelated(problems, y, f"{kind}, unrelated, phase vocoder"),
        unrelated(problems, worse, f"{kind}, unrelated, and EQ, gain, noise"),
    ]


def corner_rows(audio: dict[str, Tensor], per_case: int, codec: Codec, seed: int, kind: str) -> list[Row]:
    """Windows at the clip's ends, in the corners and on the edges of what is searched, most of them quiet."""
    rows = []
    for seconds in (2.0, 5.0, 8.0):
        problems, cuts = corner_clips(audio, per_case, codec, seed, seconds)
        sped = [stretch(cut, r) if r > 1 else cut for cut, r in zip(cuts, problems.ratio.tolist(), strict=True)]
        name = f"{kind}, first or last {seconds:g} s"
        rows.append(searched(problems, problems.planted(), name, 1, 0.005, 0.99))
        rows.append(searched(problems, encoded(sped, codec), f"{name}, vocoder", 5, 0.01, None))
    return rows


def white_rows(audio: dict[str, Tensor], per_piece: int, seed: int) -> list[Row]:
    """Random EnCodec weights: latents with little or no memory from frame to frame."""
    rows = []
    for name in ("encodec-24khz", "encodec-32khz"):
        try:
            codec = load_codec(name, random=True)
        except CodecUnavailable as error:
            print(f"{name}: left out ({error})")
            continue
        resampled = {key: resample_audio(song, codec.sample_rate) for key, song in audio.items()}
        problems, cuts = clips(resampled, per_piece, codec, seed)
        y = encoded([stretch(cut, r) for cut, r in zip(cuts, problems.ratio.tolist(), strict=True)], codec)
        memory = float(lag_one_autocorrelation(problems.x).mean())
        print(f"{name}, random weights: lag-one autocorrelation {memory:.4f}")
        for features in ("latent", "energy", "difference"):
            rows.append(
                {
                    **searched(problems, y, f"{name} random, {features}", 5, 0.01, None, features=features),
                    "lag_one_autocorrelation": memory,
                }
            )
            rows.append(unrelated(problems, y, f"{name} random, {features}, unrelated", features=features))
    return rows


def resample_audio(song: Tensor, rate: int) -> Tensor:
    """From the mel codec's 16 kHz."""
    import soxr

    return torch.from_numpy(soxr.resample(song.numpy(), 16000, rate, quality="HQ"))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--audio", type=Path, help="folder of recordings (default: synthesized pieces)")
    cli.add_argument("--count", type=int, default=64, help="synthetic problems of each kind")
    cli.add_argument("--per-piece", type=int, default=16, help="clips of each piece")
    cli.add_argument("--per-case", type=int, default=2, help="clips of each piece in each case of a quiet corner")
    cli.add_argument("--encodec-per-piece", type=int, default=4, help="clips of each piece through EnCodec")
    cli.add_argument("--seed", type=int, default=20_000)
    cli.add_argument(
        "--parts",
        nargs="+",
        choices=("synthetic", "middle", "audio", "corner", "encodec"),
        default=["synthetic", "middle", "audio", "corner", "encodec"],
    )
    cli.add_argument("--json", type=Path, help="write the rows here too")
    options = cli.parse_args()
    codec = load_codec("mel")
    audio: dict[str, Tensor] = {}
    if {"audio", "corner", "encodec"} & set(options.parts):
        audio = pieces(options.audio, codec.sample_rate, options.seed)
        print(f"pieces: {', '.join(f'{name} {len(a) / codec.sample_rate:.0f} s' for name, a in audio.items())}")
    kind = "synthesized pieces" if options.audio is None else "recordings"
    parts: dict[str, Callable[[], list[Row]]] = {
        "synthetic": lambda: synthetic_rows(options.count, options.seed),
        "middle": lambda: middle_rows(options.count, options.seed),
        "corner": lambda: corner_rows(audio, options.per_case, codec, options.seed, kind),
        "audio": lambda: audio_rows(audio, options.per_piece, codec, options.seed, kind),
        "encodec": lambda: white_rows(audio, options.encodec_per_piece, options.seed),
    }
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, seed {options.seed}")
    rows = [row for part in options.parts for row in parts[part]()]
    timed = [row for row in rows if row.get("bar") is not None]
    if timed:
        per = 64 / sum(row["n"] for row in timed)
        print(
            f"64 problems take {per * sum(row['seconds'] for row in timed):.1f} s "
            f"({per * sum(row['cpu_seconds'] for row in timed):.1f} s of processor time; bar 90 s on four cores)"
        )
    missed = [row["case"] for row in timed if row["within"] < row["bar"]]
    print("every bar is reached" if not missed else f"missed: {'; '.join(missed)}")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
