"""What the windows and the patterns do in training, recipe by recipe, and which term of the loss pulls where.

    python benchmarks/learning_curves.py --steps 600 --json benchmarks/results/training/learning-curves.json \\
        --plot docs/learning-curves.svg
    python benchmarks/learning_curves.py --recipes --json ... --plot ...     only draws
    ... --full-agent FILE       draws the skill of `agent_step.py --train --json FILE` beside: the full agent on a GPU

A reduced agent (32 channels a component, two layers of width 128), 6 s clips of synthesized songs, 4 s patterns. Every
`--every` steps, on held-out songs: what is heard (`training.measures`), skill as in `ablate`, where the windows are;
and on the training batch the gradient of each term to every start and ratio, per unit of logit, summed over the batch
of a mean: negative pulls towards the end of the range, positive towards 0 or ratio 1.

    original      the original's loss and network of windows, at the learning rate 3e-4
    hotter        the same at 2e-3 with a warm-up
    still         that, its projection into the transformer eight times as large: content against positions
    regrooved     rhythm from the input, harmony from the target; the original's network of windows
    default       the same, with the content selector, novelty after 30 % of the run
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptive_window import AdaptiveWindowCreativeAgent
from adaptive_window.audio.mel import MelCodec
from adaptive_window.audio.songs import synthesize_song
from adaptive_window.config import TrainConfig
from adaptive_window.training.ablation import REDUCED
from adaptive_window.training.objective import Objective
from adaptive_window.training.step import learning_rate, parameter_groups

CLIP, WINDOW, PAIRS = 300, 200, 3
ORIGINAL: dict[str, Any] = {
    "selector": "mlp",
    "rhythm_from": "none",
    "harmony_from": "none",
    "novelty_after": 0.0,
    "selector_rate": 1.0,
    "learning_rate": 3e-4,
    "warmup_steps": 0,
}
HOTTER = {**ORIGINAL, "learning_rate": 2e-3, "warmup_steps": 50}
RECIPES: dict[str, dict[str, Any]] = {
    "original": ORIGINAL,
    "hotter": HOTTER,
    "still": HOTTER,
    "regrooved": {**HOTTER, "rhythm_from": "input", "harmony_from": "target"},
    "default": {"learning_rate": 2e-3, "warmup_steps": 50, "selector_rate": 0.05, "novelty_after": 0.3},
}
GAIN = {"still": 8.0}
SHOWN = ("fluctuation", "skill", "onsets_input", "harmony_target", "start_input", "ratio_input")
LEAST_PULL = 1e-8  # of a plot of logarithms
PULLED = ("start_input", "start_target", "ratio_input", "ratio_target")


def songs(first: int, count: int) -> Tensor:
    codec = MelCodec()
    made = (synthesize_song(seed, sample_rate=codec.sample_rate).audio for seed in range(first, first + count))
    return torch.stack([codec.encode(torch.from_numpy(audio)[None, None])[0] for audio in made])


def clips(of: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    song = torch.randint(len(of), (2, count), generator=generator)
    place = torch.randint(of.shape[2] - CLIP + 1, (2, count), generator=generator)
    x, y = (
        torch.stack([of[s, :, p : p + CLIP] for s, p in zip(song[k].tolist(), place[k].tolist(), strict=True)])
        for k in range(2)
    )
    return x, y


class Pulls:
    """Gradient of each term to the windows, as if they were what is learned: per unit of logit, mean over a batch."""

    def __init__(self, agent: AdaptiveWindowCreativeAgent, objective: Objective) -> None:
        self.agent, self.objective = agent, objective

    def __call__(self, x: Tensor, y: Tensor) -> dict[str, dict[str, list[float]]]:
        agent = self.agent
        with torch.no_grad():
            windows = agent.window_selector(x, y)
        live = {name: value.detach().requires_grad_() for name, value in windows.items()}
        outputs, terms = agent.compose_windows(x, y, live)
        from adaptive_window.model.composer import agent_loss, batch_mean

        losses = list(agent_loss(batch_mean(terms)).unbind())
        heard = {}
        if self.objective.agent_options:  # as the agent gives them: places are data, strength is not
            placed = {name: value if name == "strength" else value.detach() for name, value in live.items()}
            heard["transformed"] = agent.transform_windows(x, y, placed)
        _, parts = self.objective(list(outputs.unbind(1)), losses, live, x, y, **heard)
        found: dict[str, dict[str, list[float]]] = {}
        for name, value in parts.items():
            grads = torch.autograd.grad(value, [live[key] for key in PULLED], retain_graph=True, allow_unused=True)
            found[name] = {
                key: [0.0] * PAIRS if g is None else (g * self._slope(live, key)).sum(0).tolist()
                for key, g in zip(PULLED, grads, strict=True)
            }
        return found

    @staticmethod
    def _slope(live: dict[str, Tensor], key: str) -> Tensor:
        """d value / d logit, of value = range · σ(logit)."""
        if key.startswith("ratio"):
            unit, size = (live[key] - 1) / 0.5, 0.5
            return (size * unit * (1 - unit)).detach()
        room = CLIP - live[key.replace("start", "ratio")] * WINDOW
        unit = live[key] / room
        return (room * unit * (1 - unit)).detach()


@torch.no_grad()
def judged(agent: AdaptiveWindowCreativeAgent, objective: Objective, x: Tensor, y: Tensor) -> dict[str, Any]:
    agent.eval()
    outputs, _, metadata = agent(x, y, **objective.agent_options)
    windows, heard = metadata["windows"], {"transformed": metadata.get("transformed")}
    patterns = torch.stack(outputs, 1)
    found: dict[str, Any] = {
        name: float(value.mean()) for name, value in objective.measures(patterns, windows, x, y).items()
    }
    given = (list(outputs), [patterns.new_zeros(())] * PAIRS, windows, x, y)
    distance = float(objective(*given, random_stretch=False, **heard)[1]["spectral"])
    wanted = objective.reference(windows, x, y)
    constant = wanted.mean(-1, keepdim=True).expand_as(wanted)
    still = float(objective(list(constant.unbind(1)), *given[1:], random_stretch=False, **heard)[1]["spectral"])
    found["skill"] = 1 - distance / still
    for name in (*PULLED, "strength"):
        scale = 50.0 if name.startswith("start") else 1.0
        found[name] = (windows[name].mean(0) / scale).tolist()
        found[f"{name} spread"] = (windows[name].std(0) / scale).tolist()
    return found


def curve(name: str, options: argparse.Namespace, train: Tensor, held_out: Tensor) -> Iterator[dict[str, Any]]:
    """Trains one recipe; a row of figures at each evaluation."""
    torch.manual_seed(options.seed)
    config = TrainConfig(
        data=Path("none"),
        out=Path("none"),
        clip_seconds=6.0,
        window_seconds=4.0,
        dropout=0.0,
        max_steps=options.steps,
        **RECIPES[name],
    )
    agent = AdaptiveWindowCreativeAgent(window_frames=WINDOW, dropout=0.0, selector=config.selector, **REDUCED)
    with torch.no_grad():
        agent.creative_agent.composer.component_projection.weight.mul_(GAIN.get(name, 1.0))
    objective = Objective(MelCodec(), config)
    optimizer = torch.optim.AdamW(parameter_groups(agent, config), lr=1.0, weight_decay=0.01)
    generator = torch.Generator().manual_seed(options.seed)
    x_held, y_held = clips(held_out, 8, torch.Generator().manual_seed(99))
    began = time.process_time()
    for step in range(options.steps + 1):
        x, y = clips(train, 4, generator)
        if step % options.every == 0 or step == options.steps or step in (10, 25):
            row = {"step": step, **judged(agent, objective, x_held, y_held)}
            row["pulls"] = Pulls(agent.train(), objective)(x, y)
            print(
                f"{name} {step}: skill {row['skill']:.2f}, fluctuation {row['fluctuation']:.2f}, onsets "
                f"{row['onsets_target']:.2f}/{row['onsets_input']:.2f}, harmony {row['harmony_target']:.2f}, starts "
                f"{np.round(row['start_input'], 2)}, ratios {np.round(row['ratio_input'], 2)}, "
                f"{time.process_time() - began:.0f} s",
                flush=True,
            )
            yield rounded(row)
        agent.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step) * group["share"]
        outputs, losses, metadata = agent(x, y, **objective.agent_options)
        cuts = metadata.get("transformed")
        loss, _ = objective(outputs, losses, metadata["windows"], x, y, step=step, transformed=cuts)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(agent.parameters(), config.clip_gradient)
        optimizer.step()


def rounded(value: Any) -> Any:
    """A row as it is kept: floats to five digits."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def draw(curves: dict[str, list[dict[str, Any]]], path: Path, full_agent: dict[str, Any] | None = None) -> None:
    """What is heard and where the windows are, every recipe; beneath, one recipe's pulls: `default`, or the last.

    `full_agent`: figures of `agent_step.py --train`, whose skill is drawn beside that of the recipes.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 10), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 3)
    for panel, name in zip(axes[:2].flat, SHOWN, strict=True):
        for number, (recipe, rows) in enumerate(curves.items()):
            values = np.array([row[name] for row in rows], dtype=float).reshape(len(rows), -1)
            for pair in range(values.shape[1]):
                label = recipe if pair == 0 else None
                panel.plot([r["step"] for r in rows], values[:, pair], color=f"C{number}", lw=1.3, label=label)
        panel.set_title(name.replace("_", " ") + (" (s), each pair" if name.startswith("start") else ""), fontsize=9)
    axes[0, 0].legend(fontsize=7)
    if full_agent is not None:
        panel = axes.flat[SHOWN.index("skill")]
        steps, skill = zip(*((row["step"], row["skill"]) for row in full_agent["curve"]), strict=True)
        panel.plot(steps, skill, "k--", lw=1.3, label=f"full agent, original's objective,\n{full_agent['device']}")
        panel.legend(fontsize=7, loc="lower right")
    recipe = "default" if "default" in curves else list(curves)[-1]
    rows = curves[recipe]
    for panel, name in zip(axes[2], ("start_input", "start_target", "ratio_input"), strict=True):
        for term in rows[0]["pulls"]:
            pulls = np.array([row["pulls"][term][name] for row in rows])  # [evaluations, P]
            panel.semilogy([r["step"] for r in rows], np.abs(pulls).mean(1) + LEAST_PULL, lw=1.3, label=term)
        panel.set_title(f"{recipe}: |gradient| of {name.replace('_', ' ')}, mean over pairs", fontsize=9)
    axes[2, 0].legend(fontsize=7)
    for panel in axes.flat:
        panel.grid(alpha=0.3)
    figure.supxlabel("optimizer step")
    with rc_context({"svg.fonttype": "none"}):  # letters stay letters
        figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--songs", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), help="none: only draw --json")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--full-agent", type=Path, help="figures of agent_step.py --train --json, to draw beside")
    options = parser.parse_args()
    if unknown := set(options.recipes) - set(RECIPES):
        parser.error(f"--recipes {' '.join(sorted(unknown))}: must be among {', '.join(RECIPES)}")
    curves: dict[str, list[dict[str, Any]]] = {}
    if options.json and options.json.exists():
        curves = json.loads(options.json.read_text(encoding="utf-8"))
    if options.recipes:
        train, held_out = songs(100_000, options.songs), songs(200_000, 12)
    for name in options.recipes:
        curves[name] = []
        for row in curve(name, options, train, held_out):
            curves[name].append(row)
            if options.json:  # after each: what a run that is stopped has found
                options.json.write_text(json.dumps(curves) + "\n", encoding="utf-8")
    if options.plot:
        full = options.full_agent and json.loads(options.full_agent.read_text(encoding="utf-8"))
        draw(curves, options.plot, full)


if __name__ == "__main__":
    main()
