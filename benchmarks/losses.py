"""What each loss does on a case whose answer is known; half a minute on one core, seeded.

    python benchmarks/losses.py

Windows are logits, made windows as a selector's are (`windows_from_logits`: W = 300, T = 1200, ratios 1 to 1.5), so
what is found includes what the ends of the ranges do. Each is trained by Adam against one loss alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adaptive_window import CompositionalCreativeAgent, losses
from adaptive_window.kernels import resample_windows
from adaptive_window.model.composer import BALANCE_WEIGHT, NOVELTIES, novelty_terms
from adaptive_window.model.selector import FRESH_RATIO, PER_PAIR, windows_from_logits

FRAMES, WINDOW, MAX_RATIO, PAIRS = 1200, 300, 1.5, 3
STEPS, RATE = 1500, 0.02

Windows = dict[str, Tensor]


def train(loss: Callable[[Windows], Tensor], start: float, ratio: float) -> Windows:
    """Equal pairs, at these places of the ranges (0 to 1), after training against the loss."""
    unit = torch.tensor([start, start, ratio, ratio, 0.5], dtype=torch.float64)
    logits = torch.logit(unit).repeat(PAIRS)[None].requires_grad_()  # [1, 5·P]
    assert logits.shape == (1, PER_PAIR * PAIRS)
    optimizer = torch.optim.Adam([logits], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(windows_from_logits(logits, FRAMES, WINDOW, MAX_RATIO)).backward()
        optimizer.step()
    return windows_from_logits(logits.detach(), FRAMES, WINDOW, MAX_RATIO)


def jaccard(windows: Windows) -> Tensor:
    """Intersection over union, the usual measure: what the penalty would be without order and without continuation."""
    i, j = torch.triu_indices(PAIRS, PAIRS, offset=1)
    indices = []
    for stream in ("input", "target"):
        start = windows[f"start_{stream}"]
        end = start + windows[f"ratio_{stream}"] * WINDOW
        shared = (torch.minimum(end[:, i], end[:, j]) - torch.maximum(start[:, i], start[:, j])).relu()
        indices.append(shared / ((end - start)[:, i] + (end - start)[:, j] - shared))
    return torch.stack(indices).mean()


def variance(windows: Windows) -> Tensor:
    return torch.stack([windows["ratio_input"], windows["ratio_target"]]).var(2, correction=0).mean()


def numbers(values: Tensor, digits: int) -> str:
    return "  ".join(f"{value:.{digits}f}" for value in values[0].tolist())


def show_overlap() -> None:
    print(f"Overlap: {PAIRS} equal windows of {WINDOW} frames at the middle of {FRAMES}, {STEPS} steps against")
    for name, loss in (
        ("Jaccard index", jaccard),
        ("window_overlap_penalty", lambda w: losses.window_overlap_penalty(w, WINDOW)),
    ):
        found = train(loss, 0.5, 0.2)
        starts, ratios = numbers(found["start_input"], 0), numbers(found["ratio_input"], 2)
        print(f"  {name:<24} starts {starts}   ratios {ratios}   Jaccard left {jaccard(found):.3f}")


def show_ratios() -> None:
    print(f"\nRatios: {PAIRS} equal ones in [1, {MAX_RATIO}], {STEPS} steps for more of")
    # equal ratios have no gradient of the variance: it is shown from slightly unequal ones
    uneven = torch.tensor([-0.01, 0.0, 0.01], dtype=torch.float64)
    for place, unit in (("fresh, 1.005", FRESH_RATIO), ("middle, 1.25", 0.5)):
        for name, loss in (
            ("variance", lambda w: -variance(w)),
            (
                "variance, from 0.01 apart",
                lambda w: -variance({k: v + uneven if k.startswith("ratio") else v for k, v in w.items()}),
            ),
            ("ratio_diversity", lambda w: -losses.ratio_diversity(w)),
        ):
            found = train(loss, 0.5, unit)
            print(f"  {place:<14} {name:<26} ratios {numbers(found['ratio_input'], 3)}")


def show_novelty() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (4, 128, 800)
    source, other, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    turns = torch.tensor([1.0, -1.0])
    candidates = {
        "copy of the input": source,
        "copy, sign turned": -source,
        "copy, sign turned in every other frame": source * turns.repeat(400),
        "copy, sign turned in every other sample": source * turns.repeat(2)[:, None, None],
        "noise": noise,
    }
    print("\nNovelty: likeness to the input (1: a copy, 0: new), 4 windows [128, 800]")
    print(f"  {'output':<42}" + "".join(f"{kind:>11}" for kind in NOVELTIES))
    level = torch.zeros(4, 6, 800)
    for name, output in candidates.items():
        cells = [novelty_terms(output, source, other, level, kind).mean(0).abs()[0].item() for kind in NOVELTIES]
        print(f"  {name:<42}" + "".join(f"{cell:>11.3f}" for cell in cells))
    print("\nFresh agents (full size, training mode, 3 seeds) on smooth noise, 2 x [128, 400]: novelty, balance")
    smooth = torch.nn.functional.avg_pool1d(torch.randn(4, 128, 420, generator=generator), 21, 1)
    x, y = (smooth / smooth.std()).split(2)
    for kind in NOVELTIES:
        cells = []
        for seed in range(3):
            torch.manual_seed(seed)
            agent = CompositionalCreativeAgent(novelty=kind)
            with torch.no_grad():
                terms = agent(x, y, "terms")[1].mean(0).abs()
            cells.append(f"{0.5 * (terms[0] + terms[1]):.4f}, {BALANCE_WEIGHT * terms[2]:.4f}")
        print(f"  {kind:<12} " + "    ".join(cells))


def show_reconstruction() -> None:
    print("\nReconstruction: the pattern is the window (start 300, ratio 1.2) of the target; descent from")
    noise = torch.randn(1, 16, FRAMES + 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    target = torch.nn.functional.avg_pool1d(torch.nn.functional.avg_pool1d(noise, 21, 1), 21, 1)
    truth = torch.tensor([[300.0]], dtype=torch.float64), torch.tensor([[1.2]], dtype=torch.float64)
    pattern = resample_windows(target, *truth, WINDOW)
    for start_off, ratio_off in ((5.0, 0.02), (15.0, 0.05), (100.0, 0.1)):
        start = (truth[0] + start_off).requires_grad_()
        length = ((truth[1] + ratio_off) * WINDOW).requires_grad_()
        optimizer = torch.optim.Adam([start, length], lr=0.2)
        for _ in range(STEPS):
            optimizer.zero_grad()
            losses.reconstruction_loss(pattern, resample_windows(target, start, length / WINDOW, WINDOW)).backward()
            optimizer.step()
        print(
            f"  {start_off:>3.0f} frames and {ratio_off:.2f} off: ends {abs(start.item() - 300):.2f} frames and "
            f"{abs(length.item() / WINDOW - 1.2):.4f} off"
        )


def show_envelope_copy() -> None:
    generator = torch.Generator().manual_seed(2)
    envelope = torch.rand(1, 250, generator=generator).repeat_interleave(64, 1)
    carriers = torch.randn(3, 1, 16000, generator=generator)
    source = envelope * carriers[0]
    print("\nEnvelope copy: penalty of an output against its source, 250 segments")
    for name, output in (
        ("the source itself", source),
        ("another signal, the same envelope", envelope * carriers[1]),
        ("another signal, a flat envelope", carriers[2]),
    ):
        print(f"  {name:<36} {losses.envelope_copy_penalty(output, source):.3f}")


if __name__ == "__main__":
    show_overlap()
    show_ratios()
    show_novelty()
    show_reconstruction()
    show_envelope_copy()
