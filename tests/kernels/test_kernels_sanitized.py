"""The shipped kernels under the sanitizer: random cases forward and backward, and tensors beyond 2³¹ elements."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from huge_tensors import HUGE, check_huge_tensors, launches
from random_cases import Case, arguments

pytestmark = pytest.mark.skipif(os.environ["TRITON_INTERPRET"] != "1", reason="watches the interpreter")

SUPPORT = Path(__file__).parents[1] / "support"
CASES, PROCESSES = 1600, 2


@pytest.mark.proof
def test_random_cases() -> None:
    """1,600 cases, half of them in each of two processes; `make sanitize` runs 10,000."""
    share = CASES // PROCESSES
    environment = os.environ | {"PYTHONPATH": str(SUPPORT), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "sanitize_kernels", "--cases", str(share), "--seed", str(n * share)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(PROCESSES)
    ]
    for process in running:
        out, err = process.communicate(timeout=1500)  # minutes at rest; other proofs may run beside
        assert process.returncode == 0, err
        done = re.search(r"(\d+) cases from seed \d+: (\d+) memory operations, no report", out)
        assert done, out
        assert int(done[1]) == share
        assert int(done[2]) > 50 * share


def test_cases_cover_what_matters() -> None:
    """The generator's own promises, over the cases that the suite runs."""
    cases = [Case.draw(seed) for seed in range(CASES)]
    assert {case.function for case in cases} == {"windowed_tonality", "resample_windows", "tonality_blend"}
    assert {case.layout for case in cases} == {"plain", "sliced", "transposed", "expanded", "offset"}
    assert {case.dtype for case in cases} == {torch.float64, torch.float32}
    assert any(case.channels > 128 for case in cases)
    assert min(sum(case.arch == arch for case in cases) for arch in (80, 90)) >= CASES // 40
    assert any(not case.needs for case in cases)
    assert sum(case.restore == "frame" for case in cases) >= CASES // 4
    assert any(case.restore == "frame" and case.channels > 128 for case in cases)
    assert Case.draw(7) == Case.draw(7)
    for case in cases[:200]:
        values = arguments(case)
        if case.function != "tonality_blend":
            finite = values["start"].abs().lt(1e6).all() & values["ratio"].abs().lt(1e6).all()
            assert case.absurd or bool(finite)


@pytest.mark.proof
@pytest.mark.parametrize("name", HUGE)
def test_beyond_32_bits(name: str) -> None:
    planned = launches(HUGE[name], torch.float32)
    tensors = [a for launch in planned for a in launch.arguments.values() if isinstance(a, torch.Tensor)]
    assert max(tensor.numel() for tensor in tensors) >= 2**31
    sanitizer = check_huge_tensors(name)
    assert sum(sanitizer.launches.values()) == len(planned)
