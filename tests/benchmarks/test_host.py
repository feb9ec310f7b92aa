"""Host time of a call, as a ratio within one process and with slack; `benchmarks/host.py` holds the bars themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "host.py"
SLACK = 1.5  # for what else runs on the machine


def test_a_call_costs_little_host_time(tmp_path: Path) -> None:
    written = tmp_path / "host.json"
    command = [sys.executable, str(SCRIPT), "--json", str(written), "--repeats", "150"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(written.read_text())
    assert figures["launches_forward"] == 1
    assert figures["launches_both"] <= 8
    assert figures["forward_adds"] <= 12 * SLACK, done.stdout
    assert figures["both_adds"] <= 50 * SLACK, done.stdout
    assert "forward + backward" in done.stdout
