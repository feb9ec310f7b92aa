"""Songs a second: composing from latents, and the codec apart.

    python benchmarks/compose.py [--json F]

A song is a pair of 24 s clips in and a 16 s pattern out, with the whole agent at its default sizes. `called` is
`agent.compose`; `graph` is `GraphedCompose`, one CUDA graph (on a CPU the same call, so it is left away). "best"
composes every pair once and chooses; one pair alone is a third of the composer's work. The codec is the mel codec:
encoding both clips and decoding the pattern.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import host_syncs, machine, time_calls

from adaptive_window import AdaptiveWindowCreativeAgent
from adaptive_window.audio.mel import MelCodec
from adaptive_window.inference.graphed import GraphedCompose

PICKS: tuple[str | int, ...] = ("mean", "best", 0)


def measure(
    agent: AdaptiveWindowCreativeAgent, batches: list[int], frames: int, device: str, seconds: float
) -> list[dict[str, Any]]:
    agent = agent.to(device).eval()
    codec = MelCodec().to(device)
    rows = []
    for batch in batches:
        x, y = (torch.randn(batch, agent.encoding_dim, frames, device=device) for _ in range(2))
        calls: dict[str, Callable[[], object]] = {}
        for pick in PICKS:
            calls[f"called, {pick}"] = lambda x=x, y=y, pick=pick: agent.compose(x, y, pick)
            if device == "cuda":
                graphed = GraphedCompose(agent, batch, frames, pick)
                calls[f"graph, {pick}"] = lambda x=x, y=y, graphed=graphed: graphed(x, y)
        audio = torch.randn(2 * batch, 1, frames * codec.hop, device=device)
        latents = torch.randn(batch, codec.dim, agent.window_frames, device=device)
        with torch.no_grad():
            calls["mel codec, encode"] = lambda audio=audio: codec.encode(audio)
            calls["mel codec, decode"] = lambda latents=latents: codec.decode(latents)
            syncs = {name: host_syncs(call, device) for name, call in calls.items()}
            timings = time_calls(calls, device, seconds * len(calls), fewest=1)
        for name, timing in timings.items():
            rate = batch / timing.median
            row = {"batch": batch, "what": name, "seconds": timing.median, "songs_per_second": rate}
            rows.append({**row, "host_syncs": syncs[name]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--frames", type=int, default=1200, help="T, frames of each clip")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each row")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = measure(AdaptiveWindowCreativeAgent(), options.batches, options.frames, options.device, options.seconds)
    print(f"torch {torch.__version__}, {machine(options.device)['device']}")
    print(f"{'B':>3}  {'':22}{'songs/s':>10}{'ms':>10}{'host syncs':>12}")
    for row in rows:
        print(f"{row['batch']:>3}  {row['what']:22}{row['songs_per_second']:>10.2f}{1e3 * row['seconds']:>10.1f}"
              f"{row['host_syncs']:>12}")  # fmt: skip
    if options.json:
        figures = {"torch": torch.__version__, **machine(options.device), "rows": rows}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
