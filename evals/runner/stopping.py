"""SIGTERM and SIGINT end a process soon, also one that waits for others in C code."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cdkit.errors import CdkitError

GRACE = 10.0
"""Seconds in which a process may end by itself after a signal."""
GRACE_OF_STARTED = 2.0
"""Those of a process that another one started: it leaves nothing to be tidied up."""
ENDED_BY = 128
"""Added to a signal's number it is the exit status of a process that the signal ended."""

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A signal asked the process to end; the exit status says which."""

    def __init__(self, number: int) -> None:
        super().__init__(ENDED_BY + number)
        self.exit_status = ENDED_BY + number


def stopping_signal(exit_code: int) -> signal.Signals | None:
    """SIGTERM or SIGINT where a process with this exit code was ended by it, else None."""
    for each in STOPPING:
        if exit_code in (-each, ENDED_BY + each):
            return each
    return None


@contextmanager
def stopped_by_signals(grace: float = GRACE) -> Iterator[None]:
    """SIGTERM and SIGINT raise `Stopped` in the block, and end the process where that does not.

    Python runs a handler between two of its instructions, so it waits as long as C code does: in a
    barrier, for days. A thread learns of the signal at once and ends the process after `grace`
    seconds. Without effect outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in STOPPING}
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(reading, over, grace), daemon=True)
    thread.start()
    wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        for each in STOPPING:
            signal.signal(each, _raise)
        yield
    finally:
        over.set()
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        writing.close()  # the thread reads an end, and ends
        thread.join()
        reading.close()


def _raise(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _watch(reading: socket.socket, over: threading.Event, grace: float) -> None:
    while numbers := reading.recv(64):
        if caught := {*STOPPING}.intersection(numbers):
            if not over.wait(grace):
                os._exit(ENDED_BY + min(caught))
            return


_held = threading.local()


def _hold() -> None:
    """Before a fork: a signal that comes now waits until the fork has handlers of its own."""
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def _forget() -> None:
    """In a fork: a signal of its own must not reach the thread of the process it came from."""
    for each in STOPPING:
        if signal.getsignal(each) is _raise:
            signal.set_wakeup_fd(-1)
            default = signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL
            signal.signal(each, default)
    _release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget)


def lost(what: str) -> CdkitError:
    """The error of a run one of whose processes is gone."""
    return CdkitError(
        f"{what}, so the others were ended too; what was answered is kept: go on with --resume"
    )


def ended_by(exit_code: int) -> str:
    """How a process has ended, in words.

    Args:
        exit_code: As `multiprocessing` has it: a signal's number is negative.
    """
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    names = {each.value: each.name for each in signal.Signals}
    name = names.get(-exit_code, f"signal {-exit_code}")
    why = " (often the system's answer where memory runs out)" if name == "SIGKILL" else ""
    return f"was ended by {name}{why}"
