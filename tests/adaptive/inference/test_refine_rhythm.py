"""Two different drum patterns are brought to one tempo and one beat; a tempo out of range is told."""

import pytest
import torch
from torch import Tensor

from adaptive_window import refine_windows
from adaptive_window.audio.mel import MelCodec
from adaptive_window.audio.synthesis import synthesize_drums
from adaptive_window.inference.matching import MATCH_SCORE
from adaptive_window.inference.refine_rhythm import better_out_of_range, refine_rhythm, tempo_scan

W = 800


def drums(seed: int, bpm: float, seconds: float = 24.0) -> Tensor:
    codec = MelCodec()
    audio = synthesize_drums(seed, bpm, seconds=seconds, sample_rate=codec.sample_rate)
    return codec.encode(torch.from_numpy(audio)[None, None])


@pytest.fixture(scope="module")
def slow_and_fast() -> tuple[Tensor, Tensor]:
    return drums(0, 80), drums(1, 140)


def test_one_tempo_and_one_beat_from_any_start() -> None:
    x, y = drums(2, 100).expand(4, -1, -1), drums(3, 125).expand(4, -1, -1)
    guesses = torch.tensor([1.05, 1.18, 1.32, 1.45])
    start, ratio, score = refine_rhythm(
        x, y, W, start_x=torch.full((4,), 20.0), ratio_x=guesses, start_y=48.0, restarts=1, steps=60
    )
    assert ((ratio / 1.25 - 1).abs() < 0.01).all()
    assert (start + ratio * W <= 1200).all()
    assert (start >= 0).all()
    assert (score > MATCH_SCORE["rhythm"]).all()
    # y's window begins at its beat of 24 frames; x's then at one of its sixteenths, of 7.5 frames
    off = (start / 7.5 - (start / 7.5).round()).abs() * 7.5
    assert (off <= 1.5).all()


def test_is_what_refine_windows_does_of_rhythm() -> None:
    x, y = drums(2, 100), drums(3, 125)
    short = {"restarts": 1, "levels": 2, "steps_per_level": 2}
    found = refine_windows(x, y, W, features="rhythm", **short)
    torch.testing.assert_close(found, refine_rhythm(x, y, W, restarts=1, steps=4), rtol=0, atol=0)
    assert [value.shape for value in found] == [(1,)] * 3
    assert not any(value.requires_grad for value in found)
    with pytest.raises(ValueError, match=r'move must be \("x",\) for features="rhythm"'):
        refine_windows(x, y, W, features="rhythm", move=("x", "y"))


def test_a_tempo_out_of_range_is_told(slow_and_fast: tuple[Tensor, Tensor]) -> None:
    x, y = slow_and_fast
    ratios, scores = tempo_scan(x, y, W)
    assert better_out_of_range(ratios, scores[0], 1.5) == pytest.approx(1.75, rel=0.02)
    assert better_out_of_range(ratios, scores[0], 1.75) is None
    ratios, scores = tempo_scan(y, x, W)  # the input would have to be slowed down: to 0.57, or half as much
    assert better_out_of_range(ratios, scores[0], 1.1) == pytest.approx(2 / 1.75, rel=0.02)


def test_a_tempo_out_of_range_scores_low_and_in_range_is_served(slow_and_fast: tuple[Tensor, Tensor]) -> None:
    x, y = slow_and_fast
    *_, score = refine_rhythm(x, y, W, restarts=2, steps=40)
    assert score.item() < MATCH_SCORE["rhythm"]
    x = drums(0, 80, seconds=32.0)
    _, ratio, score = refine_rhythm(x, y, W, restarts=2, steps=40, max_ratio=2.0)
    assert ratio.item() == pytest.approx(1.75, rel=0.01)
    assert score.item() > MATCH_SCORE["rhythm"]


def test_nan_stays_in_its_problem() -> None:
    x, y = torch.randn(2, 4, 90, generator=torch.Generator().manual_seed(0)), torch.randn(2, 4, 60)
    x[1, 0, 3] = torch.nan
    start, _, score = refine_rhythm(x, y, 60, restarts=2, steps=3, lags=(2.0, 20.0))
    assert start[0].isfinite()
    assert score[0].isfinite()
    assert score[1].isnan()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_ratio": 0.9}, "max_ratio must be finite and at least 1, got 0.9"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"lags": (8.0, 500.0)}, "lags must be 1 <= shortest < longest"),
        ({"ratio_x": 1.2}, "start_x must be given too where ratio_x is"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refine_rhythm(torch.zeros(1, 4, 1200), torch.zeros(1, 4, 800), W, **arguments)
