"""Runs killed at random moments end as the run that was left alone does (tests/support/kill_runs.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parents[2] / "support"


@pytest.mark.slow
def test_killed_and_resumed_runs_are_bit_equal():
    finished = subprocess.run(
        [sys.executable, "-m", "kill_runs", "--runs", "20", "--seed", "1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    assert result["bit_equal"] == result["runs"] == 20
    assert result["kills"] >= 20
    assert result["kills_in_a_save"] >= 5
