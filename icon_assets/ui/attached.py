"""Runs a module as `python -m` does, and ends with whoever started it: `python -m icon_assets.ui.attached MODULE
ARGUMENT...`.

Standard input is a pipe that only the starter holds open. When it closes, however the starter ended, the whole process
group ends: the module may have processes of its own that nobody else knows."""

import os
import runpy
import signal
import sys
import threading


def _end_with_starter() -> None:
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_starter, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
