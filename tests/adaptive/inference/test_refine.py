"""Planted windows are found, unrelated signals are not, and one problem does not see another."""

import pytest
import torch

from adaptive_window import refine_windows
from adaptive_window.inference.descent import Axes
from adaptive_window.inference.lattice import Windows, distinct_best, lattice
from adaptive_window.inference.matching import lag_one_autocorrelation, match_score, match_threshold
from adaptive_window.kernels import resample_windows
from adaptive_window.losses.scale_space import gaussian_blur

T, W, C, B = 300, 200, 12, 6


def smooth(*shape: int, width: float = 3.0, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(*shape[:-1], shape[-1] + 64, generator=torch.Generator().manual_seed(seed))
    x = gaussian_blur(noise, width)[..., 32:-32]
    return x / x.std()


def planted(seed: int = 0, max_ratio: float = 1.5):
    """x `[B, C, T]`, its windows `[B, C, W]`, and where they lie."""
    generator = torch.Generator().manual_seed(seed + 1)
    x = smooth(B, C, T, seed=seed)
    ratio = 1 + (max_ratio - 1) * torch.rand(B, generator=generator)
    start = (T - ratio * W) * torch.rand(B, generator=generator)
    return x, resample_windows(x, start[:, None], ratio[:, None], W)[:, 0], start, ratio


def found(start, ratio, true_start, true_ratio) -> bool:
    return bool(((start - true_start).abs() < 0.3).all() and ((ratio - true_ratio).abs() < 0.003).all())


@pytest.fixture(scope="module")
def problem():
    return planted()


@pytest.fixture(scope="module")
def answer(problem):
    x, y, _, _ = problem
    return refine_windows(x, y, W)


def test_planted_windows_are_found(problem, answer):
    start, ratio, score = answer
    assert found(start, ratio, *problem[2:])
    assert (score > 0.98).all()
    assert all(v.shape == (B,) and v.dtype == torch.float32 and not v.requires_grad for v in answer)


def test_unrelated_signals_are_no_match(problem, answer):
    x, y, _, _ = problem
    score = refine_windows(x, y.roll(1, 0), W)[2]
    assert (score < match_threshold("latent", W)).all()
    assert (answer[2] > match_threshold("latent", W)).all()


def test_white_noise_is_no_match():
    x, y = torch.randn(2, 4, C, T)
    assert (refine_windows(x, y[..., :W], W)[2] < match_threshold("latent", W)).all()


def test_runs_are_bit_equal_and_inputs_stay(problem, answer):
    x, y, _, _ = problem
    before = x.clone(), y.clone()
    with torch.no_grad():
        again = refine_windows(x, y, W)
    assert all(torch.equal(a, b) for a, b in zip(answer, again, strict=True))
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_a_problem_does_not_see_its_neighbours(problem, answer):
    """A neighbour of other content, of huge values, of NaN: the same window but for rounding (1e-3 frames)."""
    x, y, _, _ = problem
    alone = refine_windows(x[:1], y[:1], W)
    spoiled = x.clone()
    spoiled[1] *= 1e6
    spoiled[2, 0, 0] = float("nan")
    beside = refine_windows(spoiled, y, W)
    for other in (alone, beside):
        for a, b in zip(answer, other, strict=True):
            torch.testing.assert_close(b[0], a[0], rtol=0, atol=1e-3)
    assert beside[2][2].isnan()
    assert not beside[2][[0, 1, 3, 4, 5]].isnan().any()


def test_gain_and_equalization_cancel(problem, answer):
    x, y, _, _ = problem
    curve = torch.linspace(-2, 2, C)[None, :, None]
    other = refine_windows(x, 3 * y + curve, W)
    for a, b in zip(answer, other, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=2e-2)


def test_the_window_of_a_longer_y(problem):
    """y is a whole clip, and its window is given: as tensors, and (the first problem's) as numbers."""
    x, _, start, ratio = problem
    y = 2 * x + 1
    found_start, found_ratio, score = refine_windows(x, y, W, start_y=start, ratio_y=ratio)
    assert found(found_start, found_ratio, start, ratio)
    assert (score > 0.999).all()
    s, r, _ = refine_windows(x[:1], y[:1], W, start_y=float(start[0]), ratio_y=float(ratio[0]))
    assert found(s, r, start[:1], ratio[:1])


def test_by_default_the_first_frames_of_y(problem):
    x = problem[0]
    start, ratio, score = refine_windows(x, x, W)
    assert found(start, ratio, torch.zeros(B), torch.ones(B))
    assert (score > 0.999).all()


def test_y_can_be_the_one_that_moves(problem, answer):
    x, y, _, _ = problem
    for a, b in zip(answer, refine_windows(y, x, W, move=("y",)), strict=True):
        torch.testing.assert_close(b, a)


def test_both_windows_are_found():
    """The same content stands in two otherwise unrelated clips, stretched differently. Any part of it is an answer:
    what counts is that both windows play the same frames of it at the same moment."""
    generator = torch.Generator().manual_seed(5)
    content = smooth(B, C, W, seed=7)
    truth, clips = [], []
    for k in range(2):
        ratio = 1 + 0.5 * torch.rand(B, 1, generator=generator)
        start = (T - ratio * W) * torch.rand(B, 1, generator=generator)
        place = (torch.arange(T) - start + 0.5) / ratio - 0.5  # [B, T], frame of the content at frame t of the clip
        inside = ((place > 0) & (place < W - 1))[:, None]
        stretched = torch.stack([resample_rows(c, p) for c, p in zip(content, place, strict=True)])
        clips.append(torch.where(inside, stretched, smooth(B, C, T, seed=20 + k)))
        truth.append((start, ratio))
    *windows, score = refine_windows(*clips, W, move=("x", "y"))
    assert len(windows) == 4
    assert (score > 0.95).all()
    t = torch.arange(W) + 0.5
    played = [
        (start[:, None] + t * ratio[:, None] - true_start) / true_ratio  # [B, W]
        for (start, ratio), (true_start, true_ratio) in zip((windows[:2], windows[2:]), truth, strict=True)
    ]
    assert (played[0] - played[1]).abs().max() < 1.5
    assert played[0].min() > -3
    assert played[0].max() < W + 3
    again = refine_windows(*clips, W, move=("y", "x"))  # x's window first, whatever the order of the names
    assert all(torch.equal(a, b) for a, b in zip([*windows, score], again, strict=True))


def resample_rows(x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """`[C, W]` read at places `[T]`: `[C, T]`."""
    left = place.floor().clamp(0, x.shape[1] - 2).long()
    return torch.lerp(x[:, left], x[:, left + 1], place - left)


@pytest.mark.parametrize("features", ["energy", "difference"])
def test_white_latents_are_found_by_their_loudness(features):
    """White in time: content is different noise in x and in y, only its envelope is the same. Channels have offsets far
    above their spread, as EnCodec's do with random weights."""
    generator = torch.Generator().manual_seed(3)
    x, y, start, ratio = planted(seed=4)
    loud = [(0.5 * v).exp().repeat_interleave(8, 1) for v in (x, y)]
    offset = 50 * torch.randn(1, 8 * C, 1, generator=generator)
    white = [torch.randn(v.shape, generator=generator) * v + offset for v in loud]
    assert lag_one_autocorrelation(white[0]).abs().max() < 0.03  # five times 1/√(96 channels · 300 frames)
    got_start, got_ratio, score = refine_windows(*white, W, features=features)
    assert ((got_start - start).abs() < 2).all()
    assert ((got_ratio - ratio).abs() < 0.02).all()
    assert (score > refine_windows(white[0], white[1].roll(1, 0), W, features=features)[2].max()).all()


def test_a_guess_descends_by_gradient_alone(problem):
    """From the middle: with the blur it gets there, without it does not (the reason for the blur)."""
    x, y, start, ratio = problem
    middle = {"start_x": 25.0, "ratio_x": 1.25, "restarts": 1}
    near = [(refine_windows(x, y, W, blur=blur, **middle)[0] - start).abs() < 1 for blur in (24.0, 0.0)]
    assert near[0].sum() > near[1].sum()
    close = refine_windows(x, y, W, start_x=start + 2, ratio_x=ratio, restarts=1, blur=4.0)
    assert found(*close[:2], start, ratio)


def test_larger_ratios_when_asked():
    generator = torch.Generator().manual_seed(0)
    x = smooth(2, C, 420, seed=8)
    ratio = 1.6 + 0.4 * torch.rand(2, generator=generator)
    start = (420 - ratio * W) * torch.rand(2, generator=generator)
    y = resample_windows(x, start[:, None], ratio[:, None], W)[:, 0]
    assert found(*refine_windows(x, y, W, max_ratio=2.0)[:2], start, ratio)
    assert (refine_windows(x, y, W)[1] <= 1.5).all()


def test_windows_stay_inside_their_clip(problem):
    x, y, _, _ = problem
    start, ratio, _ = refine_windows(x, y.flip(-1), W)
    assert (start >= -1e-4).all()
    assert (start + ratio * W <= T + 1e-3).all()
    assert (ratio >= 1 - 1e-6).all()
    assert (ratio <= 1.5 + 1e-6).all()


@pytest.mark.parametrize("ratio", [1.0, 1.2, 1.5])
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_windows_in_a_corner_whose_sound_is_at_the_clips_end(ratio, at_end, level):
    """All else is constant, or of another make: the way there leads along the edge of what fits."""
    sound = 60
    x = smooth(2, C, T, seed=3)
    quiet = slice(0, T - sound) if at_end else slice(sound, T)
    x[..., quiet] = -4 + level * torch.randn(x[..., quiet].shape, generator=torch.Generator().manual_seed(1))
    ratio = torch.full((2,), ratio)
    start = T - ratio * W if at_end else torch.zeros(2)
    y = resample_windows(x, start[:, None], ratio[:, None], W)[:, 0]
    got = refine_windows(x, y, W)
    assert found(*got[:2], start, ratio)
    assert (got[2] > 0.98).all()


@pytest.mark.parametrize(("clip", "max_ratio"), [(300, 1.5), (300, 1.2), (200, 1.5), (500, 1.5)])
@pytest.mark.parametrize("axes", [(100.0, 57.7), (15.0, 8.0), (190.0, 30.0)])
def test_inside_is_the_nearest_place_that_fits(clip, max_ratio, axes):
    exact = {"dtype": torch.float64}
    axes = Axes(*(torch.tensor([[v]], **exact) for v in axes), W)
    starts, ratios = (torch.tensor([v], **exact) for v in lattice(clip, W, 0.5, max_ratio))
    fitting = axes.coordinates(Windows(starts, ratios, W))
    generator = torch.Generator().manual_seed(0)
    asked = torch.rand(1, 300, 2, generator=generator, **exact) * torch.tensor([clip + 200.0, 120.0])
    asked[..., 0] -= 100
    moved = axes.inside(asked, clip, max_ratio)
    windows = axes.windows(moved)
    assert (windows.start > -1e-9).all()
    assert (windows.start + windows.ratio * W < clip + 1e-9).all()
    assert ((windows.ratio > 1 - 1e-9) & (windows.ratio < max_ratio + 1e-9)).all()
    nearest = torch.cdist(asked, fitting).amin(-1)
    distance = (moved - asked).norm(dim=-1)
    assert (distance < nearest + 1e-9).all()
    assert (distance > nearest - 0.5).all()
    torch.testing.assert_close(axes.inside(fitting, clip, max_ratio), fitting, rtol=0, atol=1e-9)


def test_axes_move_by_a_frame_where_something_changes():
    y = torch.zeros(2, 3, W)
    y[0, :, 20:60] = torch.randn(3, 40)
    y[1] = torch.randn(3, W)
    axes = Axes.of(y)
    assert axes.pivot[0].item() == pytest.approx(40, abs=10)
    assert axes.pivot[1].item() == pytest.approx(W / 2, rel=0.1)
    assert axes.reach[1].item() == pytest.approx(W / 12**0.5, rel=0.1)
    assert axes.reach[0] < 40
    one = Windows(torch.tensor([[3.0]]), torch.tensor([[1.25]]), W)
    even = Axes.even(y, W)
    torch.testing.assert_close(even.coordinates(one)[:1], one.coordinates)
    back = axes.windows(axes.coordinates(one))
    torch.testing.assert_close(torch.stack((back.start[0], back.ratio[0])), torch.stack((one.start[0], one.ratio[0])))
    still = Axes.of(torch.zeros(1, 3, W))  # nothing changes anywhere
    torch.testing.assert_close(
        torch.stack((still.pivot, still.reach))[:, :, 0], torch.tensor([[W / 2], [((W**2 - 1) / 12) ** 0.5]])
    )


@pytest.mark.parametrize("frames", [2, 9])
def test_clips_of_just_the_window(frames):
    x = torch.randn(2, 3, frames)
    start, ratio, score = refine_windows(x, x, frames, levels=4)
    assert start.abs().max() < 1e-5
    assert (ratio - 1).abs().max() < 1e-6
    assert (score > 0.999).all()


@pytest.mark.parametrize(
    "schedule", [{"levels": 1}, {"levels": 2}, {"blur": 0.0}, {"steps_per_level": 1}, {"restarts": 9}]
)
def test_any_schedule_runs(problem, schedule):
    x, y, _, _ = problem
    start, ratio, score = refine_windows(x[:2], y[:2], W, **schedule)
    assert torch.stack((start, ratio, score)).isfinite().all()


@pytest.mark.parametrize("features", ["latent", "energy", "difference"])
@pytest.mark.parametrize("level", [0.0, -3.3, 1e4])
def test_silence_matches_nothing(level, features):
    """A codec's latents of silence are constant, and not zero; nor is their mean in time that constant, to rounding."""
    x = level * torch.linspace(0.9, 1.1, 4)[None, :, None].expand(1, 4, T)
    sounding = smooth(1, 4, T)
    for a, b in ((x, x), (x, sounding), (sounding, x)):
        start, ratio, score = refine_windows(a, b, W, levels=3, features=features)
        assert torch.stack((start, ratio)).isfinite().all()
        assert score.item() == 0


def test_zeros_match_nothing():
    x = torch.zeros(1, 4, T)
    start, ratio, score = refine_windows(x, x, W, levels=3)
    assert torch.stack((start, ratio)).isfinite().all()
    assert score.item() == 0


def test_dtypes(problem):
    x, y, start, ratio = (v[:2] for v in problem)
    wide = refine_windows(x.double(), y.double(), W)
    assert all(v.dtype == torch.float64 for v in wide)
    assert found(*wide[:2], start, ratio)
    half = refine_windows(x.bfloat16(), y.bfloat16(), W)
    assert all(v.dtype == torch.float32 for v in half)
    assert found(*half[:2], start, ratio)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert found(*refine_windows(x, y, W)[:2], start, ratio)


def test_score_discounts_what_all_bands_share():
    """A common beat under unrelated bands: most of the plain correlation, little of the score."""
    beat = smooth(2, 1, W, seed=40)
    a, b = (3 * beat + smooth(2, C, W, seed=seed) for seed in (41, 42))
    unrelated, equal = match_score(a, b), match_score(a, 2 * a + 1)
    assert (unrelated < match_threshold("latent", W)).all()
    torch.testing.assert_close(equal, torch.ones(2), rtol=0, atol=1e-5)
    # the docstring's formula, as written
    a, b = (v.double() - v.double().mean(-1, keepdim=True) for v in (a, b))
    for i in range(2):
        c = (a[i] @ a[i].T + b[i] @ b[i].T) / (2 * W)
        inverse = torch.linalg.inv(c + 0.1 * c.diagonal().mean() * torch.eye(C, dtype=torch.float64))
        product = [torch.einsum("ft,fg,gt->", u[i], inverse, v[i]) for u, v in ((a, b), (a, a), (b, b))]
        assert unrelated[i].item() == pytest.approx((product[0] / (product[1] * product[2]).sqrt()).item(), abs=1e-5)


def test_threshold_grows_for_short_windows():
    assert match_threshold("latent", 800) == match_threshold("latent", 1200) == 0.2
    assert match_threshold("energy", 200) == pytest.approx(0.4)
    assert match_threshold("rhythm", 200) == 0.45
    with pytest.raises(ValueError, match="features must be one of"):
        match_threshold("mel", 800)


def test_lattice_has_a_window_near_every_window():
    starts, ratios = (torch.tensor(v) for v in lattice(T, W, 4.0, 1.5))
    assert (starts + ratios * W <= T + 1e-3).all()
    generator = torch.Generator().manual_seed(1)
    ratio = 1 + 0.5 * torch.rand(500, generator=generator)
    start = (T - ratio * W) * torch.rand(500, generator=generator)
    ends = (start[:, None] - starts).abs().maximum((start + ratio * W)[:, None] - starts - ratios * W)
    assert ends.min(1).values.max() <= 8.0


def test_distinct_best_are_apart():
    grid = Windows(torch.arange(20.0)[None], torch.ones(1, 20), 10)
    score = -(torch.arange(20.0) - 12).abs()[None, :, None] / 20
    one = Windows(torch.zeros(1, 1), torch.ones(1, 1), 10)
    x, y = distinct_best(score, grid, one, 3, apart=4.5)
    assert x.start[0].tolist() == pytest.approx([12, 7, 17])  # 7 and 17 are equally good: the first
    assert y.start.shape == (1, 3)
