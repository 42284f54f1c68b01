"""A training shared by several processes: started by torch's launcher, connected by accelerate, watched from here.

The workers report progress on stdout, one line of JSON each time. All other output goes to a log. As a module (`python
-m`), this is such a worker.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import IO, Any

from pydantic import TypeAdapter

from icon_assets.core.errors import IconError
from icon_assets.core.training.trainer import OnStep, Task, train

_LOG = "workers.log"
_TASK = "task.json"
_MARK = "icon: "  # before each report of a worker, to separate it from the output of libraries
_GRACE_SECONDS = 40  # the launcher itself waits 30 for its workers


def train_in_processes(task: Task, on_step: OnStep | None) -> None:
    """Run `task` in its processes; `on_step` is called here.

    Raises:
        IconError: the message of the first failed worker, in one line.
    """
    (task.work_dir / _TASK).write_bytes(TypeAdapter(Task).dump_json(task))
    errors = list[str]()
    with _launched(task) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith(_MARK):
                continue
            said = json.loads(line.removeprefix(_MARK))
            if "error" in said:
                errors.append(said["error"])
            elif on_step is not None:
                on_step(said["step"], said["total"], said["loss"])
        code = process.wait()
    if errors:
        raise IconError(errors[0])
    if code:
        raise IconError(
            f"training.processes: one of {task.processes} processes died (exit code {code}); see "
            f"{task.work_dir / _LOG}, then run again: it resumes from its last state"
        )


@contextmanager
def _launched(task: Task) -> Iterator["subprocess.Popen[str]"]:
    """The launcher with its workers. None of them outlives the block."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr",
        "127.0.0.1",
        "--nproc-per-node",
        str(task.processes),
        "-m",
        __spec__.name,
        str(task.work_dir / _TASK),
    ]
    threads = max(1, (os.cpu_count() or 1) // task.processes)
    here = str(Path(__file__).parents[3])
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": paths}
    with (task.work_dir / _LOG).open("w", encoding="utf-8") as log:
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment)
        try:
            yield process
        finally:
            _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


# In a worker


def _work(task_path: Path) -> None:
    sys.excepthook = _tell_error
    assert sys.stdin is not None
    Thread(target=_die_with_parent, args=(sys.stdin,), daemon=True).start()
    task = TypeAdapter(Task).validate_json(task_path.read_bytes())
    train(task, lambda step, total, loss: _tell(step=step, total=total, loss=loss))


def _die_with_parent(stdin: IO[str]) -> None:
    """Nothing is ever sent. Its end means that the parent process is gone, and a new run may begin."""
    stdin.read()
    os._exit(1)


def _tell(**said: Any) -> None:
    sys.stdout.write(f"{_MARK}{json.dumps(said)}\n")
    sys.stdout.flush()


def _tell_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    line = " ".join(str(error).split())
    _tell(error=line if issubclass(kind, IconError) else f"a training process failed: {kind.__name__}: {line[:300]}")
    sys.__excepthook__(kind, error, trace)


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
