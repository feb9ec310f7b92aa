"""What a run has to remember to go on as if it had never stopped, taken from it and given back."""

from __future__ import annotations

import contextlib
import inspect
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import to_plain
from ..console import note
from ..model.agent import AdaptiveWindowCreativeAgent
from . import distributed
from .checkpoint import Checkpoint, CheckpointError, codec_info, load_weights
from .report import COLUMNS, Evaluation, report_of
from .run_state import Progress, Run


def take_state(run: Run) -> Checkpoint:
    """Everything, as one checkpoint. The tensors are the live ones: save before the next step.

    All ranks call it together, for their random states; the rest is the same on all but BatchNorm's running statistics.
    """
    config, codec, evaluations = run.config, run.codec, run.evaluations
    return Checkpoint(
        model=run.agent.state_dict(),
        optimizer=optimizer_state(run.optimizer, run.agent),
        random=distributed.gather_by_rank(random_state(run.device)),
        evaluations={str(k): _windows_of(evaluation) for k, evaluation in enumerate(evaluations)},
        info={
            "agent": run.agent_arguments,
            "codec": codec_info(codec),
            "clip_frames": codec.frames(config.clip_seconds),
            "config": to_plain(config),
            "data_order": data_order(run),
            "progress": vars(run.progress),  # no loss yet is an infinite one, which JSON has not: null
            "mode": run.mode,
            "evaluations": [{"step": e.step, "loss": e.loss, "parts": e.parts, "heard": e.heard} for e in evaluations],
        },
    )


def give_state(run: Run, saved: Checkpoint, path: Path) -> None:
    """The reverse of `take_state`, for a run built with the same options.

    Raises:
        CheckpointError: another agent or codec; or, unless `--force`, another batch size, world size, seed or data set.
    """
    info, config = saved.info, run.config
    if info["format"] < 2:
        raise CheckpointError(
            f"{path} has checkpoint format {info['format']}, which lacks the data set's fingerprint and part of the "
            "random state: compose and plot read it, but a run cannot go on from it; train anew in another --out"
        )
    codec = run.codec
    ours = {**run.agent_arguments, "codec": f"{codec.name} (fingerprint {codec.fingerprint})"}
    theirs = {
        **agent_defaults(),  # options that are newer than the checkpoint
        **info["agent"],
        "codec": f"{info['codec']['name']} (fingerprint {info['codec']['fingerprint']})",
    }
    if changed := differences(theirs, ours):
        raise CheckpointError(f"cannot resume {path}: {'; '.join(changed)}. Set it as it was, or name another --out")
    load_weights(run.agent, saved.model, path)
    restore_optimizer(run.optimizer, run.agent, saved.optimizer)
    if states := distributed.part_of_rank(saved.random):  # none for a rank that the saved run did not have
        restore_random(states, run.device)
    progress = info["progress"]
    best = math.inf if progress["best"] is None else progress["best"]
    vars(run.progress).update(vars(Progress(**{**progress, "best": best})))
    run.mode = info.get("mode", run.mode)
    if changed := differences(info["data_order"], data_order(run)):
        text = "; ".join(changed)
        if not config.force:
            raise CheckpointError(
                f"cannot resume {path}: {text}. The order of the data would be another one: set it as it was, or "
                "add --force to begin the epoch anew with it"
            )
        note(f"warning: --force: {text}; epoch {run.progress.epoch} begins anew")
        run.progress.batch = 0
    run.evaluations[:] = [
        _evaluation_of(found, saved.evaluations[str(k)], run) for k, found in enumerate(info["evaluations"])
    ]


def agent_defaults() -> dict[str, Any]:
    """The agent's options as they are where nobody names them."""
    parameters = inspect.signature(AdaptiveWindowCreativeAgent).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def data_order(run: Run) -> dict[str, Any]:
    """What decides which examples are in which batch."""
    return {
        "batch size": run.config.batch_size,
        "world size": distributed.size(),
        "seed": run.config.seed,
        "training set": run.train_set.fingerprint,
        "held-out set": run.held_out.fingerprint,
    }


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    return [
        f"its {key} is {theirs.get(key)}, this run's is {ours[key]}" for key in ours if theirs.get(key) != ours[key]
    ]


def optimizer_state(optimizer: torch.optim.Optimizer, agent: torch.nn.Module) -> dict[str, dict[str, Tensor]]:
    """AdamW's state by parameter name (PyTorch numbers parameters; names survive a change of order)."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in agent.named_parameters()}
    return {names[parameter]: dict(slots) for parameter, slots in optimizer.state.items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, agent: torch.nn.Module, state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    for name, parameter in agent.named_parameters():
        if name in state:  # all slots on the parameter's device: the fused AdamW counts its steps there too
            optimizer.state[parameter] = {k: v.to(parameter.device, copy=True) for k, v in state[name].items()}


def seed_all(seed: int) -> None:
    """PyTorch's generators, on every device, and the global ones of Python and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - what libraries draw from


def random_state(device: torch.device) -> dict[str, Tensor]:
    """PyTorch's generators, Python's and NumPy's global ones, as tensors."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - what libraries draw from
    if (version, name) != (3, "MT19937"):
        raise RuntimeError(f"random generators of unknown kind: Python's version {version}, NumPy's {name}")
    state = {
        "cpu": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor(math.nan if gauss is None else gauss, dtype=torch.float64),
        "numpy": torch.tensor([*map(int, keys), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor(cached, dtype=torch.float64),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    gauss = float(state["python_gauss"])
    random.setstate((3, tuple(state["python"].tolist()), None if math.isnan(gauss) else gauss))
    *keys, position, has_gauss = state["numpy"].tolist()
    np.random.set_state(  # noqa: NPY002 - as above
        ("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, float(state["numpy_gauss"]))
    )
    if device.type == "cuda" and "cuda" in state:  # a run begun on a CPU has none
        torch.cuda.set_rng_state(state["cuda"], device)


@contextlib.contextmanager
def random_kept(device: torch.device) -> Iterator[None]:
    """What draws random numbers within leaves the generators as they were, also where it is left by a signal."""
    before = _generators(device)
    try:
        yield
    finally:
        _put_back(before, device)


@contextlib.contextmanager
def random_kept_on_stop(device: torch.device) -> Iterator[None]:
    """As `random_kept`, but only where it is left by a signal: what was half done is done anew, with the same draws."""
    before = _generators(device)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        _put_back(before, device)
        raise


def _generators(device: torch.device) -> tuple[Any, ...]:
    """`random_state` in the generators' own forms, which takes a tenth of the time: the loop asks in every step."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), random.getstate(), np.random.get_state(), cuda  # noqa: NPY002 - what libraries use


def _put_back(states: tuple[Any, ...], device: torch.device) -> None:
    on_cpu, python, numpy, cuda = states
    torch.set_rng_state(on_cpu)
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002 - as above
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)


def _windows_of(evaluation: Evaluation) -> Tensor:
    return torch.stack([torch.from_numpy(evaluation.windows.values[name]) for name in COLUMNS])  # [5, N, P]


def _evaluation_of(found: dict[str, Any], windows: Tensor, run: Run) -> Evaluation:
    values = {name: column.numpy().copy() for name, column in zip(COLUMNS, windows, strict=True)}
    report = report_of(values, run.codec.frame_rate, run.config)
    parts, heard = ({name: _number(value) for name, value in found.get(key, {}).items()} for key in ("parts", "heard"))
    return Evaluation(found["step"], _number(found["loss"]), parts, report, heard)


def _number(value: float | None) -> float:
    """What was not finite is null in JSON."""
    return math.nan if value is None else value
