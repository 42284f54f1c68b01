"""README and docs: what they show is so."""

import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import duckdb
import pytest
import typer
from typer.core import TyperGroup

from icon_assets.cli import main
from icon_assets.cli.command import app
from icon_assets.core.quality import RULES
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import STAGES
from icon_assets_tests.generated_docs import DOCS, PREVENTS, pages

ROOT = DOCS.parent
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
_FENCED = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_COMMAND = re.compile(r"(?:`|&& )(icon-assets [^`\n]+)`")
_TYPED = re.compile(r"^(?:\S*/)?(icon-assets .+)$", re.MULTILINE)
_IN_HTML = re.compile(r"(?:, \"|<code>)(icon-assets .+?)(?:\"\)|</code>)")
_MODULE = re.compile(r"`(?P<name>[a-z_]+(?:/[a-z_]+)?)`")


@pytest.mark.parametrize("name", ["checks.md", "settings.md"])
def test_generated_pages_are_what_the_code_says(name: str) -> None:
    made = (DOCS / name).read_text("utf-8")
    assert made == pages()[name], "write it again: python -m icon_assets_tests.generated_docs"


def test_every_check_says_what_it_prevents_and_nothing_else_does() -> None:
    assert set(PREVENTS) == {rule.name for rule in RULES}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 6000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert list(_dead_links(page)) == []


def test_every_page_of_the_docs_is_linked_from_the_readme() -> None:
    linked = {target for target in _links(ROOT / "README.md") if target.startswith("docs/")}
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= linked


def test_every_sql_statement_shown_runs(finished: Workspace) -> None:
    store = Store(finished.store_dir)
    statements = list(_statements())
    assert len(statements) >= 8
    for statement in statements:
        assert store.answer(statement).frame.columns, statement


def test_every_published_view_stands_in_the_docs(finished: Workspace) -> None:
    views = (
        "SELECT view_name FROM duckdb_views() WHERE NOT internal AND database_name = 'scores' AND schema_name = 'main'"
    )
    published = Store(finished.store_dir).answer(views).frame["view_name"].to_list()
    assert published
    shown = set(re.findall(r"`(\w+)`", (DOCS / "sql.md").read_text("utf-8")))
    assert set(published) <= shown


def test_every_command_shown_is_one() -> None:
    shown = set(_shown())
    assert len(shown) > 30
    for line in shown:
        name, values = _parsed(line)
        assert name in {"", *_group().commands}, f"{line}: {values}"
        assert set(values.get("select") or ()) <= {*STAGES, "..."}, line
        assert "fault" not in values or line == f"icon-assets {name}", f"{line}: {values['fault']}"
    assert {_parsed(line)[0] for line in shown} == {"", *_group().commands}


def test_every_command_shown_runs(finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ICON_WORKSPACE", str(finished.root))
    monkeypatch.setattr("icon_assets.core.selector.learning.LEAST_SAMPLES", 4)
    for name in ("data", "mine", "WORKSPACE"):
        (tmp_path / name).symlink_to(finished.root)
    ran: set[str] = set()
    # Runs come last: they change what the others read.
    for line in sorted({*_shown(), *_examples()}, key=lambda line: (" run" in line, line)):
        name, values = _parsed(line)
        if "fault" in values or "..." in line or "{" in line or name in {"", "ui"} or values.get("install"):
            continue  # no whole command, a server, a download, or a change of the shell's settings
        if "pairwise_results" in (values.get("select") or ()):
            continue  # there only where a judge is named
        if name == "init":
            shutil.rmtree(tmp_path / "new", ignore_errors=True)
            line = "icon-assets init new"
        words = shlex.split(line.replace("new.jsonl", "a.jsonl"), comments=True)
        assert main(words[1:]) == 0, line
        ran.add(name)
    ran_all = {"init", "model", "plan", "run", "status", "sql", "trust", "why", "export", "report", "verify", "repair"}
    assert ran == ran_all


def test_the_contract_shown_is_the_one_enforced() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = [each["layers"] for each in contracts if each["type"] == "layers"]
    assert "\n".join(layers) in [text.strip() for _, text in _blocks(DOCS / "architecture.md")]


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "architecture.md"], ids=lambda page: page.name)
def test_the_map_has_every_room(page: Path) -> None:
    rooms = {path.parent.name for path in (ROOT / "icon_assets" / "core").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"^\| `(\w+)` \|", page.read_text("utf-8"), re.MULTILINE)) & rooms


def test_every_module_on_a_walk_is_there() -> None:
    walks = (DOCS / "architecture.md").read_text("utf-8").partition("## Five walks")[2]
    modules = [name for name in _MODULE.findall(walks) if "/" in name]
    assert len(modules) > 30
    places = (ROOT / "icon_assets", ROOT / "icon_assets" / "core")
    assert [name for name in modules if not any((place / f"{name}.py").is_file() for place in places)] == []


def _shown() -> Iterator[str]:
    """Every command line in the docs, in the Makefile and in what the platform says, without the shell's comments."""
    for page in PAGES:
        text = page.read_text("utf-8")
        yield from _COMMAND.findall(_FENCED.sub("", text))
        yield from (line for _, block in _blocks(page) for line in _TYPED.findall(block))
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("$(WORKSPACE)", "data")
    yield from re.findall(r"\$\(BIN\)/(icon-assets .+)", makefile)
    for path in sorted((ROOT / "icon_assets").rglob("*.py")):
        yield from _COMMAND.findall(path.read_text("utf-8"))
    yield from map(unescape, _IN_HTML.findall((ROOT / "icon_assets" / "templates" / "report.html").read_text("utf-8")))


def _examples() -> Iterator[str]:
    """Those in the help of the commands."""
    for command in _group().commands.values():
        yield from (command.epilog or "").splitlines()


def _group() -> TyperGroup:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return group


def _parsed(line: str) -> tuple[str, dict[str, Any]]:
    """The command's name and its values as the command's own parser reads them; `fault` is what it says otherwise.
    Nothing is done; of an option that needs no command, such as `--install-completion`, the name is empty."""
    group = _group()
    group.callback = None
    for option in group.params:
        option.callback = _end if getattr(option, "is_flag", False) else None
    for name, command in group.commands.items():
        command.callback = partial(lambda name, **values: (name, values), name)
    try:
        return group.main(shlex.split(line, comments=True)[1:], standalone_mode=False) or ("", {})
    except typer.TyperException as fault:
        named = getattr(fault, "ctx", None)
        return named.command.name if named else line, {"fault": fault.format_message()}


def _end(context: Any, option: Any, given: Any) -> Any:
    if given:
        raise typer.Exit
    return given


def _dead_links(page: Path) -> Iterator[str]:
    for target in _links(page):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or (anchor and anchor not in _anchors(place)):
            yield target


def _links(page: Path) -> list[str]:
    return _LINK.findall(re.sub(r"`[^`\n]*`", "", _FENCED.sub("", page.read_text("utf-8"))))


def _anchors(page: Path) -> set[str]:
    """The anchors of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _blocks(page: Path) -> list[tuple[str, str]]:
    return _FENCED.findall(page.read_text("utf-8"))


def _statements() -> Iterator[str]:
    for page in PAGES:
        for language, text in _blocks(page):
            if language == "sql":
                for statement in duckdb.extract_statements(text):
                    yield statement.query
