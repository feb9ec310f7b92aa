"""What is said of patterns: on cases whose answer is known."""

import pytest
import torch

from adaptive_window.losses.harmony import pitch_classes
from adaptive_window.training.measures import MEASURES, measures_line, measures_warnings, music_measures

W, BANDS = 200, 44
CLASSES = pitch_classes(440.0 * 2 ** (torch.arange(-14, 30) / 12.0))


def noise(seed: int) -> torch.Tensor:
    return torch.randn(BANDS, W, generator=torch.Generator().manual_seed(seed))


def measured(pattern: torch.Tensor, window_input: torch.Tensor, window_target: torch.Tensor) -> dict[str, float]:
    found = music_measures(pattern, window_input, window_target, CLASSES)
    assert tuple(found) == MEASURES
    return {name: value.item() for name, value in found.items()}


def test_a_copy_of_the_target() -> None:
    found = measured(noise(1), noise(2), noise(1))
    for name in ("fluctuation", "follows_target", "onsets_target", "harmony_target", "copies"):
        assert found[name] == pytest.approx(1.0, abs=1e-4), name
    for name in ("follows_input", "onsets_input"):
        assert abs(found[name]) < 0.2, name


def test_gain_and_mean_spectrum_do_not_make_a_difference_to_what_is_followed() -> None:
    found = measured(0.5 * noise(1) + torch.linspace(-3, 3, BANDS)[:, None], noise(1), noise(2))
    assert found["follows_input"] == pytest.approx(1.0, abs=1e-4)
    assert found["copies"] == pytest.approx(1.0, abs=1e-4)
    assert found["fluctuation"] == pytest.approx(0.5, rel=0.05)


def test_a_hiss_follows_nothing_and_is_told() -> None:
    still = torch.linspace(-3, 3, BANDS)[:, None].expand(BANDS, W) + 0.01 * noise(3)
    found = measured(still, noise(1), noise(2))
    assert found["fluctuation"] < 0.02
    assert abs(found["follows_target"]) < 0.1
    (warning,) = measures_warnings(found)
    assert "the pattern hardly changes over time" in warning
    assert "train longer" in warning


@pytest.mark.parametrize("song", ["target", "input"])
def test_a_copy_is_told_by_its_song(song: str) -> None:
    windows = {"input": noise(1), "target": noise(2)}
    (warning,) = measures_warnings(measured(windows[song], windows["input"], windows["target"]))
    assert warning.startswith(f"warning: a copy of the {song}")


def test_a_mixture_is_told_nothing_of() -> None:
    found = measured(noise(1) + noise(2), noise(1), noise(2))
    assert measures_warnings(found) == []
    assert 0.6 < found["copies"] < 0.8  # 1/sqrt(2) of each
    assert "fluctuation 1.4" in measures_line(found)
    assert measures_line({**found, "conflict_before": 2.04, "conflict": -0.5}).endswith("; conflict 2.0 -> -0.5 %")


def test_silence_is_finite() -> None:
    found = measured(torch.zeros(BANDS, W), torch.zeros(BANDS, W), torch.zeros(BANDS, W))
    assert all(value == value and abs(value) < 2 for value in found.values())


def test_one_number_a_pattern() -> None:
    x = torch.randn(2, 3, BANDS, W)
    assert all(value.shape == (2, 3) for value in music_measures(x, x, x, CLASSES).values())
