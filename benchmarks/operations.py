"""All providers on one case: parity first, then times, counts and memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness import Timing, capture, host_syncs, launches, peak_bytes, set_tf32, time_calls
from parity import Parity, check, truth
from providers import BASELINE, OURS, PROVIDERS, Call, CannotRun, Case, build, make_inputs, make_output_gradient
from roofline import floor_bytes
from torch import Tensor

DIRECTIONS = ("forward", "backward", "both")
GRAPHED = 2**25  # elements of the windows up to which launch gaps matter and replays are timed as well


class Runs:
    """One provider's calls on one case's inputs."""

    def __init__(self, call: Call, inputs: tuple[Tensor, ...], grad_out: Tensor) -> None:
        self.call, self.inputs, self.grad_out = call, inputs, grad_out
        self.output: Tensor | None = None

    def forward(self) -> None:
        with torch.enable_grad():  # what it keeps for the backward pass is part of its cost
            self.output = self.call(*self.inputs)

    def backward(self) -> None:
        assert self.output is not None
        torch.autograd.grad(self.output, self.inputs, self.grad_out, allow_unused=True)
        self.output = None

    def both(self) -> tuple[Tensor | None, ...]:
        output = self.call(*self.inputs)
        return torch.autograd.grad(output, self.inputs, self.grad_out, allow_unused=True)

    def apart(self) -> Runs:
        """The same call on leaves that no graph of autograd has seen."""
        return Runs(self.call, tuple(v.detach().requires_grad_(v.requires_grad) for v in self.inputs), self.grad_out)

    def calls(self) -> dict[str, Callable[[], object]]:
        return {name: getattr(self, name) for name in DIRECTIONS}


def _row(name: str, case: Case, parity: Parity | None, note: str = "") -> dict[str, Any]:
    row: dict[str, Any] = {"provider": name, "case": case.describe(), "title": case.title, "note": note}
    if parity is not None:
        row["parity"] = {"worst": parity.worst(), "failures": parity.failures, "absent": parity.absent}
        row["parity"]["errors"] = parity.errors
    return row


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _admit(
    case: Case, names: Sequence[str], say: Callable[[str], None]
) -> tuple[dict[str, Runs], list[dict[str, Any]]]:
    """The providers that run and agree with the specification; every one has a row, with its reason if it does not."""
    inputs, grad_out = make_inputs(case), make_output_gradient(case)
    true = truth(inputs, grad_out, case.window)
    admitted: dict[str, Runs] = {}
    rows = []
    for name in names:
        try:
            call = build(name, case)
            parity = check(name, call, case, inputs, grad_out, true)
        except CannotRun as reason:
            rows.append(_row(name, case, None, f"not run: {reason}"))
            continue
        except Exception as error:  # a peer that breaks must not stop the others; its row says how
            rows.append(_row(name, case, None, f"failed: {_reason(error)}"))
            say(f"  {name}: {_reason(error)}")
            continue
        rows.append(_row(name, case, parity, "" if parity.passed else "no time: " + "; ".join(parity.failures)))
        if parity.passed:
            admitted[name] = Runs(call, inputs, grad_out)
    return admitted, rows


def compare(
    case: Case,
    names: Sequence[str] = tuple(PROVIDERS),
    seconds: float = 10.0,
    copy_bytes_per_s: float | None = None,
    say: Callable[[str], None] = print,
    fewest: int = 5,
) -> list[dict[str, Any]]:
    """One row per provider; `seconds` of timing for all together. A row without parity has no `seconds`."""
    set_tf32(case.tf32)
    torch._dynamo.reset()  # a few graphs per function are kept, then Dynamo gives up and runs eagerly
    admitted, rows = _admit(case, names, say)
    by_name = {row["provider"]: row for row in rows}
    times: dict[str, Timing] = {}
    calls = {f"{name}/{way}": call for name, runs in admitted.items() for way, call in runs.calls().items()}
    # a backward pass needs a forward pass before it, and both directions are timed in every round
    prepare = {f"{name}/backward": runs.forward for name, runs in admitted.items()}
    if calls:
        times = time_calls(calls, case.device, seconds, prepare, fewest)
    for name, runs in admitted.items():
        row = by_name[name]
        row["seconds"] = {way: times[f"{name}/{way}"].describe() for way in DIRECTIONS}
        runs.output = None
        row["host_syncs"] = host_syncs(runs.both, case.device)
        row["peak_bytes"] = peak_bytes(runs.both, case.device)
        row["launches"] = launches(runs.both) if case.device == "cuda" else None
        row["floor_bytes"] = floor_bytes(case)
        row["bytes_per_s"] = {way: row["floor_bytes"][way] / row["seconds"][way]["median"] for way in DIRECTIONS}
    if case.device == "cuda" and case.batch * case.pairs * case.channels * case.window <= GRAPHED:
        _replays(admitted, by_name, case, seconds, say)
    for row in rows:
        if "seconds" not in row:
            continue
        if BASELINE in admitted:
            row["times_faster_than_loop"] = {
                way: times[f"{BASELINE}/{way}"].over(times[f"{row['provider']}/{way}"]).describe() for way in DIRECTIONS
            }
        if copy_bytes_per_s:
            best = row.get("graph_seconds", row["seconds"])
            row["of_floor"] = {
                way: best[way]["median"] * copy_bytes_per_s / row["floor_bytes"][way]
                for way in DIRECTIONS
                if way in best
            }
    del admitted
    gc.collect()
    if case.device == "cuda":
        torch.cuda.empty_cache()
    return rows


def _replays(
    admitted: dict[str, Runs], by_name: dict[str, Any], case: Case, seconds: float, say: Callable[[str], None]
) -> None:
    """The same as CUDA graphs: device time without launch gaps. Backward is both less forward."""
    replays: dict[str, Callable[[], object]] = {}
    # ours first: a capture that fails leaves the device in a state that later ones may stumble over
    for name, runs in sorted(admitted.items(), key=lambda item: item[0][0] not in "ef"):
        if by_name[name]["host_syncs"]:
            by_name[name]["graph_note"] = "waits for the device: no graph"
            continue
        try:
            replays[f"{name}/forward"] = capture(runs.apart().forward)
            replays[f"{name}/both"] = capture(runs.apart().both)
        except Exception as error:  # recorded in the row
            by_name[name]["graph_note"] = _reason(error)
            replays.pop(f"{name}/forward", None)
            say(f"  {name}: {_reason(error)}")
    if not replays:
        return
    for key, timing in time_calls(replays, case.device, seconds / 2).items():
        name, way = key.split("/")
        by_name[name].setdefault("graph_seconds", {})[way] = timing.describe()
    for row in by_name.values():
        if "graph_seconds" in row:
            both, forward = (row["graph_seconds"][way]["median"] for way in ("both", "forward"))
            row["graph_seconds"]["backward"] = {"median": both - forward}


def peer(rows: Sequence[dict[str, Any]]) -> str | None:
    """The fastest provider, forward and backward, that is not ours: what ours is to be compared with."""
    names = {row["provider"]: row["seconds"]["both"]["median"] for row in rows if "seconds" in row}
    others = {name: value for name, value in names.items() if name[0] in "bd"}
    return min(others, key=others.__getitem__) if others else None


def table(rows: Sequence[dict[str, Any]]) -> str:
    """For people: milliseconds, the middle half's spread in percent, and what was counted."""
    lines = [
        f"{'':22}{'forward':>10}{'backward':>10}{'both ms':>10}{'spread':>8}{'x loop':>8}{'x floor':>8}"
        f"{'GB/s':>8}{'MiB':>8}{'syncs':>7}{'launch':>7}{'error':>9}"
    ]
    for row in rows:
        if "seconds" not in row:
            lines.append(f"{row['provider']:22}{row['note']}")
            continue
        s, both = row["seconds"], row["seconds"]["both"]
        fields = [f"{s[way]['median'] * 1e3:10.3f}" for way in DIRECTIONS]
        fields.append(f"{100 * (both['high'] - both['low']) / both['median']:7.0f}%")
        fields.append(_or_dash(row.get("times_faster_than_loop", {}).get("both", {}).get("median"), 8, ".2f"))
        fields.append(_or_dash(row.get("of_floor", {}).get("both"), 8, ".1f"))
        fields.append(f"{row['bytes_per_s']['both'] / 1e9:8.1f}{row['peak_bytes'] / 2**20:8.0f}{row['host_syncs']:7}")
        fields.append(_or_dash(row["launches"], 7, "d") + f"{row['parity']['worst']:9.1e}")
        lines.append(f"{row['provider']:22}{''.join(fields)}")
        if "graph_seconds" in row:
            g = row["graph_seconds"]
            lines.append(f"{'  as a CUDA graph':22}" + "".join(f"{g[way]['median'] * 1e3:10.3f}" for way in DIRECTIONS))
        elif "graph_note" in row:
            lines.append(f"{'  as a CUDA graph':22}{row['graph_note']}")
    fastest, mine = peer(rows), _default(rows)
    if fastest and mine:
        by_name = {row["provider"]: row for row in rows if "seconds" in row}
        ratio = by_name[fastest]["seconds"]["both"]["median"] / by_name[mine]["seconds"]["both"]["median"]
        verdict = "faster" if ratio >= 1 else "SLOWER"
        lines.append(f"peer: {fastest}; {mine} is {max(ratio, 1 / ratio):.2f} times {verdict}, forward and backward")
    return "\n".join(lines)


def _default(rows: Sequence[dict[str, Any]]) -> str | None:
    timed = {row["provider"] for row in rows if "seconds" in row}
    return OURS if OURS in timed else None


def _or_dash(value: float | None, width: int, form: str) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}{form}}"
