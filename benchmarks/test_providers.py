"""Regression tracking with pytest-benchmark: every provider, forward and both directions.

    pytest benchmarks -n 0 -m proof --benchmark-autosave            # then, after a change:
    pytest benchmarks -n 0 -m proof --benchmark-compare

A provider is timed only after it passed the parity check; one that cannot run here is skipped with its reason.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # importlib mode puts no folder of a test on the path
from operations import Runs
from parity import check, truth
from providers import PROVIDERS, CannotRun, Case, build, make_inputs, make_output_gradient

pytestmark = pytest.mark.proof  # compiles three providers
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASE = Case(int(os.environ.get("BENCHMARK_BATCH", "32" if DEVICE == "cuda" else "2")), device=DEVICE)


@pytest.fixture(scope="module")
def problem() -> tuple[Any, ...]:
    inputs, grad_out = make_inputs(CASE), make_output_gradient(CASE)
    return inputs, grad_out, truth(inputs, grad_out, CASE.window)


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("name", list(PROVIDERS))
def test_provider(name: str, direction: str, problem: tuple[Any, ...], benchmark: Any) -> None:
    inputs, grad_out, true = problem
    try:
        call = build(name, CASE)
    except CannotRun as reason:
        pytest.skip(str(reason))
    parity = check(name, call, CASE, inputs, grad_out, true)
    assert parity.passed, parity.failures
    run = getattr(Runs(call, inputs, grad_out), direction)

    def finished() -> None:
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.group = direction
    benchmark.extra_info.update(CASE.describe(), worst_error=parity.worst())
    benchmark.pedantic(finished, rounds=50 if DEVICE == "cuda" else 8, warmup_rounds=3)
