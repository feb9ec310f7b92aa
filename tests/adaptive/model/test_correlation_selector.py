"""The correlation selector finds planted windows untrained, stays inside the clip, and trains like the other one."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from adaptive_window import AdaptiveWindowCreativeAgent, CorrelationSelector, WindowSelector
from adaptive_window.kernels import resample_windows
from adaptive_window.losses.scale_space import gaussian_blur
from adaptive_window.model.correlation_selector import REACH, SILENCE, lattice

NAMES = ("start_input", "start_target", "ratio_input", "ratio_target", "strength")


def smooth(batch: int, channels: int, frames: int, sigma: float, seed: int = 0) -> Tensor:
    """Noise of that correlation time, of unit spread."""
    x = torch.randn(batch, channels, frames, generator=torch.Generator().manual_seed(seed))
    x = gaussian_blur(x, sigma)
    return x / x.std()


def planted(batch: int = 16, channels: int = 8, *, frames: int = 1200, window: int = 800, sigma: float = 5.0) -> Any:
    """Clips x, a window of each, and where it was: start and ratio `[B, 1]`."""
    x = smooth(batch, channels, frames, sigma)
    unit = torch.rand(2, batch, 1, generator=torch.Generator().manual_seed(1))
    ratio = 1 + (min(1.5, frames / window) - 1) * unit[0]
    start = unit[1] * (frames - ratio * window)
    return x, resample_windows(x, start, ratio, window)[:, 0], start, ratio


def whole(batch: int, queries: int = 1) -> tuple[Tensor, Tensor]:
    return torch.zeros(batch, queries), torch.ones(batch, queries)


@pytest.mark.parametrize(("frames", "window"), [(1200, 800), (1501, 1003), (300, 160)])
def test_finds_a_planted_window_untrained(frames: int, window: int) -> None:
    x, y, start, ratio = planted(frames=frames, window=window)
    selector = CorrelationSelector(8, 1, window_frames=window)
    found_start, found_ratio = selector.match(x, y, *whole(16))
    # at worst half a cell of start, and half a step of ratio, which moves start by as many frames as the window grows
    # to one side of its centre; half of them within a third of that
    cell, step = selector.cell, 4 * selector.cell / window
    assert (found_start - start).abs().max() < cell / 2 + step / 2 * window / 2
    assert (found_ratio - ratio).abs().max() < step / 2
    assert (found_start - start).abs().median() < 2 / 3 * cell
    assert (found_ratio - ratio).abs().median() < step / 4


def test_scores_are_pearson_correlations() -> None:
    """Every place of the lattice against a loop over its windows; x and y drift, so that window means matter."""
    selector = CorrelationSelector(3, 1, window_frames=20, max_ratio=1.6).double()
    with torch.no_grad():
        selector.log_weight.copy_(torch.tensor([0.0, 0.7, -0.4]))
    weight = selector.log_weight.detach().exp()[:, None]
    drift = torch.linspace(-2, 2, 37)
    x, y = ((smooth(1, 3, 37, 2.0, seed=seed) + drift).double() for seed in (0, 1))
    places = lattice(37, 20, 1.6, 1, torch.float64, x.device)
    ratio = torch.tensor([[1.2]], dtype=torch.float64)
    scores = selector._scores(x, y, torch.tensor([[4.5]], dtype=torch.float64), ratio, places)[0, 0]
    for k, s in places.fits.nonzero().tolist():
        length = int(places.lengths[k])
        a = x[0, :, s : s + length]
        start, step = torch.tensor([[4.5]], dtype=torch.float64), ratio / places.ratios[k]
        b = resample_windows(y, start, step, int(places.longest))[0, 0, :, :length]
        a, b = (z - z.mean(1, keepdim=True) for z in (a, b))
        power = [(weight * z.square()).sum() + SILENCE * length * weight.sum() for z in (a, b)]
        expected = (weight * a * b).sum() / (power[0] * power[1]).sqrt()
        torch.testing.assert_close(scores[k, s], expected, rtol=1e-9, atol=1e-9)


def test_gain_and_offset_of_each_channel_do_not_matter() -> None:
    x, y, *_ = planted(4)
    gain = torch.linspace(0.5, 2, 8)[:, None]
    selector = CorrelationSelector(8, 1)
    expected = torch.stack(selector.match(x, y, *whole(4)))
    got = torch.stack(selector.match(gain * x + 3, y / gain - 1, *whole(4)))
    # not exact: a channel's spread is floored at 0.01 beside spreads of 0.3 to 2, 1 part in 2,000 of its power
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=0.05)


def test_finds_the_pairs_own_window_of_the_target() -> None:
    """Every pair looks for its own target window: with the clip as its own target it finds that very place."""
    x = smooth(4, 8, 1200, 5.0)
    selector = CorrelationSelector(8, 3)
    with torch.no_grad():
        selector.target_ratio.copy_(torch.tensor([-2.0, 0.0, -2.0]))
    windows = selector(x, x)
    assert tuple(windows) == NAMES
    torch.testing.assert_close(windows["start_input"], windows["start_target"], rtol=0, atol=4.0)  # a cell
    torch.testing.assert_close(windows["ratio_input"], windows["ratio_target"], rtol=0, atol=0.01)  # half a step
    assert (windows["start_target"].diff(dim=1).abs() > 10).all()


def test_fresh_target_windows_are_those_of_the_other_selector() -> None:
    x, y = smooth(2, 8, 1200, 5.0), smooth(2, 8, 1200, 5.0, seed=3)
    expected, windows = WindowSelector(8).eval()(x, y), CorrelationSelector(8)(x, y)
    for name in ("start_target", "ratio_target", "strength"):
        torch.testing.assert_close(windows[name], expected[name], rtol=0, atol=2.0)  # its last weights are not zero


@pytest.mark.parametrize(("frames", "window", "max_ratio"), [(1200, 800, 1.5), (1000, 700, 3.0), (97, 96, 1.75),
                                                              (800, 800, 1.5), (1200, 800, 0.57), (7, 3, 1.5),
                                                              (1, 1, 1.5), (903, 401, 1.31)])  # fmt: skip
def test_always_inside_the_clip(frames: int, window: int, max_ratio: float) -> None:
    selector = CorrelationSelector(4, 2, window_frames=window, max_ratio=max_ratio)
    rounding = 4 * torch.finfo(torch.float32).eps
    low, high = min(1.0, max_ratio), max(1.0, min(max_ratio, frames / window))
    for clips in (torch.randn(2, 8, 4, frames), torch.zeros(2, 2, 4, frames), 1e6 * torch.randn(2, 8, 4, frames)):
        windows = selector(*clips)
        start, ratio = windows["start_input"], windows["ratio_input"]
        assert start.isfinite().all()
        assert (start >= 0).all()
        assert (ratio >= low * (1 - rounding)).all()
        assert (ratio <= high * (1 + rounding)).all()
        assert (start + ratio * window <= frames * (1 + rounding)).all()


@pytest.mark.parametrize(("frames", "window", "max_ratio"), [(1200, 800, 1.5), (903, 401, 1.31), (1200, 800, 0.57)])
def test_the_lattice_covers_every_window(frames: int, window: int, max_ratio: float) -> None:
    """Any window that fits has a place of the lattice within half a step of ratio, its centre within 1.5 cells."""
    cell = max(1, window // 200)
    places = lattice(frames, window, max_ratio, cell, torch.float64, torch.device("cpu"))
    assert places.ratios[0] == 1
    end = 1 + min((max_ratio - 1) * window, frames - window) / window
    assert places.ratios[-1].item() == pytest.approx(end)
    unit = torch.rand(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ratio = 1 + (end - 1) * unit[:, 0]
    centre = unit[:, 1] * (frames - ratio * window) + ratio * window / 2
    step = abs(end - 1) / (len(places.ratios) - 1)
    assert step * window <= 4 * cell + 1e-9
    near = (places.ratios - ratio[:, None, None]).abs() <= step / 2 + 1e-9  # [500, K, 1]
    near = near & ((places.centres * cell - centre[:, None, None]).abs() <= 1.5 * cell + step * window / 4)
    assert (near & places.fits).flatten(1).any(1).all()


def test_gradients_are_those_of_finite_differences() -> None:
    selector = CorrelationSelector(3, 2, window_frames=24).double()
    x, y = smooth(2, 3, 36, 2.0).double(), smooth(2, 3, 36, 2.0, seed=5).double()
    state = {name: value.detach() for name, value in selector.named_parameters()}
    names = ("log_weight", "log_sharpness", "target_start", "target_ratio")

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        windows = torch.func.functional_call(selector, state | dict(zip(names, values[2:], strict=True)), values[:2])
        return windows["start_input"], windows["ratio_input"]

    values = [x, y, *(state[name] + 0.1 for name in names)]
    # gradcheck's steps of 1e-6 do not change which place is best, unless two scores tie that closely
    assert torch.autograd.gradcheck(run, [v.clone().requires_grad_() for v in values], fast_mode=True)


def test_silence_has_finite_gradients_and_nan_stays_in_its_sample() -> None:
    selector = CorrelationSelector(4, 2, window_frames=40)
    x = smooth(3, 4, 60, 3.0)
    x[1] = 0.0
    windows = selector(x, x)
    (windows["start_input"] + windows["ratio_input"]).sum().backward()
    assert all(p.grad.isfinite().all() for name, p in selector.named_parameters() if name != "strength")
    x[2, 1, 7] = math.nan
    broken = selector(x, x)
    assert broken["start_input"][2].isnan().all()
    torch.testing.assert_close(broken["start_input"][:2], windows["start_input"][:2])


def test_training_sharpens_what_tells_a_match() -> None:
    """Half of the channels are noise of their own in y: they come to count less."""
    x, _, start, ratio = planted(16, 8)
    torch.manual_seed(2)
    x[:, 4:] = torch.randn(16, 4, 1200)
    y = resample_windows(x, start, ratio, 800)[:, 0]
    y[:, 4:] = torch.randn(16, 4, 800)
    selector = CorrelationSelector(8, 1)
    optimizer = torch.optim.Adam(selector.parameters(), lr=0.1)
    for _ in range(15):
        found = torch.stack(selector.match(x, y, *whole(16)))
        loss = (found[0] - start).square().mean() / 16 + (found[1] - ratio).square().mean() / 1e-4
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weight = selector.log_weight.detach()
    assert weight[:4].mean() > weight[4:].mean() + 0.2


def agent_and_clips() -> tuple[AdaptiveWindowCreativeAgent, Tensor, Tensor]:
    torch.manual_seed(0)
    small = {"component_dim": 4, "composer_heads": 2, "composer_layers": 1, "composer_dim": 16}
    agent = AdaptiveWindowCreativeAgent(8, window_frames=40, selector="correlation", **small).eval()
    return agent, smooth(2, 8, 60, 2.0), smooth(2, 8, 60, 2.0, seed=7)


def test_every_parameter_learns_in_the_agent() -> None:
    agent, x, y = agent_and_clips()
    outputs, losses, metadata = agent(x, y)
    (torch.stack(losses).mean() + torch.stack(outputs).square().mean()).backward()
    assert all((p.grad != 0).any() for p in agent.window_selector.parameters())
    assert (agent.window_selector.target_start.grad != 0).all()
    assert all(value.shape == (2, 3) for value in metadata["windows"].values())


def test_one_graph_for_the_compiler() -> None:
    selector = CorrelationSelector(8, 2, window_frames=40)
    x, y = smooth(2, 8, 60, 2.0), smooth(2, 8, 60, 2.0, seed=7)
    torch._dynamo.reset()
    compiled = torch.compile(selector, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (compiled, selector):
        windows = run(x, y)
        (gradient,) = torch.autograd.grad(windows["start_input"].sum(), selector.log_weight)
        gradients.append(gradient)
    torch.testing.assert_close(compiled(x, y), selector(x, y))
    assert (gradients[1] != 0).any()
    torch.testing.assert_close(*gradients)


def test_16_bits() -> None:
    agent, x, y = agent_and_clips()
    expected = agent.window_selector(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = agent.window_selector(x, y)
    for name in NAMES:
        torch.testing.assert_close(under_autocast[name], expected[name], rtol=0, atol=0)
    half = agent.to(torch.bfloat16)(x.bfloat16(), y.bfloat16())[2]["windows"]
    assert all(value.dtype == torch.float32 for value in half.values())


def test_reach_keeps_far_places_out() -> None:
    """A second copy of the window elsewhere in the clip does not pull the mean toward it."""
    window = smooth(1, 8, 100, 2.0)
    x = torch.cat([window, smooth(1, 8, 60, 2.0, seed=4), window], dim=2)  # at 0 and at 160
    selector = CorrelationSelector(8, 1, window_frames=100)
    start, _ = selector.match(x, window, *whole(1))
    assert min(start.item(), 160 - start.item()) < REACH + 2 * REACH  # of centre, and of half the length per step


def test_reach_is_two_cells_and_two_steps() -> None:
    """Without sharpness all places within reach of the best weigh alike, and no other one anything."""
    selector = CorrelationSelector(2, 1, window_frames=40, max_ratio=1.5)
    with torch.no_grad():
        selector.log_sharpness.fill_(-100.0)
    places = lattice(90, 40, 1.5, 1, torch.float32, torch.device("cpu"))
    scores = torch.zeros(1, 1, *places.fits.shape)
    k, s = 3, 17
    scores[0, 0, k, s] = 1.0
    weights = selector._around_the_best(scores, places)[0, 0]
    near = (places.centres - places.centres[k, s]).abs() <= 2
    near &= ((places.steps - k).abs() <= 2) & places.fits
    assert 15 <= int(near.sum()) <= 25
    torch.testing.assert_close(weights, near / near.sum(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"num_pairs": 0}, ValueError, "num_pairs"),
        ({"encoding_dim": 2.0}, TypeError, "encoding_dim"),
        ({"window_frames": 0}, ValueError, "window_frames"),
        ({"max_ratio": math.inf}, ValueError, "max_ratio"),
    ],
)
def test_wrong_sizes(arguments: dict, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=f"^{name} must be"):
        CorrelationSelector(**arguments)


def test_wrong_clips() -> None:
    selector = CorrelationSelector(8, window_frames=16)
    with pytest.raises(ValueError, match="x_input must have at least 16 frames, got 15"):
        selector(torch.zeros(2, 8, 15), torch.zeros(2, 8, 15))
    with pytest.raises(TypeError, match="x_target must have a floating dtype"):
        selector(torch.zeros(2, 8, 24), torch.zeros(2, 8, 24).long())
