"""The whole agent trained for real on synthesized songs, and the held-out curve: `agent_step.py --train [--json F]`.

Songs are synthesized and turned into mel latents as arrays, in memory: neither soundfile nor soxr nor jsonargparse is
needed. Each step takes random 24 s crops of `--train-batch` pairs of songs; the loss is the recipe's spectral distance
of the patterns to their windows of the target, plus 0.1 times the pairs' own losses; AdamW, 3e-4, cosine to 0. On CUDA
the step is compiled as `train` compiles it, under bfloat16 autocast. Every 100 steps, in eval mode, over the held-out
songs:

    loss     the training loss
    skill    1 − Σ distance(pattern, window) / Σ distance(window's mean over time, window): 1 is perfect, 0 no better
             than knowing the window's mean spectrum
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import time
from typing import Any

import numpy as np
import torch
from harness import machine, set_tf32
from torch import Tensor

from adaptive_window import AdaptiveWindowCreativeAgent
from adaptive_window.audio.mel import MelCodec
from adaptive_window.audio.synthesis import synthesize_pair
from adaptive_window.kernels import resample_windows
from adaptive_window.losses import multi_scale_latent_loss

SONGS, HELD_OUT, SONG_SECONDS, EVERY = 12, 4, 36.0, 100
NOVELTY_WEIGHT, LEARNING_RATE = 0.1, 3e-4


def _song(number: int) -> np.ndarray:
    pair = synthesize_pair(number, seconds=SONG_SECONDS, sample_rate=MelCodec.sample_rate)
    return np.stack([pair.input, pair.target])


def songs(count: int, device: str) -> Tensor:
    """Latents `[count, 2, 128, 1800]` of synthesized pairs."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        audio = torch.from_numpy(np.stack(list(pool.map(_song, range(count)))))  # [count, 2, samples]
    codec = MelCodec().to(device)
    with torch.no_grad():
        latents = torch.cat([codec.encode(pair[:, None].to(device)) for pair in audio])
    return latents.unflatten(0, (count, 2))


def crops(latents: Tensor, batch: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips of random songs at random places, each side at its own."""
    numbers = torch.randint(len(latents), (batch,), generator=generator).tolist()
    starts = torch.randint(latents.shape[-1] - frames + 1, (batch, 2), generator=generator).tolist()
    sides = [
        torch.stack([latents[n, side, :, s[side] : s[side] + frames] for n, s in zip(numbers, starts, strict=True)])
        for side in range(2)
    ]
    return sides[0], sides[1]


def distances(agent: AdaptiveWindowCreativeAgent, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, the spectral distance of the patterns, and that of constants."""
    outputs, losses, metadata = agent(x, y)
    patterns = torch.stack(outputs, dim=1).float()
    windows = metadata["windows"]
    with torch.no_grad():
        wanted = resample_windows(y, windows["start_target"], windows["ratio_target"], agent.window_frames).float()
        constant = multi_scale_latent_loss(wanted.mean(-1, keepdim=True).expand_as(wanted).contiguous(), wanted)
    spectral = multi_scale_latent_loss(patterns, wanted)
    return spectral + NOVELTY_WEIGHT * torch.stack(losses).mean(), spectral.detach(), constant


def main(options: argparse.Namespace, agent: AdaptiveWindowCreativeAgent | None = None) -> list[dict[str, Any]]:
    device, steps, frames = options.device, options.train_steps, options.frames
    cuda = device == "cuda"
    set_tf32(True)
    began = time.perf_counter()
    latents = songs(SONGS + HELD_OUT, device)
    print(
        f"{len(latents)} pairs of {SONG_SECONDS:.0f} s synthesized in {time.perf_counter() - began:.0f} s", flush=True
    )
    torch.manual_seed(0)
    agent = (agent or AdaptiveWindowCreativeAgent(window_frames=options.window)).to(device).train()
    optimizer = torch.optim.AdamW(agent.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    held_out = crops(latents[SONGS:], 4 * HELD_OUT, frames, torch.Generator().manual_seed(1))

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=cuda):
            return distances(agent, x, y)[0]

    step = loss_of
    if cuda:
        from adaptive_window.training.partition import lean_options  # imports PyTorch's compiler

        graphs = {"triton.cudagraphs": True, **lean_options(device)}
        step = torch.compile(loss_of, fullgraph=True, dynamic=False, options=graphs)
    curve: list[dict[str, Any]] = []

    def evaluate(taken: int) -> None:
        agent.eval()
        with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16, enabled=cuda):
            loss, spectral, constant = (float(value) for value in distances(agent, *held_out))
        agent.train()
        skill, seconds = 1 - spectral / constant, time.perf_counter() - began
        curve.append({"step": taken, "loss": loss, "skill": skill, "seconds": seconds})
        print(f"step {taken:5}  held-out loss {loss:.4f}  skill {skill:+.3f}  {seconds:.0f} s", flush=True)

    generator = torch.Generator().manual_seed(2)
    for taken in range(steps):
        if taken % EVERY == 0:
            evaluate(taken)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * taken / steps))
        x, y = crops(latents[:SONGS], options.train_batch, frames, generator)
        if cuda:
            torch.compiler.cudagraph_mark_step_begin()
        step(x, y).backward()
        torch.nn.utils.clip_grad_norm_(agent.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    evaluate(steps)
    if options.json:
        figures = {"torch": torch.__version__, **machine(device), "batch": options.train_batch, "curve": curve}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return curve
