"""`tools.inspect_kernels`: its reading of listings, and what the compiler makes of the shipped kernels.

The compile checks run in a process without TRITON_INTERPRET, on the Triton that is installed. Bars are upper limits in
instructions per element of the windows, in bytes, and in registers; docs/results.md gives the figures themselves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: the checkout's `kernels` must hide no other
from tools.sass import Listing, Load, Loop, loads, resources

ROOT = Path(__file__).resolve().parents[2]

# nvdisasm -c: two loops, one inside the other, and the branch to itself that pads every kernel's end
LISTING = """
        .section  .text.kernel,"ax",@progbits
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 EXIT ;
.L_x_1:
        /*0020*/                   LDG.E.64 R2, desc[UR4][R2.64] ;
.L_x_0:
        /*0030*/              @P1  FFMA R4, R2, R3, R4 ;
        /*0040*/                   HMMA.1688.F32.TF32 R8, R4, R6, R8 ;
        /*0050*/              @!P1 BRA `(.L_x_0) ;
        /*0060*/               @P2 BRA `(.L_x_3) ;
        /*0070*/                   STG.E desc[UR4][R2.64], R4 ;
.L_x_3:
        /*0080*/              @!UP0 BRA `(.L_x_1) ;
        /*0090*/                   STL [R1], R4 ;
        /*00a0*/                   EXIT ;
.L_x_2:
        /*00b0*/                   BRA `(.L_x_2);
        /*00c0*/                   NOP;
"""


class TestListing:
    def test_instructions_and_loops(self) -> None:
        listing = Listing.parse(LISTING)
        assert len(listing.names) == 11
        assert listing.names[2] == "LDG.E.64"
        assert listing.loops == (Loop(2, 8), Loop(3, 5))

    def test_counts(self) -> None:
        listing = Listing.parse(LISTING)
        assert listing.count(one_iteration=True) == 7 - 3
        assert listing.count(one_iteration=False, trips=1) == 11 - 3
        assert listing.count(one_iteration=False, trips=10) == 4 + 10 * 4
        assert listing.of_kind("HMMA", "HGMMA", "STL") == {"HMMA": 1, "STL": 1}

    def test_a_kernel_that_is_one_loop(self) -> None:
        listing = Listing.parse(".L_x_0:\n /*0000*/ FADD R1, R1, R1 ;\n /*0010*/ @P0 BRA `(.L_x_0) ;\n /*0020*/ EXIT ;")
        assert listing.count(one_iteration=True) == 2
        assert listing.count(one_iteration=False, trips=5) == 11

    def test_what_is_no_kernel(self) -> None:
        with pytest.raises(ValueError, match="no EXIT"):
            Listing.parse("")
        with pytest.raises(ValueError, match="no loop"):
            Listing.parse("/*0000*/ EXIT ;").count(one_iteration=True)

    def test_resources(self) -> None:
        text = " Function k:\n  REG:255 STACK:72 SHARED:1024 LOCAL:8 CONSTANT[0]:656 TEXTURE:0 SURFACE:0 SAMPLER:0"
        assert resources(text) == (255, 80)


def test_loads_of_each_argument() -> None:
    ttgir = """
#blocked = #ttg.blocked<{sizePerThread = [1, 1], threadsPerWarp = [32, 1], warpsPerCTA = [1, 8], order = [0, 1]}>
#blocked1 = #ttg.blocked<{sizePerThread = [1, 4], threadsPerWarp = [8, 4], warpsPerCTA = [1, 8], order = [1, 0]}>
  tt.func public @k(%x_ptr: !tt.ptr<f32> loc("x_ptr"(#loc)), %w_ptr: !tt.ptr<f32>, %n: i32) attributes {noinline} {
    %0 = tt.get_program_id x : i32
    %p = tt.splat %x_ptr : !tt.ptr<f32> -> tensor<128x32x!tt.ptr<f32>, #blocked>
    %q = tt.addptr %p, %off : tensor<128x32x!tt.ptr<f32>, #blocked>, tensor<128x32xi32, #blocked>
    %y = tt.load %q, %mask : tensor<128x32x!tt.ptr<f32>, #blocked>
    %z = arith.addf %y, %y : tensor<128x32xf32, #blocked>
    %a = tt.load %w_ptr : !tt.ptr<f32>
    %b = tt.splat %w_ptr : !tt.ptr<f32> -> tensor<8x4x!tt.ptr<f32>, #blocked1>
    %c = tt.load %b : tensor<8x4x!tt.ptr<f32>, #blocked1>
"""
    assert loads(ttgir) == [Load("x_ptr", (0, 1), (1, 1)), Load("w_ptr", (1, 0), (1, 4))]


KEYS = {"kernel", "dtype", "precision", "registers", "spill_bytes", "shared_bytes", "instructions_per_output"}
KEYS |= {"load_order", "tensor_core_instructions", "arch", "op", "config", "per_window_element"}
KEYS |= {"bytes_per_window_element", "shape"}
PRECISIONS = ("tf32", "bf16x3", "bf16")
PRODUCTS = ("windowed_tonality_forward", "joint_backward", "norm_backward", "product_backward")
CHANNEL_MAJOR = {
    "product_backward",
    "joint_backward",
}  # tiles [C, BLOCK_T]: lanes along frames are then the second axis


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    line = [sys.executable, "-m", "tools.inspect_kernels", *arguments]
    return subprocess.run(
        line, env=clean | environment, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False
    )


@cache
def everything(arch: int) -> list[dict[str, Any]]:
    """Reports on every kernel of every function, all dtypes and precisions: nothing else stands on stdout."""
    done = command("--arch", str(arch), "--json")
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    assert isinstance(reports, list)
    return reports


def fused(arch: int, precision: str, what: str = "") -> list[dict[str, Any]]:
    dtype = {"bf16": "bfloat16", "fp64": "float64"}.get(precision, "float32")
    reports = [r for r in everything(arch) if r["op"].startswith(f"{what}windowed_tonality")]
    return [r for r in reports if r["precision"] == precision and r["dtype"] == dtype]


def forward(arch: int, precision: str, what: str = "") -> dict[str, Any]:
    (one,) = (r for r in fused(arch, precision, what) if r["kernel"] == "windowed_tonality_forward")
    return dict(one)


@pytest.mark.proof
@pytest.mark.parametrize(("arch", "spill_bytes", "shared_kib"), [(90, 0, 227), (80, 32, 160)])
def test_registers_and_shared_memory_suffice(arch: int, spill_bytes: int, shared_kib: int) -> None:
    """In every function, dtype and precision."""
    assert {report["precision"] for report in everything(arch)} == {"fp64", "tf32", "bf16x3", "bf16"}
    assert len({report["op"] for report in everything(arch)}) == 11
    for report in everything(arch):
        assert report["spill_bytes"] <= spill_bytes, report
        assert report["shared_bytes"] <= shared_kib * 1024, report
        assert report["registers"] <= 255, report


@pytest.mark.proof
@pytest.mark.parametrize(
    ("arch", "shape", "dtype", "what"),
    [
        (90, "odd", "float32", "restoring "),
        (80, "odd", "float32", "restoring "),
        (90, "96 channels", "float32", "restoring "),
        (90, "odd", "float32", ""),
        (80, "odd", "float32", ""),
        (90, "96 channels", "float32", ""),
        (90, "96 channels", "bfloat16", ""),
        (90, "75 fps", "float32", ""),
        (90, "channels last", "float32", ""),
    ],
)
def test_other_sizes_do_not_spill_either(arch: int, shape: str, dtype: str, what: str) -> None:
    """`--shape all` compiles everything else as well."""
    precision = {"float32": "tf32", "bfloat16": "bf16"}[dtype]
    done = command("--arch", str(arch), "--shape", shape, "--json", f"{what}windowed_tonality", precision, dtype)
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    assert {report["shape"] for report in reports} == {shape}
    assert {report["kernel"] for report in reports} >= {
        "prepare_weights", "windowed_tonality_forward", "recompute_windows", "window_backward", "resample_dx",
        "finish_gradients",
    }  # fmt: skip
    assert {report["kernel"] for report in reports} & {"joint_backward", "norm_backward"}
    for report in reports:
        assert report["spill_bytes"] <= (0 if arch == 90 else 32), report


@pytest.mark.proof
@pytest.mark.parametrize("precision", PRECISIONS)
class TestShippedKernels:
    def test_reports_are_complete(self, precision: str) -> None:
        reports = fused(90, precision)
        assert all(set(report) == KEYS for report in reports)
        kernels = {report["kernel"] for report in reports}
        assert kernels >= {"windowed_tonality_forward", "joint_backward", "window_backward", "resample_dx"}
        assert all(report["precision"] == precision and report["arch"] == 90 for report in reports)

    def test_lanes_lie_along_frames(self, precision: str) -> None:
        for arch in (90, 80):
            for report in fused(arch, precision):
                wanted = [1, 0] if report["kernel"] in CHANNEL_MAJOR else [0, 1]
                assert report["load_order"] in (wanted, None), report
        assert forward(90, precision)["load_order"] == [0, 1]

    def test_forward_instructions(self, precision: str) -> None:
        bar = {"tf32": 35, "bf16x3": 39, "bf16": 38}[precision]  # a tile may hold two windows: fewer tiles
        assert forward(90, precision)["instructions_per_output"] <= bar

    def test_restoring_takes_at_most_seven_more(self, precision: str) -> None:
        with_it, without = (forward(90, precision, what)["instructions_per_output"] for what in ("restoring ", ""))
        assert 0 < with_it - without <= 7

    def test_tensor_cores_do_the_products(self, precision: str) -> None:
        for arch in (90, 80):
            for report in fused(arch, precision):
                if report["kernel"] in PRODUCTS:
                    assert report["tensor_core_instructions"] > 0, report


@pytest.mark.proof
def test_an_interpreting_process_hands_over_to_one_that_compiles() -> None:
    done = command("--json", "resample_dx", "float32", "tf32", "resample_windows", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    assert [report["kernel"] for report in json.loads(done.stdout)] == ["resample_dx"]


@pytest.mark.proof
def test_table_and_wrong_arguments() -> None:
    done = command("nothing of this name")
    assert done.returncode == 2
    assert "nothing of this name" in done.stderr
    done = command("--arch", "75")
    assert done.returncode == 2
    assert "75" in done.stderr
