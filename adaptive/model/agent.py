"""The whole model: windows chosen, cut, transformed and composed, for all pairs at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .composer import MAX_FRAMES, CompositionalCreativeAgent, agent_loss, batch_mean, evaluating
from .content_selector import ContentSelector
from .correlation_selector import CorrelationSelector
from .pretrained import Pretrained
from .selector import WindowSelector
from .tonality import TonalityReducer
from .validation import check_count


class AdaptiveWindowCreativeAgent(Pretrained, nn.Module):
    """Chooses P pairs of windows in two clips and composes a new window from each pair.

    All pairs pass the shared compositional agent in one batch of B·P. In training its BatchNorm statistics are
    therefore joint over the pairs; everything else is per sample, and each pair's loss is its own samples' mean.
    Its four parts, and every layer in them, are called as modules wherever that makes a difference: hooks, adapters,
    pruning, parametrizations, checkpointing, FSDP2 units and `compile()` work on each of them. A layer that is as it
    was built may be computed within a fused call (`plain.is_plain`).

    Nothing in `forward` waits for the device or depends on values, and NaN passes through: the training loop refuses
    such a step.

    Args:
        encoding_dim: C, channels of the latents.
        num_pairs: P, pairs of windows per sample.
        window_frames: W, frames of every window as composed, at most 2000.
        max_ratio: the longest window over W (see `windows_from_logits`).
        max_strength: strongest transform of the tonality, 0 to 1; 0 switches it off.
        kernel_size: taps of the tonality transform's depthwise convolution, odd.
        restore: `"none"`, the original's tonality transform; or `"frame"`, which changes nothing until it is trained
            and keeps each frame's loudness (`TonalityReducer`).
        component_dim, composer_heads, composer_layers, composer_dim: as `CompositionalCreativeAgent`.
        dropout: probability everywhere, in training.
        selector: `"mlp"`, `WindowSelector`, whose keys are the original's; `"correlation"`, `CorrelationSelector`,
            which has few parameters, finds the input's windows by comparing, and knows the target's by heart; or
            `"content"`, `ContentSelector`, which takes both streams' windows and ratios from what is played.
        frame_rate: frames per second, which the content selector alone asks for.
        strength: "constant", or "harmony", which the content selector alone takes: by the clash of two windows.
        novelty: of the pairs' losses, "original" or "corrected" (`composer.novelty_terms`).
        backend: of the window kernels: `"auto"`, `"triton"` (CUDA), `"native"` (compiled C, CPU) or `"reference"`.
    """

    def __init__(
        self,
        encoding_dim: int = 128,
        num_pairs: int = 3,
        *,
        window_frames: int = 800,
        max_ratio: float = 1.5,
        max_strength: float = 1.0,
        kernel_size: int = 7,
        restore: str = "none",
        component_dim: int = 64,
        composer_heads: int = 8,
        composer_layers: int = 4,
        composer_dim: int = 512,
        dropout: float = 0.1,
        selector: str = "mlp",
        frame_rate: float = 50.0,
        strength: str = "constant",
        novelty: str = "original",
        backend: str = "auto",
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.arguments, self.about = arguments, {}
        check_count("window_frames", window_frames)
        if window_frames > MAX_FRAMES:
            raise ValueError(
                f"window_frames must be at most {MAX_FRAMES} (the composer's positional encoding), got {window_frames}"
            )
        if selector not in ("mlp", "correlation", "content"):
            raise ValueError(f"selector must be 'mlp', 'correlation' or 'content', got {selector!r}")
        if strength != "constant" and selector != "content":
            raise ValueError(f"strength must be 'constant' for selector {selector!r}, got {strength!r}")
        self.encoding_dim, self.num_pairs, self.window_frames = encoding_dim, num_pairs, window_frames
        limits = {"max_ratio": max_ratio, "max_strength": max_strength}
        self.window_selector: WindowSelector | CorrelationSelector | ContentSelector
        if selector == "mlp":
            self.window_selector = WindowSelector(
                encoding_dim, num_pairs, window_frames=window_frames, dropout=dropout, **limits
            )
        elif selector == "content":
            self.window_selector = ContentSelector(
                encoding_dim,
                num_pairs,
                window_frames=window_frames,
                frame_rate=frame_rate,
                strength=strength,
                **limits,
            )
        else:
            self.window_selector = CorrelationSelector(encoding_dim, num_pairs, window_frames=window_frames, **limits)
        self.tonality_reducer_input = TonalityReducer(encoding_dim, kernel_size, restore=restore, backend=backend)
        self.tonality_reducer_target = TonalityReducer(encoding_dim, kernel_size, restore=restore, backend=backend)
        self.creative_agent = CompositionalCreativeAgent(
            encoding_dim,
            component_dim,
            composer_heads,
            composer_layers,
            composer_dim=composer_dim,
            dropout=dropout,
            novelty=novelty,
        )
        self.training_mean = batch_mean  # training in several processes puts a joint mean here

    @property
    def recompute(self) -> bool:
        """Whether the composer's layers keep their inputs alone and are computed again in the backward pass.

        Same values, same dropout, a quarter of the bytes kept; the composer's forward pass is done twice.
        Off unless set.
        """
        return self.creative_agent.composer.composer.recompute

    @recompute.setter
    def recompute(self, on: bool) -> None:
        self.creative_agent.composer.composer.recompute = on

    def forward(
        self, x_input: Tensor, x_target: Tensor, transformed: bool = False
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
        """Two clips `[B, C, T]` of one shape, T ≥ W.

        Args:
            transformed: whether metadata holds the transformed windows too, for losses of what they have become.

        Returns:
            outputs: P tensors `[B, C, W]`.
            losses: P 0-dim tensors, novelty + balance of each pair (`composer.agent_loss`).
            metadata: `num_pairs`; `pairs`, one dict per pair of detached 0-dim tensors `start_input_mean`,
                `start_target_mean` (frames), `ratio_input_mean`, `ratio_target_mean`, `tonality_strength_mean`;
                `windows`, the live `[B, P]` tensors of `WindowSelector.forward`, for regularizers; and where asked for
                `transformed`, of `transform_windows`, at places that are data: gradients reach strength and weights.

        Raises:
            TypeError: a clip is no floating tensor, or of another dtype than the weights outside autocast.
            ValueError: a wrong rank, shape, number of channels or device, or T < W.
        """
        windows = self.window_selector(x_input, x_target)
        outputs, terms = self.compose_windows(x_input, x_target, windows)
        losses = agent_loss(self.training_mean(terms) if self.training else batch_mean(terms))  # [P]
        metadata = self._metadata(windows)
        if transformed:
            placed = {name: value if name == "strength" else value.detach() for name, value in windows.items()}
            metadata["transformed"] = self.transform_windows(x_input, x_target, placed)
        return [outputs[:, i] for i in range(outputs.shape[1])], list(losses.unbind()), metadata

    def transform_windows(self, x_input: Tensor, x_target: Tensor, windows: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the composer gets of given windows (`[B, P]` each): `input` and `target`, `[B, P, C, W]` each."""
        strength = windows["strength"].to(x_input.dtype)
        return {
            name: reducer(clip, strength, windows[f"start_{name}"], windows[f"ratio_{name}"], self.window_frames)
            for name, clip, reducer in (
                ("input", x_input, self.tonality_reducer_input),
                ("target", x_target, self.tonality_reducer_target),
            )
        }

    def compose_windows(self, x_input: Tensor, x_target: Tensor, windows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the agent makes of given windows (`[B, P]` each, any P ≥ 1).

        Returns:
            outputs `[B, P, C, W]`, and each sample's terms for `composer.agent_loss`, `[B, P, 3]`.
        """
        cuts = self.transform_windows(x_input, x_target, windows)
        output, terms = self.creative_agent(cuts["input"].flatten(0, 1), cuts["target"].flatten(0, 1), "terms")
        shape = windows["strength"].shape  # (B, P)
        return output.unflatten(0, shape), terms.unflatten(0, shape)

    @staticmethod
    def _metadata(windows: dict[str, Tensor]) -> dict[str, Any]:
        names = [f"{'tonality_strength' if name == 'strength' else name}_mean" for name in windows]
        means = torch.stack([value.detach() for value in windows.values()], dim=2).mean(0)  # [P, 5]
        pairs = [dict(zip(names, pair.unbind(), strict=True)) for pair in means.unbind()]
        return {"num_pairs": len(pairs), "pairs": pairs, "windows": windows}

    def compose(self, x_input: Tensor, x_target: Tensor, pick: str | int = "mean") -> Tensor:
        """One composed window per sample, `[B, C, W]`: the output of `compose_with_metadata`, which see."""
        return self.compose_with_metadata(x_input, x_target, pick)[0]

    @torch.no_grad()
    def compose_with_metadata(
        self, x_input: Tensor, x_target: Tensor, pick: str | int = "mean"
    ) -> tuple[Tensor, dict[str, Any]]:
        """One composed window per sample, in eval mode and without gradients; each module's mode is restored.

        Args:
            x_input, x_target: clips `[B, C, T]`, T ≥ W.
            pick: `"mean"`, the mean of all pairs' outputs; `"best"`, for each sample the pair of least loss; or the
                number of one pair, 0 to P − 1, for which alone the agent then runs.

        Returns:
            The output `[B, C, W]`, and metadata as `forward`'s for the windows composed (all P, or one), with `losses`
            `[B, P]`, every sample's own, `picked` `[B]`, the pair taken (None for `"mean"`), and `all_windows`, those
            that the selector chose for all P pairs in this call: what a picture or a report of the output shows.

        Raises:
            TypeError, ValueError: as `forward`; and for a `pick` that is none of these.
        """
        self._check_pick(pick)
        with evaluating(self):
            windows = all_windows = self.window_selector(x_input, x_target)
            if isinstance(pick, int):
                windows = {name: value[:, pick : pick + 1] for name, value in windows.items()}
            outputs, terms = self.compose_windows(x_input, x_target, windows)
        losses = agent_loss(terms)  # [B, P]
        picked: Tensor | None
        if isinstance(pick, int):
            output, picked = outputs[:, 0], torch.full_like(losses[:, 0], pick, dtype=torch.long)
        elif pick == "best":
            picked = losses.argmin(1)
            output = outputs[torch.arange(len(picked), device=picked.device), picked]
        else:
            output, picked = outputs.mean(1), None
        return output, self._metadata(windows) | {"losses": losses, "picked": picked, "all_windows": all_windows}

    def _check_pick(self, pick: object) -> None:
        wanted = f"'mean', 'best' or a pair's number, 0 to {self.num_pairs - 1}"
        if isinstance(pick, bool) or not isinstance(pick, int | str):
            raise TypeError(f"pick must be {wanted}, got {type(pick).__name__}")
        if pick not in ("mean", "best") and not (isinstance(pick, int) and 0 <= pick < self.num_pairs):
            raise ValueError(f"pick must be {wanted}, got {pick!r}")

    def get_component_statistics(self, x_input: Tensor, x_target: Tensor) -> dict[str, float]:
        """`CompositionalCreativeAgent.get_component_statistics` of the whole clips, before any window is cut."""
        return self.creative_agent.get_component_statistics(x_input, x_target)
