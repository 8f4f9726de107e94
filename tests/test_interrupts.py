"""SIGTERM and Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from mtcore.errors import Interrupted
from mtcore.interrupts import Stop, listening


def test_a_signal_raises_where_it_falls_and_says_what_a_shell_expects():
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with listening(), pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), number)
        assert caught.value.exit_code == code


def test_a_deferred_signal_waits_until_it_is_obeyed():
    with listening() as stop:
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested == signal.SIGTERM
        with pytest.raises(Interrupted):
            stop.obey()


def test_a_signal_raises_at_the_end_of_what_must_stay_whole():
    done = []
    with listening() as stop:
        with pytest.raises(Interrupted), stop.whole():
            done.append(os.kill(os.getpid(), signal.SIGTERM))  # to its end
        with stop.whole():
            done.append("by whoever cleans up after it")
    with listening() as stop, stop.deferred():
        with stop.whole():
            os.kill(os.getpid(), signal.SIGTERM)
        done.append("beyond it, where something defers")
    assert len(done) == 3


def test_a_stretch_that_may_be_torn_raises_inside_what_defers():
    with listening() as stop, stop.deferred():
        with pytest.raises(Interrupted), stop.immediate():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted), stop.immediate():
            pytest.fail("a signal that waits is obeyed before the stretch begins")


def test_nothing_that_catches_errors_swallows_an_interruption():
    assert not issubclass(Interrupted, Exception)


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted), listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_nothing_is_listened_for():
    found = []

    def work():
        with listening() as stop:
            found.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


def test_the_second_signal_ends_the_process_at_once():
    code = """
import os, signal, time
from mtcore.interrupts import listening
with listening() as stop, stop.deferred():
    os.kill(os.getpid(), signal.SIGTERM)
    print("waits", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "waits\n"
    assert done.returncode == -signal.SIGTERM


def test_a_stop_that_nobody_asked_for_never_raises():
    stop = Stop()
    with stop.deferred(), stop.immediate():
        stop.obey()
