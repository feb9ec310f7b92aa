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
