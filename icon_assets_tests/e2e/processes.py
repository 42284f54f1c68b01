"""The command as processes that can be killed: forked from a server that has everything imported, so that a start takes
no time and a kill always meets work.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from icon_assets.cli import entry
from icon_assets_tests.e2e.disks import enter

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        __name__,
        "icon_assets.definitions",
        "icon_assets.home",
        "icon_assets.progress",
        "icon_assets.runner",
        "torch",
        "deltalake",
        "duckdb",
        "transformers",
        "peft",
        "trl.trainer.sft_trainer",
        "datasets",
        "lm_eval",
        "matplotlib.pyplot",
    ]
)


def start(
    root: Path,
    *arguments: str,
    out: Path = Path(os.devnull),
    disk: int | None = None,
    fault: Callable[[], None] | None = None,
) -> BaseProcess:
    """`icon-assets -w root ARGUMENTS` in a session of its own, on the disk of the process `disk`; what it prints goes
    to `out`. `fault` (see `faults.py`) is called in it before."""
    process = SERVER.Process(target=_command, args=(["-w", str(root), *arguments], out, disk, fault), daemon=True)
    process.start()
    return process


def _command(arguments: list[str], out: Path, disk: int | None, fault: Callable[[], None] | None) -> None:
    os.setsid()
    if disk is not None:
        enter(disk)
    multiprocessing.set_start_method("fork", force=True)  # the default again, as in a process of its own
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith(("ICON_", "DAGSTER_"))]:
        del os.environ[name]
    with out.open("w") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    sys.argv = ["icon-assets", *arguments]
    if fault:
        fault()
    entry()


def kill(process: BaseProcess) -> bool:
    """SIGKILL its whole group; whether it was still at work."""
    assert process.pid is not None
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
    process.join(30)
    return process.exitcode == -signal.SIGKILL
