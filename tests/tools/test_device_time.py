"""The model of device time: its processor on instructions whose time is known, its reading of addresses, its error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # last: the checkout's `kernels` must hide no other

from tools import calibration, device_time, ptx  # noqa: E402 - behind the path
from tools.processor import Cycles, Instruction, decode, program, run  # noqa: E402
from tools.sass import Listing, Loop  # noqa: E402

EXACT = Cycles(memory=100, near=10, alu=5, shared=20, special=15, barrier=8, tensor=30, memory_bytes=1e9, l2_bytes=1e9)
ADD = Instruction("alu", (1,), (1,))
OTHER = Instruction("alu", (2,), (2,))
LOAD = Instruction("load", (0,), (1,), cost=1.0, bytes=128.0)


@dataclass(frozen=True)
class FakeLaunch:
    name: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]


def cycles(instructions: list[Instruction], warps: int = 1, together: int = 1, programs: int = 1,
           constants: Cycles = EXACT) -> float:  # fmt: skip
    return run(instructions, warps, together, programs, constants, 1.0, 1.0)


class TestProcessor:
    def test_dependent_and_independent(self) -> None:
        assert cycles([ADD] * 10) == 9 * 5 + 1
        assert cycles([ADD, OTHER] * 5) == 4 * 5 + 2

    def test_a_load_is_waited_for_where_it_is_used(self) -> None:
        assert cycles([LOAD, OTHER, ADD]) == pytest.approx(1 + 100 + 1, abs=0.01)
        assert cycles([replace(LOAD, near=True), ADD]) == pytest.approx(1 + 10 + 1, abs=0.01)

    def test_warps_hide_each_other(self) -> None:
        """Four schedulers: four warps cost what one does; eight wait for loads together, and share issue ports."""
        alone = cycles([LOAD, ADD] * 4)
        assert cycles([LOAD, ADD] * 4, warps=4) <= alone + 8
        assert cycles([ADD] * 100, warps=60) == pytest.approx(15 * 100, rel=0.01)

    def test_load_store_unit_is_shared(self) -> None:
        store = Instruction("shared", (0,), (), cost=8.0)
        assert cycles([store] * 50, warps=8) == pytest.approx(8 * 50 * 8, rel=0.15)
        assert cycles([store] * 50, warps=8) > 2 * cycles([replace(store, cost=3.0)] * 50, warps=8)

    def test_bandwidth(self) -> None:
        narrow = replace(EXACT, memory_bytes=2.0)
        independent = [Instruction("load", (0,), (n,), cost=1.0, bytes=128.0) for n in range(1, 40)]
        assert cycles([*independent, Instruction("alu", (39,), (40,))], constants=narrow) >= 39 * 64 + 100

    def test_barriers_hold_a_program_together_and_programs_apart(self) -> None:
        bar = Instruction("bar")
        assert cycles([LOAD, ADD, bar, ADD], warps=4) >= 100 + 8 + 2
        one = cycles([LOAD, ADD, bar, ADD, LOAD, ADD], warps=2)
        assert cycles([LOAD, ADD, bar, ADD, LOAD, ADD], warps=2, together=2, programs=2) < 1.2 * one

    def test_programs_follow_one_another(self) -> None:
        one = cycles([LOAD, ADD] * 3)
        assert cycles([LOAD, ADD] * 3, together=1, programs=5) == pytest.approx(5 * one, rel=0.02)
        assert cycles([LOAD, ADD] * 3, together=5, programs=5) < 1.2 * one

    def test_copies_ahead_are_not_waited_for(self) -> None:
        copy = Instruction("copy", (0,), (), cost=1.0, bytes=128.0)
        commit, work = Instruction("commit"), [ADD] * 30
        at_once = [copy, commit, Instruction("wait", pending=0), *work] * 4
        ahead = [copy, commit, *([copy, commit, Instruction("wait", pending=1), *work] * 4)]
        assert cycles(ahead) < cycles(at_once) - 2 * 80

    def test_products_queue_on_tensor_cores(self) -> None:
        product = Instruction("hgmma", (), (9,), cost=64.0)
        assert cycles([product] * 10 + [Instruction("hwait")]) == pytest.approx(10 * 64 + 30, abs=2)


def test_decoding() -> None:
    load = decode("LDG.E.128", "R4, desc[UR8][R2.64+0x10]")
    assert (load.kind, load.writes, load.cost, load.bytes) == ("load", (4, 5, 6, 7), 4.0, 512.0)
    assert {2, 3} <= set(load.reads)
    assert decode("FFMA", "R1, R2, R3.reuse, -R4") == Instruction("alu", (2, 3, 4), (1,))
    assert decode("ISETP.GE.AND", "P0, PT, R3, R5, PT").writes == (384,)
    assert decode("SHFL.BFLY", "PT, R7, R6, 0x1, 0x1f") == Instruction("shared", (6,), (7,), cost=1.0)
    product = decode("HGMMA.64x128x8.F32.TF32", "R24, gdesc[UR4], R24")
    assert (product.kind, product.cost, len(product.writes)) == ("hgmma", 64.0, 64)
    assert decode("DEPBAR.LE", "SB0, 0x2") == Instruction("wait", pending=2)


def test_what_runs_of_a_listing() -> None:
    """A persistent kernel's loop; or a loop several times, without the branch that is for rare cases."""
    names = tuple("ABCDEFGHIJ")
    tight = Loop(4, 5)
    listing = Listing(names, (Loop(2, 7), tight), ("",) * 10, (Loop(3, 6),))
    assert program(listing, looped=True, trips=1) == ([0, 1], [2, 7], [8, 9])
    assert program(listing, looped=False, trips=2)[0] == [0, 1, 2, 7, 2, 7, 8, 9]


PTX = """
	ld.param.b64 %rd1, [k_param_0];
	mov.u32 %r1, %tid.x;
	shl.b32 %r2, %r1, 2;
	shl.b32 %r3, %r1, 7;
	mov.u32 %r4, global_smem;
	add.s32 %r5, %r4, %r2;
	add.s32 %r6, %r4, %r3;
	st.shared.b32 [%r5], %r9;
	st.shared.b32 [%r6+4], %r9;
	ld.shared.v4.b32 {%r10, %r11, %r12, %r13}, [%r6];
	mul.wide.s32 %rd2, %r1, 4;
	add.s64 %rd3, %rd1, %rd2;
	ld.global.b32 { %r20 }, [ %rd3 + 0 ];
	mul.wide.s32 %rd4, %r20, 4;
	add.s64 %rd5, %rd1, %rd4;
	ld.global.b32 { %r21 }, [ %rd5 + 0 ];
"""


def test_addresses_tell_wavefronts() -> None:
    found = ptx.accesses(PTX, ["x_ptr"])
    assert [(one.space, one.wavefronts) for one in found] == [
        ("shared", 1),  # neighbours
        ("shared", 32),  # all in one bank
        ("shared", 32),  # 16 bytes each, 128 apart: a quarter of a warp at a time, eight to a bank
        ("load", 1),  # one line of 128 bytes
        ("load", None),  # where the data say
    ]
    assert [one.argument for one in found[-2:]] == ["x_ptr", "x_ptr"]
    conflicts = ptx.wavefronts("ldmatrix.x4.shared.b16", np.arange(32) * 16)
    assert conflicts == 4


class TestCalibration:
    def test_the_error_is_what_is_said(self) -> None:
        """At most 20 % in the middle, for kernels that the fit has not seen."""
        points = calibration.load()
        assert len(points) >= 170
        assert len({point.kernel for point in points}) == 6
        assert calibration.median(calibration.left_out(points)) <= 0.2
        assert calibration.median(calibration.fitted(points)) <= 0.12

    def test_the_constants_are_the_fitted_ones(self) -> None:
        with_ = json.loads(calibration.POINTS.read_text())["simulated_with"]
        factors = dict(zip(calibration.FITTED, calibration.fit(calibration.load()), strict=True))
        for name, value in with_.items():
            assert getattr(Cycles(), name) == pytest.approx(value * factors.get(name, 1.0), rel=0.01), name

    def test_fit_finds_what_is_there_and_a_kernel_left_out_is_not_seen(self) -> None:
        truth = np.array([0.8, 1.25])
        made = []
        for n in range(40):
            point = calibration.Point("ab"[n % 2], 1.0, 50.0 + n, (0.9 * (n % 5) / 4, 0.9 * (n % 7) / 6))
            made.append(replace(point, measured_us=point.predicted(truth)))
        assert calibration.fit(made) == pytest.approx(truth, rel=0.15)
        worse = [replace(p, measured_us=3 * p.measured_us) if p.kernel == "b" else p for p in made]
        assert calibration.left_out(made)["b"] != calibration.left_out(worse)["b"]
        assert calibration.left_out(worse)["b"] == pytest.approx(
            [(1 + error) / 3 - 1 for error in calibration.left_out(made)["b"]]
        )


def predicted(*only: str) -> list[dict[str, Any]]:
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    line = [sys.executable, "-m", "tools.device_time", "--json", *only]
    done = subprocess.run(line, env=clean, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def test_of_different_programs_the_longest_run() -> None:
    arguments = {"rows": 132, "shares": 70, "BLOCK_R": 8, "COLUMN_PROGRAMS": 128}
    arguments |= {"NEED_POINTWISE_WEIGHT": True, "NEED_DEPTHWISE_BIAS": False, "NEED_START": True}
    finish = FakeLaunch("finish_gradients", (234,), arguments)
    assert device_time.trips(finish) == 17
    columns = device_time.longest(finish)
    assert columns.grid == (128,)
    assert columns.arguments == arguments | {"NEED_START": False}
    assert arguments["NEED_START"]
    for other in (FakeLaunch("resample_dx", (9,), {"P": 3}), replace(finish, arguments={"COLUMN_PROGRAMS": 0})):
        assert device_time.longest(other) is other


@pytest.mark.proof
def test_prediction_of_a_shipped_kernel() -> None:
    one = next(
        row for row in predicted("resample_windows backward", "resample_dx", "tf32") if row["dtype"] == "float32"
    )
    assert one["kernel"] == "resample_dx"
    assert one["megabytes"] == pytest.approx(59, abs=1)  # dy and dx
    assert 20 < one["microseconds"] < 45  # 27 measured


@pytest.mark.proof
def test_the_fused_kernels_become_no_slower() -> None:
    """Predicted, B = 32, tf32, with Triton 3.6 and 3.8: 44 µs forward, 50 were weights prepared in another launch; 212
    and 208 backward.
    """
    rows = [row for row in predicted("windowed_tonality", "tf32") if row["dtype"] == "float32"]
    for op, bar in (("windowed_tonality forward", 47), ("windowed_tonality backward", 225)):
        kernels = {row["kernel"]: row["microseconds"] for row in rows if row["op"] == op}
        assert len(kernels) == (6 if op.endswith("backward") else 1)
        assert sum(kernels.values()) <= bar, kernels
        assert kernels.get("finish_gradients", 0) <= 8.5  # 6.7; 12.3 before rows came by asynchronous copies
        behind = sum(row["in_a_row"] for row in rows if row["op"] == op)
        assert behind <= sum(kernels.values()) * (0.95 if op.endswith("backward") else 1.0)
