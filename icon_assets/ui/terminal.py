"""The foreground process. It starts the services in a separate session, and receives the signals to end them."""

import signal
import subprocess
import sys
from types import FrameType
from typing import IO

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_ui(port: int, read_only: bool, as_json: bool) -> int:
    """Run webserver, daemon and code server until one of the signals comes; returns the exit code.

    The services end when the pipe to them closes, so they also end when this process is killed. A second signal ends
    them at once."""
    options = [name for name, given in (("--read-only", read_only), ("--json", as_json)) if given]
    services = subprocess.Popen(
        [sys.executable, "-m", "icon_assets.ui.services", "--port", str(port), *options],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    pipe: IO[bytes] | None = services.stdin
    assert pipe is not None

    def end(number: int, frame: FrameType | None) -> None:
        if pipe.closed:
            services.kill()
        pipe.close()

    for each in _ENDS:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as under nohup
            signal.signal(each, end)
    code = services.wait()
    if code < 0:
        print(
            "icon-assets: ended by force; unfinished runs count as failed after the next start",
            file=sys.stderr,
        )
    return code if code >= 0 else 1
