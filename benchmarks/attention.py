"""What the composer's attention costs: one layer's self-attention, three ways, time and memory.

    python benchmarks/attention.py

    nn.MultiheadAttention   what `nn.TransformerEncoderLayer` runs: with dropout on a CPU it keeps whole [S, S] weights
    ours                    model/attention.py: with dropout on a CPU sample by sample, one byte kept per weight
    without dropout         `F.scaled_dot_product_attention` of the same layer at dropout 0: what dropout costs at all

`training` is forward and backward with dropout 0.1, `eval` forward without gradients. All have the same weights and
inputs. Nothing is timed unless all three agree: in eval mode as they are, and in training with a dropout that drops
nothing, through the operators that training uses.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import machine, peak_bytes, time_calls
from torch import Tensor, nn

from adaptive_window.model.attention import masked_attention
from adaptive_window.model.encoder import EncoderLayer

WIDTH, HEADS, DROPOUT = 512, 8, 0.1  # of the composer
VARIANTS = ("nn.MultiheadAttention", "ours", "without dropout")
MODES = ("training", "eval")
BOUND = 1e-5  # relative; float32 sums of 800 terms in another order are under 1e-6


class Problem:
    """A layer, its input `[N, S, 512]` and an output gradient."""

    def __init__(self, device: str, windows: int, frames: int) -> None:
        torch.manual_seed(0)
        self.device = device
        self.layer = EncoderLayer(WIDTH, HEADS, 4 * WIDTH, DROPOUT).to(device)
        self.x = torch.randn(windows, frames, WIDTH, device=device, requires_grad=True)
        self.grad_out = torch.randn(windows, frames, WIDTH, device=device)
        self.wanted = (self.x, *self.layer.self_attn.parameters())

    def forward(self, variant: str, training: bool) -> Tensor:
        attention = self.layer.self_attn
        self.layer.train(training)
        attention.dropout = 0.0 if variant == "without dropout" else DROPOUT
        if variant == "nn.MultiheadAttention":
            return nn.MultiheadAttention.forward(attention, self.x, self.x, self.x, need_weights=False)[0]
        return attention(self.x, self.x, self.x, need_weights=False)[0]

    def call(self, variant: str, mode: str) -> Callable[[], object]:
        def training() -> object:
            return torch.autograd.grad(self.forward(variant, True), self.wanted, self.grad_out)

        def evaluation() -> object:
            with torch.no_grad():
                return self.forward(variant, False)

        return training if mode == "training" else evaluation


def check_parity(frames: int = 96) -> float:
    """Largest relative difference between the variants, and of the masked operators with a mask of ones; on a CPU."""
    problem = Problem("cpu", 2, frames)
    outputs = [problem.call(variant, "eval")() for variant in VARIANTS]
    errors = [_error(out, outputs[0]) for out in outputs[1:]]
    q, k, v = (torch.randn(2, HEADS, frames, WIDTH // HEADS, requires_grad=True) for _ in range(3))
    grad = torch.randn(q.shape)
    ones = torch.ones(2, HEADS, frames, frames, dtype=torch.uint8)
    got = masked_attention(q, k, v, ones, 1.0)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    errors.append(_error(got, want))
    for a, b in zip(*(torch.autograd.grad(out, (q, k, v), grad) for out in (got, want)), strict=True):
        errors.append(_error(a, b))
    return max(errors, key=lambda e: (e != e, e))  # NaN is the largest


def _error(got: Any, want: Any) -> float:
    return ((got - want).norm() / want.norm()).item()


def measure(
    device: str,
    windows: int = 12,
    frames: int = 800,
    seconds: float = 20.0,
    fewest: int = 5,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Rows by variant and mode; RuntimeError where the variants disagree."""
    parity = check_parity()
    if not parity < BOUND:
        raise RuntimeError(f"the variants disagree by {parity:.1e}: nothing timed")
    problem = Problem(device, windows, frames)
    calls = {f"{v}/{m}": problem.call(v, m) for m in MODES for v in VARIANTS}
    times = time_calls(calls, device, seconds, fewest=fewest)
    rows = []
    for key, call in calls.items():
        variant, mode = key.split("/")
        memory = peak_bytes(call, device)
        rows.append({"variant": variant, "mode": mode, "seconds": times[key].describe(), "peak_bytes": memory})
    say(f"self-attention of one layer, {windows} windows of {frames} frames, {WIDTH} channels, {HEADS} heads; "
        f"parity {parity:.1e}")  # fmt: skip
    say(f"{'':32}{'ms':>9}{'low':>9}{'high':>9}{'MiB':>8}")
    for row in rows:
        milliseconds = "".join(f"{1e3 * row['seconds'][k]:9.1f}" for k in ("median", "low", "high"))
        say(f"{row['mode'] + ', ' + row['variant']:32}{milliseconds}{row['peak_bytes'] / 2**20:8.0f}")
    return {"windows": windows, "frames": frames, "parity": parity, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--windows", type=int, default=12, help="B times P")
    parser.add_argument("--seconds", type=float, default=20.0, help="time to spend measuring")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    result = {"machine": machine(options.device)}
    result["attention"] = measure(options.device, options.windows, seconds=options.seconds)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
