"""Injections through every asset: what Dagster renders of them is text, in its event log and in the pages of its UI."""

import ast
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import dagster as dg
import pytest
from playwright.sync_api import Browser, Page, Request

import icon_assets
from icon_assets.core.quality import rules_of
from icon_assets.definitions import build_assets, build_defs
from icon_assets.home import open_instance
from icon_assets.runner import STAGES, Outcome, run_stages
from icon_assets.settings import Workspace
from icon_assets_tests import judges
from icon_assets_tests.core.test_escaping import is_visible, live
from icon_assets_tests.injections import HOST, lay_out_injections

PACKAGE = Path(icon_assets.__file__).parent


@pytest.fixture(scope="module")
def materialized(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path
) -> Iterator[tuple[Workspace, list[Outcome]]]:
    """The whole graph over injections, with its history on disk."""
    with pytest.MonkeyPatch.context() as patch, judges.serving(judges.good) as service:
        patch.setattr("icon_assets.core.selector.LEAST_SAMPLES", 4)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("DAGSTER_HOME", "")
        workspace = lay_out_injections(tmp_path_factory.mktemp("injections") / "workspace", tiny_model_dir, service.url)
        with open_instance(workspace) as instance:
            outcomes = list(run_stages(build_assets(workspace), workspace, instance, STAGES, asked=STAGES))
        yield workspace, outcomes


@pytest.fixture(scope="module")
def instance(materialized: tuple[Workspace, list[Outcome]]) -> Iterator[dg.DagsterInstance]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", "")
        with open_instance(materialized[0]) as opened:
            yield opened


def events(instance: dg.DagsterInstance) -> list[dg.EventLogEntry]:
    return [entry for run in instance.get_runs() for entry in instance.all_logs(run.run_id)]


def test_injections_fail_no_asset(materialized: tuple[Workspace, list[Outcome]]) -> None:
    assert [(o.name, o.error) for o in materialized[1] if o.error] == []


def test_what_every_asset_reports_of_injections_is_text(instance: dg.DagsterInstance) -> None:
    materializations = [e.asset_materialization for e in events(instance) if e.asset_materialization]
    assert {each.asset_key.to_user_string() for each in materializations} == set(STAGES)
    metadata = [(each.asset_key.to_user_string(), *item) for each in materializations for item in each.metadata.items()]
    rendered = [
        (asset, name, value.value) for asset, name, value in metadata if isinstance(value, dg.MarkdownMetadataValue)
    ]
    assert [(asset, name, found) for asset, name, text in rendered if (found := live(text))] == []
    reached = {asset for asset, _, text in rendered if "graphql" in text}
    assert reached >= {"raw_pool", "probe_set", "probe_baseline", "selection_trust", "base_eval", "eval_results"}
    assert [(asset, name) for asset, name, value in metadata if not visible(name, value)] == []


def visible(name: str, value: dg.MetadataValue[Any]) -> bool:
    return all(is_visible(line) for text in (name, str(value.value)) for line in text.split("\n"))


def test_what_every_check_says_of_injections_is_text(instance: dg.DagsterInstance) -> None:
    evaluations = [
        e.dagster_event.asset_check_evaluation_data
        for e in events(instance)
        if e.dagster_event and e.dagster_event.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    assert {e.asset_key.to_user_string() for e in evaluations} == {stage for stage in STAGES if rules_of(stage)}
    said = [(e.check_name, e.description or "") for e in evaluations]
    assert [(name, found) for name, text in said if (found := live(text))] == []
    assert any("graphql" in text for _, text in said), "a file's name is among them"
    lists = [str(value.value) for e in evaluations for value in e.metadata.values()]
    assert all(map(is_visible, lists))


def test_what_is_said_on_the_terminal_is_not_escaped(materialized: tuple[Workspace, list[Outcome]]) -> None:
    (warning,) = {o.warning for o in materialized[1] if o.warning and "holds_no_evaluation_item" in o.warning}
    assert "a` ![d](/graphql?query=mutation{launch}) `pool.jsonl:2" in warning


def test_log_lines_hold_nothing_invisible(instance: dg.DagsterInstance) -> None:
    logged = [entry.user_message for entry in events(instance) if not entry.is_dagster_event]
    assert any("quarantined" in line for line in logged)
    assert all(map(is_visible, logged))


def test_descriptions_of_assets_checks_and_jobs_are_text(materialized: tuple[Workspace, list[Outcome]]) -> None:
    defs = build_defs(materialized[0])
    graph = defs.resolve_asset_graph()
    texts = [graph.get(key).description for key in graph.get_all_asset_keys()]
    texts += [graph.get_check_spec(key).description for key in graph.asset_check_keys]
    texts += [job.description for job in defs.resolve_all_job_defs()]
    texts += [column.description for key in graph.get_all_asset_keys() for column in _columns(graph.get(key).metadata)]
    assert [found for text in texts if text and (found := live(text))] == []


def _columns(metadata: Any) -> list[dg.TableColumn]:
    return metadata["dagster/column_schema"].columns if "dagster/column_schema" in metadata else []


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(PACKAGE).as_posix(), node


def test_only_one_module_makes_markdown_for_the_ui() -> None:
    makers = {name for name, call in calls() if re.search(r"\.md$|MarkdownMetadataValue$", ast.unparse(call.func))}
    assert makers == {"metadata.py"}


def test_only_one_function_makes_what_checks_say() -> None:
    results = [
        (name, call)
        for name, call in calls()
        if ast.unparse(call.func) in {"dg.AssetCheckResult", "dg.AssetCheckEvaluation"}
    ]
    assert len(results) >= 3
    for name, call in results:
        said = [ast.unparse(each.value) for each in call.keywords if each.arg in {"description", None}]
        assert all(re.match(r"description\(|freshness\(|verdict$", each) for each in said), (name, said)


# The pages: where Dagster shows what comes from data, with a text that is there when it does.

PAGES = [
    ("/assets/raw_pool?view=partitions&partition={shard}", "quarantined_rows"),
    ("/assets/raw_pool?view=checks&checkDetail=holds_no_evaluation_item", "samples meet an evaluation item"),
    ("/runs/{raw_pool}", "quarantined, missing_field"),
    ("/assets/probe_set?view=events", "probes_by_stratum"),
    ("/assets/base_model", "model_digest"),
    ("/runs/{base_model}", "model_digest"),
    ("/assets/base_eval?view=events", "results"),
    ("/assets/pairwise_results?view=events", "unreadable"),
]


@contextmanager
def served(workspace: Workspace) -> Iterator[str]:
    """Dagster's own web server over the workspace's history."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ICON_", "DAGSTER_"))}
    environment = {**kept, "DAGSTER_HOME": str(workspace.dagster_home), "ICON_WORKSPACE": str(workspace.root)}
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "dagster_webserver",
        "-m",
        "icon_assets.definitions",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(address, server)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urlopen(f"{address}/server_info"):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the web server did not start")


def _open_everything(page: Page) -> None:
    """What stands behind a button is shown in a dialog, one after the other."""
    buttons = page.get_by_text("[Show Markdown]")
    for n in range(buttons.count()):
        buttons.nth(n).dispatch_event("click")
        page.locator(".dagster-markdown").last.wait_for()
        _assert_text_only(page)
        page.keyboard.press("Escape")
        page.locator(".bp5-dialog").wait_for(state="detached")


def _assert_text_only(page: Page) -> None:
    attributes = page.eval_on_selector_all(
        "*",
        "all => all.flatMap(e => [...e.attributes].filter(a => ['src', 'href', 'srcset', 'action'].includes(a.name)).map(a => a.value))",
    )
    assert [each for each in attributes if HOST in each or "/graphql" in each] == []
    inside = page.eval_on_selector_all(".dagster-markdown *", "all => all.map(e => e.tagName + ' ' + (e.src || ''))")
    plain = re.compile(r"(P|TABLE|THEAD|TBODY|TR|TH|TD|CODE|UL|LI|STRONG|DIV) $|IMG data:image/png")
    assert [each for each in inside if not plain.match(each)] == []


def test_no_page_of_the_ui_shows_an_injection_as_more_than_text_or_sends_a_request_for_it(
    materialized: tuple[Workspace, list[Outcome]], instance: dg.DagsterInstance, browser: Browser
) -> None:
    runs, sent = {}, list[Request]()
    for run in instance.get_runs():
        for key in run.asset_selection or ():
            runs.setdefault(key.to_user_string(), run.run_id)
    shard = max(instance.get_dynamic_partitions("shard"), key=len)
    with served(materialized[0]) as address:
        page = browser.new_context(viewport={"width": 1500, "height": 1200}).new_page()
        page.on("request", sent.append)
        for path, text in PAGES:
            page.goto(address + path.format(shard=shard, **runs))
            page.get_by_text(text).first.wait_for()
            _assert_text_only(page)
            _open_everything(page)
    assert {request.url.split("/")[2] for request in sent} == {address.removeprefix("http://")}
    assert [r.url for r in sent if "graphql" in r.url and (r.method != "POST" or r.resource_type == "image")] == []
