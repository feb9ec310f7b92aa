"""Seconds per training step and peak memory: this agent against the structure it replaces, side by side.

    python benchmarks/agent_step.py --batch 8
    python benchmarks/agent_step.py --saved         bytes kept for the backward pass, by module (saved.py)
    python benchmarks/agent_step.py --variants      original, eager, compiled in three precisions (step_variants.py)
    python benchmarks/agent_step.py --train         1,000 real steps on synthesized songs (step_training.py)

Both have the same weights and get the same batch. `original` composes one pair after the other, cuts windows sample by
sample with `F.interpolate` and uses `nn.TransformerEncoder` (tests/support/original_agent.py). A step is forward, the
mean of outputs² plus the mean of the losses, and backward; no optimizer. Before anything is timed, both compute the
same whole-frame windows in eval mode and must agree.

Each variant runs in a process of its own, one after the other, in several rounds; seconds are the median, the middle
half and the best of all steps but each process's first, which warms up (unless it is the only one). Memory on a CPU is
the process's largest resident set (`ru_maxrss`), which includes PyTorch itself (`idle` is what a process holds before
its first step); on CUDA it is what PyTorch allocated.
Counted in one more step: values that the host waits for, and on CUDA kernels launched.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import saved
import step_training
import step_variants
import torch
from harness import Timing, host_syncs, launches, machine
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from original_agent import OriginalAgent

from adaptive_window import AdaptiveWindowCreativeAgent
from adaptive_window.model.composer import agent_loss

VARIANTS = ("original", "ours")
MIB = 2**20


def build(variant: str, window: int) -> nn.Module:
    """A variant with the same weights for all."""
    torch.manual_seed(0)
    ours = AdaptiveWindowCreativeAgent(window_frames=window)
    if variant == "ours":
        return ours
    original = OriginalAgent(window_frames=window)
    original.load_state_dict(ours.state_dict(), strict=True)
    return original


def batch(size: int, frames: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, size, 128, frames, generator=generator)
    return x, y


def check_parity(size: int, frames: int, window: int, device: str = "cpu") -> dict[str, float]:
    """Largest differences of outputs and losses for windows of whole frames, in eval mode, relative to the outputs.

    `float64`: between the variants. `original`, `ours`: of each in float32 from the original in float64.

    Raises:
        SystemExit: they do not compute the same.
    """
    generator = torch.Generator().manual_seed(2)
    spare = frames - window - window // 8
    windows = {name: torch.randint(0, spare, (size, 3), generator=generator).float()
               for name in ("start_input", "start_target")}  # fmt: skip
    windows |= {name: torch.tensor([1.0, 1.0625, 1.125]).expand(size, 3) for name in ("ratio_input", "ratio_target")}
    windows["strength"] = torch.rand(size, 3, generator=generator)

    def composed(variant: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        agent = build(variant, window).eval().to(device, dtype)
        x, y = (clip.to(device, dtype) for clip in batch(size, frames))
        where = {name: value.to(device, dtype) for name, value in windows.items()}
        with torch.no_grad():
            if variant == "ours":
                outputs, terms = agent.compose_windows(x, y, where)
                return outputs.double(), agent_loss(terms.mean(0)).double()
            theirs, losses, _ = agent.compose_windows(x, y, where)
            return torch.stack(theirs, dim=1).double(), torch.stack(losses).double()

    # in eval mode nn.TransformerEncoder takes a fast path, whose GELU on CUDA is the tanh approximation: 1e-4 off
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        true = composed("original", torch.float64)
        results = {
            "float64": composed("ours", torch.float64),
            **{variant: composed(variant, torch.float32) for variant in VARIANTS},
        }
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    scale = true[0].abs().max()
    parity = {
        name: max(float((outputs - true[0]).abs().max() / scale), float((losses - true[1]).abs().max()))
        for name, (outputs, losses) in results.items()
    }
    # float32 goes through four transformer layers, ours with products of three bfloat16 ones on a GPU; NaN fails too
    if not (parity["float64"] < 1e-9 and parity["ours"] < 1e-3):
        raise SystemExit(f"the variants disagree, nothing is timed: {parity}")
    return parity


def described(parity: dict[str, float]) -> str:
    return (
        f"parity in eval mode at whole-frame windows, relative: {parity['float64']:.1e} in float64; from float64, "
        f"float32 original {parity['original']:.1e}, ours {parity['ours']:.1e}"
    )


def peak_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def run_steps(options: argparse.Namespace) -> dict[str, object]:
    device = options.device
    agent = build(options.variant, options.window).to(device)
    x, y = (clip.to(device) for clip in batch(options.batch, options.frames))

    def step() -> None:
        agent.zero_grad(set_to_none=True)
        outputs, losses, _ = agent(x, y)
        (torch.stack(losses).mean() + sum(o.square().mean() for o in outputs)).backward()

    def finished() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    idle, wall, cpu = peak_memory(device), [], []
    for _ in range(options.steps):
        finished()
        began, began_cpu = time.perf_counter(), time.process_time()
        step()
        finished()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    peak = peak_memory(device)  # before the counting below, which has a memory of its own
    counted = {}
    if options.count:
        counted = {"host_syncs": host_syncs(step, device), "launches": launches(step) if device == "cuda" else None}
    warm = 1 if options.steps > 1 else 0
    return {"idle": idle, "peak": peak, "wall": wall[warm:], "cpu": cpu[warm:], "counted": counted}


def measure(options: argparse.Namespace) -> dict[str, dict[str, object]]:
    results: dict[str, dict[str, list]] = {
        name: {"idle": [], "peak": [], "wall": [], "cpu": [], "counted": []} for name in VARIANTS
    }
    for round_number in range(options.rounds):
        for variant in VARIANTS if round_number % 2 == 0 else VARIANTS[::-1]:
            command = [sys.executable, __file__, "--variant", variant]
            command += [
                f"--{name}={getattr(options, name)}" for name in ("batch", "frames", "window", "steps", "device")
            ]
            command += ["--count"] if round_number == 0 else []
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            for key, value in json.loads(done.stdout).items():
                results[variant][key] += value if isinstance(value, list) else [value]
    return {
        name: {
            "seconds": Timing.of(r["wall"]).describe(),
            "cpu_seconds": Timing.of(r["cpu"]).describe(),
            "peak_mib": max(r["peak"]) / MIB,
            "idle_mib": max(r["idle"]) / MIB,
            **r["counted"][0],
        }
        for name, r in results.items()
    }


def report(results: dict[str, dict[str, object]], options: argparse.Namespace, parity: dict[str, float]) -> None:
    print(f"torch {torch.__version__}, {machine(options.device)['device']}, batch {options.batch}, 3 pairs, "
          f"{options.frames} -> {options.window} frames, float32, training mode")  # fmt: skip
    print(described(parity))
    rows = [
        ("wall s/step", "seconds", "{:.2f}"),
        ("processor s/step", "cpu_seconds", "{:.2f}"),
        ("peak memory, MiB", "peak_mib", "{:.0f}"),
        ("idle memory, MiB", "idle_mib", "{:.0f}"),
        ("host syncs/step", "host_syncs", "{}"),
        ("launches/step", "launches", "{}"),
    ]
    print(f"{'':22}{'original':>10}{'ours':>10}{'ratio':>8}")
    for title, key, form in rows:
        a, b = (v["median"] if isinstance(v, dict) else v for v in (results[name][key] for name in VARIANTS))
        print(f"{title:22}{form.format(a):>10}{form.format(b):>10}{f'{b / a:.2f}' if a and b else '-':>8}")  # type: ignore[operator]  # numbers where both are


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=1200, help="T, frames of each clip")
    parser.add_argument("--window", type=int, default=800, help="W, frames of each window")
    parser.add_argument("--steps", type=int, default=4, help="steps per process")
    parser.add_argument("--rounds", type=int, default=2, help="processes per variant")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--saved-batch", type=int, default=32, help="B of --saved")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--variants", action="store_true", help="original, eager and compiled, in all precisions")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16, 32], help="B of --variants")
    precisions = step_variants.PRECISIONS
    parser.add_argument("--precision", nargs="+", default=list(precisions), choices=precisions, help="of --variants")
    parser.add_argument("--train", action="store_true", help="train the whole agent on synthesized songs")
    parser.add_argument("--train-steps", type=int, default=1000, help="steps of --train")
    parser.add_argument("--train-batch", type=int, default=16, help="B of --train")
    parser.add_argument(
        "--only",
        nargs="+",
        default=list(step_variants.VARIANTS[:3]),
        choices=step_variants.VARIANTS,
        help="of --variants",
    )
    parser.add_argument("--lock", type=Path, help="--variants times nothing while another holds this file's lock")
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--variant", choices=(*VARIANTS, *step_variants.VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--saved", action="store_true", help="count the bytes kept for the backward pass; no timing")
    parser.add_argument("--compiled", action="store_true", help="with --saved: of the compiled step as well, a minute")
    options = parser.parse_args()
    if options.compiled and not options.saved:
        parser.error("--compiled counts what a compiled step keeps: with --saved only")
    if options.variants:
        step_variants.main(
            options, build, batch, lambda: check_parity(1, options.frames, options.window, options.device)
        )
        return
    if options.train:
        step_training.main(options)
        return
    if options.saved:
        both = [saved.on_meta(build(name, options.window), options.saved_batch, options.frames) for name in VARIANTS]
        figures = saved.report(both[0], both[1], options.saved_batch)
        again = saved.on_meta(build("ours", options.window), options.saved_batch, options.frames, recompute=True)
        figures["ours_recompute_bytes"] = again.total()
        print(f"ours with --recompute / original: {again.total() / both[0].total():.2f}")
        if options.compiled:
            cuts = {
                keep: saved.compiled(build("ours", options.window), options.saved_batch, options.frames, keep)
                for keep in ("all", "little")
            }
            figures |= saved.report_compiled(both[0], cuts, options.saved_batch)
        if options.json:
            options.json.write_text(json.dumps({"torch": torch.__version__, **figures}, indent=1) + "\n")
        return
    if options.variant:  # a child: one variant, figures on stdout
        print(json.dumps(run_steps(options)))
        return
    parity = check_parity(1, options.frames, options.window, options.device)
    results = measure(options)
    report(results, options, parity)
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "parity": parity, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
