"""`icon-assets ui` as it is: real processes, a real browser, a hostile page on another port of this machine,
signals."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from playwright.sync_api import Browser, Page

from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import lay_out
from icon_assets_tests.e2e.conftest import BUSY, questions
from icon_assets_tests.e2e.processes import start

# Where nothing stands in its way, Dagster does this; the asset's name says which attack got through.
REPORT = (
    "mutation{reportRunlessAssetEvents(eventParams:{eventType:ASSET_MATERIALIZATION,assetKey:{path:[%r]}}){__typename}}"
)


def mutation(asset: str) -> str:
    return REPORT.replace("%r", json.dumps(asset))


@dataclass
class Ui:
    """A running `icon-assets ui`."""

    workspace: Workspace
    process: subprocess.Popen[bytes]
    out: Path
    address: str = ""

    def said(self) -> str:
        return self.out.read_text("utf-8", "replace")

    def wait_until(self, condition: Callable[[], Any], seconds: float = 120) -> Any:
        until = time.monotonic() + seconds
        while not (found := condition()) and time.monotonic() < until and self.process.poll() is None:
            time.sleep(0.05)
        assert found, self.said()[-3000:]
        return found

    def find_address(self) -> str:
        marker = "Serving Dagster on "
        line = next((line for line in self.said().splitlines() if line.startswith(marker)), marker)
        return line.removeprefix(marker)

    def processes(self) -> list[psutil.Process]:
        """Everything that serves this workspace, alive."""
        return [each for each in psutil.process_iter() if self._serves(each)]

    def _serves(self, process: psutil.Process) -> bool:
        try:
            named = process.environ().get("ICON_WORKSPACE") == str(self.workspace.root)
            return named and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
        except psutil.Error:
            return False

    def post(self, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"), timeout=60)
        content = {"Content-Type": "application/json"} if body is not None else {}
        connection.request("POST", path, json.dumps(body) if body is not None else None, {**content, **headers})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        with dg.DagsterInstance.from_config(str(self.workspace.dagster_home)) as instance:
            yield instance

    def materialized(self) -> set[str]:
        """Assets with a name of this test's own that something was reported of."""
        with self.instance() as instance:
            return {key.to_user_string() for key in instance.all_asset_keys() if key.path[0].startswith("by_")}


def open_ui(workspace: Workspace, *options: str) -> Ui:
    out = workspace.root / "ui.txt"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ICON_", "DAGSTER_"))}
    for each in (signal.SIGINT, signal.SIGHUP):  # in the background or under nohup they are ignored, in children too
        if signal.getsignal(each) is signal.SIG_IGN:
            signal.signal(each, signal.SIG_DFL)
    with out.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "icon_assets.cli", "ui", "--port", "0", *options],
            stdout=written,
            stderr=subprocess.STDOUT,
            env={**clean, "PYTHONPATH": str(Path(__file__).parents[2]), "ICON_WORKSPACE": str(workspace.root)},
        )
    return Ui(workspace, process, out)


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Ui]:
    """One on a new workspace, on which a first `run` starts at the same moment."""
    scoring = {**BUSY["scoring"], "tokens_per_forward": 64}
    root = tmp_path_factory.mktemp("ui") / "workspace"
    workspace = lay_out(root, tiny_model_dir, {"many.jsonl": questions("many", 3000)}, **{**BUSY, "scoring": scoring})
    run = start(root, "run", "--select", "raw_pool", "probe_set", "base_model", out=root / "run.txt")
    opened = open_ui(workspace)
    try:
        opened.address = opened.wait_until(opened.find_address)
        run.join(120)
        assert run.exitcode == 0, (root / "run.txt").read_text()
        yield opened
    finally:
        opened.process.terminate()
        opened.process.wait(60)


@pytest.fixture
def page(ui: Ui, browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.add_init_script(
        "window.violations = []; addEventListener('securitypolicyviolation', e => "
        "violations.push(`${e.violatedDirective} ${e.blockedURI}`))"
    )
    yield context.new_page()
    context.close()


def test_the_interface_works_behind_the_guard_and_breaks_no_policy(ui: Ui, page: Page) -> None:
    elsewhere = list[str]()
    page.on("request", lambda request: note_foreign(request.url, ui.address, elsewhere))
    for path, shown in [
        ("/overview/activity/timeline", "Timeline"),
        ("/asset-groups", "Materialize all"),
        ("/automation", "nightly"),
        ("/runs", "raw_pool"),
        ("/assets/probe_set", "Latest materialization"),
    ]:
        page.goto(ui.address + path)
        page.get_by_text(shown).first.wait_for(timeout=30_000)
        assert page.evaluate("window.violations") == [], path
    with ui.instance() as instance:
        before = instance.get_runs_count()
        page.get_by_text("Materialize", exact=False).first.click()
        run = ui.wait_until(lambda: instance.get_runs_count() > before and instance.get_runs(limit=1)[0])
        ui.wait_until(lambda: (found := instance.get_run_by_id(run.run_id)) and found.is_finished)
        finished = instance.get_run_by_id(run.run_id)
    assert finished
    assert finished.is_success
    page.goto(f"{ui.address}/runs/{run.run_id}")
    page.get_by_text("STEP_SUCCESS").first.wait_for(timeout=30_000)  # it came through a WebSocket
    assert page.evaluate("window.violations") == []
    page.goto(f"{ui.address}/graphql")
    page.get_by_text("Variables").first.wait_for(timeout=30_000)
    assert page.evaluate("window.violations") == []
    assert elsewhere == []


def note_foreign(url: str, own: str, elsewhere: list[str]) -> None:
    if not url.startswith((f"{own}/", "data:", "blob:")):
        elsewhere.append(url)


HOSTILE = """<!doctype html><body><script>
const victim = VICTIM, says = MUTATIONS, done = [];
const address = name => victim + "/graphql?query=" + encodeURIComponent(says[name]);
function embed(tag, attribute, url) {
  return new Promise(resolve => { const e = document.createElement(tag); e[attribute] = url;
    e.onload = e.onerror = resolve; document.body.append(e); setTimeout(resolve, 3000); });
}
function submit(name, url, enctype) {
  return new Promise(resolve => {
    const frame = document.createElement("iframe"); frame.name = name; document.body.append(frame);
    const form = document.createElement("form"); form.action = url; form.method = "POST"; form.enctype = enctype;
    form.target = name;
    const input = document.createElement("input"); input.name = "a"; input.value = "b"; form.append(input);
    document.body.append(form);
    frame.onload = resolve; form.submit(); setTimeout(resolve, 3000); });
}
const attempt = promise => promise.then(answer => answer.text()).then(text => "read " + text).catch(() => "not read");
window.attacked = (async () => {
  const result = {};
  await embed("img", "src", address("by_image"));
  await embed("script", "src", address("by_script"));
  await embed("iframe", "src", address("by_frame"));
  await embed("object", "data", address("by_object"));
  await embed("video", "src", address("by_video"));
  const link = document.createElement("link"); link.rel = "stylesheet"; link.href = address("by_style");
  document.head.append(link);
  await submit("f1", address("by_form"), "application/x-www-form-urlencoded");
  await submit("f2", address("by_text_form"), "text/plain");
  await submit("f3", victim + "/report_asset_materialization/by_report_form", "multipart/form-data");
  const post = {method: "POST", mode: "no-cors", credentials: "include"};
  await attempt(fetch(address("by_no_cors_query"), post));
  await attempt(fetch(victim + "/report_asset_materialization/by_no_cors", post));
  await attempt(fetch(victim + "/report_asset_observation/by_no_cors", post));
  await attempt(fetch(victim + "/report_asset_check/by_no_cors?check_name=c&passed=true", post));
  await attempt(fetch(victim + "/graphql", {...post, body: JSON.stringify({query: says.by_no_cors_body})}));
  const body = JSON.stringify({query: says.by_json});
  const json = {method: "POST", headers: {"Content-Type": "application/json"}, body};
  result.json = await attempt(fetch(victim + "/graphql", json));
  result.read = await attempt(fetch(victim + "/server_info"));
  navigator.sendBeacon(victim + "/report_asset_materialization/by_beacon");
  result.socket = await new Promise(resolve => {
    const s = new WebSocket(victim.replace("http", "ws") + "/graphql", "graphql-ws");
    s.onopen = () => resolve("open"); s.onerror = () => resolve("refused");
    setTimeout(() => resolve("nothing"), 5000);
  });
  return result;
})();
</script>"""
BY_QUERY = [
    "by_image",
    "by_script",
    "by_frame",
    "by_object",
    "by_video",
    "by_style",
    "by_form",
    "by_text_form",
    "by_no_cors_query",
    "by_no_cors_body",
    "by_json",
]


@contextmanager
def served(text: str) -> Iterator[str]:
    """A site of somebody else: the page stands on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_hostile_page_on_another_port_changes_nothing_and_reads_nothing(ui: Ui, page: Page) -> None:
    status, said = ui.post("/graphql", {"query": mutation("by_hand")})
    assert (status, "ReportRunlessAssetEventsSuccess" in said) == (200, True), said
    assert ui.post("/report_asset_materialization/by_script_of_the_user")[0] == 200
    expected = {"by_hand", "by_script_of_the_user"}
    assert ui.materialized() == expected, "what is tried below does work where nobody refuses it"
    with ui.instance() as instance:
        runs = instance.get_runs_count()
    text = HOSTILE.replace("VICTIM", json.dumps(ui.address))
    text = text.replace("MUTATIONS", json.dumps({name: mutation(name) for name in BY_QUERY}))
    with served(text) as hostile:
        page.goto(hostile)
        result = page.evaluate("window.attacked")
        page.wait_for_timeout(300)
        assert result == {"json": "not read", "read": "not read", "socket": "refused"}
        framed = [frame for frame in page.frames if frame.url.startswith(ui.address)]
        assert [frame.content() for frame in framed if "dagster" in frame.content().lower()] == []
        page.goto(f"{ui.address}/graphql?query={mutation('by_navigation')}", referer=hostile)
    assert ui.materialized() == expected
    with ui.instance() as instance:
        assert instance.get_runs_count() == runs


def test_a_name_that_was_rebound_to_this_machine_is_refused(ui: Ui) -> None:
    port = ui.address.rsplit(":", 1)[1]
    for name in (f"evil.example:{port}", "evil.example", f"127.0.0.1.evil.example:{port}"):
        status, said = ui.post("/report_asset_materialization/by_rebinding", Host=name, Origin=f"http://{name}")
        assert status == 421
        assert "ui.allowed_hosts" in said
    assert "by_rebinding" not in ui.materialized()


def launch(ui: Ui, job: str) -> str:
    """Start a job as the launchpad does; its run's id."""
    selector = {"repositoryLocationName": "icon_assets.definitions", "repositoryName": "__repository__", "jobName": job}
    query = (
        "mutation($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename ... on LaunchRunSuccess { "
        "run { id } } } }"
    )
    status, said = ui.post("/graphql", {"query": query, "variables": {"p": {"selector": selector, "mode": "default"}}})
    assert status == 200, said
    return json.loads(said)["data"]["launchRun"]["run"]["id"]


def test_sigterm_ends_everything_and_says_which_run_it_ends(ui: Ui) -> None:
    """The last one on this server: it is gone afterwards."""
    run_id = launch(ui, "score_pool")
    store = Store(ui.workspace.store_dir)
    ui.wait_until(lambda: store.query("SELECT count(*) FROM pair_scores").item())
    assert len(ui.processes()) > 6
    ui.process.send_signal(signal.SIGTERM)
    assert ui.process.wait(60) == 0, ui.said()[-3000:]
    assert ui.processes() == []
    lines = [line for line in ui.said().splitlines() if line.startswith("icon-assets: ")]
    assert lines == [
        f"icon-assets: ended unfinished runs: {run_id[:8]} (score_pool); finished work is kept, materialize "
        "again to continue"
    ]
    with ui.instance() as instance:
        run = instance.get_run_by_id(run_id)
        assert run
        assert run.status == dg.DagsterRunStatus.CANCELED
        assert [each for each in instance.get_runs() if not each.is_finished] == []
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
    assert 0 < store.query("SELECT count(*) FROM pair_scores").item() < 3000 * 4


@pytest.mark.parametrize("which", [signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_told_to_end_while_it_starts_it_leaves_no_process(ui: Ui, which: signal.Signals) -> None:
    """SIGKILL, too: the services notice within seconds that nobody waits for them."""
    early = open_ui(ui.workspace, "--read-only")
    early.wait_until(lambda: any("code-server" in argument for each in early.processes() for argument in command(each)))
    early.process.send_signal(which)
    early.process.wait(60)
    until = time.monotonic() + 60
    while early.processes() and time.monotonic() < until:
        time.sleep(0.05)
    assert [command(each) for each in early.processes()] == []
    assert early.process.returncode == (0 if which != signal.SIGKILL else -signal.SIGKILL)
    assert "Traceback" not in early.said()


def command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def test_a_port_in_use_and_a_broken_history_are_one_line(ui: Ui) -> None:
    with served("") as other:
        refused = open_ui(ui.workspace, "--port", other.rsplit(":", 1)[1])
        assert refused.process.wait(60) == 1
    assert refused.said().count("\n") == 1
    assert "choose a different --port" in refused.said()
    (ui.workspace.dagster_home / "history" / "runs.db").write_bytes(b"garbage " * 9)
    broken = open_ui(ui.workspace)
    assert broken.process.wait(60) == 1
    assert broken.said().count("\n") == 1
    assert "Dagster's history is broken (file is not a database)" in broken.said()
