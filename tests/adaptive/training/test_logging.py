import json
import sys

import numpy as np
import pytest
from fake_mlflow import fake_mlflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adaptive_window.training.logging import RunLog


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_metrics_go_to_json_lines(tmp_path):
    log = RunLog(tmp_path, {}, tensorboard=False, mlflow=False)
    log.scalars(10, {"train/loss": 1.5})
    log.scalars(20, {"train/loss": 1.25})
    log.close()
    assert lines(tmp_path) == [{"step": 10, "train/loss": 1.5}, {"step": 20, "train/loss": 1.25}]
    assert not (tmp_path / "tensorboard").exists()


def test_tensorboard_receives_scalars_audio_and_pictures(tmp_path):
    log = RunLog(tmp_path, {}, tensorboard=True, mlflow=False)
    log.scalars(10, {"train/loss": 1.5})
    log.audio(10, "composed/0", np.zeros(100, np.float32), 16000)
    log.picture(10, "windows/0", np.zeros((4, 5, 3), np.uint8))
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert events.Scalars("train/loss")[0].value == 1.5
    assert tags["audio"] == ["composed/0"]
    assert tags["images"] == ["windows/0"]


def test_mlflow_receives_config_and_scalars_in_a_sqlite_store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    calls = fake_mlflow(monkeypatch)
    log = RunLog(tmp_path, {"max_steps": 3}, tensorboard=False, mlflow=True)
    log.scalars(1, {"train/loss": 2.0})
    log.close()
    assert ("set_tracking_uri", (f"sqlite:///{tmp_path.resolve() / 'mlflow.db'}",), {}) in calls
    assert ("log_params", ({"max_steps": 3},), {}) in calls
    assert ("log_metrics", ({"train/loss": 2.0},), {"step": 1}) in calls
    assert calls[-1][0] == "end_run"


def test_mlflow_keeps_the_store_the_environment_names(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    calls = fake_mlflow(monkeypatch)
    RunLog(tmp_path, {}, tensorboard=False, mlflow=True).close()
    assert "set_tracking_uri" not in {name for name, *_ in calls}


@pytest.mark.parametrize("broken", ["start_run", "log_params", "log_metrics", "end_run"])
def test_failing_mlflow_never_ends_a_run(tmp_path, monkeypatch, capsys, broken):
    def fail(*arguments, **options):
        raise ConnectionError("store is gone")

    fake_mlflow(monkeypatch, **{broken: fail})
    log = RunLog(tmp_path, {}, tensorboard=False, mlflow=True)
    log.scalars(1, {"train/loss": 2.0})
    log.scalars(2, {"train/loss": 1.0})
    log.close()
    assert len(lines(tmp_path)) == 2
    assert capsys.readouterr().err.count("MLflow failed (ConnectionError: store is gone)") == 1


def test_missing_mlflow_is_said_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # import raises
    log = RunLog(tmp_path, {}, tensorboard=False, mlflow=True)
    log.scalars(1, {"train/loss": 2.0})
    log.close()
    assert "MLflow failed (ModuleNotFoundError" in capsys.readouterr().err
    assert len(lines(tmp_path)) == 1


@pytest.mark.proof
def test_real_mlflow_stores_a_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the [mlflow] extra is not installed")
    pytest.importorskip("sqlalchemy", reason="this is mlflow-skinny, which has no store; the [mlflow] extra has")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log = RunLog(tmp_path, {"max_steps": 3}, tensorboard=False, mlflow=True)
    log.scalars(1, {"train/loss": 2.0})
    log.close()
    (run,) = mlflow.search_runs(experiment_names=["adaptive-window"], output_format="list")
    assert run.data.params == {"max_steps": "3"}
    assert run.data.metrics == {"train/loss": 2.0}
    assert (tmp_path / "mlflow.db").exists()
