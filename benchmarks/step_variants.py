"""The agent's training step in every variant: original, ours eager, ours compiled; float32, TF32, bfloat16.

    python benchmarks/agent_step.py --variants [--json F]

One process for each variant, one after the other, with equal weights and inputs. A step is forward, the mean of
outputs² plus the mean of the losses, and backward; no optimizer. First the compiled variants are compiled, in parallel,
into TorchInductor's cache; then everything is measured alone. Nothing is timed unless original and ours agree at
windows of whole frames, on the device itself, in exact float32.

    ms         from the first launch to the device's end, median of the steps
    host ms    until the host is free again: what a loop that reads nothing waits for
    launches   kernels, copies and graph replays that the host asks for (CUDA)
    saved GiB  what autograd keeps for the backward pass, by its hooks (a compiled graph's too)
    peak GiB   the most that PyTorch allocated in a step (CUDA)
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import launches, machine, set_tf32
from torch import Tensor, nn

VARIANTS = ("original", "eager", "compiled")
PRECISIONS = ("float32", "tf32", "bf16")
GIB = 2**30


def step_of(agent: nn.Module, variant: str, precision: str, device: str) -> Callable[[Tensor, Tensor], None]:
    """The training step, which leaves gradients."""

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        enabled = precision == "bf16"
        with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
            outputs, losses, _ = agent(x, y)
        return torch.stack(losses).mean() + sum(o.float().square().mean() for o in outputs)  # type: ignore[return-value]

    loss: Callable[[Tensor, Tensor], Tensor] = loss_of
    if variant == "compiled":
        options: dict[str, Any] = {"options": {"triton.cudagraphs": True}} if device == "cuda" else {}
        loss = torch.compile(loss_of, fullgraph=True, dynamic=False, **options)

    def step(x: Tensor, y: Tensor) -> None:
        if variant == "compiled":
            torch.compiler.cudagraph_mark_step_begin()
        agent.zero_grad(set_to_none=True)
        loss(x, y).backward()

    return step


def saved_bytes(step: Callable[[], None]) -> int:
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def run_child(options: argparse.Namespace, build: Callable[..., nn.Module], batch: Callable[..., Any]) -> list[Any]:
    """All precisions and batches of one variant, in this process."""
    device, variant = options.device, options.variant
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    agent = build("original" if variant == "original" else "ours", options.window).to(device)
    weights = sum(p.nbytes for p in agent.parameters())
    rows = []
    for precision in options.precision:
        set_tf32(precision == "tf32")
        step = step_of(agent, variant, precision, device)
        for size in options.batches:
            x, y = (clip.to(device) for clip in batch(size, options.frames))
            row: dict[str, Any] = {"variant": variant, "precision": precision, "batch": size}
            rows.append(row)
            try:
                began = time.perf_counter()
                for _ in range(1 if options.compile_only else 3):  # compiles, warms up, records a graph
                    step(x, y)
                wait()
                row["first_seconds"] = time.perf_counter() - began
                if options.compile_only:
                    continue
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                wall, host = [], []
                for _ in range(options.steps):
                    wait()
                    began = time.perf_counter()
                    step(x, y)
                    host.append(time.perf_counter() - began)
                    wait()
                    wall.append(time.perf_counter() - began)
                row["ms"], row["host_ms"] = (1e3 * statistics.median(times) for times in (wall, host))
                if device == "cuda":
                    row["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
                    row["launches"] = launches(functools.partial(step, x, y))
                row["saved_gib"] = (saved_bytes(functools.partial(step, x, y)) - weights) / GIB
            except Exception as error:  # the other rows are worth having
                row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            finally:
                agent.zero_grad(set_to_none=True)
                with contextlib.suppress(RuntimeError):
                    torch.cuda.empty_cache()
    return rows


def _command(options: argparse.Namespace, variant: str, precisions: Sequence[str], *flags: str) -> list[str]:
    sizes = [f"--{name}={getattr(options, name)}" for name in ("frames", "window", "steps", "device")]
    batches = ["--batches", *map(str, options.batches), "--precision", *precisions]
    script = str(Path(__file__).with_name("agent_step.py"))
    return [sys.executable, script, "--variants", "--variant", variant, *sizes, *batches, *flags]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compiles in parallel, then measures variant by variant."""
    began = time.perf_counter()
    if options.device == "cuda":
        waiting = [
            subprocess.Popen(_command(options, "compiled", [precision], "--compile-only"), stdout=subprocess.DEVNULL)
            for precision in options.precision
        ]
        for process in waiting:
            process.wait()
        print(f"compiled in {time.perf_counter() - began:.0f} s, {len(waiting)} processes in parallel", flush=True)
    rows = []
    for variant in VARIANTS:
        done = subprocess.run(
            _command(options, variant, options.precision), check=True, stdout=subprocess.PIPE, text=True
        )
        rows += json.loads(done.stdout.strip().splitlines()[-1])
    return rows


def report(rows: list[dict[str, Any]], options: argparse.Namespace, parity: float) -> None:
    print(f"torch {torch.__version__}, {machine(options.device)['device']}, 3 pairs, {options.frames} -> "
          f"{options.window} frames, training mode; parity in eval mode {parity:.1e} (relative)")  # fmt: skip
    columns = ("ms", "host_ms", "launches", "saved_gib", "peak_gib")
    titles = "".join(f"{column.replace('_', ' '):>11}" for column in columns)
    print(f"{'precision':10}{'B':>4}  {'variant':10}{titles}   ms / original's")
    by_key = {(row["precision"], row["batch"], row["variant"]): row for row in rows}
    for precision in options.precision:
        for size in options.batches:
            original = by_key[precision, size, "original"]
            for variant in VARIANTS:
                row = by_key[precision, size, variant]
                if "failed" in row:
                    print(f"{precision:10}{size:>4}  {variant:10}  failed: {row['failed']}")
                    continue
                cells = [f"{row[c]:.2f}" if isinstance(row.get(c), float) else str(row.get(c, "-")) for c in columns]
                ratio = f"{row['ms'] / original['ms']:.2f}" if "ms" in original else "-"
                print(f"{precision:10}{size:>4}  {variant:10}" + "".join(f"{c:>11}" for c in cells) + f"   {ratio}")


def main(options: argparse.Namespace, build: Any, batch: Any, check_parity: Callable[..., float]) -> None:
    if options.variant:
        print(json.dumps(run_child(options, build, batch)))
        return
    set_tf32(False)
    parity = check_parity(1, options.frames, options.window, options.device)
    if not parity < 1e-4:
        raise SystemExit(f"the variants disagree by {parity:.1e}: nothing timed")
    rows = measure(options)
    report(rows, options, parity)
    if options.json:
        figures = {"torch": torch.__version__, **machine(options.device), "parity": parity, "rows": rows}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
