"""The surface of the command: what it takes, where, what it ends with, and what goes to which stream."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from icon_assets.cli import main
from icon_assets.core.errors import IconError
from icon_assets.core.store.queries import Bounds
from icon_assets.core.store.tables import Store
from icon_assets.settings import SqlSettings
from icon_assets_tests.conftest import alpaca
from icon_assets_tests.selected import selected_workspace

DEFAULT_SECONDS = SqlSettings().timeout_seconds
COMMANDS = (
    "init",
    "model",
    "plan",
    "run",
    "sql",
    "trust",
    "why",
    "status",
    "verify",
    "repair",
    "export",
    "report",
    "ui",
)


class Ended(Exception):
    """What a command asked of the platform; it goes no further."""

    def __init__(self, *asked: Any) -> None:
        self.asked = asked


def asks(name: str, *asked: Any) -> Any:
    def ask(*arguments: Any, **more: Any) -> None:
        raise Ended(name, *(part(arguments, more) for part in asked))

    return ask


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace without data, in the working directory `tmp_path`; no variable names another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ICON_WORKSPACE", "")  # put back afterwards
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("data", "other"):
        (tmp_path / name / "pool").mkdir(parents=True)
        (tmp_path / name / "settings.yaml").write_text("{}\n")
    return tmp_path / "data"


@pytest.fixture
def heard(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the command; what it asked of the platform, with the name of the workspace."""

    def of_workspace(arguments: Any, more: Any) -> str:
        return arguments[0].root.name

    def rest(arguments: Any, more: Any) -> tuple[Any, ...]:
        return arguments[1:]

    def answered(self: Store, query: str, bounds: Bounds) -> None:
        raise Ended("sql", self.path.parent.parent.name, query, bounds.seconds)

    def queried(self: Store, query: str) -> pl.DataFrame:
        return pl.DataFrame({"arm": ["icon", "random"], "figure": ["x", "y"]})

    def warned(figures: pl.DataFrame, warning: float) -> None:
        raise Ended("trust", figures["arm"].to_list())

    def ran(*arguments: Any, files: Any, asked: Any, **more: Any) -> None:
        raise Ended("run", arguments[1].root.name, list(asked), list(files))

    monkeypatch.setattr(
        "icon_assets.home.create_workspace", asks("init", lambda arguments, more: arguments[0].as_posix())
    )
    monkeypatch.setattr("icon_assets.definitions.build_assets", lambda workspace: ())
    monkeypatch.setattr("icon_assets.runner.stages_of", lambda assets, names: list(names))
    monkeypatch.setattr("icon_assets.runner.run_stages", ran)
    monkeypatch.setattr("icon_assets.core.publish.export.export", asks("export", of_workspace, rest))
    monkeypatch.setattr("icon_assets.core.publish.report.write_report", asks("report", of_workspace, rest))
    monkeypatch.setattr("icon_assets.ui.terminal.run_ui", asks("ui", lambda arguments, more: arguments))
    monkeypatch.setattr("icon_assets.core.quality.verification.verify", asks("verify", of_workspace))
    monkeypatch.setattr("icon_assets.core.store.restoration.repair", asks("repair"))
    monkeypatch.setattr("icon_assets.core.store.restoration.repairs", asks("repairs"))
    monkeypatch.setattr("icon_assets.resources.WorkspaceResource.plan", asks("plan"))
    monkeypatch.setattr("icon_assets.core.trust.warnings.warnings", warned)
    monkeypatch.setattr("icon_assets.core.publish.why.why", asks("why", of_workspace, rest))
    monkeypatch.setattr(Store, "answer", answered)
    monkeypatch.setattr(Store, "query", queried)

    def call(*arguments: str) -> tuple[Any, ...]:
        with pytest.raises(Ended) as ended:
            main(arguments)
        return ended.value.asked

    return call


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["init", "new"], ("init", "new")),
        (["init", "--json", "new/er"], ("init", "new/er")),
        (["plan"], ("plan",)),
        (["verify"], ("verify", "data")),
        (["repair"], ("repairs",)),
        (["repair", "--yes"], ("repair",)),
        (["run"], ("run", "data", [], [])),
        (["run", "--select", "a"], ("run", "data", ["a"], [])),
        (["run", "--select", "a", "b", "--shards", "c", "d", "--json"], ("run", "data", ["a", "b"], ["c", "d"])),
        (["run", "--select=a", "--shards=c"], ("run", "data", ["a"], ["c"])),
        (["run", "--select", "a", "b", "-w", "other"], ("run", "other", ["a", "b"], [])),
        (["run", "--select", "a", "--select", "b", "c"], ("run", "data", ["b", "c"], [])),
        (["sql", "FROM samples"], ("sql", "data", "FROM samples", DEFAULT_SECONDS)),
        (["sql", "FROM samples", "--timeout", "1.5"], ("sql", "data", "FROM samples", 1.5)),
        (["sql", "--timeout=2", "FROM samples"], ("sql", "data", "FROM samples", 2)),
        (["sql", "--json", "--", "--x"], ("sql", "data", "--x", DEFAULT_SECONDS)),
        (["sql", "-- What is this?\nSELECT 1"], ("sql", "data", "-- What is this?\nSELECT 1", DEFAULT_SECONDS)),
        (["sql", "-- a = b", "--timeout", "3"], ("sql", "data", "-- a = b", 3)),
        (["sql", "-1"], ("sql", "data", "-1", DEFAULT_SECONDS)),
        (["sql", ""], ("sql", "data", "", DEFAULT_SECONDS)),
        (["trust"], ("trust", ["icon", "random"])),
        (["trust", "--arm", "icon"], ("trust", ["icon"])),
        (["why", "a.jsonl:2"], ("why", "data", ("a.jsonl:2", None))),
        (["why", "--arm", "icon", "3f2a9c01", "--json"], ("why", "data", ("3f2a9c01", "icon"))),
        (["why", "a file:1.jsonl:2", "-w", "other"], ("why", "other", ("a file:1.jsonl:2", None))),
        (["why", "--", "-rf.jsonl:1"], ("why", "data", ("-rf.jsonl:1", None))),
        (["export", "--arm", "icon", "--format", "alpaca"], ("export", "data", ("icon", "alpaca", None))),
        (["export", "--format", "messages", "--arm", "icon"], ("export", "data", ("icon", "messages", None))),
        (
            ["export", "--arm", "[red]", "--format", "parquet", "--out", "a b"],
            ("export", "data", ("[red]", "parquet", Path("a b"))),
        ),
        (["report"], ("report", "data", (None,))),
        (["report", "--out", "page.html"], ("report", "data", (Path("page.html"),))),
        (["ui"], ("ui", (3000, False, False))),
        (["ui", "--port", "0", "--read-only", "--json"], ("ui", (0, True, True))),
        (["ui", "--port", "-1"], ("ui", (-1, False, False))),
    ],
    ids=str,
)
def test_what_is_typed_is_what_is_asked_of_the_platform(heard: Any, arguments: list[str], asked: tuple[Any]) -> None:
    assert heard(*arguments) == asked


@pytest.mark.parametrize(
    "arguments",
    [
        ["-w", "other", "verify"],
        ["--workspace", "other", "verify"],
        ["--workspace=other", "verify"],
        ["-wother", "verify"],
        ["-w=other", "verify"],
        ["verify", "-w", "other"],
        ["verify", "--workspace", "other", "--json"],
        ["-w", "data", "verify", "-w", "other"],
        ["-w", "data", "-w", "other", "verify"],
        ["--work", "other", "verify"],
        ["verify", "--w", "other"],
    ],
    ids=" ".join,
)
def test_the_workspace_is_named_before_or_after_the_command_and_the_last_one_counts(
    heard: Any, arguments: list[str]
) -> None:
    assert heard(*arguments) == ("verify", "other")


def test_without_one_named_the_workspace_is_that_of_the_variable_then_data(
    heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert heard("verify") == heard("-w", "", "verify") == ("verify", "data")
    monkeypatch.setenv("ICON_WORKSPACE", "other")
    assert heard("verify") == ("verify", "other")
    assert heard("-w", "data", "verify") == ("verify", "data")


def test_long_options_may_be_cut_where_one_is_meant(heard: Any) -> None:
    assert heard("run", "--sel", "a", "b", "--sh", "c", "--js") == ("run", "data", ["a", "b"], ["c"])
    assert heard("ui", "--read", "--p=5") == ("ui", (5, True, False))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "COMMAND"),
        (["-w", "other"], "COMMAND"),
        (["frobnicate"], "'frobnicate'"),
        (["Plan"], "'Plan'"),
        (["--frobnicate", "plan"], "--frobnicate"),
        (["--json", "plan"], "--json"),
        (["-w"], "--workspace"),
        (["plan", "-w"], "--workspace"),
        (["run", "--frobnicate"], "--frobnicate"),
        (["run", "--s", "a"], "--shards"),
        (["run", "a"], "a"),
        (["run", "--select"], "--select"),
        (["run", "--select", "--json"], "--select"),
        (["init"], "directory"),
        (["init", "a", "b"], "b"),
        (["sql"], "query"),
        (["sql", "a", "b"], "b"),
        (["sql", "a", "--timeout"], "--timeout"),
        (["sql", "a", "--timeout", "0"], "--timeout"),
        (["sql", "a", "--timeout", "-1"], "must be more than 0"),
        (["sql", "a", "--timeout", "nan"], "must be more than 0"),
        (["sql", "a", "--timeout", "x"], "--timeout"),
        (["trust", "--arm"], "--arm"),
        (["trust", "--arm", "--json"], "--arm"),
        (["why"], "sample"),
        (["why", "a", "b"], "b"),
        (["why", "a", "--arm"], "--arm"),
        (["export", "--arm", "icon"], "--format"),
        (["export", "--format", "alpaca"], "--arm"),
        (["export", "--arm", "icon", "--format", "csv"], "'alpaca', 'messages', 'parquet'"),
        (["export", "--arm", "icon", "--format", "Alpaca"], "--format"),
        (["ui", "--port", "x"], "--port"),
        (["ui", "--port", "1.5"], "--port"),
        (["plan", "--json=1"], "--json"),
        (["plan", "--no-json"], "--no-json"),
        (["[red]x[/red]"], "[red]x[/red]"),
        (["\x1b[31mx"], "No such command"),
    ],
    ids=str,
)
def test_bad_usage_ends_with_2_and_a_line_that_names_the_option(
    heard: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert named.lower() in line.lower()
    assert re.fullmatch(r"icon-assets( \w+)?: error: [^`]+; see `icon-assets( \w+)? --help`", line)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_json_and_a_workspace(capsys: pytest.CaptureFixture[str], name: str) -> None:
    for way in ("-h", "--help"):
        assert main([name, way]) == 0
        said = capsys.readouterr().out
        assert f"Examples:\n  icon-assets {'-w mine ' if name == 'run' else ''}{name}" in said
        assert {"--json", "--workspace", "-w", "--help", "-h"} <= set(said.replace(",", " ").split())
    assert main(["--help"]) == 0
    assert f"\n  {name}" in capsys.readouterr().out


def test_help_groups_the_commands_by_what_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    shown = {
        head: re.findall(r"^  ([a-z]+)  ", text, re.MULTILINE)
        for head, text in re.findall(r"^(\S.*):\n((?:  .*\n)+)", said, re.MULTILINE)
    }
    del shown["Options"]
    assert shown == {
        "Set up": ["init", "model"],
        "Run": ["plan", "run"],
        "Look": ["status", "sql", "trust", "why", "ui"],
        "Publish": ["export", "report"],
        "Keep safe": ["verify", "repair"],
    }


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"icon-assets {version('icon-assets')}\n"


def completed(cwd: Path, *words: str) -> list[str]:
    """What a shell offers for the last word."""
    asked = {
        "_ICON_ASSETS_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["icon-assets", *words]),
        "COMP_CWORD": str(len(words)),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    return subprocess.run(
        [sys.executable, "-m", "icon_assets.cli"],
        env={**os.environ, **asked},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


def test_a_shell_completes_commands_options_formats_and_arms(root: Path) -> None:
    (root / "settings.yaml").write_text("selection: {arms: [full, icon]}\n")
    assert completed(root.parent, "re") == ["report", "repair"]
    assert completed(root.parent, "run", "--select", "a", "b", "--sh") == ["--shards"]
    assert completed(root.parent, "export", "--format", "") == ["alpaca", "messages", "parquet"]
    assert completed(root.parent, "trust", "--arm", "") == ["full", "icon"]
    assert completed(root.parent, "why", "a.jsonl:1", "--arm", "") == ["full", "icon"]
    assert completed(root.parent, "-w", "other", "export", "--arm", "length") == ["length_matched"]
    assert completed(root.parent, "trust", "-w", "nowhere", "--arm", "") == []


def test_help_loads_nothing_that_computes() -> None:
    code = (
        "import sys; from icon_assets.cli import main; main(['--help']); "
        "heavy = {'torch', 'dagster', 'polars', 'duckdb', 'numpy', 'pydantic', 'rich'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_fault_is_one_line_or_one_value_and_ends_with_1(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise IconError("x: [red]broken[/red]; mend it")

    monkeypatch.setattr("icon_assets.core.quality.verification.verify", fails)
    assert main(["verify"]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "icon-assets: x: [red]broken[/red]; mend it\n")
    assert main(["verify", "--json"]) == 1
    said = capsys.readouterr()
    assert (json.loads(said.out), said.err) == ({"error": "x: [red]broken[/red]; mend it"}, "")


def test_ctrl_c_says_that_work_is_kept_and_a_query_ends_with_130(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("icon_assets.core.quality.verification.verify", interrupted)
    monkeypatch.setattr(Store, "answer", interrupted)
    assert main(["verify"]) == 1
    assert capsys.readouterr().err == "icon-assets: interrupted; finished work is kept, run again to continue\n"
    assert main(["sql", "SELECT 1"]) == 130
    assert capsys.readouterr().err == "icon-assets: sql: interrupted\n"
    assert main(["sql", "SELECT 1", "--json"]) == 130
    assert json.loads(capsys.readouterr().out) == {"error": "sql: interrupted"}


def test_what_was_found_is_the_exit_code(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(*mismatches: str) -> Any:
        return lambda workspace: SimpleNamespace(mismatches=list(mismatches), known_from_here=[], tables=3, rows=1200)

    monkeypatch.setattr("icon_assets.core.quality.verification.verify", found())
    assert main(["verify"]) == 0
    assert capsys.readouterr().out == "3 tables, 1,200 rows: all as recorded\n"
    monkeypatch.setattr("icon_assets.core.quality.verification.verify", found("[b]table[/b] x"))
    assert main(["verify"]) == 1
    assert capsys.readouterr().out.startswith("! [b]table[/b] x\n3 tables, 1,200 rows: 1 mismatches; ")
    monkeypatch.setattr("icon_assets.ui.terminal.run_ui", lambda port, read_only, as_json: 7)
    assert main(["ui"]) == 7


def test_a_reader_that_has_gone_is_no_fault(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("icon_assets.core.quality.verification.verify", gone)
    monkeypatch.setattr("sys.stdout", open(os.devnull, "w"))  # noqa: SIM115, PTH123  (replaced by the command)
    assert main(["verify"]) == 1


def test_why_prints_lines_or_strict_json_and_a_fault_is_one_line(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = [alpaca(f"Ask \x1b[31m {n}", "\u202e" * n + "x", "") for n in range(1, 5)]
    selected_workspace(root, {"a.jsonl": [*hostile, hostile[0], {"instruction": "no answer"}]}, ("icon",))
    assert main(["why", "a.jsonl:2"]) == 0
    said = capsys.readouterr().out
    assert "Ask \\x1b[31m 2" in said
    assert all(line.isprintable() for line in said.splitlines())
    assert main(["why", "a.jsonl:2", "--arm", "icon", "--json"]) == 0
    text = capsys.readouterr().out
    answer = json.loads(text, parse_constant=pytest.fail)
    assert text.isascii()
    assert answer["sample"]["texts"]["instruction"] == "Ask \x1b[31m 2"
    assert [arm["arm"] for arm in answer["arms"]] == ["icon"]
    for place, why in (("5", "is a duplicate of a.jsonl:1"), ("6", "is quarantined: missing_field")):
        assert main(["why", f"a.jsonl:{place}"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"icon-assets: a.jsonl:{place}: {why}")
    assert main(["why", "\x1b[31m", "--json"]) == 1
    assert set(json.loads(capsys.readouterr().out)) == {"error"}
