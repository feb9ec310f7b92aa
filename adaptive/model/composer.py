"""The compositional agent: musical components of two windows, weighted and recombined by a transformer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses.signals import wide
from . import bias, convolution, encoder, lean
from .convolution import Convolution
from .dropout import Dropout, is_plain_dropout
from .encoder import Encoder
from .gelu import gelu
from .plain import is_plain
from .validation import check_count, check_probability, check_streams

BRANCHES = ("rhythm", "harmony", "timbre")
KERNELS = {"rhythm": (3, 5), "harmony": (7, 9), "timbre": (15, 21)}  # short, medium and long stretches of time
COMPONENTS = tuple(f"{stream}_{branch}" for stream in ("input", "target") for branch in BRANCHES)
SLOPE = 0.2  # of every LeakyReLU
MAX_FRAMES = 2000  # positions in the table
LIMIT = 50.0  # the output's; latents of EnCodec stay within ±30
BALANCE_WEIGHT = 0.1
NOVELTIES = ("original", "corrected")
COSINE_EPS = 1e-3  # a frame of smaller norm counts as silent: its cosine fades to 0, and its gradient stays finite


class MultiScaleExtractor(nn.Module):
    """Three branches over time, from short to long kernels: `[N, C, W]` -> three of `[N, component_dim, W]`.

    Each is BatchNorm(LeakyReLU(conv2(LeakyReLU(conv1(x)))) + skip(x)), "same" zero padding.
    """

    def __init__(self, encoding_dim: int, component_dim: int) -> None:
        super().__init__()
        for branch, (first, second) in KERNELS.items():
            hidden = 2 * component_dim
            layers = {
                "conv1": Convolution(encoding_dim, hidden, first),
                "conv2": Convolution(hidden, component_dim, second),
                "skip": Convolution(encoding_dim, component_dim, 1),
                "norm": nn.BatchNorm1d(component_dim),
            }
            for name, layer in layers.items():
                self.add_module(f"{branch}_{name}", layer)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Rhythm, harmony, timbre."""
        convolutions = [layer for branch in BRANCHES for layer in self._layers(branch)[:3]]
        plain = all(is_plain(layer, Convolution) and layer.bias is not None for layer in convolutions)
        if plain and convolution.channels_together(x):
            return self._together(x)
        return tuple(self._branch(branch, x) for branch in BRANCHES)

    def _layers(self, branch: str) -> tuple[nn.Module, ...]:
        return tuple(getattr(self, f"{branch}_{name}") for name in ("conv1", "conv2", "skip", "norm"))

    def _branch(self, branch: str, x: Tensor) -> Tensor:
        conv1, conv2, skip, norm = self._layers(branch)
        hidden = lean.leaky_relu(conv1(x), SLOPE)
        return norm(lean.leaky_relu(conv2(hidden), SLOPE, "signs") + skip(x))

    def _together(self, x: Tensor) -> tuple[Tensor, ...]:
        """The same, compiled for CUDA: all skips are one convolution, which reads x once, and all biases one tensor."""
        firsts, seconds, skips, norms = zip(*map(self._layers, BRANCHES), strict=True)
        joined = [torch.cat([getattr(skip, name) for skip in skips]) for name in ("weight", "bias")]
        kernels = [*((conv.weight, conv.bias, conv.padding[0]) for conv in (*firsts, *seconds)), (*joined, 0)]
        spread = bias.spread_over([each[1] for each in kernels], x.shape[0] * bias.blocks_of(x.shape[2])[0])
        calls = [
            partial(convolution.convolve, weight=w, bias=b, padding=p, spread=s)
            for (w, b, p), s in zip(kernels, spread, strict=True)
        ]
        skipped = calls[-1](x).chunk(len(skips), dim=1)
        out = []
        for i, norm in enumerate(norms):
            last = calls[len(firsts) + i](lean.leaky_relu(calls[i](x), SLOPE))
            out.append(norm(lean.leaky_relu(last, SLOPE, "signs") + skipped[i]))
        return tuple(out)


class PositionalEncoding(nn.Module):
    """Adds sin(n/10000^(2i/d)) and cos(n/10000^(2i/d)) to channels 2i and 2i + 1 (Vaswani et al. 2017)."""

    pe: Tensor

    def __init__(self, d_model: int, max_frames: int = MAX_FRAMES) -> None:
        super().__init__()
        n = torch.arange(max_frames, dtype=torch.float32)[:, None]
        rate = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float32) * (-math.log(10000.0) / d_model))
        pe = torch.zeros(1, max_frames, d_model)
        pe[0, :, 0::2] = torch.sin(n * rate)
        pe[0, :, 1::2] = torch.cos(n * rate)
        self.register_buffer("pe", pe)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, S, d_model]`, S ≤ max_frames."""
        frames, longest = x.shape[1], self.pe.shape[1]
        if frames > longest:
            raise ValueError(f"windows must have at most {longest} frames (positional encoding), got {frames}")
        return x + self.pe[:, :frames]


class ComponentComposer(nn.Module):
    """Transformer over the frames of a window: six weighted components in, latents within ±50 out."""

    def __init__(
        self, components_dim: int, encoding_dim: int, d_model: int, heads: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.component_projection = nn.Linear(components_dim, d_model)
        self.pos_encoder = PositionalEncoding(d_model)
        self.composer = Encoder(d_model, heads, 4 * d_model, layers, dropout)
        self.output_projection = nn.Sequential(
            nn.Linear(d_model, d_model // 2), nn.GELU(), Dropout(dropout), nn.Linear(d_model // 2, encoding_dim)
        )

    def forward(self, components: Tensor, weights: Tensor) -> Tensor:
        """Components `[N, 6, component_dim, W]` and their weights `[N, 6, W]` -> `[N, encoding_dim, W]`."""
        projection = self.component_projection
        if lean.can_be_lean(components) and is_plain(projection, nn.Linear) and projection.bias is not None:
            x = self.pos_encoder(lean.weighted_linear(components, weights, projection))  # [N, W, d_model]
        else:
            x = self._encoded((components * weights[:, :, None]).flatten(1, 2).transpose(1, 2))
        return self._projected(self.composer(x)).clamp(-LIMIT, LIMIT).transpose(1, 2)

    def _encoded(self, x: Tensor) -> Tensor:
        """`[N, W, 6 * component_dim]` -> `[N, W, d_model]`, with positions."""
        projection, positions = self.component_projection, self.pos_encoder
        plain = is_plain(projection, nn.Linear) and is_plain(positions, PositionalEncoding)
        whole = x.shape[1] % bias.ROWS == 0 and x.shape[1] <= positions.pe.shape[1]
        if not encoder.compiles_for_cuda(x) or not plain or projection.bias is None or not whole:
            return positions(projection(x))
        blocks = (x.shape[0], *bias.blocks_of(x.shape[1]))
        rows = bias.linear_as(x.flatten(0, 1), projection.weight, projection.bias, blocks)  # [N, W / ROWS, ROWS, ...]
        return (rows + positions.pe[:, : x.shape[1]].view(1, *blocks[1:], -1)).flatten(1, 2)

    def _projected(self, x: Tensor) -> Tensor:
        """`[N, W, d_model]` -> `[N, W, encoding_dim]`."""
        layers = self.output_projection
        in_blocks = encoder.compiles_for_cuda(x)
        if not (in_blocks or lean.can_be_lean(x)) or not is_plain(layers, nn.Sequential) or len(layers) != 4:
            return layers(x)
        first, activation, dropout, last = layers
        if not (
            is_plain(activation, nn.GELU, approximate="none")
            and is_plain(last, nn.Linear)
            and is_plain_dropout(dropout)
        ):
            return layers(x)
        assert isinstance(last, nn.Linear)  # as is_plain found; narrows the types
        assert isinstance(dropout, nn.Dropout)
        if last.bias is None:
            return layers(x)
        if in_blocks and is_plain(first, nn.Linear) and first.bias is not None:
            assert isinstance(first, nn.Linear)  # as is_plain found; narrows the type
            hidden = bias.linear_in_blocks(x.flatten(0, 1), first.weight, first.bias)
            return last(dropout(gelu(hidden)).flatten(0, 1)).view(*x.shape[:2], -1)
        if in_blocks:
            return layers(x)
        return lean.gelu_dropout_linear(first(x), last, dropout.p if dropout.training else 0.0)


def novelty_terms(output: Tensor, x_input: Tensor, x_target: Tensor, logits: Tensor, novelty: str) -> Tensor:
    """Every sample's terms `[N, 3]` for `agent_loss`: likeness to the input and to the target, and imbalance.

    With cosines over the channels of each frame, and means over the frames of a sample:

        original:   mean cos(out, input),  mean cos(out, target),  Σ mean logits of the input's three − of the target's
        corrected:  mean cos²(out, input), mean cos²(out, target), the same of the softmax weights, absolute, ≤ 1

    The original's absolute value comes after the mean (over frames and batch): frames that copy and frames that copy
    with the sign turned cancel, and the whole passes for new. Its logits have no bound, so that the imbalance can
    outweigh the rest. `benchmarks/losses.py` shows both.

    Args:
        output, x_input, x_target: `[N, C, W]`.
        logits: of the six components, `[N, 6, W]`.
        novelty: "original" or "corrected".
    """
    if novelty == "corrected":
        cos_input, cos_target = (_cosine(output, x).square().mean(1) for x in (x_input, x_target))
        weights = torch.softmax(wide(logits), dim=1).mean(2).unflatten(1, (2, 3)).sum(2)  # [N, 2], summing to 1
        return torch.stack([cos_input, cos_target, (weights[:, 0] - weights[:, 1]).abs()], dim=1)
    cos_input, cos_target = (_cosine(output, x).mean(1) for x in (x_input, x_target))
    sums = wide(logits).mean(2).unflatten(1, (2, 3)).sum(2)  # [N, 2]: the input's three, the target's three
    return torch.stack([cos_input, cos_target, sums[:, 0] - sums[:, 1]], dim=1)


def agent_loss(terms: Tensor) -> Tensor:
    """novelty + balance from `[..., 3]` means: likeness to the input, likeness to the target, imbalance.

    novelty = ½·(|likeness to input| + |likeness to target|)        0 where out is orthogonal to both
    balance = 0.1·|imbalance|                                       0 where the streams' components weigh alike
    """
    cos_input, cos_target, imbalance = terms.abs().unbind(-1)
    return 0.5 * (cos_input + cos_target) + BALANCE_WEIGHT * imbalance


def batch_mean(x: Tensor) -> Tensor:
    """Mean over the first dimension."""
    return x.mean(0)


class CompositionalCreativeAgent(nn.Module):
    """Splits two windows into rhythm, harmony and timbre, weights the six components and composes a third window.

    Args:
        encoding_dim: C, channels of the latents.
        component_dim: channels of each component.
        composer_heads: attention heads; must divide `composer_dim`.
        composer_layers: transformer layers.
        composer_dim: width of the transformer, even; its feed-forward layers are four times as wide.
        dropout: probability in the transformer and the output projection, in training.
        novelty: how the loss measures likeness and balance, "original" or "corrected" (`novelty_terms`).
    """

    def __init__(
        self,
        encoding_dim: int = 128,
        component_dim: int = 64,
        composer_heads: int = 8,
        composer_layers: int = 4,
        *,
        composer_dim: int = 512,
        dropout: float = 0.1,
        novelty: str = "original",
    ) -> None:
        super().__init__()
        sizes = {
            "encoding_dim": encoding_dim,
            "component_dim": component_dim,
            "composer_heads": composer_heads,
            "composer_layers": composer_layers,
            "composer_dim": composer_dim,
        }
        for name, size in sizes.items():
            check_count(name, size)
        check_probability("dropout", dropout)
        if composer_dim % 2 or composer_dim % composer_heads:
            raise ValueError(
                f"composer_dim must be even and a multiple of composer_heads ({composer_heads}), got {composer_dim}"
            )
        if novelty not in NOVELTIES:
            raise ValueError(f"novelty must be one of {', '.join(NOVELTIES)}, got {novelty!r}")
        self.encoding_dim = encoding_dim
        self.component_dim = component_dim
        self.novelty = novelty
        everything = len(COMPONENTS) * component_dim
        self.input_extractor = MultiScaleExtractor(encoding_dim, component_dim)
        self.target_extractor = MultiScaleExtractor(encoding_dim, component_dim)
        self.component_selector = nn.Sequential(
            nn.Conv1d(everything, 256, 1), nn.LeakyReLU(SLOPE), nn.Conv1d(256, len(COMPONENTS), 1)
        )
        self.composer = ComponentComposer(
            everything, encoding_dim, composer_dim, composer_heads, composer_layers, dropout
        )

    def forward(
        self, x_input: Tensor, x_target: Tensor, wanted: Literal["loss", "terms", "components"] = "loss"
    ) -> tuple[Tensor, Tensor]:
        """Two windows `[B, C, W]`, W ≤ 2000, to a third.

        Every use of the agent comes through here, so that hooks and wrappers see all of them.

        Args:
            x_input, x_target: the windows.
            wanted: what is returned.

        Returns:
            "loss": the composed window `[B, C, W]`, and the 0-dim loss: novelty + balance (`novelty_terms` averaged
            over the batch, then `agent_loss`).
            "terms": the composed window, and every sample's own terms `[B, 3]` for `agent_loss`.
            "components": without composing, of windows of any length, components `[B, 6, component_dim, W]` in the
            order of `COMPONENTS`, and their logits `[B, 6, W]`.

        Raises:
            TypeError: a window is no floating tensor, or of another dtype than the weights outside autocast.
            ValueError: a wrong rank, shape, number of channels or device, too many frames, or another `wanted`.
        """
        if wanted not in ("loss", "terms", "components"):
            raise ValueError(f"wanted must be 'loss', 'terms' or 'components', got {wanted!r}")
        check_streams(self, x_input, x_target, self.encoding_dim)
        components, logits = self._components(x_input, x_target)
        if wanted == "components":
            return components, logits
        weights = torch.softmax(logits, dim=1)  # [B, 6, W]
        output = self.composer(components, weights)
        terms = novelty_terms(output, x_input, x_target, logits, self.novelty)
        return output, agent_loss(terms.mean(0)) if wanted == "loss" else terms

    def compose_with_terms(self, x_input: Tensor, x_target: Tensor) -> tuple[Tensor, Tensor]:
        """`self(x_input, x_target, "terms")`."""
        return self(x_input, x_target, "terms")

    def _components(self, x_input: Tensor, x_target: Tensor) -> tuple[Tensor, Tensor]:
        parts = [*self.input_extractor(x_input), *self.target_extractor(x_target)]
        if convolution.channels_together(x_input):
            stacked = torch.cat([part.transpose(1, 2) for part in parts], dim=2).transpose(1, 2)
        else:
            stacked = torch.cat(parts, dim=1)
        return stacked.unflatten(1, (len(COMPONENTS), self.component_dim)), self._logits(stacked)

    def _logits(self, stacked: Tensor) -> Tensor:
        layers = self.component_selector
        if not is_plain(layers, nn.Sequential) or len(layers) != 3 or not is_plain(layers[1], nn.LeakyReLU):
            return layers(stacked)
        first, activation, last = layers
        assert isinstance(activation, nn.LeakyReLU)  # as is_plain found; narrows the type
        if convolution.channels_together(stacked) and is_plain(
            first, nn.Conv1d, kernel_size=(1,), padding=(0,), stride=(1,), groups=1
        ):
            assert isinstance(first, nn.Conv1d)  # as is_plain found; narrows the type
            hidden = convolution.convolve(stacked, first.weight, first.bias, 0)
        else:
            hidden = first(stacked)
        return last(lean.leaky_relu(hidden, activation.negative_slope))

    @torch.no_grad()
    def get_component_statistics(self, x_input: Tensor, x_target: Tensor) -> dict[str, float]:
        """Root-mean-square energy and mean softmax weight of the six components, over batch and frames.

        Keys `input_rhythm_energy`, `input_rhythm_weight`, ... `target_timbre_weight`. Runs in eval mode and restores
        each module's mode. Unlike `forward` it waits for the device, and takes windows of any length.
        """
        with evaluating(self):
            components, logits = self(x_input, x_target, "components")
        energies = wide(components).square().mean((0, 2, 3)).sqrt()
        weights = torch.softmax(wide(logits), dim=1).mean((0, 2))
        statistics = {f"{name}_energy": value for name, value in zip(COMPONENTS, energies.tolist(), strict=True)}
        return statistics | {f"{name}_weight": value for name, value in zip(COMPONENTS, weights.tolist(), strict=True)}


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for a `with` block; afterwards every submodule is in the mode it was in."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine over channels of each frame: `[N, C, W]` twice -> `[N, W]`."""
    return F.cosine_similarity(wide(a), wide(b), dim=1, eps=COSINE_EPS)
