"""Does the rhythm loss find a tempo ratio, in `refine` and in training, on drum loops and on recorded music?

    python benchmarks/rhythm.py --audio DIR --json rhythm.json

**drums.** x is a loop at 100 BPM, y another one at 125 (`synthesize_drums`, mel latents; kick, snare, hat and their
sounds drawn anew). The ratio sought is 1.25. `refine`: `refine_rhythm(x, y[:800 frames])` with one restart, from each
of `--starts` ratios spread over [1, 1.5]; share of starts that end within 1 %, and of couples where four restarts do.
`training`: a fresh `WindowSelector` of one pair, its biases set so that both of its ratios begin at one of as many
values, trained on this pair of clips by `tempo_matching` alone, AdamW at 3e-4 with half a cosine and the blur annealed,
as `train` does by default; share of runs whose ratio_input / ratio_target ends within 1 % of 1.25. `envelope`: the same
as refine's, by the correlation of onset envelopes alone (`losses.rhythm_matching`), for comparison.

**80 against 140 BPM** needs 1.75: what `max_ratio` 1.5 answers, and 2.

**scores.** `refine_rhythm`'s score where both are one tempo (drums at 100 and 125), and where the tempos do not meet in
range (80 and 140, max_ratio 1.5); how many fall on the wrong side of the threshold.

**recordings.** For every file in `--audio`: x is a clip of 24 s, y the 16 s window that the next 16·r seconds of the
same piece make when their latents are compressed by r = 1.25: another passage in the same tempo, if that is steady.
Share of starts that end within 1 %, over `--clips` couples of passages from its beginning to its end.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptive_window import WindowSelector
from adaptive_window.audio.files import find_audio, read_audio
from adaptive_window.audio.mel import MelCodec
from adaptive_window.audio.synthesis import synthesize_drums
from adaptive_window.inference.matching import MATCH_SCORE
from adaptive_window.inference.refine_rhythm import better_out_of_range, refine_rhythm, tempo_scan
from adaptive_window.kernels import resample_windows
from adaptive_window.losses import rhythm_matching
from adaptive_window.losses.rhythm import annealed_rhythm_blur, tempo_matching

T, W = 1200, 800
WANTED = 1.25


def drums(seed: int, bpm: float, seconds: float = 24.0) -> Tensor:
    """`[1, 128, frames]`."""
    codec = MelCodec()
    return codec.encode(torch.from_numpy(synthesize_drums(seed, bpm, seconds=seconds, sample_rate=16000))[None, None])


def spread(starts: int) -> Tensor:
    """Ratios `[starts]` over [1, 1.5], without its ends."""
    return 1 + 0.5 * (torch.arange(starts) + 0.5) / starts


def share(ratio: Tensor, wanted: float = WANTED) -> float:
    return ((ratio / wanted - 1).abs() < 0.01).float().mean().item()


def by_refine(x: Tensor, y: Tensor, starts: int) -> Tensor:
    """The ratio that each start ends at, `[starts]`."""
    x, y = (clip.expand(starts, -1, -1) for clip in (x, y))
    guess = spread(starts)
    middle = (T - guess * W) / 2
    return refine_rhythm(x, y, W, start_x=middle, ratio_x=guess, restarts=1)[1]


def by_envelope(x: Tensor, y: Tensor, starts: int, steps: int = 100) -> Tensor:
    """The same by correlation of the onset envelopes of the resampled windows, start and ratio free."""
    guess = spread(starts)
    free = torch.stack([torch.logit((guess - 1) / 0.5), torch.zeros(starts)]).requires_grad_()
    adam = torch.optim.Adam([free], lr=0.05, betas=(0.9, 0.99))
    for _ in range(steps):
        ratio = 1 + 0.5 * free[0].sigmoid()
        start = free[1].sigmoid() * (T - W * ratio)
        cut = resample_windows(x, start[None], ratio[None], W)
        loss = starts * rhythm_matching(cut, y[:, None].expand_as(cut))
        adam.zero_grad()
        loss.backward()
        adam.step()
    return (1 + 0.5 * free[0].sigmoid()).detach()


def by_training(x: Tensor, y: Tensor, starts: int, steps: int) -> Tensor:
    """ratio_input / ratio_target of selectors trained from each start, `[starts]`."""
    found = []
    for k, ratio in enumerate(spread(starts).tolist()):
        torch.manual_seed(k)
        selector = WindowSelector(x.shape[1], 1, window_frames=W)
        with torch.no_grad():
            selector.mlp[8].bias[2:4] = torch.logit(torch.tensor((ratio - 1) / 0.5))
        adam = torch.optim.AdamW(selector.parameters(), lr=3e-4, weight_decay=0.01)
        for step in range(steps):
            for group in adam.param_groups:
                group["lr"] = 3e-4 * 0.5 * (1 + math.cos(math.pi * step / steps))
            loss = tempo_matching(x, y, selector(x, y), W, blur=annealed_rhythm_blur(step / (0.75 * steps)))
            adam.zero_grad()
            loss.backward()
            adam.step()
        with torch.no_grad():
            windows = selector.eval()(x, y)
        found.append(windows["ratio_input"] / windows["ratio_target"])
    return torch.cat(found).flatten()


def passages(latents: Tensor, clips: int) -> list[tuple[Tensor, Tensor]]:
    """Couples (x `[1, C, 1200]`, y `[1, C, 800]`): y is of the 1,000 frames that follow x, or of the piece's last."""
    frames = latents.shape[2]
    length = round(WANTED * W)
    couples = []
    for k in range(clips):
        place = k / max(1, clips - 1)
        begin = round(place * max(0, (frames - T - length)))  # of x
        other = min(begin + T, frames - length)
        y = resample_windows(latents, torch.tensor([[float(other)]]), torch.tensor([[WANTED]]), W)[:, 0]
        couples.append((latents[..., begin : begin + T], y))
    return couples


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, help="folder of recordings (default: drums only)")
    parser.add_argument("--loops", type=int, default=8, help="couples of drum loops")
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument(
        "--trained",
        type=int,
        default=2,
        help="of the loops, how many selectors are trained on, and `envelope` is tried on",
    )
    parser.add_argument("--steps", type=int, default=200, help="of training")
    parser.add_argument("--clips", type=int, default=3, help="couples of passages of each recording")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}

    def report(name: str, text: str, **figures: Any) -> None:
        results[name] = figures
        print(f"{name:36s} {text}", flush=True)

    loops = [(drums(2 * k, 100), drums(2 * k + 1, 125)) for k in range(options.loops)]
    ways: list[tuple[str, int, Callable[[Tensor, Tensor], Tensor]]] = [
        ("drums, refine", options.loops, lambda x, y: by_refine(x, y[..., :W], options.starts)),
        ("drums, envelope", options.trained, lambda x, y: by_envelope(x, y[..., :W], options.starts)),
        ("drums, training", options.trained, lambda x, y: by_training(x, y, options.starts, options.steps)),
    ]
    for name, count, way in ways:
        shares = [share(way(x, y)) for x, y in loops[:count]]
        mean = sum(shares) / len(shares)
        report(name, f"{mean:.1%} of starts; per couple " + " ".join(f"{s:.0%}" for s in shares), shares=shares)

    x, y = (torch.cat(clips) for clips in zip(*loops, strict=True))
    _, ratio, score = refine_rhythm(x, y[..., :W], W)
    report("drums, refine with 4 restarts", f"{share(ratio):.1%} of couples", share=share(ratio))
    slow, fast = torch.cat([drums(2 * k, 80) for k in range(options.loops)]), torch.cat(
        [drums(2 * k + 1, 140) for k in range(options.loops)]
    )  # fmt: skip
    *_, low = refine_rhythm(slow, fast[..., :W], W)
    least = MATCH_SCORE["rhythm"]
    report(
        "scores, one tempo", f"{score.min():.2f} to {score.max():.2f}; {int((score < least).sum())} of {len(score)} "
        f"below {least}", scores=score.tolist(),
    )  # fmt: skip
    report(
        "scores, tempo out of range", f"{low.min():.2f} to {low.max():.2f}; {int((low >= least).sum())} of {len(low)} "
        f"not below {least}", scores=low.tolist(),
    )  # fmt: skip
    ratios, scores = tempo_scan(slow, fast[..., :W], W)
    told = [better_out_of_range(ratios, row, 1.5) for row in scores]
    report(
        "80 and 140 BPM, max_ratio 1.5", "told to take " + " ".join("-" if r is None else f"{r:.2f}" for r in told),
        told=told,
    )  # fmt: skip
    longer = torch.cat([drums(2 * k, 80, seconds=32.0) for k in range(options.loops)])
    _, ratio, _ = refine_rhythm(longer, fast[..., :W], W, max_ratio=2.0)
    report("80 and 140 BPM, max_ratio 2", f"{share(ratio, 1.75):.1%} within 1 % of 1.75", share=share(ratio, 1.75))

    codec = MelCodec()
    for path in find_audio(options.audio) if options.audio else []:
        latents = codec.encode(read_audio(path, codec.sample_rate)[None])
        found = [by_refine(a, b, options.starts) for a, b in passages(latents, options.clips)]
        four = torch.cat([refine_rhythm(a, b, W)[1] for a, b in passages(latents, options.clips)])
        report(
            path.stem, f"{share(torch.cat(found)):.0%} of starts, with 4 restarts {share(four):.0%} of passages",
            starts=share(torch.cat(found)), restarts=share(four),
        )  # fmt: skip
    if options.json:
        record = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        options.json.write_text(json.dumps({"options": record, "results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
