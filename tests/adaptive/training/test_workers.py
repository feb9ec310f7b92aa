"""Loader processes: what they load does not depend on them, and one that dies is named."""

from __future__ import annotations

import os
import signal
import threading

from adaptive_window.training.signals import StopSignals


def test_a_forked_worker_does_not_keep_a_run_from_ending() -> None:
    """It holds the signals' pipe open; the thread that reads it must end all the same."""
    with StopSignals():
        worker = os.fork()
        if worker == 0:
            signal.pause()
        reader = next(thread for thread in threading.enumerate() if thread.name == "stop signals")
        leaving = threading.Timer(20, os.kill, (worker, signal.SIGKILL))
        leaving.start()
    alive = os.waitpid(worker, os.WNOHANG) == (0, 0)
    leaving.cancel()
    if alive:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
    assert alive
    assert not reader.is_alive()
