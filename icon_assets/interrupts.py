"""Hearing SIGINT and SIGTERM, whatever handlers a library puts in their place for a while."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_ENDS = {signal.SIGINT, signal.SIGTERM}


def end_like_ctrl_c() -> None:
    """Let SIGTERM, which a service manager or `kill` sends, raise KeyboardInterrupt as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def heard_interrupts() -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt if one of the two signals has arrived since.

    Dagster makes a failed step of a signal, or drops it when it comes between steps. Python writes every one to the
    wakeup descriptor all the same. Only the main thread hears signals.
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
    """The numbers of the signals that came since the last look."""
    try:
        return ear.recv(4096)
    except BlockingIOError:
        return b""
