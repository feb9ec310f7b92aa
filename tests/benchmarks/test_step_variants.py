"""The step's benchmarks on a machine without a GPU: what they count and write, with agents that cost nothing."""

import argparse
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import agent_step
import compose
import step_training
import step_variants

from adaptive_window import AdaptiveWindowCreativeAgent

SMALL = {"window_frames": 40, "component_dim": 4, "composer_heads": 2, "composer_layers": 1, "composer_dim": 16}


def small(variant: str = "ours", window: int = 40) -> AdaptiveWindowCreativeAgent:
    torch.manual_seed(0)
    return AdaptiveWindowCreativeAgent(16, 2, **SMALL)


def batch(size: int, frames: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(2, size, 16, frames, generator=torch.Generator().manual_seed(1)))


def options(**changes):
    values = {"variant": "eager", "device": "cpu", "precision": ["float32", "bf16"], "batches": [1, 2], "frames": 60,
              "window": 40, "steps": 2, "only": step_variants.VARIANTS[:3], "wait": False, "lock": None,
              "json": None}  # fmt: skip
    return argparse.Namespace(**{**values, **changes})


def test_a_child_measures_each_precision_and_batch():
    rows = step_variants.run_child(options(), small, batch)
    assert [(row["precision"], row["batch"]) for row in rows] == [
        ("float32", 1),
        ("float32", 2),
        ("bf16", 1),
        ("bf16", 2),
    ]
    assert all(row["ms"] >= row["host_ms"] > 0 and "failed" not in row for row in rows)
    assert all(row["in_a_row_ms"] > 0 for row in rows)
    assert rows[1]["saved_gib"] > rows[0]["saved_gib"]


def test_steps_in_a_row_are_waited_for_once(monkeypatch):
    """Each takes the host a second; the device has 10 left to do at the end."""
    clock, called = [0.0], []

    def step():
        called.append("step")
        clock[0] += 1.0

    def wait():
        called.append("wait")
        clock[0] += 10.0

    monkeypatch.setattr(step_variants.time, "perf_counter", lambda: clock[0])
    assert step_variants.in_a_row(step, 4, wait) == (4 + 10) / 4
    assert called == ["wait", "step", "step", "step", "step", "wait"]


def test_what_fails_is_a_row_that_says_why(capsys):
    def broken(size, frames):
        return batch(size, frames if size == 1 else 30)  # shorter than a window

    rows = step_variants.run_child(options(precision=["float32"]), small, broken)
    assert "ms" in rows[0]
    assert "at least 40 frames" in rows[1]["failed"]
    everything = [{**row, "variant": variant} for row in rows for variant in step_variants.VARIANTS]
    step_variants.report(everything, options(precision=["float32"]), {"float64": 1e-15})
    printed = capsys.readouterr().out
    assert printed.count("failed: ValueError") == 3
    assert "1.00" in printed
    assert "in a row ms" in printed
    step_variants.report(rows, options(precision=["float32"], only=["eager"]), {})  # without the original: no ratio
    assert capsys.readouterr().out.count("failed: ValueError") == 1


def test_saved_bytes_leave_the_parameters_out():
    layer = torch.nn.Linear(64, 64)
    x = torch.randn(8, 64, requires_grad=True)
    assert step_variants.saved_bytes(lambda: layer(x).square().sum().backward(), layer) == 2 * 8 * 64 * 4


def test_what_is_timed_waits_for_the_lock(tmp_path):
    """Held by another process, it is not had; let go, it is."""
    lock = tmp_path / "lock"
    lock.write_text("somebody's")
    script = f"import fcntl, sys; f = open({str(lock)!r}, 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('has'); input()"
    command = [sys.executable, "-uc", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "has\n"
        had = threading.Event()

        def wait() -> None:
            with step_variants.alone(lock):
                had.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not had.wait(0.3)
        other.communicate("go\n")
        thread.join(10)
        assert had.is_set()
    assert lock.read_text() == "somebody's"
    with step_variants.alone(None):
        pass


@pytest.mark.parametrize("wrong", ["original", "ours"])
def test_nothing_is_timed_where_they_disagree(monkeypatch, wrong):
    def built(variant, window):
        agent = honest(variant, window)
        if variant == wrong:
            with torch.no_grad():
                next(p for name, p in agent.named_parameters() if name.endswith("composer.layers.0.linear1.bias")).add_(
                    1e-6
                )
        return agent

    honest = agent_step.build
    before = torch.backends.mha.get_fastpath_enabled()
    assert agent_step.check_parity(1, 144, 64)["float64"] < 1e-12
    assert torch.backends.mha.get_fastpath_enabled() == before
    monkeypatch.setattr(agent_step, "build", built)
    monkeypatch.setattr(step_variants, "measure", lambda options: pytest.fail("timed"))
    with pytest.raises(SystemExit, match="the variants disagree"):
        step_variants.main(options(variant=None), small, batch, lambda: agent_step.check_parity(1, 144, 64))


@pytest.mark.proof
def test_training_learns(tmp_path, monkeypatch):
    """The songs that it is trained on, held out as well: within so few steps it knows no others."""
    own = step_training.songs
    monkeypatch.setattr(step_training, "songs", lambda count, device: own(1, device).repeat(count, 1, 1, 1))
    changes = {"SONGS": 2, "HELD_OUT": 1, "SONG_SECONDS": 4.0, "EVERY": 20, "LEARNING_RATE": 3e-3}
    for name, value in changes.items():
        monkeypatch.setattr(step_training, name, value)
    torch.manual_seed(0)
    agent = AdaptiveWindowCreativeAgent(window_frames=40, component_dim=8, composer_heads=2, composer_layers=1,
                                        composer_dim=32, dropout=0.0)  # fmt: skip
    given = options(train_steps=60, train_batch=4, json=tmp_path / "curve.json")
    curve = step_training.main(given, agent)
    assert [point["step"] for point in curve] == [0, 20, 40, 60]
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert json.loads(given.json.read_text())["curve"] == curve


def test_training_needs_neither_soundfile_nor_soxr_nor_jsonargparse():
    """As a bare GPU machine has it."""
    import subprocess

    folder = str(Path(step_training.__file__).parent)
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['soundfile', 'soxr', 'jsonargparse', 'yaml', 'safetensors', "
        f"'matplotlib'])); sys.path.insert(0, {folder!r}); import agent_step, step_training; "
        "print(step_training._song(0).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(2, ")


def test_songs_a_second():
    agent = AdaptiveWindowCreativeAgent(128, 1, **SMALL)
    rows = compose.measure(agent, [1], 60, "cpu", 0.01)
    assert {row["what"] for row in rows} == {"called, mean", "called, best", "called, 0", "mel codec, encode",
                                             "mel codec, decode"}  # fmt: skip
    assert all(row["songs_per_second"] > 0 for row in rows)
    assert all(row["host_syncs"] == 0 for row in rows if row["what"].startswith("called"))
