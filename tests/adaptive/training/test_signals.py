"""SIGTERM and Ctrl-C: by themselves, and in runs (tests/support/signal_runs.py)."""

import os
import signal
import threading
import time

import pytest
from tool_process import run_tool

from adaptive_window.training.signals import StopSignals, Terminated

ERRORS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.02)  # the handler runs at the next bytecode


@pytest.mark.parametrize("number", ERRORS)
def test_deferred_until_checked(number):
    with StopSignals() as stop:
        with stop.deferred():
            send(number)
            assert stop.requested == number
        with pytest.raises(ERRORS[number]):
            stop.check()


@pytest.mark.parametrize("number", ERRORS)
def test_immediate_raises_where_it_is(number):
    with StopSignals() as stop, stop.deferred():
        with pytest.raises(ERRORS[number]), stop.immediate():
            send(number)
        assert stop.requested == number


@pytest.mark.parametrize("number", ERRORS)
def test_immediate_raises_for_a_signal_that_came_before(number):
    with StopSignals() as stop:
        send(number)
        reached = False
        with pytest.raises(ERRORS[number]), stop.immediate():
            reached = True
        assert not reached


def test_a_second_sigterm_disturbs_nothing():
    with StopSignals() as stop:
        with pytest.raises(Terminated), stop.immediate():
            send(signal.SIGTERM)
        with stop.deferred():
            send(signal.SIGTERM)
        stop._immediate = True  # as an exception leaves it that came between two bytecodes of the context
        send(signal.SIGTERM)


def test_exit_code_of_sigterm():
    with pytest.raises(SystemExit) as left:
        raise Terminated
    assert left.value.code == 143


def test_puts_the_handlers_back():
    before = [signal.getsignal(number) for number in ERRORS]
    threads = threading.active_count()
    with StopSignals() as stop:
        with stop:  # entered again, as run_training and Trainer.run do
            pass
        assert signal.getsignal(signal.SIGINT) == stop._note
    assert [signal.getsignal(number) for number in ERRORS] == before
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(-1) == -1


def test_nothing_happens_outside_the_main_thread():
    handlers = []

    def enter():
        with StopSignals() as stop, stop.immediate():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


def test_a_forked_loader_process_ignores_ctrl_c_and_does_not_tell_the_parent():
    """A terminal sends Ctrl-C to both; a byte of the child's in the parent's pipe would count as the second."""
    with StopSignals() as stop:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            os._exit(7)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
            os._exit(7)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
        time.sleep(0.05)
        assert stop.requested is None


@pytest.fixture(scope="module")
def runs():
    """All runs of signal_runs in one process that forks them: importing PyTorch for each would take a minute."""
    return run_tool("signal_runs")


PLACES = [
    "SIGTERM while encoding",
    "SIGINT while encoding",
    "SIGTERM while loading",
    "SIGINT while loading",
    "SIGTERM between two clips",
    "SIGTERM in the first step",
    "SIGINT in a step",
    "SIGTERM in a step",
    "SIGTERM in the evaluation",
    "SIGINT in the evaluation",
    "SIGTERM in the examples",
    "SIGINT in a save",
    "SIGINT twice in a save",
    "SIGINT twice in a step",
    "SIGTERM, then SIGINT in a step",
]


@pytest.mark.proof
@pytest.mark.parametrize("place", PLACES)
def test_a_run_told_to_stop_can_be_resumed_exactly(runs, place):
    """Exit code as a shell states it; the resumed run ends as if nothing had happened."""
    assert runs.keys() == set(PLACES)
    run = runs[place]
    last = place.rpartition("SIG")[2]
    assert run["code"] == (143 if last.startswith("TERM") else 130)
    assert run["differing"] == []
    assert run["said"].count("stopping: ") == 1
    assert "Traceback" not in run["said"]
    at_once = "twice" in place or "then" in place
    assert ("saved; go on with --resume" in run["said"]) == (not at_once and "encoding" not in place)
    if at_once:  # while the main thread is in a call of 60 s
        assert run["seconds"] < 30
