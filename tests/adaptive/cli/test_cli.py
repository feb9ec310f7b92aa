"""The command line as a user meets it: each command through `main`, in this process."""

import ast
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from command import run

from adaptive_window import cli, config
from adaptive_window.audio.synthesis import write_demo_set
from adaptive_window.training.checkpoint import load_checkpoint
from adaptive_window.training.run import training_windows

SHORT = ["--clip-seconds", "3", "--window-seconds", "2", "--clips-per-song", "1", "--no-tensorboard"]
PACKAGE = Path(cli.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs")
    write_demo_set(folder, pairs=2, val=1, seconds=6.0, seed=3)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(songs, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    code = run("train", "--data", songs, "--out", out, "--cache", cache, "--max-steps", 2, "--batch-size", 1, *SHORT)
    assert code == 0
    return out


@pytest.fixture
def pair(songs):
    return songs / "val" / "song_02_input.wav", songs / "val" / "song_02_target.wav"


@pytest.mark.parametrize("command", ["demo", "encode", "train", "compose", "refine", "plot", "ablate"])
def test_help_of_every_command(command, capsys):
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    config_of, _, purpose = cli.COMMANDS[command]
    for field in dataclasses.fields(config_of):
        assert field.name.replace("_", "-") in text or field.name in text
        assert field.metadata["help"]
    assert purpose[:20].lower() in " ".join(text.split()).lower()


def test_help_lists_the_commands(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert command in text


def test_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "adaptive_window", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "compose" in done.stdout


def test_a_run_folder_holds_what_is_promised(trained):
    assert {
        "last.safetensors",
        "best.safetensors",
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "trajectory.png",
    } <= {entry.name for entry in trained.iterdir()}
    assert len(list((trained / "examples").glob("*.wav"))) == 1
    assert len(list((trained / "examples").glob("*.png"))) == 1
    steps, series = training_windows(trained / "metrics.jsonl", 50.0)
    assert steps == [2]  # what the trajectory's lines are drawn from: log entries of training steps
    starts = np.sort(series["start in (s)"][0])
    assert 0 <= starts[0] < starts[2] <= 1.0
    assert series["strength"].shape == (1, 3)
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["codec"] == "mel"


def test_saved_config_reproduces_the_run(trained, tmp_path, capsys):
    saved = yaml.safe_load((trained / "config.yaml").read_text())
    assert saved["max_steps"] == 2
    assert saved["clip_seconds"] == 3.0
    again = tmp_path / "again"
    assert run("train", "--config", trained / "config.yaml", "--out", again) == 0
    assert yaml.safe_load((again / "config.yaml").read_text()) == {**saved, "out": str(again)}
    ours, theirs = (load_checkpoint(folder / "last.safetensors").model for folder in (again, trained))
    assert all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.proof
def test_resume_goes_on(trained, tmp_path, songs, cache):
    out = tmp_path / "out"
    shared = ["train", "--data", songs, "--out", out, "--cache", cache, "--batch-size", 1, *SHORT]
    assert run(*shared, "--max-steps", 1) == 0
    assert run(*shared, "--max-steps", 3, "--resume") == 0
    assert load_checkpoint(out / "last.safetensors").info["progress"]["step"] == 3
    assert run(*shared, "--max-steps", 3, "--resume") == 0  # nothing left to do


@pytest.mark.parametrize("pick", ["mean", "best", "0", "2"])
def test_compose_writes_exactly_the_window(trained, pair, tmp_path, pick, capsys):
    out = tmp_path / "out.wav"
    assert run("compose", *pair, "-o", out, "--checkpoint", trained / "best.safetensors", "--pick", pick) == 0
    audio, rate = soundfile.read(out)
    assert (len(audio), rate) == (2 * 16000, 16000)
    assert np.isfinite(audio).all()
    assert audio.std() > 1e-4
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["pick"] == pick
    allowed = {"mean": [None], "best": [0, 1, 2]}.get(pick) or [int(pick)]
    assert report["picked_pair"] in allowed
    assert len(report["pairs"]) == 3
    for windows in report["pairs"]:
        for side in ("input", "target"):
            start, end = windows[f"start_{side}_s"], windows[f"end_{side}_s"]
            assert 0 <= start < end <= 3.0 + 1e-6
            assert end - start == pytest.approx(2.0 * windows[f"ratio_{side}"])
    assert "2.00 s" in capsys.readouterr().out


def test_compose_at_another_place_hears_something_else(trained, pair, tmp_path):
    sounds = []
    for options in ((), ("--at", 2.5), ("--at-target", 2.5)):
        out = tmp_path / f"{len(sounds)}.wav"
        assert run("compose", *pair, "-o", out, "--checkpoint", trained / "best.safetensors", *options) == 0
        sounds.append(soundfile.read(out)[0])
    assert not np.allclose(sounds[0], sounds[1])
    assert not np.allclose(sounds[0], sounds[2])
    assert not np.allclose(sounds[1], sounds[2])


def test_plot_draws(trained, pair, tmp_path):
    out = tmp_path / "windows.svg"
    assert run("plot", *pair, "-o", out, "--checkpoint", trained / "best.safetensors") == 0
    assert "<svg" in out.read_text()[:500]


def test_encode_fills_the_cache_that_training_reads(songs, tmp_path, capsys):
    (bad := tmp_path / "songs" / "broken.wav").parent.mkdir()
    bad.write_text("not audio")
    os.symlink(songs / "train" / "song_00_input.wav", bad.with_name("good.wav"))
    assert run("encode", "--data", bad.parent, "--cache", tmp_path / "cache") == 0
    printed = capsys.readouterr()
    assert "1 files as mel latents" in printed.out
    assert "1 skipped" in printed.out
    assert "broken.wav" in printed.err
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1


def test_unity_test_makes_input_and_target_windows_alike(songs, cache, tmp_path):
    out = tmp_path / "out"
    options = ["--max-steps", 1, "--batch-size", 1, "--unity-test", *SHORT]
    assert run("train", "--data", songs, "--out", out, "--cache", cache, *options) == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["unity_test"] is True


def bad_commands(songs, trained, pair, tmp_path):
    """name -> (arguments, what the message must say)"""
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "text.wav"
    text.write_text("not audio")
    short = tmp_path / "short.wav"
    soundfile.write(short, np.random.default_rng(0).standard_normal(16000) / 10, 16000)
    best = trained / "best.safetensors"
    out, run_out = tmp_path / "o.wav", tmp_path / "run"
    a, b = pair
    return {
        "missing folder": (["train", "--data", tmp_path / "nowhere", "--out", run_out], "nowhere"),
        "no audio": (["train", "--data", empty, "--out", run_out], ".wav"),
        "out is a file": (["train", "--data", songs, "--out", text], "is a file"),
        "run exists": (["train", "--data", songs, "--out", trained], "--resume"),
        "nothing to resume": (["train", "--data", songs, "--out", run_out, "--resume"], "last.safetensors"),
        "window longer than clip": (
            ["train", "--data", songs, "--out", run_out, "--clip-seconds", 2, "--window-seconds", 3],
            "--window-seconds 3",
        ),
        "songs shorter than a clip": (["train", "--data", songs, "--out", run_out], "shorter than a clip"),
        "both sanity modes": (
            ["train", "--data", songs, "--out", run_out, "--unity-test", "--shuffle-targets"],
            "unity_test and shuffle_targets",
        ),
        "random mel": (["train", "--data", songs, "--out", run_out, "--random-codec"], "mel"),
        "mel with weights": (["train", "--data", songs, "--out", run_out, "--weights", text], "weights"),
        "missing weights file": (
            ["train", "--data", songs, "--out", run_out, "--codec", "encodec-24khz", "--weights", tmp_path / "w.th"],
            "w.th",
        ),
        "missing song": (["compose", tmp_path / "gone.wav", b, "-o", out, "--checkpoint", best], "gone.wav"),
        "unreadable song": (["compose", a, text, "-o", out, "--checkpoint", best], "text.wav"),
        "short song": (["compose", a, short, "-o", out, "--checkpoint", best], "short.wav"),
        "at beyond the end": (["compose", a, b, "-o", out, "--checkpoint", best, "--at", 5], "5 s"),
        "missing checkpoint": (
            ["compose", a, b, "-o", out, "--checkpoint", tmp_path / "c.safetensors"],
            "c.safetensors",
        ),
        "damaged checkpoint": (["compose", a, b, "-o", out, "--checkpoint", text], "text.wav"),
        "pick out of range": (["compose", a, b, "-o", out, "--checkpoint", best, "--pick", 3], "from 0 to 2"),
        "pick nonsense": (["compose", a, b, "-o", out, "--checkpoint", best, "--pick", "all"], "--pick all"),
        "output not wav": (["compose", a, b, "-o", tmp_path / "o.mp3", "--checkpoint", best], ".wav"),
        "no output folder": (["compose", a, b, "-o", tmp_path / "no" / "o.wav", "--checkpoint", best], "no folder"),
        "picture suffix": (["plot", a, b, "-o", tmp_path / "p.jpg", "--checkpoint", best], ".png, .svg or .pdf"),
        "no picture folder": (["plot", a, b, "-o", tmp_path / "no" / "p.png", "--checkpoint", best], "no folder"),
        "encode a missing folder": (["encode", "--data", tmp_path / "nowhere"], "nowhere"),
        "encode nothing": (["encode", "--data", empty], ".wav"),
        "demo codec random without a name": (["demo", "--out", run_out, "--random-codec"], "--codec"),
    }


def test_bad_commands_name_the_mistake_and_exit_with_2(songs, trained, pair, tmp_path, capsys):
    wrong = []
    for name, (arguments, wanted) in bad_commands(songs, trained, pair, tmp_path).items():
        capsys.readouterr()
        code = run(*arguments)
        message = capsys.readouterr().err
        if code != 2 or wanted not in message or "Traceback" in message:
            wrong.append((name, code, message[-400:]))
    assert wrong == []


def test_cuda_asked_for_and_absent(songs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run("train", "--data", songs, "--out", tmp_path / "run", "--device", "cuda") == 2
    assert "finds no CUDA device" in capsys.readouterr().err


def attributes_read(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_flag_that_is_parsed_is_used(command):
    """Each field of a command's dataclass is read somewhere outside config (what it does is tested elsewhere)."""
    used: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if "config" not in path.parts and "kernels" not in path.parts and "model" not in path.parts:
            used |= attributes_read(ast.parse(path.read_text(encoding="utf-8")))
    fields = {field.name for field in dataclasses.fields(cli.COMMANDS[command][0])}
    assert fields - used == set()


def test_config_is_plain_json():
    values = config.to_plain(config.DemoConfig())
    assert json.loads(json.dumps(values)) == values
