"""Where a run's figures go: `metrics.jsonl` always, TensorBoard and MLflow where asked for.

A log is never worth a run: a failing TensorBoard or MLflow is named once and dropped; training goes on.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from ..console import note
from ..storage import outputs, strict_json
from ..storage.durable import remove_leftovers, write_bytes
from . import distributed


class RunLog:
    """Scalars, audio and pictures of one run, to every log that works; of several processes rank 0's alone.

    `resumed`: the last step, and the last evaluation's step, that the checkpoint knows. What a killed run logged after
    them is dropped from `metrics.jsonl` and hidden in TensorBoard, since the resumed run logs it again.
    """

    def __init__(
        self,
        out: Path,
        config: dict[str, Any],
        *,
        tensorboard: bool,
        mlflow: bool,
        resumed: tuple[int, int] | None = None,
    ) -> None:
        self.out = out
        self._resumed = resumed
        self._writer: Any = None
        self._mlflow: Any = None
        if not distributed.is_main():
            self._metrics: TextIO = io.StringIO()
            return
        metrics = outputs.growing(out / "metrics.jsonl")
        if resumed is not None:
            _drop_entries_after(metrics, *resumed)
        self._metrics = metrics.open("a", encoding="utf-8")
        if tensorboard:
            self._guarded("TensorBoard", lambda: self._open_tensorboard())
        if mlflow:
            self._guarded("MLflow", lambda: self._open_mlflow(config))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._metrics.write(strict_json.dumps({"step": step, **values}) + "\n")
        self._metrics.flush()
        if self._writer is not None:
            self._guarded("TensorBoard", lambda: [self._writer.add_scalar(k, v, step) for k, v in values.items()])
        if self._mlflow is not None:
            self._guarded("MLflow", lambda: self._mlflow.log_metrics(values, step=step))

    def audio(self, step: int, name: str, samples: NDArray[np.float32], sample_rate: int) -> None:
        """`samples` `[N]` in [-1, 1]."""
        if self._writer is not None:
            self._guarded("TensorBoard", lambda: self._writer.add_audio(name, samples[None], step, sample_rate))

    def picture(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """`image` `[height, width, 3]`."""
        if self._writer is not None:
            self._guarded("TensorBoard", lambda: self._writer.add_image(name, image, step, dataformats="HWC"))

    def close(self) -> None:
        self._metrics.close()
        if self._writer is not None:
            self._guarded("TensorBoard", self._writer.close)
        if self._mlflow is not None:
            self._guarded("MLflow", self._mlflow.end_run)

    def _open_tensorboard(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if self._resumed is None else self._resumed[0] + 1
        folder = self.out / "tensorboard"
        before = set(folder.iterdir()) if folder.is_dir() else set()
        self._writer = SummaryWriter(str(folder), purge_step=purge)
        for new in set(folder.iterdir()) - before:
            outputs.growing(new, ours=True)

    def _open_mlflow(self, config: dict[str, Any]) -> None:
        import mlflow

        logging.getLogger("alembic").setLevel(logging.WARNING)  # a line for every table of a new sqlite store
        if "MLFLOW_TRACKING_URI" not in os.environ:
            store = outputs.growing(self.out / "mlflow.db")
            mlflow.set_tracking_uri(f"sqlite:///{store.resolve()}")
        mlflow.set_experiment("adaptive-window")
        mlflow.start_run(run_name=self.out.name)
        self._mlflow = mlflow
        mlflow.log_params(config)

    def _guarded(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever a logging library raises: never the run's end
            note(f"warning: {name} failed ({type(error).__name__}: {error}); this run goes on without it")
            if name == "MLflow":
                self._mlflow = None
            else:
                self._writer = None


def _drop_entries_after(path: Path, step: int, evaluation: int) -> None:
    if not path.exists():
        return
    remove_leftovers(path)
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            entry["step"]
        except (ValueError, TypeError, KeyError):  # the line in which a kill came
            continue
        if entry["step"] <= (evaluation if "held_out/loss" in entry else step):
            kept.append(line + "\n")
    write_bytes(path, "".join(kept).encode())
