"""Rates, remaining time, and how often a line is written."""

from __future__ import annotations

import io
import re

import pytest

from adaptive_window.console import Meter, duration


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(durations: list[float], *, done: int = 0, total: int | None = None) -> tuple[Meter, list[str]]:
    """Work of these durations, and the lines written."""
    clock, stream = Clock(), io.StringIO()
    meter = Meter(total or done + len(durations), what="training", unit="step", done=done, stream=stream, clock=clock)
    for seconds in durations:
        clock.now += seconds
        meter.advance("loss 0.5")
    meter.close()
    return meter, stream.getvalue().splitlines()


def test_a_line_names_count_rate_and_remaining_time() -> None:
    _, lines = run([2.0] * 10, total=100)
    assert lines[0] == "training 1/100  2.00 s/step  3 min 18 s left  loss 0.5"
    assert run([0.25] * 10, total=100)[1][0] == "training 1/100  4 steps/s  25 s left  loss 0.5"


@pytest.mark.parametrize("seconds", [0.001, 0.1, 3.0, 30.0])
def test_lines_come_at_a_bounded_rate(seconds: float) -> None:
    """However fast the units: the first, the last, and one in 10 s, in 60 s after ten minutes."""
    count = round(7200 / seconds) if seconds > 0.01 else 20_000
    _, lines = run([seconds] * count)
    assert lines[0].startswith("training 1/")
    assert lines[-1].startswith(f"training {count}/{count}")
    elapsed = seconds * count
    assert len(lines) <= 3 + min(elapsed, 600) / 10 + max(0, elapsed - 600) / 60
    assert len(lines) >= 0.8 * min(count, min(elapsed, 600) / max(10, seconds) + max(0, elapsed - 600) / 61)


def test_the_pace_is_the_median_of_what_was_lately() -> None:
    meter, _ = run([300.0] + [1.0] * 20 + [60.0], total=122)  # a compilation, an evaluation
    assert meter.pace == 1.0
    assert meter.remaining == 100.0
    assert run([1.0] * 100 + [5.0] * 26, total=226)[0].pace == 5.0


def test_resumed_work_counts_only_its_own_pace() -> None:
    meter, lines = run([2.0], done=5000, total=5101)
    assert meter.remaining == 200.0
    assert lines[0].startswith("training 5001/5101  2.00 s/step  3 min 20 s left")
    clock = Clock()
    fresh = Meter(10, what="x", unit="step", done=7, hidden=True, clock=clock)
    assert (fresh.pace, fresh.remaining) == (None, None)


def test_several_units_at_once_share_their_time() -> None:
    clock = Clock()
    meter = Meter(100, what="training", unit="step", done=10, stream=io.StringIO(), clock=clock)
    clock.now += 8
    meter.advance(to=14)
    assert (meter.done, meter.pace, meter.remaining) == (14, 2.0, 172.0)
    meter.advance(to=14)
    assert (meter.done, meter.pace) == (14, 2.0)


def test_a_long_unit_gives_signs_of_life() -> None:
    clock, stream = Clock(), io.StringIO()
    meter = Meter(3, what="encoding", unit="file", stream=stream, clock=clock)
    for second in range(1, 36):
        clock.now += 1
        meter.alive(f"at {second} s")
    assert stream.getvalue().splitlines() == [f"encoding 0/3  at {second} s" for second in (10, 20, 30)]


def test_a_terminal_gets_a_bar_and_no_lines() -> None:
    clock, stream = Clock(), Terminal()
    with Meter(4, what="training", unit="step", stream=stream, clock=clock) as meter:
        for _ in range(4):
            clock.now += 2
            meter.advance("loss 0.5")
    assert "\r" in stream.getvalue()
    assert re.search(r"training: 100%\|.*\| 4/4, 2.00 s/step  0 s left  loss 0.5", stream.getvalue())
    assert stream.getvalue().count("\n") == 1


def test_hidden_is_silent() -> None:
    for stream in (io.StringIO(), Terminal()):
        with Meter(1, what="x", unit="step", hidden=True, stream=stream) as meter:
            meter.advance()
        assert stream.getvalue() == ""
        assert meter.done == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (750, "12 min 30 s"),
        (3600, "1 h 00 min"),
        (9e4, "25 h 00 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
