"""What holds for every test: interpreter or device, NaN-poisoned memory, seeds, music, and the count of GPU tests.

Triton decides when it is imported whether kernels are compiled or interpreted, so this file decides before anything
imports it. With a CUDA device the real kernels run, without one the interpreter; `TRITON_INTERPRET=1` or `=0` in the
environment overrides that. Nothing else is changed for the interpreter: the shipped kernels run in it as they are.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

if "triton" in sys.modules:
    raise RuntimeError("triton was imported before tests/conftest.py could choose between interpreter and device")
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"

if "OMP_NUM_THREADS" not in os.environ:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))  # that share the cores
    torch.set_num_threads(max(1, min(4, (os.cpu_count() or 1) // workers)))  # small tensors: more threads only wait

MUSIC_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "audio"
MUSIC_SUFFIXES = {".ogg", ".flac", ".wav", ".mp3"}
SEED = 20_240_607


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "device: takes `device`, so runs a Triton kernel on a GPU; set here")
    config.addinivalue_line("markers", "gpu: needs a CUDA device with real kernels; skipped, and counted, without one")
    if importlib.util.find_spec("hypothesis") is not None:  # absent on a bare GPU machine
        import hypothesis

        hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
        hypothesis.settings.load_profile("suite")


@pytest.hookimpl(tryfirst=True)  # before -m is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "device" in getattr(item, "fixturenames", ()) or item.get_closest_marker("gpu"):
            item.add_marker("device")
    if torch.cuda.is_available() and not INTERPRETED:
        return
    reason = "kernels are interpreted (TRITON_INTERPRET=1)" if torch.cuda.is_available() else "no CUDA device"
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.getreports("skipped")
    count = sum("gpu" in getattr(report, "keywords", {}) for report in reports)
    if count:
        terminalreporter.write_line(f"{count} tests need a GPU and were skipped")


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """torch.empty and its kin return NaN (integers: the largest), in ATen itself, so inside custom ops as well.

    PyTorch offers this filling only together with deterministic algorithms (https://docs.pytorch.org/docs/stable/
    generated/torch.use_deterministic_algorithms.html, `torch.utils.deterministic.fill_uninitialized_memory`).
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before, warn_only=warn_only)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(SEED)
    np.random.seed(SEED % 2**32)  # noqa: NPY002 - for libraries that draw from the global generator
    torch.manual_seed(SEED)


@pytest.fixture
def device() -> torch.device:
    """Where `backend="triton"` runs in this session: CUDA with real kernels, else the CPU under the interpreter."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user to whom permissions apply, who runs the test (root, whom nothing is forbidden, becomes it)."""
    with tempfile.TemporaryDirectory() as name:  # not below tmp_path, which pytest keeps private to its user
        if os.geteuid() != 0:
            yield Path(name)
            return
        os.chown(name, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


@pytest.fixture(scope="session")
def music() -> list[Path]:
    """Real recordings beside the checkout (`../shared/audio`); they are no part of the repository."""
    found = sorted(p for p in MUSIC_FOLDER.glob("*") if p.suffix in MUSIC_SUFFIXES) if MUSIC_FOLDER.is_dir() else []
    if not found:
        pytest.skip("no music in ../shared/audio, beside the checkout")
    return found
