"""Damaged files of every format that the reader takes: finite samples or a named refusal, no crash, no hang."""

from __future__ import annotations

import os
from pathlib import Path

import fuzz_audio
import pytest

CASES = 500
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(fuzz_audio.__file__).parent), "OMP_NUM_THREADS": "1"}


@pytest.mark.proof
def test_500_damaged_files() -> None:
    """`make fuzz` reads 10,000. What reading adds to the process stays far below what damaged headers claim."""
    found = fuzz_audio.fuzz(range(CASES), ENVIRONMENT)
    assert found.bugs == []
    assert found.outcomes.total() == CASES
    assert found.megabytes < 100
    assert 50 < found.outcomes["read"] < 450
    assert found.outcomes["truncated"] > 20
    assert found.outcomes["no audio that libsndfile can read"] > 50


def test_cases_follow_from_their_number_and_differ() -> None:
    files = fuzz_audio.originals()
    assert len(files) == len(fuzz_audio.ORIGINALS) + 5
    cases = [fuzz_audio.mutant(files, case) for case in range(200)]
    assert cases == [fuzz_audio.mutant(files, case) for case in range(200)]
    assert len({data for _, data in cases}) > 190
    assert {suffix for suffix, _ in cases} == {suffix for suffix, _, _ in fuzz_audio.ORIGINALS}


FAULTY_READER = """
import os, signal, sys, time
import numpy as np
if "--child" in sys.argv:
    import fuzz_audio
    from adaptive_window.audio import files
    cases = [fuzz_audio.mutant(fuzz_audio.originals(), case)[1] for case in range(6)]
    def stream_audio(path, rate):
        case = cases.index(path.read_bytes())
        if case == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if case == 2:
            time.sleep(60)
        if case == 3:
            raise MemoryError
        yield np.full(9, np.inf if case == 4 else 0.0)
    files.stream_audio = stream_audio
"""


@pytest.mark.proof
def test_what_kills_hangs_or_surprises_is_found(tmp_path: Path) -> None:
    """A reader with four faults: each is named with its case, and the files behind it are read."""
    (tmp_path / "sitecustomize.py").write_text(FAULTY_READER)  # which every Python that finds it runs first
    path = f"{tmp_path}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"
    found = fuzz_audio.fuzz(range(6), ENVIRONMENT | {"PYTHONPATH": path}, seconds=1)
    assert found.bugs == [
        (1, "SIGSEGV"),
        (2, "SIGALRM: no end within 1 s"),
        (3, "error: MemoryError: "),
        (4, "error: ArithmeticError: samples that are not finite"),
    ]
    assert found.outcomes["read"] == 2
