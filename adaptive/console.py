"""What is said while a command works: notes, and the progress of long work.

Progress is a bar on a terminal, and plain lines at a bounded rate where the output is a file or a pipe.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

RECENT = 50
"""Units whose median duration is the pace: what was slow once (a compilation, an evaluation) does not count."""


def note(message: str) -> None:
    """A line for the person at the terminal, without disturbing a progress bar; under torchrun rank 0's alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0":  # what torchrun sets
        tqdm.write(message, file=sys.stderr)


class Meter:
    """Counts `done` units of `total`, with the rate and the time that remains at the median pace of the last units.

    Work that goes on where it was interrupted begins with `done` > 0; units done before do not count for the pace.
    Lines are written to `stream` (stderr by default) at the first and the last unit, and between them at least 10 s
    apart, after ten minutes 60 s. `hidden` writes nothing.
    """

    def __init__(
        self,
        total: int,
        *,
        what: str,
        unit: str,
        done: int = 0,
        hidden: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.done, self.what, self.unit = total, done, what, unit
        self._stream = stream or sys.stderr
        self._clock = clock
        self._began = self._settled = clock()
        self._written: float | None = None
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._hidden = hidden
        self._bar = None
        if not hidden and self._stream.isatty():
            form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
            self._bar = tqdm(total=total, initial=done, desc=what, file=self._stream, bar_format=form)

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def advance(self, text: str = "", *, to: int | None = None) -> None:
        """One more unit is done, or all up to number `to`; `text` is what there is to say of it."""
        now = self._clock()
        count = 1 if to is None else to - self.done
        if count > 0:
            self._recent.extend([(now - self._settled) / count] * min(count, RECENT))
            self.done, self._settled = self.done + count, now
        self._show(text, always=self._written is None or self.done >= self.total)
        if self._bar is not None:
            self._bar.update(count)

    def alive(self, text: str) -> None:
        """Something to say within a unit that takes long."""
        self._show(text, always=False)

    @property
    def pace(self) -> float | None:
        """Seconds a unit; None before the first."""
        return statistics.median(self._recent) if self._recent else None

    @property
    def remaining(self) -> float | None:
        """Seconds that the rest takes at this pace; None before the first unit."""
        return None if self.pace is None else self.pace * max(0, self.total - self.done)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _show(self, text: str, *, always: bool) -> None:
        if self._hidden:
            return
        rate = "" if self.pace is None or self.remaining is None else f"{_rate(self.pace, self.unit)}"
        left = "" if self.remaining is None else f"{duration(self.remaining)} left"
        parts = [part for part in (rate, left, text) if part]
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(parts), refresh=False)
            return
        now = self._clock()
        since = now - (self._began if self._written is None else self._written)
        if always or since >= (10 if now - self._began < 600 else 60):
            head = f"{self.what} {self.done}/{self.total}"
            print("  ".join([head, *parts]), file=self._stream, flush=True)
            self._written = now


def _rate(pace: float, unit: str) -> str:
    return f"{pace:.2f} s/{unit}" if pace > 1 else f"{1 / max(pace, 1e-9):.3g} {unit}s/s"


def duration(seconds: float) -> str:
    """As a person says it: `45 s`, `12 min 30 s`, `3 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
