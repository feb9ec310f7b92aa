"""The agent's training step in every variant: original, ours eager, ours compiled; float32, TF32, bfloat16.

Compiled is as `train` does it, with `--keep little`. Where asked for (`--only compiled kept tuned`), `kept` is
`--keep all`, what PyTorch's own partition keeps and TorchInductor's own choices, and `tuned` has every kernel of
TorchInductor's timed in more shapes than it tries by itself.

    python benchmarks/agent_step.py --variants [--json F]

One process for each variant, and one for each precision and batch of the compiled one, with equal weights and inputs.
A step is forward, the mean of outputs² plus the mean of the losses, and backward; no optimizer. First all compiled ones
compile, in parallel, and wait; then everything is measured alone. Nothing is timed unless original and ours agree at
windows of whole frames, on the device itself, in float64.

    ms         a step that is waited for, from its call to the device's end, median of the steps: with what the host
               does before the first launch, while the device has nothing to do
    in a row ms     of steps of which only the last is waited for: the time of all over their number. So training takes
               them, which reads a step's figures one step late; the host is ahead where the device takes longer
    host ms    until the host is free again: what a loop that reads nothing waits for
    launches   kernels, copies and fills that the device runs (CUDA)
    host launches   those that the host asks for: a graph's replay is one (CUDA)
    saved GiB  what autograd keeps for the backward pass, by its hooks (not where a CUDA graph is replayed)
    peak GiB   the most that PyTorch allocated in a step (CUDA); of a CUDA graph, in the step that recorded it
    busy ms    the sum over all kernels, copies and fills of a step (CUDA); the dearest of them go into the JSON file
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import host_launches, machine, set_tf32
from torch import Tensor, nn

VARIANTS = ("original", "eager", "compiled", "kept", "tuned")
COMPILED = ("compiled", "kept", "tuned")
PRECISIONS = ("float32", "tf32", "bf16")
READY = "ready to measure"
GIB = 2**30


def step_of(agent: nn.Module, variant: str, precision: str, device: str) -> Callable[[Tensor, Tensor], None]:
    """The training step, which leaves gradients."""

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        enabled = precision == "bf16"
        with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
            outputs, losses, _ = agent(x, y)
        return torch.stack(losses).mean() + sum(o.float().square().mean() for o in outputs)  # type: ignore[return-value]

    loss: Callable[[Tensor, Tensor], Tensor] = loss_of
    if variant in COMPILED:
        from adaptive_window.training.partition import lean_options  # imports PyTorch's compiler

        options: dict[str, Any] = {"triton.cudagraphs": True} if device == "cuda" else {}
        if variant != "kept":
            options |= lean_options(device)
        if variant == "tuned":
            options["max_autotune_pointwise"] = True
        loss = torch.compile(loss_of, fullgraph=True, dynamic=False, options=options or None)

    parameters = list(agent.parameters())

    def step(x: Tensor, y: Tensor) -> None:
        if variant in COMPILED:
            torch.compiler.cudagraph_mark_step_begin()
        for parameter in parameters:  # as an optimizer does; `agent.zero_grad` walks through the modules first
            parameter.grad = None
        loss(x, y).backward()

    return step


def saved_bytes(step: Callable[[], None], agent: nn.Module) -> int:
    """Of all storages but the parameters'."""
    kept: dict[int, Tensor] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in agent.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in weights)


def on_device(step: Callable[[], None], count: int = 40) -> dict[str, Any]:
    """What a step puts on the device, milliseconds that it is busy, and (name, launches, µs) of what takes the most."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        step()
        torch.cuda.synchronize()
    taken: dict[str, list[float]] = {}
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            taken.setdefault(event.name, []).append(event.time_range.elapsed_us())
    rows = sorted(((name[:100], len(us), round(sum(us), 1)) for name, us in taken.items()), key=lambda row: -row[2])
    return {
        "launches": sum(len(us) for us in taken.values()),
        "busy_ms": sum(sum(us) for us in taken.values()) / 1e3,
        "dearest": rows[:count],
    }


def in_a_row(step: Callable[[], None], count: int, wait: Callable[[], None]) -> float:
    """Seconds of each of `count` steps, of which only the last is waited for."""
    wait()
    began = time.perf_counter()
    for _ in range(count):
        step()
    wait()
    return (time.perf_counter() - began) / count


def measured(step: Callable[[], None], options: argparse.Namespace, agent: nn.Module) -> dict[str, Any]:
    """Figures of a step that is warm."""
    cuda = options.device == "cuda"
    wait = torch.cuda.synchronize if cuda else (lambda: None)
    row: dict[str, Any] = {}
    wall, host = [], []
    for _ in range(options.steps):
        wait()
        began = time.perf_counter()
        step()
        host.append(time.perf_counter() - began)
        wait()
        wall.append(time.perf_counter() - began)
    row["ms"], row["host_ms"] = (1e3 * statistics.median(times) for times in (wall, host))
    row["in_a_row_ms"] = 1e3 * in_a_row(step, options.steps, wait)
    if cuda:
        row["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        row["host_launches"] = host_launches(step)
        row |= on_device(step)
    if not cuda or options.variant not in COMPILED:  # a recorded graph knows no hooks
        row["saved_gib"] = saved_bytes(step, agent) / GIB
    return row


def run_child(options: argparse.Namespace, build: Callable[..., nn.Module], batch: Callable[..., Any]) -> list[Any]:
    """All precisions and batches of one variant, in this process; with `--wait`, after a line on standard input."""
    device, variant = options.device, options.variant
    agent = build("original" if variant == "original" else "ours", options.window).to(device)
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
                step(x, y)  # compiles, warms up
                if device == "cuda":
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                for _ in range(2):  # records a graph
                    step(x, y)
                if device == "cuda":
                    torch.cuda.synchronize()
                row["first_seconds"] = time.perf_counter() - began
            except Exception as error:  # the other rows are worth having
                row["failed"] = described(error)
            if options.wait:
                print(READY, flush=True)
                sys.stdin.readline()
            try:
                if "failed" not in row:
                    row |= measured(functools.partial(step, x, y), options, agent)
            except Exception as error:
                row["failed"] = described(error)
            finally:
                agent.zero_grad(set_to_none=True)
                with contextlib.suppress(RuntimeError):
                    torch.cuda.empty_cache()
    return rows


def described(error: Exception) -> str:
    traceback.print_exception(error)  # on standard error
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def _command(options: argparse.Namespace, variant: str, precisions: Sequence[str], batches: Sequence[int]) -> list[str]:
    sizes = [f"--{name}={getattr(options, name)}" for name in ("frames", "window", "steps", "device")]
    rows = ["--batches", *map(str, batches), "--precision", *precisions]
    script = str(Path(__file__).with_name("agent_step.py"))
    return [sys.executable, script, "--variants", "--variant", variant, *sizes, *rows]


def compile_all(options: argparse.Namespace) -> list[subprocess.Popen[str]]:
    """A process for each precision and batch, which has compiled its step and waits for a line to measure it.

    On a CPU one after the other: each compiles with as many processes as there are cores.
    """
    began = time.perf_counter()
    waiting = []
    variants = [variant for variant in COMPILED if variant in options.only]
    for variant, precision, size in itertools.product(variants, options.precision, options.batches):
        command = [*_command(options, variant, [precision], [size]), "--wait"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        waiting.append(child)
        if options.device == "cpu":
            _until_ready(child)
    if options.device != "cpu":
        for child in waiting:
            _until_ready(child)
    print(f"compiled in {time.perf_counter() - began:.0f} s, {len(waiting)} processes", flush=True)
    return waiting


def _until_ready(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == READY:
            return
    raise SystemExit(f"a process that compiles a step ended with code {child.wait()}")


@contextlib.contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """While whoever else holds this file's lock works, nothing is timed."""
    if lock is None:
        yield
        return
    import fcntl

    with lock.open("a") as handle:  # whatever it holds stays
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compiles in parallel, then measures variant by variant."""
    rows = []
    waiting = compile_all(options)
    with alone(options.lock):
        for child in waiting:
            said, _ = child.communicate("go\n")
            if child.returncode:
                raise SystemExit(f"a process that measures a compiled step ended with code {child.returncode}")
            rows += json.loads(said.strip().splitlines()[-1])
        for variant in (name for name in VARIANTS[:2] if name in options.only):
            command = _command(options, variant, options.precision, options.batches)
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows += json.loads(done.stdout.strip().splitlines()[-1])
    return rows


def report(rows: list[dict[str, Any]], options: argparse.Namespace, parity: dict[str, float]) -> None:
    print(f"torch {torch.__version__}, {machine(options.device)['device']}, 3 pairs, {options.frames} -> "
          f"{options.window} frames, training mode; parity: {parity}")  # fmt: skip
    columns = ("ms", "in_a_row_ms", "host_ms", "busy_ms", "launches", "host_launches", "saved_gib", "peak_gib")
    titles = "".join(f"{column.replace('_', ' '):>14}" for column in columns)
    print(f"{'precision':10}{'B':>4}  {'variant':10}{titles}   ms / original's")
    by_key = {(row["precision"], row["batch"], row["variant"]): row for row in rows}
    for precision in options.precision:
        for size in options.batches:
            original = by_key.get((precision, size, "original"), {})
            for variant in options.only:
                row = by_key[precision, size, variant]
                if "failed" in row:
                    print(f"{precision:10}{size:>4}  {variant:10}  failed: {row['failed']}")
                    continue
                cells = [f"{row[c]:.2f}" if isinstance(row.get(c), float) else str(row.get(c, "-")) for c in columns]
                ratio = f"{row['ms'] / original['ms']:.2f}" if "ms" in original else "-"
                print(f"{precision:10}{size:>4}  {variant:10}" + "".join(f"{c:>14}" for c in cells) + f"   {ratio}")


def main(options: argparse.Namespace, build: Any, batch: Any, check_parity: Callable[[], dict[str, float]]) -> None:
    if options.variant:
        print(json.dumps(run_child(options, build, batch)))
        return
    set_tf32(False)
    parity = check_parity()
    rows = measure(options)
    report(rows, options, parity)
    if options.json:
        figures = {"torch": torch.__version__, **machine(options.device), "parity": parity, "rows": rows}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
