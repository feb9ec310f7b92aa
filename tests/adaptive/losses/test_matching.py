"""The matching loss is 0 at a planted window, reaches start and ratio, and finds the window from afar when blurred."""

import pytest
import torch
from torch import Tensor

from adaptive_window.kernels import resample_windows
from adaptive_window.losses.matching import matching_loss
from adaptive_window.losses.scale_space import annealed_sigma, gaussian_blur
from adaptive_window.model import windows_from_logits

FRAMES, WINDOW = 500, 200


def planted(batch: int = 16, sigma: float = 1.0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Clips x of correlation `sigma` frames, y holding a window of each from frame 0 on, and where it is."""
    generator = torch.Generator().manual_seed(0)
    x = gaussian_blur(torch.randn(batch, 16, FRAMES, generator=generator), sigma)
    ratio = 1 + 0.5 * torch.rand(batch, 1, generator=generator)
    start = torch.rand(batch, 1, generator=generator) * (FRAMES - ratio * WINDOW)
    y = torch.randn(x.shape, generator=generator) * x.std()
    y[..., :WINDOW] = resample_windows(x, start, ratio, WINDOW)[:, 0]
    truth = {"start_input": start, "ratio_input": ratio}
    return x, y, truth | {"start_target": torch.zeros_like(start), "ratio_target": torch.ones_like(ratio)}


def test_zero_at_the_planted_window_whatever_gain_and_offset() -> None:
    x, y, windows = planted()
    gain = torch.linspace(0.5, 2, 16)[:, None]
    # channels are weighed by their spread over the whole clip, which differs a little from the window's
    assert matching_loss(x, y, windows, WINDOW).item() == pytest.approx(0, abs=0.02)
    expected = matching_loss(x, y, windows, WINDOW)
    torch.testing.assert_close(matching_loss(gain * x + 3, y / gain - 1, windows, WINDOW), expected, rtol=0, atol=1e-3)
    elsewhere = windows | {"start_target": windows["start_target"] + 50}
    assert matching_loss(x, y, elsewhere, WINDOW) > 0.8


def test_is_pearsons_correlation() -> None:
    x, y, windows = planted(1)
    one = {name: value + 3 for name, value in windows.items() if name.startswith("start")}
    one |= {"ratio_input": torch.tensor([[1.2]]), "ratio_target": torch.tensor([[1.1]])}
    rows = []
    for clip, name in ((x[0], "input"), (y[0], "target")):
        clip = (clip - clip.mean(1, keepdim=True)) / clip.std(1, keepdim=True, correction=0)
        cut = resample_windows(clip[None], one[f"start_{name}"], one[f"ratio_{name}"], WINDOW)[0, 0]
        rows.append((cut - cut.mean(1, keepdim=True)).flatten())
    expected = 1 - torch.corrcoef(torch.stack(rows))[0, 1]
    # the floor under a spread of about 0.4 is 0.01: 3e-4 of each channel's power
    torch.testing.assert_close(matching_loss(x, y, one, WINDOW), expected, rtol=0, atol=1e-3)


def test_gradients() -> None:
    x, y, windows = planted(2)
    x, y = x[:, :2, :60].double().requires_grad_(), y[:, :2, :60].double().requires_grad_()
    places = [(value * 0.1 + 0.9 + 0.013).double().requires_grad_() for value in windows.values()]

    def run(x: Tensor, y: Tensor, *places: Tensor) -> Tensor:
        return matching_loss(x, y, dict(zip(windows, places, strict=True)), 20, sigma=1.3)

    assert torch.autograd.gradcheck(run, (x, y, *places), fast_mode=True)


def test_silence_is_unrelated_and_has_finite_gradients() -> None:
    x, y, windows = planted(2)
    x = torch.zeros_like(x)
    live = {name: value.clone().requires_grad_() for name, value in windows.items()}
    loss = matching_loss(x, y, live, WINDOW, sigma=4.0)
    loss.backward()
    assert loss.item() == pytest.approx(1.0)
    assert all(value.grad.isfinite().all() for value in live.values())


def test_16_bits_are_computed_in_32() -> None:
    x, y, windows = planted(2)
    expected = matching_loss(x.bfloat16().float(), y.bfloat16().float(), windows, WINDOW, sigma=2.0)
    loss = matching_loss(x.bfloat16(), y.bfloat16(), windows, WINDOW, sigma=2.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_an_annealed_blur_finds_what_the_plain_gradient_does_not() -> None:
    x, y, truth = planted()

    def found(sigma: float, steps: int = 150) -> float:
        """Share of clips whose window is found within 2 frames and 0.01 from the middle of the range."""
        free = torch.zeros(len(x), 2, requires_grad=True)
        optimizer = torch.optim.Adam([free], lr=0.1, betas=(0.9, 0.99))
        for step in range(steps):
            logits = torch.stack([free[:, 0], free[:, 0], free[:, 1], free[:, 1], free[:, 0]], dim=1)
            windows = windows_from_logits(logits, FRAMES, WINDOW, 1.5)
            windows |= {name: truth[name] for name in ("start_target", "ratio_target")}
            optimizer.zero_grad()
            loss = len(x) * matching_loss(x, y, windows, WINDOW, sigma=annealed_sigma(step, steps, sigma))
            loss.backward()
            optimizer.step()
        near = (windows["start_input"] - truth["start_input"]).abs() < 2
        return (near & ((windows["ratio_input"] - truth["ratio_input"]).abs() < 0.01)).float().mean().item()

    assert found(0.0) < 0.2
    assert found(48.0) > 0.8
