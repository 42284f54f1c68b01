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
from playwright.sync_api import Page, Request

import icon_assets
from icon_assets.core.quality import rules_of
from icon_assets.definitions import build_assets, build_defs
from icon_assets.home import open_instance
from icon_assets.runner import Outcome, run_stages
from icon_assets.workspace import Workspace
from icon_assets_tests import judges
from icon_assets_tests.browser import chromium, chromium_path
from icon_assets_tests.conftest import STAGES, change
from icon_assets_tests.core.test_text import is_visible, live
from icon_assets_tests.injections import HOST, lay_out_injections, leak

MISSING_MODEL = f"http://{HOST}/a` ![d](/graphql?query=mutation{{launch}}) `b"
PACKAGE = Path(icon_assets.__file__).parent


@contextmanager
def materialized(root: Path, model_dir: Path) -> Iterator[tuple[Workspace, dg.DagsterInstance, list[Outcome]]]:
    """The whole graph over injections, with its history on disk; then a check that warns, and an asset that fails."""
    with judges.serving(judges.good) as service:
        workspace = lay_out_injections(root, model_dir, service.url)
        with open_instance(workspace) as instance:
            outcomes = list(run_stages(build_assets(workspace), workspace, instance, STAGES, asked=STAGES))
            assert [(o.name, o.error) for o in outcomes if o.error] == []
            leak(workspace)
            outcomes += run_stages(build_assets(workspace), workspace, instance, ("raw_pool",))
            change(workspace, "model", {"name": MISSING_MODEL})
            spoilt = Workspace.load(workspace.root)
            outcomes += run_stages(build_assets(spoilt), spoilt, instance, ("base_model",))
            yield workspace, instance, outcomes


def test_injections_through_the_whole_graph_are_text_in_its_history_and_on_its_pages(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chromium_path()
    monkeypatch.setattr("icon_assets.core.selector.learning.LEAST_SAMPLES", 4)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DAGSTER_HOME", "")
    with materialized(tmp_path / "workspace", tiny_model_dir) as (workspace, instance, outcomes):
        events = [entry for run in instance.get_runs() for entry in instance.all_logs(run.run_id)]
        assert_assets_report_text([e.asset_materialization for e in events if e.asset_materialization])
        assert_checks_say_text([_evaluation(e) for e in events if e.dagster_event_type == CHECKED])
        assert_logs_hold_text([e.user_message for e in events if not e.is_dagster_event])
        assert_failures_hold_text([_failure(e) for e in events if e.dagster_event_type == FAILED])
        assert_definitions_are_text(build_defs(workspace))
        assert_terminal_has_it_unescaped(outcomes)
        assert_pages_show_text(workspace, instance, PAGES)


CHECKED = dg.DagsterEventType.ASSET_CHECK_EVALUATION
FAILED = dg.DagsterEventType.STEP_FAILURE


def _evaluation(entry: dg.EventLogEntry) -> dg.AssetCheckEvaluation:
    assert entry.dagster_event is not None
    return entry.dagster_event.asset_check_evaluation_data


def _failure(entry: dg.EventLogEntry) -> Any:
    assert entry.dagster_event is not None
    return entry.dagster_event.step_failure_data


def assert_assets_report_text(materializations: list[dg.AssetMaterialization]) -> None:
    assert {each.asset_key.to_user_string() for each in materializations} == set(STAGES)
    metadata = [(each.asset_key.to_user_string(), *item) for each in materializations for item in each.metadata.items()]
    rendered = [
        (asset, name, value.value) for asset, name, value in metadata if isinstance(value, dg.MarkdownMetadataValue)
    ]
    assert [(asset, name, found) for asset, name, text in rendered if (found := live(text))] == []
    reached = {asset for asset, _, text in rendered if "graphql" in text}
    assert reached >= {"raw_pool", "probe_set", "probe_baseline", "selection_trust", "base_eval", "eval_results"}
    others = [(a, n, v.value) for a, n, v in metadata if isinstance(v, dg.TextMetadataValue | dg.JsonMetadataValue)]
    assert {asset for asset, _, text in others if "graphql" in str(text)} >= {
        "raw_pool",
        "base_model",
        "pairwise_results",
    }
    assert [each for each in others if not is_plain(str(each[2]))] == []


def is_plain(text: str) -> bool:
    """Nothing invisible, and nothing that becomes a link in Dagster's logs."""
    return "://" not in text.replace("ftp://", "").replace("http&#58;//", "") and all(map(is_visible, text.split("\n")))


def assert_checks_say_text(evaluations: list[dg.AssetCheckEvaluation]) -> None:
    assert {e.asset_key.to_user_string() for e in evaluations} == {stage for stage in STAGES if rules_of(stage)}
    said = [(e.check_name, e.description or "") for e in evaluations]
    assert [(name, found) for name, text in said if (found := live(text))] == []
    assert any("graphql" in text for _, text in said), "a file's name is among them"
    assert [e.check_name for e in evaluations for v in e.metadata.values() if not is_plain(str(v.value))] == []


def assert_logs_hold_text(lines: list[str]) -> None:
    assert any("quarantined, missing_field" in line and f"http[:]//{HOST}" in line for line in lines)
    assert [line for line in lines if not is_plain(line)] == []


def assert_failures_hold_text(failures: list[Any]) -> None:
    (failure,) = failures
    shown = [failure.user_failure_data.description, failure.error.message, failure.error.cause.message]
    assert all(f"http[:]//{HOST}" in text and f"http://{HOST}" not in text for text in shown), shown


def assert_definitions_are_text(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    nodes = [graph.get(key) for key in graph.get_all_asset_keys()]
    texts = [node.description for node in nodes]
    texts += [graph.get_check_spec(key).description for key in graph.asset_check_keys]
    texts += [job.description for job in defs.resolve_all_job_defs()]
    texts += [
        column.description
        for node in nodes
        if "dagster/column_schema" in node.metadata
        for column in node.metadata["dagster/column_schema"].columns
    ]
    assert [found for text in texts if text and (found := live(text))] == []


def assert_terminal_has_it_unescaped(outcomes: list[Outcome]) -> None:
    assert [o.name for o in outcomes if o.error] == ["base_model"]
    assert f"model.name: {MISSING_MODEL!r} is neither" in str(outcomes[-1].error)
    (warning,) = {o.warning for o in outcomes if o.asset == "raw_pool" and o.warning}
    assert "a` ![d](/graphql?query=mutation{launch}) `pool.jsonl:2 overlaps with" in warning


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
    ("/assets/raw_pool?view=checks&checkDetail=holds_no_evaluation_item", "samples overlap with an evaluation item"),
    ("/runs/{raw_pool}", "quarantined, missing_field"),
    ("/assets/probe_set?view=events", "probes_by_stratum"),
    ("/assets/base_model", "model_digest"),
    ("/runs/{base_model}", "model_digest"),
    ("/runs/{failed}", "STEP_FAILURE"),
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
    options = ["-m", "icon_assets.definitions", "-h", "127.0.0.1", "-p", str(port)]
    command = [sys.executable, "-W", "ignore", "-m", "dagster_webserver", *options]
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
        "all => all.flatMap(e => [...e.attributes].filter(a => ['src', 'href', 'srcset', "
        "'action'].includes(a.name)).map(a => a.value))",
    )
    assert [each for each in attributes if HOST in each or "/graphql" in each] == []
    inside = page.eval_on_selector_all(".dagster-markdown *", "all => all.map(e => e.tagName + ' ' + (e.src || ''))")
    plain = re.compile(r"(P|TABLE|THEAD|TBODY|TR|TH|TD|CODE|UL|LI|STRONG|DIV) $|IMG data:image/png")
    assert [each for each in inside if not plain.match(each)] == []


def assert_pages_show_text(workspace: Workspace, instance: dg.DagsterInstance, pages: list[tuple[str, str]]) -> None:
    """No request leaves for anything but the UI's own, and no element appears."""
    runs = {}
    sent = list[Request]()
    for run in instance.get_runs():
        for key in run.asset_selection or ():
            runs.setdefault(key.to_user_string() if run.is_success else "failed", run.run_id)
    shard = max(instance.get_dynamic_partitions("shard"), key=len)
    with served(workspace) as address, chromium() as browser:
        page = browser.new_context(viewport={"width": 1500, "height": 1200}).new_page()
        page.on("request", lambda request: sent.append(request))
        for path, text in pages:
            page.goto(address + path.format(shard=shard, **runs))
            page.get_by_text(text).first.wait_for()
            _assert_text_only(page)
            _open_everything(page)
    assert {request.url.split("/")[2] for request in sent} == {address.removeprefix("http://")}
    assert [r.url for r in sent if "/graphql" in r.url and (r.method != "POST" or r.resource_type == "image")] == []
