"""The loop's own cost: the benchmark runs the loop that there is, and the loop does not load."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import loop


def test_batches_are_loaded_beside_the_loop():
    """Copying 16 clips of 24 s twice takes milliseconds; taking the batch that was loaded takes none of them."""
    found = loop.measure(steps=20, batch=16, frames=1200, workers=0)
    assert found["loop_ms"] > 0
    assert found["load_ms"] < found["loop_ms"]
