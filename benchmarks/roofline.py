"""Floors: the bytes that the operation must move, the rate at which this device copies; and a model without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import time_calls
from providers import Case

ROOT = Path(__file__).resolve().parents[1]

COPY = 2.95e12  # bytes per second, read plus written, as measured on an H100: for floors where no GPU is at hand


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
    """One operation and direction: device time as `tools.device_time` predicts it, at the nominal size, per stream."""

    op: str
    dtype: str
    precision: str
    kernels: int
    predicted_us: float  # launches in a row, with what the one before has left in the cache
    alone_us: float  # nothing of it in the caches
    floor_us: float  # the byte floor of the operation, at the rate of a copy


def model(predictions: list[dict[str, Any]], nominal: dict[str, int]) -> list[Modelled]:
    """Sums predictions by operation, dtype and precision."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for one in predictions:
        groups.setdefault((one["op"], one["dtype"], one["precision"]), []).append(one)
    rows = []
    for (op, dtype, precision), launches in groups.items():
        case = Case(nominal["B"], nominal["P"], nominal["C"], nominal["T"], nominal["W"], dtype=dtype)
        floor: float = floor_bytes(case)["backward" if op.endswith("backward") else "forward"]
        if op.startswith("tonality_blend"):  # windows in, windows out, and in again backward
            elements = nominal["B"] * nominal["P"] * nominal["C"] * nominal["W"]
            floor = elements * torch.empty(0, dtype=getattr(torch, dtype)).element_size()
            floor *= 3 if op.endswith("backward") else 2
        row, alone = (round(sum(one[name] for one in launches), 1) for name in ("in_a_row", "microseconds"))
        rows.append(Modelled(op, dtype, precision, len(launches), row, alone, 1e6 * floor / COPY))
    return rows


def predict_kernels(only: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Predictions of `tools.device_time`, compiled in a process of their own; no GPU needed."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.device_time", "--json", *only]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"tools.device_time failed: {done.stderr.strip()[-500:]}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def static_table(rows: list[Modelled]) -> str:
    lines = [
        f"{'operation':28}{'dtype':10}{'precision':10}{'kernels':>8}{'us':>8}{'alone':>8}{'floor us':>9}{'us/floor':>9}"
    ]
    for r in rows:
        lines.append(
            f"{r.op:28}{r.dtype:10}{r.precision:10}{r.kernels:8}{r.predicted_us:8.1f}{r.alone_us:8.1f}"
            f"{r.floor_us:9.1f}{r.predicted_us / r.floor_us:9.2f}"
        )
    return "\n".join(lines)
