"""The agent in front of a larger model: a cascade of transformer stages, trained end to end with the windows.

    python examples/cascade.py --out runs/cascade                       synthesized songs; --data DIR for your own
    torchrun --nproc-per-node 2 examples/cascade.py --out runs/cascade  the same batches, shared by two processes

    outputs, losses, metadata = agent(input, target)
    creative_output = outputs[0]                                        or the mean of all pairs: --creative mean
    pattern = cascade(creative_output, the input's windows)
    loss = spectral(pattern, the target's window) + novelty_weight · mean(losses)

Data, codec, loss, steps and logs are the package's: `--compile`, torchrun and refused steps are as in `adaptive-window
train`. OUT receives `agent/` (for `from_pretrained`), `cascade.safetensors`, `metrics.jsonl` and, with `--mlflow`,
`mlflow.db`; windows are logged by the names that the agent gives them, as `train/pair0/start_input_mean`.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from adaptive_window import AdaptiveWindowCreativeAgent
from adaptive_window.audio.songs import write_songs
from adaptive_window.config import TrainConfig, to_plain
from adaptive_window.console import note
from adaptive_window.device import choose_device
from adaptive_window.kernels import resample_windows
from adaptive_window.training import data_parallel, distributed
from adaptive_window.training.loader import BatchLoader
from adaptive_window.training.logging import RunLog
from adaptive_window.training.objective import Objective
from adaptive_window.training.order import batches_of
from adaptive_window.training.run import prepare_data
from adaptive_window.training.state import seed_all
from adaptive_window.training.step import Stepper

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "agent": {"component_dim": 16, "composer_heads": 2, "composer_layers": 1, "composer_dim": 64},
        "cascade": {"stages": 2, "layers": 1, "width": 64, "heads": 4},
        "seconds": {"clip_seconds": 3.0, "window_seconds": 2.0},
    },
    "full": {"agent": {}, "cascade": {"stages": 4, "layers": 3, "width": 512, "heads": 8}, "seconds": {}},
}


class Stage(nn.Module):
    """`[B, W, F]` features to a correction of the pattern `[B, W, C]`, 0 until trained."""

    def __init__(self, features: int, channels: int, frames: int, *, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.into = nn.Linear(features, width)
        self.places = nn.Parameter(0.02 * torch.randn(1, frames, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Linear(width, channels, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(self.into(x) + self.places))


class Cascade(nn.Module):
    """A pattern `[B, C, W]` and P windows of the input `[B, P, C, W]` to a better pattern `[B, C, W]`."""

    def __init__(self, channels: int, pairs: int, frames: int, *, stages: int, **sizes: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage((1 + pairs) * channels, channels, frames, **sizes) for _ in range(stages))

    def forward(self, pattern: Tensor, windows: Tensor) -> Tensor:
        seen = windows.flatten(1, 2)  # [B, P·C, W]
        for stage in self.stages:
            pattern = pattern + stage(torch.cat([pattern, seen], dim=1).transpose(1, 2)).transpose(1, 2)
        return pattern


class CreativeModel(nn.Module):
    """Agent and cascade, called as the agent is; outputs are the one pattern, once for each window to compare with."""

    def __init__(self, agent: AdaptiveWindowCreativeAgent, cascade: Cascade, creative: str) -> None:
        super().__init__()
        self.agent, self.cascade, self.creative = agent, cascade, creative

    def forward(self, x_input: Tensor, x_target: Tensor) -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
        outputs, losses, metadata = self.agent(x_input, x_target)
        compared = outputs[:1] if self.creative == "first" else outputs
        creative_output = torch.stack(compared).mean(0)  # [B, C, W]
        windows = metadata["windows"]  # live, [B, P] each
        seen = resample_windows(x_input, windows["start_input"], windows["ratio_input"], self.agent.window_frames)
        pattern = self.cascade(creative_output, seen)
        kept = {name: value[:, : len(compared)] for name, value in windows.items()}
        return [pattern] * len(compared), losses, {**metadata, "windows": kept}


def train(config: TrainConfig, size: str, creative: str) -> CreativeModel:
    """`config.max_steps` steps on the songs in `config.data`; several processes under torchrun."""
    device = choose_device(config.device)
    with distributed.process_group(device):
        distributed.check_batch_size(config.batch_size)
        distributed.on_main(lambda: None if config.data.exists() else write_songs(config.data, 8, seconds=30.0))
        codec, songs, _ = prepare_data(config, device)
        seed_all(distributed.rank_seed(config.seed))  # weights are rank 0's for all, dropout is each one's own
        frames, pairs, sizes = codec.frames(config.window_seconds), config.num_pairs, SIZES[size]
        agent = AdaptiveWindowCreativeAgent(
            codec.dim, pairs, window_frames=frames, selector="content", frame_rate=codec.frame_rate, **sizes["agent"]
        )
        model = CreativeModel(agent, Cascade(codec.dim, pairs, frames, **sizes["cascade"]), creative)
        optimizer = torch.optim.AdamW(model.to(device).parameters(), lr=config.learning_rate, fused=True)
        forward = data_parallel.wrap(model, sync_batchnorm=config.sync_batchnorm)
        take_step = Stepper(model, forward, optimizer, Objective(codec, config), config, device)
        loader = BatchLoader(songs, config.workers, config.worker_start, pin_memory=device.type == "cuda")
        log = RunLog(config.out, to_plain(config), tensorboard=config.tensorboard, mlflow=config.mlflow)
        step, epoch = 0, 0
        while step < config.max_steps:
            songs.set_epoch(epoch)
            shares = [distributed.share(b) for b in batches_of(len(songs), config.batch_size, config.seed, epoch)]
            for batch in loader.batches(shares[: config.max_steps - step], distributed.rank_seed(config.seed) + epoch):
                figures, step = take_step(batch, step).figures(), step + 1
                log.scalars(step, {f"train/{name}": value for name, value in figures.items()})
                note(f"step {step}: loss {figures['loss']:.3f}, first start {figures['pair0/start_input_mean']:.1f}")
            epoch += 1
        log.close()
        if distributed.is_main():
            agent.save_pretrained(config.out / "agent", codec=codec, clip_frames=codec.frames(config.clip_seconds))
            save_model(model.cascade, str(config.out / "cascade.safetensors"))
    return model


def main(arguments: list[str] | None = None) -> CreativeModel:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and logs")
    parser.add_argument("--data", type=Path, help="folder of songs (default: OUT/songs, synthesized)")
    parser.add_argument("--size", choices=SIZES, default="full", help="full: 40 million parameters behind the agent")
    parser.add_argument("--creative", choices=("first", "mean"), default="first", help="which output goes on")
    parser.add_argument("--max-steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=4, help="of all processes together")
    parser.add_argument("--novelty-weight", type=float, default=0.1)
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="auto: on CUDA")
    parser.add_argument("--mlflow", action="store_true")
    options = vars(parser.parse_args(arguments))
    size, creative = options.pop("size"), options.pop("creative")
    options |= {"data": options["data"] or options["out"] / "songs", "tensorboard": False, **SIZES[size]["seconds"]}
    options["out"].mkdir(parents=True, exist_ok=True)
    return train(TrainConfig(rhythm_from="none", harmony_from="none", conflict_weight=0, **options), size, creative)


if __name__ == "__main__":
    main()
