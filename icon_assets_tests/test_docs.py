"""README and docs: what they show is so."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from icon_assets.core.quality import RULES
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace
from icon_assets_tests.generated_docs import DOCS, PREVENTS, pages

ROOT = DOCS.parent
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
_FENCED = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_COMMAND = re.compile(r"`icon-assets(?: -w \w+)? ([a-z]+)")
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
    asked = subprocess.run(
        [sys.executable, "-m", "icon_assets.cli", "--help"], capture_output=True, text=True, check=True
    )
    shown = {name for page in PAGES for name in _COMMAND.findall(page.read_text("utf-8"))}
    assert {"init", "run", "sql", "verify", "ui"} <= shown <= set(re.findall(r"\w+", asked.stdout))


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
