"""A tool of this folder in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_tool(name: str, *arguments: str, timeout: float = 900) -> Any:
    """`python -m name arguments` with one thread; the JSON that it prints. A failure raises with what it said."""
    finished = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)
