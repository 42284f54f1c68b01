"""Runs a module like `python -m`, and ends when its parent ends: `python -m icon_assets.ui.attached MODULE
ARGUMENT...`.

Standard input is a pipe that only the parent holds open. It closes when the parent ends in any way. Then the whole
process group ends, because the module may have child processes that are unknown elsewhere."""

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
