"""Held-out figures, and held-out examples to hear and see."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..audio.codec import Codec
from ..audio.files import write_audio
from ..console import note
from ..errors import UsageError
from ..plots import PairWindows, figure_image, save_figure, windows_figure
from ..storage import outputs
from .logging import RunLog
from .report import COLUMNS, Evaluation, report_of
from .run_state import Run


@torch.no_grad()
def evaluate(run: Run) -> Evaluation:
    """In eval mode, at fixed crops; every example counts alike."""
    agent, objective = run.agent, run.objective
    was_training = agent.training
    agent.eval()
    dtype = next(agent.parameters()).dtype
    total, count = 0.0, 0
    parts: dict[str, float] = {}
    heard: dict[str, float] = {}
    windows: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    config, generator = run.config, torch.Generator()  # of its own, see BatchLoader
    for batch in DataLoader(run.held_out, batch_size=config.batch_size, generator=generator):
        x, y = (batch[key].to(run.device, dtype) for key in ("input", "target"))
        outputs, losses, metadata = agent(x, y, transformed=True)
        given = (outputs, losses, metadata["windows"], x, y)
        loss, found = objective(*given, random_stretch=False, transformed=metadata["transformed"])
        total += float(loss) * len(x)
        for name, value in found.items():
            parts[name] = parts.get(name, 0.0) + float(value) * len(x)
        count += len(x)
        patterns, cuts = torch.stack(outputs, dim=1), metadata["transformed"]
        for name, measure in objective.measures(patterns, metadata["windows"], x, y, cuts).items():
            heard[name] = heard.get(name, 0.0) + float(measure.mean()) * len(x)
        for name in COLUMNS:
            windows[name].append(metadata["windows"][name].double().cpu().numpy())
    agent.train(was_training)
    values = {name: np.concatenate(columns) for name, columns in windows.items()}
    mean = {name: value / count for name, value in parts.items()}
    report = report_of(values, run.codec.frame_rate, config)
    heard = {name: value / count for name, value in heard.items()}
    return Evaluation(run.progress.step, total / count, mean, report, heard)


def pairs_in_seconds(windows: dict[str, torch.Tensor], codec: Codec, index: int = 0) -> list[PairWindows]:
    """The windows of one sample of a batch, in seconds."""
    numbers = {name: windows[name][index].double().cpu() for name in COLUMNS}
    return [
        PairWindows(
            start_input=float(numbers["start_input"][p]) / codec.frame_rate,
            start_target=float(numbers["start_target"][p]) / codec.frame_rate,
            ratio_input=float(numbers["ratio_input"][p]),
            ratio_target=float(numbers["ratio_target"][p]),
            strength=float(numbers["strength"][p]),
        )
        for p in range(len(numbers["strength"]))
    ]


def write_examples(run: Run, log: RunLog) -> None:
    """Audio (the mean of all pairs) and pictures of its windows, of the first held-out examples: `out/examples`.

    A file there that is not ours to replace is left as it is, with a warning: examples are never worth the run.
    """
    try:
        _write_examples(run, log)
    except UsageError as error:
        note(f"warning: {error}; these examples are not kept")


def _write_examples(run: Run, log: RunLog) -> None:
    folder = run.config.out / "examples"
    folder.mkdir(exist_ok=True)
    agent, codec, step = run.agent, run.codec, run.progress.step
    for k in range(min(run.config.examples, len(run.held_out))):
        item = run.held_out[k]
        clips = [torch.as_tensor(item[key]) for key in ("input", "target")]  # [C, T] each
        x, y = (clip[None].to(run.device, next(agent.parameters()).dtype) for clip in clips)
        latents, metadata = agent.compose_with_metadata(x, y, pick="mean")
        with torch.no_grad():
            audio = codec.decode(latents.float())[0].cpu()
        comment = "random codec weights" if codec.random else None
        write_audio(folder / f"step{step:06d}-{k}.wav", audio, codec.sample_rate, comment=comment, into=outputs.writing)
        figure = windows_figure(
            clips[0].numpy(),
            clips[1].numpy(),
            pairs_in_seconds(metadata["all_windows"], codec),
            clip_seconds=clips[0].shape[-1] / codec.frame_rate,
            window_seconds=run.config.window_seconds,
            title=f"windows at step {step}",
        )
        save_figure(figure, folder / f"step{step:06d}-{k}.png", into=outputs.writing)
        log.audio(step, f"composed/{k}", audio.flatten().clamp(-1, 1).numpy(), codec.sample_rate)
        log.picture(step, f"windows/{k}", figure_image(figure))
