"""Runs whose process is gone: they are found by a tag that names the process, ended, and their pool slots freed."""

import socket

import dagster as dg
import psutil

from icon_assets.launched import UNFINISHED, is_orphan

PROCESS_TAG = "icon/process"


def release_dead_runs(instance: dg.DagsterInstance) -> None:
    """End runs whose process on this machine is gone, and free their pool slots.

    A killed process can't do that itself, and every later run would wait for its slot for ever. A run that was launched
    at a code server is watched by that server while it lives."""
    here = f"{socket.gethostname()}:"
    alive = _living_processes()
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        owner = run.tags.get(PROCESS_TAG, "")
        if (owner.startswith(here) and owner not in alive) or is_orphan(run):
            # Slots first: a kill between the two steps must leave the run to be found again.
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            instance.report_run_failed(run, "Its process is gone; finished work is kept.")


def _living_processes() -> set[str]:
    """A zombie counts as dead. Its exit code has not been read, which in a container may never happen."""
    processes = psutil.process_iter(["create_time", "status"])
    return {process_name(p.pid, p.info["create_time"]) for p in processes if p.info["status"] != psutil.STATUS_ZOMBIE}


def process_name(pid: int, created: float) -> str:
    """A permanent name of a process, because ids are reused."""
    return f"{socket.gethostname()}:{pid}:{created:.2f}"
