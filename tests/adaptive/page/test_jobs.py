"""One job a core, progress with the time that remains, and an end that waits for what runs."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from adaptive_window.page.jobs import Jobs, Stopping


def silent(share: float, text: str) -> None:
    pass


def test_no_more_at_a_time_than_there_are_cores_for():
    jobs, running, most, guard = Jobs(2), 0, 0, threading.Lock()

    def work(step):
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with guard:
            running -= 1
        return threading.current_thread().name

    with ThreadPoolExecutor(8) as visitors:
        names = list(visitors.map(lambda _: jobs.run("a", work, silent), range(8)))
    assert most == 2
    assert all(name.startswith("job") for name in names)


def test_says_what_it_does_and_what_remains():
    jobs, seen = Jobs(1), []

    def work(step):
        step("Reading")
        time.sleep(0.5)
        step("Composing")
        time.sleep(0.5)

    jobs.run("a", work, lambda share, text: seen.append((share, text)))
    assert all(share == 0 and text.endswith("so far") for share, text in seen), "nothing is known of the first"
    seen.clear()
    jobs.run("a", work, lambda share, text: seen.append((share, text)))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 0.97
    assert seen[0][1].startswith("Reading, about ")
    assert seen[-1][1].startswith("Composing")
    assert {text.split()[-1] for _, text in seen} <= {"left", "s"}


def test_what_work_raises_is_raised_and_does_not_count_for_the_time():
    jobs = Jobs(1)
    for error in (KeyError("x"), TimeoutError("x")):
        with pytest.raises(type(error)):
            jobs.run("a", lambda step, error=error: (_ for _ in ()).throw(error), silent)
    assert not jobs.busy
    assert not jobs._took["a"]


def test_the_end_waits_for_what_runs_and_begins_nothing():
    jobs, begun, go = Jobs(1), threading.Event(), threading.Event()

    def work(step):
        begun.set()
        go.wait(10)
        return "done"

    with ThreadPoolExecutor(1) as visitor:
        running = visitor.submit(jobs.run, "a", work, silent)
        begun.wait(10)
        jobs.stop()
        with pytest.raises(Stopping):
            jobs.run("a", work, silent)
        waiting = threading.Thread(target=jobs.wait_until_idle)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive(), "it did not wait"
        go.set()
        waiting.join(10)
        assert not waiting.is_alive()
        assert running.result(10) == "done"
