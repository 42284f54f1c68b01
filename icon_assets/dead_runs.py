"""Runs whose process is gone: found by a tag that names the process, ended, and their pool slots given back."""

import socket

import dagster as dg
import psutil

from icon_assets.launched import UNFINISHED, is_orphan

PROCESS_TAG = "icon/process"


def release_dead_runs(instance: dg.DagsterInstance) -> None:
    """End runs whose process on this machine is gone, and give back the pool slots they held.

    A killed process can't do that itself, and without it every later run would wait for its slot for ever. While its
    code server lives, a run that was launched there is watched by it."""
    here = f"{socket.gethostname()}:"
    alive = _living_processes()
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        owner = run.tags.get(PROCESS_TAG, "")
        if (owner.startswith(here) and owner not in alive) or is_orphan(run):
            # Slots first: a kill between the two steps must leave the run to be found again.
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            instance.report_run_failed(run, "Its process is gone; finished work is kept.")


def _living_processes() -> set[str]:
    """A zombie is dead: nobody has asked for its exit code yet, which in a container may stay so for ever."""
    processes = psutil.process_iter(["create_time", "status"])
    return {process_name(p.pid, p.info["create_time"]) for p in processes if p.info["status"] != psutil.STATUS_ZOMBIE}


def process_name(pid: int, created: float) -> str:
    """Names a process for good: its id alone is given again to another one later."""
    return f"{socket.gethostname()}:{pid}:{created:.2f}"
