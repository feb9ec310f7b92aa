"""The machine's work: one job a core, each with its progress and remaining time, none begun once the server stops."""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import TypeVar

from ..console import duration

T = TypeVar("T")
Step = Callable[[str], None]
"""A job says what it does now."""
Show = Callable[[float, str], None]
"""Shows how much of a job is done, from 0 to 1, and what it does."""

RECENT = 9  # jobs of a kind whose median duration is what the next one is expected to take
TICK = 0.3  # seconds


class Stopping(Exception):
    """The server takes no more jobs."""


class Jobs:
    """Runs jobs in as many threads as there are cores for them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="job")
        self._took: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._stopping = threading.Event()
        self._idle = threading.Condition()
        self._running = 0

    def run(self, kind: str, work: Callable[[Step], T], show: Show) -> T:
        """Does `work`, calling `show` as it goes; what the work raises is raised.

        Raises:
            Stopping: the server is about to end.
        """
        with self._idle:
            if self._stopping.is_set():
                raise Stopping
            self._running += 1
        doing = ["Waiting for a core"]
        began = [0.0]

        def timed() -> T:
            began[0] = time.monotonic()
            return work(lambda text: doing.__setitem__(0, text))

        try:
            future: Future[T] = self._pool.submit(timed)
            while True:
                try:
                    result = future.result(timeout=TICK)
                    break
                except NotYet:
                    if future.done():  # the work itself ran into a time limit
                        raise
                    elapsed = time.monotonic() - began[0] if began[0] else 0.0
                    show(*self._estimate(kind, doing[0], elapsed))
            self._took[kind].append(time.monotonic() - began[0])
            return result
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def stop(self) -> None:
        """From now on no job begins; those that run end as they would."""
        with self._idle:
            self._stopping.set()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def busy(self) -> bool:
        return self._running > 0

    def wait_until_idle(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0)

    def _estimate(self, kind: str, text: str, elapsed: float) -> tuple[float, str]:
        took = self._took[kind]
        if not took:
            return 0.0, f"{text}, {duration(elapsed)} so far"
        expected = statistics.median(took)
        if elapsed >= expected:
            return 0.97, f"{text}, longer than usual: {duration(elapsed)}"
        return elapsed / expected, f"{text}, about {duration(max(1.0, expected - elapsed))} left"
