"""Starts code server, webserver and daemon, watches them, and ends them with the runs they started."""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import dagster as dg
import psutil
import yaml
from dagster._grpc.client import DagsterGrpcClient
from dagster._serdes import serialize_value

from icon_assets.core.errors import IconError
from icon_assets.dead_runs import release_dead_runs
from icon_assets.home import open_instance
from icon_assets.launched import cancel, new_socket, record_end, runs_at, title
from icon_assets.ui.guard import access_token, is_loopback
from icon_assets.workspace import WORKSPACE_VARIABLE, Workspace

LOCATION = "icon_assets.definitions"
_TOKEN_VARIABLE = "ICON_UI__TOKEN"  # noqa: S105  (its name)
_CANCEL_SECONDS = 15.0
_END_SECONDS = 5.0
_LOOK_SECONDS = 0.3


def main() -> None:
    """Exit code 0 after a request to end, 1 when something failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    ending = _told_to_end()
    try:
        workspace = Workspace.load()
        with _listener(workspace.settings.ui.host, arguments.port) as listener, open_instance(workspace) as instance:
            os.environ[WORKSPACE_VARIABLE] = str(workspace.root)
            services = Services(workspace, instance, listener, arguments.read_only, ending)
            sys.exit(services.run())
    except IconError as error:
        if arguments.json:
            print(json.dumps({"error": str(error)}))
        else:
            print(f"icon-assets: {error}", file=sys.stderr)
        sys.exit(1)


def _told_to_end() -> threading.Event:
    """Set by SIGTERM, and when standard input closes because the foreground process has ended."""
    ending = threading.Event()

    def read() -> None:
        while os.read(0, 1):
            pass
        ending.set()

    def heard(number: int, frame: FrameType | None) -> None:
        ending.set()

    threading.Thread(target=read, daemon=True).start()
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, heard)
    return ending


def _listener(host: str, port: int) -> socket.socket:
    """Bind the port before anything is started, so that a port in use is reported first."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise IconError(
            f"{host}:{port}: can't be listened on ({error}); choose a different --port or ui.host"
        ) from error


def say(line: str) -> None:
    """Print a line. The reader may be gone, as when a terminal is closed, and work continues nevertheless."""
    with suppress(OSError):
        print(line, flush=True)


@dataclass
class Services:
    """The processes of one `icon-assets ui`, all in the session that this process leads."""

    workspace: Workspace
    instance: dg.DagsterInstance
    listener: socket.socket
    read_only: bool
    ending: threading.Event
    code_socket: Path = field(default_factory=new_socket)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    token: str | None = None

    def __post_init__(self) -> None:
        self.token = access_token(self.workspace.settings.ui)

    def run(self) -> int:
        """Run until a request to end, or until a service ends by itself. Returns the exit code."""
        release_dead_runs(self.instance)
        try:
            self._start_code_server()
            self._start_others()
            return self._watch()
        finally:
            self._end()

    def _start(self, name: str, module: str, *arguments: str, **environment: str) -> None:
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", "icon_assets.ui.attached", module, *arguments],
            stdin=subprocess.PIPE,
            pass_fds=[self.listener.fileno()] if name == "webserver" else [],
            env={**os.environ, "DAGSTER_IS_DEV_CLI": "1", **environment},
        )

    def _start_code_server(self) -> None:
        """Start it, and wait until it has loaded the definitions or failed. Its page then says why."""
        reference = serialize_value(self.instance.get_ref())
        self._start(
            "code server",
            "dagster",
            "code-server",
            "start",
            "--socket",
            str(self.code_socket),
            "--module-name",
            LOCATION,
            "--location-name",
            LOCATION,
            "--log-level",
            "warning",
            "--use-python-environment-entry-point",
            "--instance-ref",
            reference,
            "--inject-env-vars-from-instance",
        )
        client = DagsterGrpcClient(socket=str(self.code_socket))
        while not self._code_server_answers(client) and not self.ending.wait(_LOOK_SECONDS):
            if self.processes["code server"].poll() is not None:
                raise IconError("the code server ended while it started; see its output above")

    @staticmethod
    def _code_server_answers(client: DagsterGrpcClient) -> bool:
        with suppress(dg.DagsterError):
            return client.ping("icon-assets") is not None
        return False

    def _start_others(self) -> None:
        if self.ending.is_set():
            return
        locations = self.code_socket.with_name("workspace.yaml")
        server = {"location_name": LOCATION, "socket": str(self.code_socket), "host": "localhost"}
        shown = {"module_name": LOCATION, "working_directory": str(Path.cwd())}
        locations.write_text(yaml.safe_dump({"load_from": [{"grpc_server": {**server, "additional_metadata": shown}}]}))
        reference = serialize_value(self.instance.get_ref())
        self._start(
            "webserver",
            "icon_assets.ui.webserver",
            "--socket",
            str(self.listener.fileno()),
            "--instance",
            reference,
            "--locations",
            str(locations),
            *["--read-only"] * self.read_only,
            **{_TOKEN_VARIABLE: self.token or "never"},
        )
        if not self.read_only:  # a viewer starts nothing
            self._start("daemon", "dagster._daemon", "run", "--instance-ref", reference, "--workspace", str(locations))

    def _watch(self) -> int:
        shown = False
        while not self.ending.wait(_LOOK_SECONDS):
            if not shown and (shown := self._webserver_answers()):
                self._show_address()
            for name, process in list(self.processes.items()):
                if process.poll() is None:
                    continue
                if name != "code server":
                    say(
                        f"icon-assets: the {name} has ended by itself (exit code {process.returncode}); see its output "
                        "above"
                    )
                    return 1
                say("icon-assets: the code server has ended by itself; it is started again")
                self._end_runs_of_lost_code_server()
                self._start_code_server()
        return 0

    def _webserver_answers(self) -> bool:
        host, port = self.listener.getsockname()[:2]
        name = str({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host))  # noqa: S104  (asked, not bound)
        address = f"http://{f'[{name}]' if ':' in name else name}:{port}/server_info"
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {self.token}"})
        with suppress(urllib.error.URLError, TimeoutError, ConnectionError):
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=1).close()
            return True
        return False

    def _show_address(self) -> None:
        host = self.workspace.settings.ui.host
        port = self.listener.getsockname()[1]
        anywhere = host in {"0.0.0.0", "::"}  # noqa: S104  (compared, not bound)
        name = socket.gethostname() if anywhere else f"[{host}]" if ":" in host else host
        say(f"Serving Dagster on http://{name}:{port}{f'/?token={self.token}' if self.token else ''}")
        if not self.token and not is_loopback(host):
            say("icon-assets: ui.token is never: anyone who can reach this address can run code as you")
        say(
            "Read-only: nothing is started from here."
            if self.read_only
            else "Ctrl-C ends it and the runs started from it."
        )

    def _end_runs_of_lost_code_server(self) -> None:
        """End its runs, because their processes were its children and would continue unnoticed."""
        runs = runs_at(self.instance, self.code_socket)
        _kill_session(but=[process.pid for name, process in self.processes.items() if name != "code server"])
        record_end(self.instance, runs)

    def _end(self) -> None:
        """End first the processes that start runs, then the runs, then the code server. Nothing of the session is
        left."""
        starters = [self.processes[name] for name in ("daemon", "webserver") if name in self.processes]
        for each in starters:
            each.terminate()
        if runs := runs_at(self.instance, self.code_socket):
            names = ", ".join(map(title, runs[:5])) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
            say(f"icon-assets: ended unfinished runs: {names}; finished work is kept, materialize again to continue")
            cancel(self.instance, runs, self.code_socket, _CANCEL_SECONDS)
        _wait_or_kill(starters)
        runs += [run for run in runs_at(self.instance, self.code_socket) if run not in runs]  # started meanwhile
        _kill_session()
        record_end(self.instance, runs)
        release_dead_runs(self.instance)
        shutil.rmtree(self.code_socket.parent)


def _wait_or_kill(processes: list[subprocess.Popen[bytes]]) -> None:
    until = time.monotonic() + _END_SECONDS
    for process in processes:
        try:
            process.wait(max(until - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            process.kill()


def _kill_session(but: Collection[int] = ()) -> None:
    """Every other process of this session: code servers, and orphans that their parents left behind."""
    ours = os.getsid(0)
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if process.pid not in {*but, os.getpid()} and os.getsid(process.pid) == ours:
                process.kill()


if __name__ == "__main__":
    main()
