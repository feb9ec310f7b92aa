"""SIGTERM and Ctrl-C: finish the step, save, leave; a second Ctrl-C leaves at once.

A Python signal handler runs in the main thread between two bytecodes: not within a long backward pass. So the handler
only notes the first signal, for the loop to see where its state is whole, and a thread, which the interpreter wakes
through a pipe in the very moment of the signal, says so and counts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from . import distributed

FIRST = b"\nstopping: what was trained is saved first; Ctrl-C again leaves at once, with the checkpoint before\n"


class Terminated(SystemExit):
    """SIGTERM came: exit code 143, as a shell states it for a process that the signal ended."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class StopSignals:
    """While entered, SIGINT and SIGTERM are noted in `requested`, and raised where `check` or `immediate` allow it.

    Raised are `KeyboardInterrupt` and `Terminated`. It can be entered again within itself. Outside the main thread,
    where Python delivers no signals, it does nothing. Child processes do not inherit it: they ignore SIGINT, which a
    terminal sends to them too, and die of SIGTERM.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._immediate = False
        self._depth = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        self._depth += 1
        if self._depth == 1 and threading.current_thread() is threading.main_thread():
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
            self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._watch, name="stop signals", daemon=True)
            self._thread.start()
            _entered.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if self._depth == 0 and self._before:
            _entered.remove(self)
            signal.set_wakeup_fd(self._wakeup_before)
            for number, handler in self._before.items():
                signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned
            self._before.clear()
            os.write(self._writer, b"\0")  # ends the thread; closing would not, while a forked worker holds the pipe
            self._thread.join()
            os.close(self._writer)
            os.close(self._reader)

    def check(self) -> None:
        """Raises if a signal has come."""
        if self.requested == signal.SIGINT:
            raise KeyboardInterrupt
        if self.requested == signal.SIGTERM:
            raise Terminated

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """A part that can be left at any point: a signal raises within it, or at its beginning if it came before."""
        with self._mode(True):
            self.check()
            yield

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A part that must not be left in the middle (the mode in the beginning): a signal is noted only."""
        with self._mode(False):
            yield

    @contextlib.contextmanager
    def _mode(self, immediate: bool) -> Iterator[None]:
        before, self._immediate = self._immediate, immediate
        try:
            yield
        finally:
            self._immediate = before

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:  # raised once only: what comes later must not disturb the saving
            self.requested = number
            if self._immediate:
                self.check()

    def _watch(self) -> None:
        stopping = False
        while True:
            for number in os.read(self._reader, 64):
                if number == 0:  # of `__exit__`
                    return
                if number not in (signal.SIGINT, signal.SIGTERM):
                    continue  # of a handler that somebody else installed
                if stopping and number == signal.SIGINT:
                    os._exit(128 + signal.SIGINT)
                if not stopping and distributed.is_main():
                    os.write(2, FIRST)
                stopping = True


_entered: list[StopSignals] = []


def _in_child() -> None:
    """A forked child shares the pipe: what it wrote there would count as the parent's second signal."""
    if _entered:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _entered.clear()


os.register_at_fork(after_in_child=_in_child)
