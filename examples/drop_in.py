"""The swap: one training loop, first with the structure that this package replaces, then with its agent.

    python examples/drop_in.py

Both begin with the same weights, key by key. The loop does not change; what does is that its gradients reach the place
and the length of every window, and that all pairs pass the composer at once. The original is that of this checkout's
tests (tests/support/original_agent.py): pair after pair, sample after sample, windows cut at whole frames.
"""

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from adaptive_window import AdaptiveWindowCreativeAgent

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from original_agent import OriginalAgent

NOVELTY_WEIGHT = 0.1
ROWS = (
    "start_input",
    "start_target",
    "ratio_input",
    "ratio_target",
    "strength",
)  # of the selector's last layer, by pair


def train(agent: nn.Module, encoded_input: Tensor, encoded_target: Tensor, steps: int) -> list[float]:
    """The loop of a user: [B, 128, T] twice in, losses out. It is the same for both."""
    optimizer = torch.optim.AdamW(agent.parameters(), lr=1e-3)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        outputs, losses, _metadata = agent(encoded_input, encoded_target)
        spectral_loss = torch.stack(
            [(out - encoded_target[..., : out.shape[-1]]).abs().mean() for out in outputs]
        ).mean()
        loss = spectral_loss + NOVELTY_WEIGHT * torch.mean(torch.stack(losses))
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def reached(agent: nn.Module) -> dict[str, float]:
    """How much gradient the last step left for each kind of window parameter: its largest magnitude."""
    gradient = agent.get_parameter("window_selector.mlp.8.bias").grad
    assert gradient is not None  # narrows the type
    rows = gradient.view(-1, len(ROWS))  # [P, 5]
    return dict(zip(ROWS, rows.abs().amax(0).tolist(), strict=True))


def main(steps: int = 2, frames: int = 300, window_frames: int = 200) -> dict[str, dict[str, float]]:
    """Trains both, prints what each took and reached, and returns what was reached.

    6 s clips and 4 s windows at 50 frames/s, and a composer of 1 layer, so that a CPU is through in seconds; the
    original's are 1200 and 800 frames, and 4 layers.
    """
    torch.manual_seed(0)
    encoded_input, encoded_target = torch.randn(2, 1, 128, frames).cumsum(-1).mul(0.05).unbind()  # slow, as music is
    before = OriginalAgent(pairs=3, window_frames=window_frames, layers=1)
    after = AdaptiveWindowCreativeAgent(encoding_dim=128, num_pairs=3, window_frames=window_frames, composer_layers=1)
    after.load_state_dict(before.state_dict(), strict=True)  # a trained original goes on as it is
    found = {}
    for name, agent in (("before", before), ("after", after)):
        began = time.perf_counter()
        history = train(agent, encoded_input, encoded_target, steps)
        found[name] = reached(agent)
        seconds = (time.perf_counter() - began) / steps
        print(f"{name:7} {seconds:.2f} s a step, losses {' '.join(f'{loss:.3f}' for loss in history)}")
        print(f"{'':7} gradients: {', '.join(f'{key} {value:.1e}' for key, value in found[name].items())}")
    return found


if __name__ == "__main__":
    main()
