"""Every variant of every kernel is accepted by Triton's compiler, which is stricter than its interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.proof
def test_front_end_accepts_every_variant() -> None:
    """In a process of its own, since Triton decides at its import whether it interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "front_end"]
    done = subprocess.run(command, cwd=SUPPORT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert report["translated"] > 100


@pytest.mark.proof
def test_compiled_kernels_are_started_with_addresses() -> None:
    """Triton's own compiler and what it makes to start a kernel, on a driver that notes what it is given."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(SUPPORT)}
    command = [sys.executable, "-m", "compiled_starts"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr
    started = json.loads(done.stdout)["started"]
    assert [one["name"] for one in started] == ["windowed_tonality_forward"] * 2
    assert {one["stream"] for one in started} == {7}
    assert all(len(one["grid"]) == 3 for one in started)
    for n, one in enumerate(started):
        wanted = {4096 + 4 * n, *(4096 * k for k in range(2, 11))}  # x, the other places and the weights
        assert wanted <= set(one["pointers"].values())
        assert (0 in one["aligned"]) == (n == 0)  # the first argument is x
