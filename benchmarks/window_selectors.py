"""Do selectors learn to find a window, in signals they never saw? The figures of docs/results.md.

    python benchmarks/window_selectors.py synthetic
    python benchmarks/window_selectors.py songs --audio DIR --json songs.json

**Task.** x is a clip of T = 1200 frames, y a window of it: W = 800 frames that are `resample_windows(x, start, ratio)`
with ratio uniform in [1, 1.5] and start uniform in what fits. A selector with one pair is shown x and y and has to say
start and ratio. Score: median |start − truth| in frames and |ratio − truth|, over `--held-out` problems.

**Training.** Matching loss alone (`adaptive_window.losses.matching`: 1 − Pearson correlation of the window that was
chosen and y), both signals blurred by 64·(1 − progress)² frames; nothing is told of the true start and ratio. Adam,
half a cosine of learning rate, batches of `--batch` problems that are drawn anew for each step.

**synthetic**: Gaussian noise, blurred by 60 frames, 8 channels; every problem has a signal of its own.

**songs**: mel latents (50 frames/s), neighbouring bands averaged to 16. Pieces are split, not clips: of the recordings
in `--audio`, sorted by name, the first, third, ... are held out and the others trained on; of synthesized songs
(`adaptive_window.audio.synthesis`, both sides of a pair, 48 s) numbers 0 to 39 are trained on and 40 to 47 held out.
Half of all clips come from recordings. A clip whose first or last 4 s hardly change is drawn anew.

**Rows.** `constant`: start and ratio that are the medians of the task's own distribution, whatever the input. `mlp`:
the default `WindowSelector`, its two signals pooled as always (y's being W frames long). `correlation`:
`CorrelationSelector.match`, fresh, and trained for `--correlation-steps`. `refine`: `refine_windows` from where the
trained one points, on the first `--refine` problems.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_window import CorrelationSelector, WindowSelector, refine_windows
from adaptive_window.audio.files import find_audio, read_audio
from adaptive_window.audio.mel import MelCodec
from adaptive_window.audio.synthesis import synthesize_pair
from adaptive_window.kernels import resample_windows
from adaptive_window.losses.matching import matching_loss
from adaptive_window.losses.scale_space import annealed_sigma, gaussian_blur
from adaptive_window.model.selector import windows_from_logits

T, W, MAX_RATIO = 1200, 800, 1.5
BLUR = 64.0
NOISE_BLUR, NOISE_CHANNELS = 60.0, 8
SONG_BANDS, SONG_SECONDS, TRAINED_SONGS, HELD_OUT_SONGS = 16, 48.0, range(40), range(40, 48)
EDGE, STILL = 200, 0.1  # frames at either end of a clip, and the mean spread of a band there that is too little

Windows = tuple[Tensor, Tensor]  # start and ratio, [B, 1] each
Chooser = Callable[[Tensor, Tensor], Windows]  # x [B, C, T], y [B, C, W]
Clips = tuple[Tensor, list[str]]  # [B, C, T], and what each is from
Source = Callable[[int, torch.Generator], Clips]


def noise(count: int, generator: torch.Generator) -> Clips:
    """Fresh noise of unit spread."""
    x = gaussian_blur(torch.randn(count, NOISE_CHANNELS, T, generator=generator), NOISE_BLUR)
    return x / x.std(), ["noise"] * count


class Songs:
    """Clips from anywhere in pieces, half of them from recordings where there are any."""

    def __init__(self, recorded: dict[str, Tensor], synthesized: dict[str, Tensor]) -> None:
        self.groups = [group for group in (recorded, synthesized) if group]

    def __call__(self, count: int, generator: torch.Generator) -> Clips:
        clips, names = [], []
        while len(clips) < count:
            group = self.groups[len(clips) % len(self.groups)]
            name = list(group)[self._draw(len(group), generator)]
            begin = self._draw(group[name].shape[1] - T + 1, generator)
            clip = group[name][:, begin : begin + T]
            if min(clip[:, :EDGE].std(1).mean(), clip[:, -EDGE:].std(1).mean()) > STILL:
                clips.append(clip)
                names.append(name)
        return torch.stack(clips), names

    @staticmethod
    def _draw(below: int, generator: torch.Generator) -> int:
        return int(torch.randint(below, (), generator=generator))


def song_sources(folder: Path | None) -> tuple[Songs, Songs]:
    """Trained and held-out pieces."""
    codec = MelCodec()

    def encoded(audio: Tensor) -> Tensor:
        latents = codec.encode(audio.view(1, 1, -1))[0]  # [128, frames]
        return latents.unflatten(0, (SONG_BANDS, -1)).mean(1)

    files = find_audio(folder) if folder else []
    recorded = {path.stem: encoded(read_audio(path, codec.sample_rate)) for path in files}
    names = sorted(recorded)
    groups = []
    for real, numbers in ((names[1::2], TRAINED_SONGS), (names[0::2], HELD_OUT_SONGS)):
        synthesized = {}
        for number in numbers:
            piece = synthesize_pair(number, seconds=SONG_SECONDS, sample_rate=codec.sample_rate)
            for side, audio in (("input", piece.input), ("target", piece.target)):
                synthesized[f"synthesized {number} {side}"] = encoded(torch.from_numpy(audio))
        groups.append(Songs({name: recorded[name] for name in real}, synthesized))
        print(f"{'trained on' if numbers is TRAINED_SONGS else 'held out'}: {', '.join(real)}, "
              f"{len(synthesized)} synthesized (numbers {numbers[0]} to {numbers[-1]})", flush=True)  # fmt: skip
    return groups[0], groups[1]


def draw(source: Source, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Windows, list[str]]:
    """Problems: x, y, the true windows, and what x is from."""
    x, names = source(count, generator)
    unit = torch.rand(2, count, 1, generator=generator)
    ratio = 1 + (MAX_RATIO - 1) * unit[0]
    start = unit[1] * (T - ratio * W)
    return x, resample_windows(x, start, ratio, W)[:, 0], (start, ratio), names


def constant(x: Tensor, _: Tensor) -> Windows:
    """Medians of `draw`: start = u·(400 − 400·v), u and v uniform, has its median at 74.7 (u·v < 0.187)."""
    one = torch.ones(len(x), 1)
    return 74.7 * one, 1.25 * one


def mlp_chooser(selector: WindowSelector) -> Chooser:
    def choose(x: Tensor, y: Tensor) -> Windows:
        pooled = torch.cat([selector.pool(x), selector.pool(y)], dim=1)
        windows = windows_from_logits(selector.mlp(pooled.flatten(1)), T, W, MAX_RATIO)
        return windows["start_input"], windows["ratio_input"]

    return choose


def correlation_chooser(selector: CorrelationSelector) -> Chooser:
    return lambda x, y: selector.match(x, y, *whole(x))


def whole(x: Tensor) -> Windows:
    """y's window: all of it."""
    return torch.zeros(len(x), 1), torch.ones(len(x), 1)


def train(module: nn.Module, choose: Chooser, source: Source, steps: int, batch: int, rate: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    module.train()
    began, shown = time.perf_counter(), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        x, y, _, _ = draw(source, batch, generator)
        start, ratio = choose(x, y)
        start_y, ratio_y = whole(x)
        windows = {"start_input": start, "ratio_input": ratio, "start_target": start_y, "ratio_target": ratio_y}
        loss = matching_loss(x, y, windows, W, sigma=annealed_sigma(step, steps, BLUR))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shown += loss.item()
        if (step + 1) % max(1, steps // 8) == 0:
            pace = (time.perf_counter() - began) / (step + 1)
            print(f"  step {step + 1}/{steps}  loss {shown / max(1, steps // 8):.4f}  {pace:.3f} s/step", flush=True)
            shown = 0.0
    module.eval()


@torch.no_grad()
def in_batches(choose: Chooser, x: Tensor, y: Tensor, size: int = 32) -> Windows:
    parts = [choose(a, b) for a, b in zip(x.split(size), y.split(size), strict=True)]
    return torch.cat([start for start, _ in parts]), torch.cat([ratio for _, ratio in parts])


def score(found: Windows, truth: Windows, names: Sequence[str]) -> dict[str, Any]:
    """Medians over all problems, and over those of each recording or kind."""
    errors = [(a - b).abs()[:, 0] for a, b in zip(found, truth, strict=True)]
    kinds = ["synthesized" if name.startswith("synthesized") else name for name in names]
    rows = {"all": list(range(len(kinds)))}
    if len(set(kinds)) > 1:
        rows |= {kind: [i for i, other in enumerate(kinds) if other == kind] for kind in sorted(set(kinds))}
    return {
        kind: {"problems": len(i), "start": errors[0][i].median().item(), "ratio": errors[1][i].median().item()}
        for kind, i in rows.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["synthetic", "songs"])
    parser.add_argument("--audio", type=Path, help="folder of recordings, for songs (default: synthesized ones only)")
    parser.add_argument("--steps", type=int, default=8000, help="training steps of the mlp; 0 leaves it out")
    parser.add_argument("--correlation-steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=512, help="problems that are scored")
    parser.add_argument("--refine", type=int, default=64, help="of these, problems that are refined; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    trained, held_out = (noise, noise) if options.task == "synthetic" else song_sources(options.audio)
    problems = draw(held_out, options.held_out, torch.Generator().manual_seed(options.seed + 1_000_000))
    x, y, truth, names = problems
    channels = x.shape[1]
    results: dict[str, Any] = {}

    def report(row: str, found: Windows) -> None:
        results[row] = score(found, tuple(value[: len(found[0])] for value in truth), names[: len(found[0])])
        line = "   ".join(
            f"{kind} ({s['problems']}) {s['start']:.2f} frames {s['ratio']:.4f}" for kind, s in results[row].items()
        )
        print(f"{row:22s} {line}", flush=True)

    report("constant", in_batches(constant, x, y))
    torch.manual_seed(options.seed)
    correlation = CorrelationSelector(channels, 1, window_frames=W, max_ratio=MAX_RATIO)
    choose = correlation_chooser(correlation)
    report("correlation, fresh", in_batches(choose, x, y))
    train(correlation, choose, trained, options.correlation_steps, options.batch, 1e-2, options.seed)
    found = in_batches(choose, x, y)
    report("correlation, trained", found)
    if options.refine:
        few = slice(options.refine)
        start, ratio, _ = refine_windows(
            x[few], y[few], W, start_x=found[0][few, 0], ratio_x=found[1][few, 0], restarts=1, max_ratio=MAX_RATIO
        )
        report("correlation + refine", (start[:, None], ratio[:, None]))
    if options.steps:
        mlp = WindowSelector(channels, 1, window_frames=W, max_ratio=MAX_RATIO)
        choose = mlp_chooser(mlp)
        train(mlp, choose, trained, options.steps, options.batch, 3e-4, options.seed)
        report("mlp", in_batches(choose, x, y))
    if options.json:
        record = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        options.json.write_text(json.dumps({"options": record, "results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
