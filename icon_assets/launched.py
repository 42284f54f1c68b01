"""Runs that a code server of `icon-assets ui` executes: finding them, ending them, and recording their end."""

import json
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import dagster as dg
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.storage.tags import GRPC_INFO_TAG

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_ENDED = "Ended with `icon-assets ui`; finished work is kept."


def new_socket() -> Path:
    """The socket folder for code servers of this machine. The name contains the machine, because several can share a
    history."""
    return Path(tempfile.mkdtemp(prefix=_prefix())) / "code.sock"


def _prefix() -> str:
    return f"icon-assets-ui-{sha256(socket.gethostname().encode()).hexdigest()[:8]}-"


def executed_at(run: dg.DagsterRun) -> Path | None:
    """The socket of the code server that executes a run; None if the run was not launched at one."""
    path = json.loads(run.tags.get(GRPC_INFO_TAG, "{}")).get("socket")
    return Path(path) if path else None


def is_orphan(run: dg.DagsterRun) -> bool:
    """Whether the code server that executed the run was on this machine and is gone."""
    path = executed_at(run)
    return path is not None and path.parent.name.startswith(_prefix()) and not _answers(path)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def runs_at(instance: dg.DagsterInstance, path: Path) -> list[dg.DagsterRun]:
    """The unfinished runs of the code server that listens at `path`."""
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return [run for run in runs if executed_at(run) == path]


def cancel(instance: dg.DagsterInstance, runs: Sequence[dg.DagsterRun], path: Path, seconds: float) -> None:
    """Ask the runs to stop, and wait while they save their work. A run that takes longer is ended by force later."""
    for run in runs:
        with suppress(DagsterUserCodeUnreachableError):
            instance.run_launcher.terminate(run.run_id)
    until = time.monotonic() + seconds
    while runs_at(instance, path) and time.monotonic() < until:
        time.sleep(0.2)


def record_end(instance: dg.DagsterInstance, runs: Sequence[dg.DagsterRun]) -> None:
    """Record the end of runs whose processes are gone, and free their pool slots."""
    for each in runs:
        instance.event_log_storage.free_concurrency_slots_for_run(each.run_id)
        run = instance.get_run_by_id(each.run_id)
        if run and not run.is_finished:
            instance.report_run_canceled(run, _ENDED)


def title(run: dg.DagsterRun) -> str:
    """A run in a few words: its abbreviated id, and its assets."""
    names = sorted(key.to_user_string() for key in run.asset_selection or ()) or [run.job_name]
    partition = run.tags.get("dagster/partition")
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{run.run_id[:8]} ({', '.join(names[:2])}{more}{f' [{partition}]' if partition else ''})"
