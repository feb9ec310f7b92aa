"""`benchmarks/tune.py` as far as a machine without a GPU goes: all jobs planned; a few compiled, predicted, judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import tune
from candidates import CANDIDATES
from tune import Job, Row

from adaptive_window.kernels.triton.configurations import TABLE

TUNE = Path(tune.__file__)


def row(microseconds: float | None, *, shipped: bool = False, spills: int = 0, note: str = "") -> Row:
    one = Row("norm_backward", "tf32", shipped, {"BLOCK_T": 32, "STAGES": 2}, 4, 2, microseconds=microseconds)
    one.spill_bytes, one.note = spills, note
    return one


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    line = [sys.executable, str(TUNE), *arguments]
    return subprocess.run(line, env=clean, capture_output=True, text=True, timeout=1500, check=False)


@pytest.mark.parametrize("precision", ["tf32", "bf16x3", "bf16"])
@pytest.mark.parametrize("kernel", CANDIDATES)
def test_every_job_can_be_planned(kernel: str, precision: str) -> None:
    """As a launch of the nominal call, with its own configuration; and the table is left as it was."""
    before = dict(TABLE)
    for number, config in enumerate(CANDIDATES[kernel]):
        found = tune.launches(Job(kernel, precision, number), 90, 132)
        made, launch = tune.row_of(Job(kernel, precision, number), found)
        assert made.constants == dict(config.constants)
        assert launch.num_warps == config.num_warps
        assert not made.shipped
    made, launch = tune.row_of(Job(kernel, precision, -1), tune.launches(Job(kernel, precision, -1), 90, 132))
    assert made.shipped
    assert {name: launch.arguments[name] for name in made.constants} == made.constants
    assert before == TABLE


def test_choice() -> None:
    shipped, slow, fast = row(60.0, shipped=True), row(59.5), row(50.0)
    wrong = [row(10.0, spills=8), row(10.0, note="differs from the shipped one by 2.0e-01"), row(None)]
    assert tune.chosen([shipped, slow, *wrong], "microseconds") == []  # within two per cent
    assert tune.chosen([shipped, slow, fast, *wrong], "microseconds") == [(shipped, fast)]
    assert tune.chosen([fast, slow], "microseconds") == []
    assert fast.text() == 'Row(_c(4, BLOCK_T=32, STAGES=2, per_processor=2), arch=90, precision="tf32")'
    table = tune.table([shipped, fast, wrong[0]], "microseconds")
    assert table.index("spills 8") < table.index("50.0 us") < table.index("60.0 us")


def test_difference_adds_partial_sums_up() -> None:
    whole = torch.rand(6, 4)
    parts = torch.stack((whole[0] + whole[1] + whole[2], whole[3] + whole[4] + whole[5]))
    assert tune.difference({"a": parts, "n": 3}, {"a": whole, "n": 3}) < 1e-6
    assert tune.difference({"a": whole + 0.1}, {"a": whole}) > 0.05
    assert tune.difference({"a": whole * float("nan")}, {"a": whole}) == float("inf")


def test_launches_with_memory_in_their_tensors() -> None:
    """What two launches share is one memory, and places are inside the clip."""
    found = tune.launches(Job("norm_backward", "bf16", -1), 90, 132)
    small = [one for one in found if one.name == "prepare_weights"]
    assert len(small) >= 1
    tensors = tune.Tensors("cpu")
    arguments = tensors.of(small[0])
    again = tensors.of(small[0])
    assert arguments["hi_ptr"].data_ptr() == again["hi_ptr"].data_ptr()
    assert arguments["hi_ptr"].dtype == torch.bfloat16
    start = tensors.base("start_ptr", torch.empty(32, 3, device="meta"))
    assert 0 <= float(start.min()) < float(start.max()) <= 390


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_one_kernel_and_the_two_in_its_place(precision: str) -> None:
    """Each is found among the launches, whichever the table would have."""
    for kernel, others in (("joint_backward", set()), ("norm_backward", {"product_backward"})):
        names = {one.name for one in tune.launches(Job(kernel, precision, 0), 90, 132)}
        assert {kernel, *others} <= names
        assert ("joint_backward" in names) == (kernel == "joint_backward")


def test_what_programs_share_and_what_is_split_is_compared_added_up() -> None:
    """Other tiles give programs other shares, and other roundings other halves: the sums are what is promised."""
    parts = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0))
    exact = torch.tensor([1.0, 2.0])
    one = {"PRECISION": "bf16x3", "dpointwise_ptr": parts, "du_ptr": exact, "du_lo_ptr": torch.tensor([0.25, 0.0])}
    other = {**one, "dpointwise_ptr": parts.flip(0), "du_ptr": exact + 0.25, "du_lo_ptr": torch.tensor([0.0, -0.25])}
    assert tune.difference(other, one) < 1e-6
    assert tune.difference({**other, "dpointwise_ptr": 2 * parts}, one) == pytest.approx(1)
    assert tune.difference({**other, "du_lo_ptr": torch.tensor([0.25, 0.0])}, one) > tune.AGREE


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = command("--kernels", "resample_dx")
    assert done.returncode == 2
    assert "--dry" in done.stderr


@pytest.mark.proof
def test_dry_run_compiles_and_predicts(tmp_path: Path) -> None:
    path = tmp_path / "tune.json"
    done = command("--dry", "--kernels", "resample_dx", "--precisions", "tf32", "--first", "1", "--json", str(path))
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert result["dry"]
    assert [one["shipped"] for one in result["rows"]] == [True, False]
    for one in result["rows"]:
        assert one["note"] == ""
        assert one["spill_bytes"] == 0
        assert 10 < one["predicted_us"] < 100
    assert "predicted, not measured" in done.stdout


def test_dz_in_24_bits_is_compared_as_numbers() -> None:
    """As `operands.pack` leaves it: of these, every bit."""
    numbers = torch.tensor([1.5, -3.0, 0.0, 255.0, -(2.0**-40) * 33021])
    bits = numbers.view(torch.int32)
    packed = {"dz_ptr": (bits >> 16).to(torch.int16), "dz_lo_ptr": (bits >> 8).to(torch.int8)}
    assert torch.equal(tune.comparable(packed)["dz_ptr"], numbers.double())
    assert tune.difference({"dz_ptr": numbers, "dz_lo_ptr": numbers}, packed) == 0.0
