"""Floors: the bytes that the operation must move, the rate at which this device copies; and a model without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import time_calls
from providers import Case

ROOT = Path(__file__).resolve().parents[1]

# Assumed where no GPU is there to measure: NVIDIA's H100 SXM datasheet (132 SMs, 3.35 TB/s) and its boost clock under
# load; 0.9 of the datasheet's bandwidth is what copies reach. Four schedulers issue one warp instruction per cycle.
ASSUMED = {"processors": 132, "clock_hz": 1.755e9, "bytes_per_s": 0.9 * 3.35e12, "schedulers": 4, "lanes": 32}


def floor_bytes(case: Case) -> dict[str, int]:
    """Each input read once, each output written once; weights and places are too small to count.

    Forward reads x and writes the windows; backward reads x and the windows' gradient and writes dx.
    """
    size = torch.empty(0, dtype=getattr(torch, case.dtype)).element_size()
    clips = case.batch * case.channels * case.frames * size
    windows = case.batch * case.pairs * case.channels * case.window * size
    forward, backward = clips + windows, 2 * clips + windows
    return {"forward": forward, "backward": backward, "both": forward + backward}


def copy_rate(device: str, megabytes: int | None = None) -> float:
    """Bytes per second of a device-to-device copy, read plus written."""
    count = (megabytes or (1024 if device == "cuda" else 64)) * 2**18
    source = torch.rand(count, device=device)
    target = torch.empty_like(source)
    timing = time_calls({"copy": lambda: target.copy_(source)}, device, seconds=1.0)["copy"]
    return 2 * source.numel() * source.element_size() / timing.median


@dataclass(frozen=True)
class Modelled:
    """One operation and direction, from the compiler's listing; microseconds at the nominal size, per stream."""

    op: str
    dtype: str
    precision: str
    kernels: int
    instructions: float  # per element of the windows, summed over the kernels
    traffic: float  # bytes per element of the windows, every kernel's arguments touched once
    issue_us: float
    memory_us: float
    floor_us: float  # the byte floor of the operation, at the same rate

    @property
    def bound_us(self) -> float:
        return max(self.issue_us, self.memory_us)


def model(reports: list[dict[str, object]], nominal: dict[str, int]) -> list[Modelled]:
    """Sums `tools.inspect_kernels` reports by operation, dtype and precision."""
    groups: dict[tuple[str, str, str], list[dict[str, object]]] = {}
    for report in reports:
        groups.setdefault((str(report["op"]), str(report["dtype"]), str(report["precision"])), []).append(report)
    elements = nominal["B"] * nominal["P"] * nominal["C"] * nominal["W"]
    rate = ASSUMED["processors"] * ASSUMED["schedulers"] * ASSUMED["lanes"] * ASSUMED["clock_hz"]
    rows = []
    for (op, dtype, precision), members in groups.items():
        instructions = sum(float(str(m["per_window_element"])) for m in members)
        traffic = sum(float(str(m["bytes_per_window_element"])) for m in members)
        case = Case(nominal["B"], nominal["P"], nominal["C"], nominal["T"], nominal["W"], dtype=dtype)
        floor = floor_bytes(case)["backward" if op.endswith("backward") else "forward"]
        if op.startswith("tonality_blend"):  # windows in, windows out, and in again backward
            floor = elements * torch.empty(0, dtype=getattr(torch, dtype)).element_size()
            floor *= 3 if op.endswith("backward") else 2
        rows.append(
            Modelled(
                op,
                dtype,
                precision,
                len(members),
                instructions,
                traffic,
                1e6 * instructions * elements / rate,
                1e6 * traffic * elements / ASSUMED["bytes_per_s"],
                1e6 * floor / ASSUMED["bytes_per_s"],
            )
        )
    return rows


def inspect_kernels(arch: int, only: tuple[str, ...] = ()) -> list[dict[str, object]]:
    """Reports of `tools.inspect_kernels`, compiled in a process of their own; no GPU needed."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.inspect_kernels", "--arch", str(arch), "--json", *only]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"tools.inspect_kernels failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)


def static_table(rows: list[Modelled]) -> str:
    lines = [
        f"{'operation':28}{'dtype':10}{'precision':10}{'kernels':>8}{'instr/el':>9}{'B/el':>7}"
        f"{'issue us':>9}{'memory us':>10}{'floor us':>9}{'model/floor':>12}"
    ]
    for r in rows:
        lines.append(
            f"{r.op:28}{r.dtype:10}{r.precision:10}{r.kernels:8}{r.instructions:9.1f}{r.traffic:7.1f}"
            f"{r.issue_us:9.1f}{r.memory_us:10.1f}{r.floor_us:9.1f}{r.bound_us / r.floor_us:12.2f}"
        )
    return "\n".join(lines)
