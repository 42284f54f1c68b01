"""Detecting SIGINT and SIGTERM, even while a library replaces their handlers."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_ENDS = {signal.SIGINT, signal.SIGTERM}


def end_like_ctrl_c() -> None:
    """Make SIGTERM, which service managers and `kill` send, raise KeyboardInterrupt like Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def heard_interrupts() -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt if one of the two signals has arrived since.

    Dagster turns a signal into a failed step, or drops it between steps. Python still writes every signal to the wakeup
    descriptor. Only the main thread receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    ear, mouth = socket.socketpair()
    for end in (ear, mouth):
        end.setblocking(False)
    before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)

    def check() -> None:
        if _ENDS & set(_received(ear)):
            raise KeyboardInterrupt

    try:
        yield check
    finally:
        signal.set_wakeup_fd(before)
        ear.close()
        mouth.close()


def _received(ear: socket.socket) -> bytes:
    """The numbers of the signals since the last call."""
    try:
        return ear.recv(4096)
    except BlockingIOError:
        return b""
