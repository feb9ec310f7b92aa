"""The structure this package replaces, in plain PyTorch layers: one pair after the other, one sample after the other.

Oracle for the modules and baseline of `benchmarks/agent_step.py`. It has the parameters and state-dict keys of
`AdaptiveWindowCreativeAgent` at its default sizes and uses none of its modules: `nn.Conv1d`s, `nn.LayerNorm` between
transposes, `nn.TransformerEncoder`, and `interpolate_windows`, which truncates to whole frames and waits for every
value. Windows are taken from the raw outputs by the same formula, so that both cut the same regions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_window.kernels.reference import interpolate_windows


class OriginalExtractor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rhythm_conv1 = nn.Conv1d(128, 128, 3, padding=1)
        self.rhythm_conv2 = nn.Conv1d(128, 64, 5, padding=2)
        self.rhythm_skip = nn.Conv1d(128, 64, 1)
        self.rhythm_norm = nn.BatchNorm1d(64)
        self.harmony_conv1 = nn.Conv1d(128, 128, 7, padding=3)
        self.harmony_conv2 = nn.Conv1d(128, 64, 9, padding=4)
        self.harmony_skip = nn.Conv1d(128, 64, 1)
        self.harmony_norm = nn.BatchNorm1d(64)
        self.timbre_conv1 = nn.Conv1d(128, 128, 15, padding=7)
        self.timbre_conv2 = nn.Conv1d(128, 64, 21, padding=10)
        self.timbre_skip = nn.Conv1d(128, 64, 1)
        self.timbre_norm = nn.BatchNorm1d(64)
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        act = self.activation
        rhythm = self.rhythm_norm(act(self.rhythm_conv2(act(self.rhythm_conv1(x)))) + self.rhythm_skip(x))
        harmony = self.harmony_norm(act(self.harmony_conv2(act(self.harmony_conv1(x)))) + self.harmony_skip(x))
        timbre = self.timbre_norm(act(self.timbre_conv2(act(self.timbre_conv1(x)))) + self.timbre_skip(x))
        return rhythm, harmony, timbre


class OriginalPositions(nn.Module):
    pe: Tensor

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(2000.0)[:, None] * torch.exp(torch.arange(0.0, 512.0, 2.0) * (-math.log(1e4) / 512))
        self.register_buffer("pe", torch.stack([angles.sin(), angles.cos()], dim=2).reshape(1, 2000, 512))


class OriginalComposer(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.component_projection = nn.Linear(384, 512)
        self.pos_encoder = OriginalPositions()
        layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.1, activation="gelu", batch_first=True)
        self.composer = nn.TransformerEncoder(layer, layers)
        self.output_projection = nn.Sequential(nn.Linear(512, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, 128))

    def forward(self, components: Tensor) -> Tensor:
        x = self.component_projection(components.transpose(1, 2))
        x = self.composer(x + self.pos_encoder.pe[:, : x.shape[1]])
        return self.output_projection(x).clamp(-100, 100).transpose(1, 2)


class OriginalCompositional(nn.Module):
    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.input_extractor = OriginalExtractor()
        self.target_extractor = OriginalExtractor()
        self.component_selector = nn.Sequential(nn.Conv1d(384, 256, 1), nn.LeakyReLU(0.2), nn.Conv1d(256, 6, 1))
        self.composer = OriginalComposer(layers)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        components = torch.cat([*self.input_extractor(x), *self.target_extractor(y)], dim=1)  # [B, 384, W]
        logits = self.component_selector(components)  # [B, 6, W]
        output = self.composer(components * logits.softmax(1).repeat_interleave(64, dim=1)).clamp(-50, 50)
        unit, unit_x, unit_y = (F.normalize(t, dim=1) for t in (output, x, y))
        novelty = 0.5 * ((unit * unit_x).sum(1).mean().abs() + (unit * unit_y).sum(1).mean().abs())
        means = logits.mean((0, 2))
        return output, novelty + 0.1 * (means[:3].sum() - means[3:].sum()).abs()


class OriginalTonality(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(128, 128, 7, padding=3, groups=128)
        self.pointwise = nn.Conv1d(128, 128, 1)
        self.norm = nn.LayerNorm(128)

    def forward(self, x: Tensor, strength: Tensor) -> Tensor:
        changed = self.norm(self.pointwise(self.depthwise(x)).transpose(1, 2)).transpose(1, 2)
        strength = strength.view(-1, 1, 1)
        return (1 - strength) * x + strength * changed


class OriginalSelector(nn.Module):
    def __init__(self, pairs: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(12800, 512),
            nn.LayerNorm(512),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(512, 256),
            nn.LayerNorm(256),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(256, 5 * pairs),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        pooled = torch.cat([F.adaptive_avg_pool1d(x, 50), F.adaptive_avg_pool1d(y, 50)], dim=1)
        return self.mlp(pooled.reshape(len(x), -1))


class OriginalAgent(nn.Module):
    def __init__(self, pairs: int = 3, window_frames: int = 800, layers: int = 4) -> None:
        super().__init__()
        self.pairs, self.window_frames = pairs, window_frames
        self.window_selector = OriginalSelector(pairs)
        self.tonality_reducer_input = OriginalTonality()
        self.tonality_reducer_target = OriginalTonality()
        self.creative_agent = OriginalCompositional(layers)

    def forward(self, x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor], list[dict[str, float]]]:
        raw = self.window_selector(x, y).sigmoid().view(len(x), self.pairs, 5)
        frames, window = x.shape[2], self.window_frames
        ratios = 1 + 0.5 * raw[..., 2:4]
        starts = raw[..., 0:2] * (frames - ratios * window)
        windows = {
            "start_input": starts[..., 0],
            "start_target": starts[..., 1],
            "ratio_input": ratios[..., 0],
            "ratio_target": ratios[..., 1],
            "strength": raw[..., 4],
        }
        return self.compose_windows(x, y, windows)

    def compose_windows(
        self, x: Tensor, y: Tensor, windows: dict[str, Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[dict[str, float]]]:
        outputs, losses, metadata = [], [], []
        for i in range(self.pairs):
            pair = {name: value[:, i] for name, value in windows.items()}
            cut_x = self._cut(x, pair["start_input"], pair["ratio_input"])
            cut_y = self._cut(y, pair["start_target"], pair["ratio_target"])
            cut_x = self.tonality_reducer_input(cut_x, pair["strength"])
            cut_y = self.tonality_reducer_target(cut_y, pair["strength"])
            output, loss = self.creative_agent(cut_x, cut_y)
            outputs.append(output)
            losses.append(loss)
            metadata.append({name: value.mean().item() for name, value in pair.items()})
        return outputs, losses, metadata

    def _cut(self, x: Tensor, start: Tensor, ratio: Tensor) -> Tensor:
        return interpolate_windows(x, start[:, None], ratio[:, None], self.window_frames)[:, 0]
