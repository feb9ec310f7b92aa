"""No command writes a file that it reads, or replaces one that adaptive-window did not write; each runs again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from command import run

from adaptive_window.audio.files import find_audio
from adaptive_window.audio.synthesis import write_demo_set
from adaptive_window.training.checkpoint import load_checkpoint

SHORT = ("--clip-seconds", 3, "--window-seconds", 2, "--clips-per-song", 1, "--batch-size", 1, "--no-tensorboard")
REFINE = ("--clip-seconds", 3, "--window-seconds", 2)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def noise(path: Path, seconds: float = 6.0, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).standard_normal(round(16000 * seconds)) / 10, 16000)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs")
    write_demo_set(folder, pairs=2, val=1, seconds=6.0, seed=3)
    return folder


@pytest.fixture(scope="module")
def trained(songs, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    assert run("train", "--data", songs, "--out", out, "--cache", out.parent / "cache", "--max-steps", 1, *SHORT) == 0
    return out


def hostile(folder: Path) -> dict[str, tuple[object, ...]]:
    """Calls that would lose a file: refused before any work, so that nothing in the files need be valid."""
    a, b, mine = noise(folder / "a.wav"), noise(folder / "b.wav", seed=1), noise(folder / "mine.wav", seed=2)
    for name in ("mine.json", "mine.png", "checkpoint.json", "weights.json", "a.json"):
        (folder / name).write_text('{"my": "notes"}')
    (folder / "config.json").write_text('{"pick": "best"}')  # JSON is YAML
    (folder / "plot.svg").write_text("at: 0")  # a suffix does not make a file a picture
    os.symlink(a, folder / "link.wav")
    os.link(a, folder / "hard.wav")
    os.symlink(folder / "mine.json", folder / "out.json")
    (folder / "folder.json").mkdir()
    compose = ("compose", a, b, "--checkpoint", folder / "checkpoint.json")
    plot = ("plot", a, b, "--checkpoint", folder / "checkpoint.json")
    return {
        "the input": (*compose, "-o", a),
        "the target": (*compose, "-o", b),
        "the input, to be overwritten": (*compose, "-o", a, "--overwrite"),
        "the input by a link": (*compose, "-o", folder / "link.wav", "--overwrite"),
        "the input by its other name": (*compose, "-o", folder / "hard.wav", "--overwrite"),
        "the input by dots": (*compose, "-o", folder / ".." / folder.name / "a.wav", "--overwrite"),
        "another song": (*compose, "-o", mine),
        "somebody's JSON beside": (*compose, "-o", folder / "a.wav"),
        "somebody's JSON by a link": (*compose, "-o", folder / "out.wav"),
        "JSON beside is a folder": (*compose, "-o", folder / "folder.wav", "--overwrite"),
        "the checkpoint, by the JSON beside": (*compose, "-o", folder / "checkpoint.wav", "--overwrite"),
        "the weights": (*compose, "-o", folder / "weights.wav", "--weights", folder / "weights.json", "--overwrite"),
        "the config": (*compose, "-o", folder / "config.wav", "--config", folder / "config.json", "--overwrite"),
        "the config, by plot": (*plot, "-o", folder / "plot.svg", "--config", folder / "plot.svg", "--overwrite"),
        "somebody's picture": (*plot, "-o", folder / "mine.png"),
    }


HOSTILE = (
    *("the input", "the target", "the input, to be overwritten", "the input by a link", "the input by its other name"),
    *("the input by dots", "another song", "somebody's JSON beside", "somebody's JSON by a link"),
    *("JSON beside is a folder", "the checkpoint, by the JSON beside", "the weights", "the config"),
    *("the config, by plot", "somebody's picture"),
)


@pytest.mark.parametrize("case", HOSTILE)
def test_compose_and_plot_refuse_what_would_lose_a_file(case, tmp_path, capsys):
    cases = hostile(tmp_path)
    assert set(cases) == set(HOSTILE)
    before = contents(tmp_path)
    assert run(*cases[case]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["refine.json", "windows.png", "cut_input.wav", "window_target.wav"])
def test_refine_leaves_what_somebody_else_wrote(name, tmp_path, capsys):
    a, mine = noise(tmp_path / "a.wav"), tmp_path / "out" / name
    mine.parent.mkdir()
    mine.write_text("mine")
    before = contents(tmp_path)
    assert run("refine", a, a, "-o", mine.parent, *REFINE) == 2
    assert name in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_refine_runs_again_in_its_folder_but_not_on_its_own_results(tmp_path, capsys):
    a, b, out = noise(tmp_path / "a.wav"), noise(tmp_path / "b.wav", seed=1), tmp_path / "out"
    assert run("refine", a, a, "-o", out, *REFINE) == 0
    assert {"cut_input.wav", "window_target.wav"} < set(os.listdir(out))
    found = contents(out)
    for arguments in ((out / "cut_input.wav", b), (b, out / "window_target.wav")):  # no match: they would be removed
        assert run("refine", *arguments, "-o", out, *REFINE, "--overwrite") == 2
        assert contents(out) == found
    assert run("refine", a, b, "-o", out, *REFINE) == 0  # no match: the sound of the last search goes
    assert json.loads((out / "refine.json").read_text())["verdict"] == "no match"
    assert not list(out.glob("*.wav"))


def test_compose_and_plot_run_again_until_the_result_is_changed(trained, songs, tmp_path):
    pair = sorted((songs / "val").glob("*.wav"))
    out, picture = tmp_path / "o.wav", tmp_path / "p.png"
    for _ in range(2):
        assert run("compose", *pair, "-o", out, "--checkpoint", trained) == 0  # a run's folder stands for its best
        assert run("plot", *pair, "-o", picture, "--checkpoint", trained / "best.safetensors") == 0
    notes = json.loads((tmp_path / "o.json").read_text()) | {"my": "notes"}
    (tmp_path / "o.json").write_text(json.dumps(notes))
    before = contents(tmp_path)
    assert run("compose", *pair, "-o", out, "--checkpoint", trained) == 2
    assert contents(tmp_path) == before
    assert run("compose", *pair, "-o", out, "--checkpoint", trained, "--overwrite") == 0
    assert "my" not in json.loads((tmp_path / "o.json").read_text())


@pytest.mark.parametrize(
    "name",
    [
        *("config.yaml", "metrics.jsonl", "summary.json", "trajectory.png", "best.safetensors", "last.safetensors"),
        *("examples", "tensorboard", "mlflow.db", ".lock"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "link"])
def test_train_leaves_what_somebody_else_wrote(name, kind, songs, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    if kind == "link":
        (tmp_path / "elsewhere").write_text("mine")
        os.symlink(tmp_path / "elsewhere", out / name)
    else:
        (out / name).write_text("mine")
    assert run("train", "--data", songs, "--out", out, "--max-steps", 1, *SHORT) == 2
    assert str(out) in capsys.readouterr().err
    assert (out / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("demo", name) for name in ("metrics.json", "composed_pair2.wav", "windows.png", "input.wav", "run")),
        *(("demo", name) for name in ("songs/train/song_00_input.wav", "run/precious", "config.yaml")),
        *(("ablate", name) for name in ("ablation.md", "ablation.png", "config.yaml", "songs/val/song_48_input.wav")),
    ],
)
def test_demo_and_ablate_leave_what_somebody_else_wrote(command, name, tmp_path, capsys):
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert run(command, "--out", tmp_path / "out", "--codec", "mel") == 2
    assert "error" in capsys.readouterr().err
    assert mine.read_text() == "mine"


@pytest.mark.proof
def test_a_run_inside_its_data_trains_on_songs_alone_and_goes_on(tmp_path, capsys):
    data = tmp_path / "data"
    for seed in range(3):
        noise(data / f"{seed}.wav", seed=seed)
    train = ("train", "--data", data, "--out", data / "run", *SHORT)
    assert run(*train, "--max-steps", 1) == 0
    assert list((data / "run" / "examples").glob("*.wav"))
    assert run(*train, "--max-steps", 2, "--resume") == 0
    assert load_checkpoint(data / "run").info["progress"]["step"] == 2
    printed = capsys.readouterr().err
    assert printed.count("2 training and 1 held-out songs") == 2
    assert [path.name for path in find_audio(data)] == ["0.wav", "1.wav", "2.wav"]
    # the folder itself, and another run beside
    assert run("train", "--data", data, "--out", data, *SHORT, "--max-steps", 1) == 0
    assert "2 training and 1 held-out songs" in capsys.readouterr().err


@pytest.mark.proof
def test_a_saved_config_serves_from_another_folder_and_after_a_resume(tmp_path, monkeypatch, capsys):
    for seed in range(2):
        noise(tmp_path / "songs" / f"{seed}.wav", seed=seed)
    monkeypatch.chdir(tmp_path)
    assert run("train", "--data", "songs", "--out", "run", "--cache", "cache", "--max-steps", 1, *SHORT) == 0
    saved = yaml.safe_load(Path("run/config.yaml").read_text())
    assert {saved[name] for name in ("data", "out", "cache")} == {str(tmp_path / n) for n in ("songs", "run", "cache")}
    assert not {"resume", "force", "config", "overwrite"} & set(saved)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = Path("../run/config.yaml").read_bytes()
    assert run("train", "--config", "../run/config.yaml", "--resume", "--max-steps", 2) == 0
    assert Path("../run/config.yaml").read_bytes() == before  # it was read
    assert "stays as it is" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "run").info["config"]["max_steps"] == 2
    assert run("train", "--config", "../run/config.yaml", "--out", "again", "--max-steps", 1) == 0
    assert "resume" not in yaml.safe_load(Path("again/config.yaml").read_text())
