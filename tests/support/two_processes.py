"""torchrun with two processes on this machine, for tests."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def launched(*command: object, restarts: int = 0) -> Iterator[subprocess.Popen]:
    """torchrun at work; killed at the end, if it still is."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]  # any free port
    paths = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    pipe = subprocess.PIPE
    whole = [*launcher, *map(str, command)]
    with subprocess.Popen(whole, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def torchrun(*command: object, restarts: int = 0) -> subprocess.CompletedProcess:
    with launched(*command, restarts=restarts) as process:
        said = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, *said)
