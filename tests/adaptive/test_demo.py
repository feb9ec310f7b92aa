"""The demo and the main job at full size: 24 s clips, 16 s patterns."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from adaptive_window import cli, demo
from adaptive_window.audio.codec import CodecUnavailable
from adaptive_window.config import DemoConfig, UsageError


def unavailable(*arguments, **options):
    raise CodecUnavailable("no weights")


@pytest.mark.proof
def test_demo_writes_all_it_promises(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "load_codec", unavailable)  # as without a network
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out), "--max-steps", "1", "--batch-size", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("using the embedded mel codec") == 1
    for name in ("windows.png", "trajectory.png"):
        assert (out / name).stat().st_size > 10_000
    assert "codec: mel\n" in (out / "config.yaml").read_text()
    lengths = {"input": 24, "target": 24, **{f"composed_{k}": 16 for k in ("mean", "pair0", "pair1", "pair2")}}
    for name, seconds in lengths.items():
        audio, rate = soundfile.read(out / f"{name}.wav")
        assert len(audio) == seconds * rate, name
        assert np.abs(audio).max() <= 1
        assert audio.std() > 1e-3, name
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["steps"] == 1
    assert [report["seconds"] for report in metrics["patterns"]] == [16.0] * 4
    assert "composed_pair2.wav" in printed.out
    assert "16.00" in printed.out

    # a second demo replaces the first one's run
    (out / "run" / "last.safetensors").write_bytes(b"stale")
    assert demo.prepare(out) == out / "run"
    assert not (out / "run").exists()


def test_demo_touches_no_folder_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "load_codec", unavailable)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("data")
    with pytest.raises(UsageError, match="no finished demo's"):
        demo.run_demo(DemoConfig(out=tmp_path))
    assert (tmp_path / "run" / "precious").exists()


def test_an_interrupted_demo_is_gone_on_with(tmp_path):
    with pytest.raises(UsageError, match="holds no checkpoint to go on from"):
        demo.prepare(tmp_path, resume=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.safetensors").write_bytes(b"of an interrupted run")
    with pytest.raises(UsageError, match="did not finish: add --resume"):
        demo.prepare(tmp_path)
    assert demo.prepare(tmp_path, resume=True) == tmp_path / "run"


def test_demo_takes_encodec_where_its_weights_are(monkeypatch):
    monkeypatch.setattr(demo, "load_codec", lambda *a, **k: object())
    assert demo.choose_codec(DemoConfig()) == demo.PRETRAINED
    assert demo.choose_codec(DemoConfig(codec="mel")) == "mel"


def test_weights_named_and_missing_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "load_codec", unavailable)
    with pytest.raises(CodecUnavailable):
        demo.choose_codec(DemoConfig(weights=tmp_path / "missing.th"))


@pytest.mark.proof
def test_main_job_on_real_music(music, tmp_path):
    """Three steps on whole pieces, then a pattern from two of them, as separate commands."""

    def run(*arguments):
        command = [sys.executable, "-m", "adaptive_window", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    out, cache = tmp_path / "run", tmp_path / "cache"
    shared = ("--batch-size", 1, "--clips-per-song", 1, "--cache", cache, "--no-tensorboard")
    run("train", "--data", music[0].parent, "--out", out, "--max-steps", 3, *shared)
    best = out / "best.safetensors"
    run("compose", music[0], music[1], "-o", tmp_path / "out.wav", "--checkpoint", best, "--pick", "best", "--at", 5)
    audio, rate = soundfile.read(tmp_path / "out.wav")
    assert len(audio) == 16 * rate
    assert 1e-3 < audio.std() < 1
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["clip_at"] == {"input": 5.0, "target": 5.0}
    assert all(pair["end_target_s"] <= 24 + 1e-6 for pair in report["pairs"])
