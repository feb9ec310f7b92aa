"""Two processes on the CPU, started by torchrun, each with the small agent (tests/support/torchrun_worker.py)."""

import json
import subprocess
import time
from pathlib import Path

import pytest
import torch
import torchrun_worker
from two_processes import launched, torchrun

from adaptive_window.audio.synthesis import write_demo_set
from adaptive_window.training.checkpoint import load_checkpoint

FLOAT64 = {"precision": "float64", "dropout": 0.0, "max_steps": 20, "clips_per_song": 27}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("torchrun")
    write_demo_set(found / "songs", pairs=3, val=1, seconds=6.0, seed=3)
    return found


def options_of(folder: Path, name: str, **options) -> dict:
    return {"data": str(folder / "songs"), "cache": str(folder / "cache"), "out": str(folder / name), **options}


def work(*runs: dict, restarts: int = 0) -> tuple[list[dict], subprocess.CompletedProcess]:
    """What the workers printed as JSON, and the finished process."""
    done = torchrun(torchrun_worker.__file__, *map(json.dumps, runs), restarts=restarts)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done


def curve(out: Path) -> dict[tuple[int, str], float]:
    """Every logged figure but the times, by step and name."""
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = [((e["step"], name), value) for e in entries for name, value in e.items() if name != "step"]
    assert len(found) == len(dict(found))  # logged once, by one process
    return {at: value for at, value in found if "seconds" not in at[1]}


def assert_equal_runs(a: Path, b: Path) -> None:
    """Bit-equal parameters, BatchNorm statistics, optimizers and states of every rank's generator."""
    one, other = (load_checkpoint(out / "last.safetensors") for out in (a, b))
    assert one.info["progress"] == other.info["progress"]
    assert one.model.keys() == other.model.keys()
    assert [name for name in one.model if not torch.equal(one.model[name], other.model[name])] == []
    slots = [(name, slot) for name, slots in one.optimizer.items() for slot in slots]
    assert [at for at in slots if not torch.equal(one.optimizer[at[0]][at[1]], other.optimizer[at[0]][at[1]])] == []
    for name in ("cpu", "rank1.cpu"):
        assert torch.equal(one.random[name], other.random[name])


@pytest.fixture(scope="module")
def together(folder):
    """Runs of two processes one after the other: what they printed, and the finished torchrun."""
    two = options_of(folder, "two", **FLOAT64, sync_batchnorm=True)
    apart = options_of(folder, "apart", **{**FLOAT64, "max_steps": 3})
    straight = options_of(folder, "straight", max_steps=9)
    tiny = {"precision": "float64", "dropout": 0.0, "max_steps": 1, "batch_size": 2, "num_pairs": 1}
    backends = [options_of(folder, name, **tiny, agent={"backend": name}) for name in ("reference", "triton")]
    printed, done = work(two, apart, straight, *backends)
    assert done.returncode == 0, done.stderr
    return printed, done


@pytest.mark.proof
def test_two_processes_follow_the_curve_of_one(folder, together):
    """20 steps in float64, the last of them on a batch that was filled up; without joint BatchNorm they do not."""
    torchrun_worker.run(options_of(folder, "one", **FLOAT64))
    one, two, apart = (curve(folder / name) for name in ("one", "two", "apart"))
    assert {step for step, name in one if name == "train/loss"} == set(range(1, 21))
    assert two == pytest.approx(one, rel=0, abs=1e-6)
    assert max(abs(apart[step, "train/loss"] - one[step, "train/loss"]) for step in (1, 2, 3)) > 1e-4
    models = [load_checkpoint(folder / name / "last.safetensors").model for name in ("one", "two")]
    for name, value in models[0].items():
        assert torch.allclose(value, models[1][name], rtol=0, atol=1e-6), name


@pytest.mark.proof
def test_both_ranks_end_with_one_result_and_one_speaks(folder, together):
    printed, done = together
    for name, steps in (("two", 20), ("apart", 3), ("straight", 9)):
        results = [p for p in printed if p["out"] == name]
        assert sorted(p["rank"] for p in results) == [0, 1]
        assert {p["steps"] for p in results} == {steps}
        assert len({p["loss"] for p in results}) == 1
        assert done.stderr.count(f"training {steps}/{steps} ") == 1
    assert done.stderr.count("3 training and 1 held-out songs, codec mel (50 frames/s), cpu, 2 processes") == 5


@pytest.mark.proof
def test_kernels_work_within_distributed_data_parallel(folder, together):
    reference, triton = (curve(folder / name) for name in ("reference", "triton"))
    assert reference[1, "train/gradient_norm"] > 0
    assert triton == pytest.approx(reference, rel=1e-9, abs=1e-9)


@pytest.mark.proof
def test_killed_and_stopped_processes_go_on_where_they_were(folder, together):
    """Rank 1 is killed at step 5 and torchrun starts both anew; then SIGTERM comes to rank 1 alone, and both save and
    stop together; the end is that of a run that nothing happened to, dropout of both ranks included."""
    signals = [[0, 1, 5, "SIGKILL"], [1, 1, 6, "SIGTERM"]]
    printed, done = work(options_of(folder, "shaken", max_steps=9, signals=signals), restarts=2)
    assert done.returncode == 0, done.stderr
    assert [p["signal"] for p in printed if "signal" in p] == ["SIGKILL", "SIGTERM"]
    assert done.stderr.count("interrupted at step 7: saved") == 1
    assert sorted(p["rank"] for p in printed if "steps" in p) == [0, 1]
    assert_equal_runs(folder / "shaken", folder / "straight")
    assert curve(folder / "shaken") == curve(folder / "straight")


@pytest.mark.proof
def test_a_killed_process_ends_the_run(folder):
    printed, done = work(options_of(folder, "killed", max_steps=9, signals=[[0, 0, 1, "SIGKILL"]]))
    assert done.returncode != 0
    assert time.time() - printed[0]["time"] < 60
    assert load_checkpoint(folder / "killed" / "last.safetensors").info["progress"]["step"] == 0


@pytest.mark.proof
def test_torchrun_stopped_by_a_signal_leaves_a_saved_run(folder):
    """As a cluster's scheduler does it: SIGTERM comes to torchrun, which hands it on."""
    options = options_of(folder, "scheduled", max_steps=10_000)
    with launched(torchrun_worker.__file__, json.dumps(options)) as process:
        metrics, began = folder / "scheduled" / "metrics.jsonl", time.monotonic()
        while not metrics.exists() or "train/loss" not in metrics.read_text():
            assert time.monotonic() - began < 120
            time.sleep(0.1)
        process.terminate()
        _, said = process.communicate(timeout=60)
    saved = load_checkpoint(folder / "scheduled" / "last.safetensors").info["progress"]["step"]
    assert saved == max(step for step, _ in curve(folder / "scheduled"))
    assert said.count(f"interrupted at step {saved}: saved") == 1


@pytest.mark.proof
def test_a_mistake_is_said_once(folder):
    arguments = ["--data", folder / "songs", "--out", folder / "odd", "--batch-size", 3]
    done = torchrun("-m", "adaptive_window", "train", *arguments)
    assert done.returncode != 0
    assert done.stderr.count("--batch-size 3 is the batch of all processes together") == 1
    assert done.stderr.count("Traceback") == 1  # torchrun's own
