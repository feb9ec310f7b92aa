"""Does each pair find a section of its own? Planted A/B/C sections, held-out tracks, and white noise as the control.

    python benchmarks/structure.py

A track has three sections, new material in every track (smooth noise). The target plays something else for 135 to 165
of its 1200 frames, then A, B, C, each 285 to 315 frames, then something else again; the input plays them in any order
from its beginning, section k slower by a factor ρ_k drawn from [1, 1.25]. White noise beneath everything (-20 dB). So a
pair's windows match where they hold the same part of the same section and ratio_input = ρ_k · ratio_target.

`CorrelationSelector` (W = 220 frames) learns which windows of the target to look for, by `matching_loss` with and
without `window_overlap_penalty`. Pairs begin exactly equal, in the middle. Then, on tracks never seen:

    matched     correlation of a pair's two windows (1 − matching_loss)
    together    pairs whose two windows lie in the same section, at least 90 % of either
    own         tracks whose three pairs take the three sections, one each, together
    std pairs   standard deviation of the input's starts over the pairs of a track, in frames; mean over tracks
    std tracks  standard deviation of a pair's input start over tracks; mean over pairs (a constant guess has 0)
    ratio off   mean |ratio_input − ρ_k · ratio_target| over pairs that are together
    r(ρ)        correlation of ratio_input / ratio_target with ρ_k over them
    at bounds   input ratios within 0.01 of either end of the range

In white noise the starts scatter as well, since some place is always the best: `matched` tells that nothing was found.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_window.losses import window_overlap_penalty
from adaptive_window.losses.matching import matching_loss
from adaptive_window.losses.scale_space import gaussian_blur
from adaptive_window.model.correlation_selector import CorrelationSelector

CHANNELS, FRAMES, WINDOW, PAIRS, MAX_RATIO = 4, 1200, 220, 3, 1.4
SECTIONS, MATERIAL = 3, 400  # samples of a section's material, which is stretched to its length
SHORTEST, LONGEST, SLOWEST = 285.0, 315.0, 1.25
LEAD = (135.0, 165.0)
SMOOTH = 10.0  # frames of Gaussian blur that make the material
NOISE = 0.1


@dataclass
class Tracks:
    """`x`, `y` `[B, C, T]`; `edges_x`, `edges_y` `[B, 3, 2]`: first frame and end of A, B, C; `rho` `[B, 3]`."""

    x: Tensor
    y: Tensor
    edges_x: Tensor
    edges_y: Tensor
    rho: Tensor


def planted(batch: int, generator: torch.Generator) -> Tracks:
    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, SECTIONS, generator=generator)

    material = smooth(batch, generator)
    rho, length = uniform(1.0, SLOWEST), uniform(SHORTEST, LONGEST)
    order = torch.rand(batch, SECTIONS, generator=generator).argsort(1)
    lead = LEAD[0] + (LEAD[1] - LEAD[0]) * torch.rand(batch, 1, generator=generator)
    y, edges_y = perform(material, lead, length, torch.arange(SECTIONS).expand(batch, -1), generator)
    x, edges_x = perform(material, torch.zeros(batch, 1), rho * length, order, generator)
    return Tracks(x, y, edges_x, edges_y, rho)


def smooth(batch: int, generator: torch.Generator) -> Tensor:
    """`[B, 3, C, N]`, each channel of unit spread."""
    material = gaussian_blur(torch.randn(batch, SECTIONS, CHANNELS, MATERIAL, generator=generator), SMOOTH)
    return (material - material.mean(-1, keepdim=True)) / material.std(-1, keepdim=True)


def perform(
    material: Tensor, lead: Tensor, length: Tensor, order: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A clip that plays the sections in this order, each in its length (`[B, 3]`, by section), after `lead` frames."""
    batch = len(order)
    played = length.gather(1, order)
    end = lead + played.cumsum(1)
    edges = torch.empty(batch, SECTIONS, 2).scatter(
        1, order[..., None].expand(-1, -1, 2), torch.stack([end - played, end], dim=2)
    )
    clip = smooth(batch, generator).transpose(1, 2).flatten(2)[..., :FRAMES]  # what plays when nothing else does
    t = torch.arange(FRAMES) + 0.5
    for section in range(SECTIONS):
        first, last = (edges[:, section, k, None] for k in (0, 1))  # [B, 1]
        place = ((t - first) / (last - first) * MATERIAL - 0.5).clamp(0, MATERIAL - 1)  # [B, T]
        low = place.floor().clamp(max=MATERIAL - 2).long()
        index = low[:, None].expand(-1, CHANNELS, -1)
        wave = torch.lerp(
            material[:, section].gather(2, index), material[:, section].gather(2, index + 1), (place - low)[:, None]
        )
        clip = torch.where(((t >= first) & (t < last))[:, None], wave, clip)
    return clip + NOISE * torch.randn(clip.shape, generator=generator), edges


def white(batch: int, generator: torch.Generator) -> Tracks:
    """Noise; the edges are those of tracks that are not there."""
    absent = planted(batch, generator)
    x, y = torch.randn(2, batch, CHANNELS, FRAMES, generator=generator)
    return Tracks(x, y, absent.edges_x, absent.edges_y, absent.rho)


def equal_pairs() -> CorrelationSelector:
    selector = CorrelationSelector(CHANNELS, PAIRS, window_frames=WINDOW, max_ratio=MAX_RATIO)
    with torch.no_grad():
        selector.target_start.fill_(0.0)
        selector.target_ratio.fill_(-2.0)
    return selector


def train(
    make: Callable[[int, torch.Generator], Tracks], overlap_weight: float, steps: int, batch: int, seed: int
) -> CorrelationSelector:
    selector, generator = equal_pairs(), torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.Adam(selector.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        tracks = make(batch, generator)
        windows = selector(tracks.x, tracks.y)
        loss = matching_loss(tracks.x, tracks.y, windows, WINDOW)
        loss = loss + overlap_weight * window_overlap_penalty(windows, WINDOW)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return selector


def section_of(start: Tensor, ratio: Tensor, edges: Tensor) -> Tensor:
    """`[B, P]`: the section that holds at least 90 % of a window, or -1."""
    end = start + ratio * WINDOW
    shared = torch.minimum(end[..., None], edges[:, None, :, 1]) - torch.maximum(start[..., None], edges[:, None, :, 0])
    share, section = (shared / (end - start)[..., None]).max(-1)
    return torch.where(share >= 0.9, section, -1)


@torch.no_grad()
def measure(selector: CorrelationSelector, tracks: Tracks) -> dict[str, float]:
    parts = [selector(x, y) for x, y in zip(tracks.x.split(20), tracks.y.split(20), strict=True)]
    windows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    in_x = section_of(windows["start_input"], windows["ratio_input"], tracks.edges_x)
    in_y = section_of(windows["start_target"], windows["ratio_target"], tracks.edges_y)
    together = (in_x == in_y) & (in_x >= 0)
    own = together.all(1) & (in_x.sort(1).values == torch.arange(PAIRS)).all(1)
    rho = tracks.rho.gather(1, in_x.clamp(min=0))[together]
    ratio, ratio_target = windows["ratio_input"][together], windows["ratio_target"][together]
    known = len(rho) > 2
    return {
        "matched": 1 - matching_loss(tracks.x, tracks.y, windows, WINDOW).item(),
        "together": together.float().mean().item(),
        "own": own.float().mean().item(),
        "std pairs": windows["start_input"].std(1, correction=0).mean().item(),
        "std tracks": windows["start_input"].std(0).mean().item(),
        "ratio off": (ratio - rho * ratio_target).abs().mean().item() if known else float("nan"),
        "r(ρ)": torch.corrcoef(torch.stack([rho, ratio / ratio_target]))[0, 1].item() if known else float("nan"),
        "at bounds": ((windows["ratio_input"] - (1 + MAX_RATIO) / 2).abs() > (MAX_RATIO - 1) / 2 - 0.01)
        .float()
        .mean()
        .item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tracks", type=int, default=200, help="held-out tracks")
    parser.add_argument("--overlap-weight", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    title = None
    for seed in range(options.seeds):
        for name, make, weight in (
            ("planted, untrained", planted, None),
            ("planted, matching alone", planted, 0.0),
            ("planted, overlap penalty", planted, options.overlap_weight),
            ("white noise, overlap penalty", white, options.overlap_weight),
        ):
            began = time.process_time()
            selector = equal_pairs() if weight is None else train(make, weight, options.steps, options.batch, seed)
            found = measure(selector, make(options.tracks, torch.Generator().manual_seed(999_999 + seed)))
            if title is None:
                title = f"{'seed, case':<34}" + "".join(f"{key:>12}" for key in found)
                print(title)
            cells = "".join(f"{value:>12.{1 if key.startswith('std') else 3}f}" for key, value in found.items())
            print(f"{seed}  {name:<31}{cells}   {time.process_time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
