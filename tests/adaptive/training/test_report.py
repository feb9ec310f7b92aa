import numpy as np
import pytest

from adaptive_window.training.report import COLUMNS, WindowReport


def report(**changes: np.ndarray) -> WindowReport:
    """Three pairs over two examples: spread starts, used ratios, middling strengths."""
    values = {
        "start_input": np.array([[0.0, 100.0, 200.0], [10.0, 110.0, 210.0]]),
        "start_target": np.array([[300.0, 0.0, 150.0], [310.0, 0.0, 150.0]]),
        "ratio_input": np.full((2, 3), 1.2),
        "ratio_target": np.full((2, 3), 1.1),
        "strength": np.full((2, 3), 0.5),
    }
    return WindowReport({**values, **changes}, frame_rate=50.0, window_seconds=4.0)


def test_table_shows_seconds_with_spread():
    lines = report().table().splitlines()
    assert len(lines) == 4
    assert "0.10 ± 0.10" in lines[1]  # starts 0 and 10 frames at 50 frames/s
    assert "1.200 ± 0.000" in lines[1]
    assert "6.10 ± 0.10" in lines[1]
    assert "0.500 ± 0.000" in lines[3]


def test_scalars_name_every_pair_and_quantity():
    scalars = report().scalars()
    assert len(scalars) == 2 * 3 * len(COLUMNS) + 4  # and four of all pairs
    assert scalars["windows/pair2/start_input_s"] == pytest.approx(4.1)
    assert scalars["windows/pair2/start_input_s_spread"] == pytest.approx(0.1)


def test_a_healthy_run_warns_of_nothing():
    assert report().warnings() == []


@pytest.mark.parametrize("stream", ["input", "target"])
def test_warns_when_all_pairs_choose_the_same_window(stream):
    alike = np.array([[50.0, 52.0, 55.0], [80.0, 81.0, 79.0]])
    (warning,) = report(**{f"start_{stream}": alike}).warnings()
    assert warning.startswith("warning: all pairs choose the same window")
    assert stream in warning


def test_two_equal_pairs_of_three_are_no_collapse():
    some = np.array([[50.0, 50.0, 250.0], [80.0, 80.0, 280.0]])
    assert report(start_input=some).warnings() == []


def test_warns_when_ratios_stay_unused():
    ones = np.full((2, 3), 1.015)
    (warning,) = report(ratio_input=ones, ratio_target=ones).warnings()
    assert "compression is unused" in warning
    used = ones.copy()
    used[0, 0] = 1.03
    assert report(ratio_input=used, ratio_target=ones).warnings() == []


def test_binary_strengths_are_called_normal():
    binary = np.array([[0.01, 0.99, 0.98], [0.02, 0.97, 0.99]])
    (message,) = report(strength=binary).warnings()
    assert message.startswith("note:")
    assert "normal" in message


def spread_report(**changes: np.ndarray) -> WindowReport:
    built = report(**changes)
    return WindowReport(built.values, 50.0, 4.0, clip_seconds=12.0, max_ratio=1.5)


def test_distances_of_pairs_and_spread_over_songs():
    starts = np.array([[0.0, 100.0, 120.0], [100.0, 200.0, 220.0]])  # 0, 2 and 2.4 s; 2, 4 and 4.4 s
    found = spread_report(start_input=starts, start_target=starts)
    assert found.near_share() == pytest.approx(1 / 3)
    assert found.pair_distance() == pytest.approx((2.0 + 2.4 + 0.4) / 3)
    assert found.song_spread() == pytest.approx(1.0)
    assert found.scalars()["windows/within_1s"] == pytest.approx(1 / 3)
    assert "33% within 1 s" in found.summary()


def test_share_at_bounds_counts_each_parameter_by_its_own_range():
    assert spread_report(start_input=np.full((2, 3), 150.0)).at_bounds() == pytest.approx(2 / 30)  # two targets at 0 s
    ones, strong = np.ones((2, 3)), np.full((2, 3), 0.995)
    found = spread_report(start_input=np.full((2, 3), 150.0), ratio_input=ones, strength=strong)
    assert found.at_bounds() == pytest.approx((2 + 6 + 6) / 30)
    # room 12 s - 4 s * 1.2 = 7.2 s = 360 frames: 355 is within 2 % of its end, 350 is not
    assert spread_report(start_input=np.full((2, 3), 355.0)).at_bounds() == pytest.approx((6 + 2) / 30)
    assert spread_report(start_input=np.full((2, 3), 350.0)).at_bounds() == pytest.approx(2 / 30)


def test_warns_of_one_place_and_of_ends():
    together = np.array([[50.0, 90.0, 130.0], [80.0, 120.0, 160.0]])
    warnings = spread_report(start_input=together, start_target=together).warnings()
    assert any("all pairs on one place" in warning for warning in warnings)
    ends = spread_report(ratio_input=np.ones((2, 3)), ratio_target=np.full((2, 3), 1.5)).warnings()
    assert any("windows at the ends of their range" in warning for warning in ends)
