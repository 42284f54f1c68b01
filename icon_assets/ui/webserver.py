"""The process that serves Dagster's web application behind the guard, on a given socket."""

import argparse
import base64
import hashlib
import re
import socket

import uvicorn
from dagster._core.instance import DagsterInstance
from dagster._core.instance.ref import InstanceRef
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._serdes import deserialize_value
from dagster_webserver.app import create_app_from_workspace_process_context
from dagster_webserver.templates.graphiql import TEMPLATE
from dagster_webserver.version import __version__

from icon_assets.ui.guard import GRAPHQL, Guard, Policy, access_token, host_names
from icon_assets.workspace import Workspace

_POLL_MILLISECONDS = 2000
# The values of `dagster-webserver`: milliseconds, seconds, connections.
_DATABASE = {"statement_timeout": 15_000, "pool_recycle": 3600, "max_overflow": 20}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True, help="descriptor of a listening socket")
    parser.add_argument("--instance", required=True, help="serialized InstanceRef")
    parser.add_argument("--locations", required=True, help="workspace.yaml that names the code server")
    parser.add_argument("--read-only", action="store_true")
    arguments = parser.parse_args()
    listener = socket.socket(fileno=arguments.socket)
    with DagsterInstance.from_ref(deserialize_value(arguments.instance, InstanceRef)) as instance:
        instance.optimize_for_webserver(**_DATABASE)
        target = WorkspaceFileTarget(paths=[arguments.locations])
        with WorkspaceProcessContext(instance, target, __version__, read_only=arguments.read_only) as context:
            app = create_app_from_workspace_process_context(context, live_data_poll_rate=_POLL_MILLISECONDS)
            guard = Guard(app, policy(Workspace.load(), listener.getsockname()[1]))
            uvicorn.Server(
                # No access log: the first address holds the token.
                uvicorn.Config(guard, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
            ).run(sockets=[listener])


def policy(workspace: Workspace, port: int) -> Policy:
    settings = workspace.settings.ui
    origins = frozenset(settings.allowed_hosts)
    return Policy(host_names(settings), origins, port, access_token(settings), {GRAPHQL: graphiql_scripts()})


def graphiql_scripts() -> str:
    """Hashes of the inline scripts of Dagster's GraphiQL page, the only ones without a nonce."""
    scripts = re.findall(r"<script>(.*?)</script>", TEMPLATE, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


if __name__ == "__main__":
    main()
