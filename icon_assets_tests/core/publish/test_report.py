"""The report: one file that loads nothing, runs nothing but its own search, and says what is missing."""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from icon_assets.core.errors import IconError
from icon_assets.core.publish.report import gather, write_report
from icon_assets.core.publish.report_search import search_script
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Recipe
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import alpaca
from icon_assets_tests.selected import SCORE_KEY, selected_workspace

HOSTILE = [
    alpaca("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'),
    alpaca("{{ 7 * 7 }} {% raw %}", "</style></svg></main><iframe src=//evil.example></iframe>"),
    alpaca("<a href='https://evil.example'>x</a>", "javascript:alert(1) &lt;b&gt; \x1b[31m \u202eabc"),
    alpaca("long", "word " * 1000),
    alpaca("short", "ok"),
    alpaca("line one\nline two", "a\tb"),
]


class Page(HTMLParser):
    """The elements of a page, its visible text, every address in it, and what its scripts hold: data, then code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "action", "data", "srcset", "poster", "background"}:
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

        if tag == "script":
            assert attrs in ([("type", "application/json"), ("id", "samples")], []), attrs
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return selected_workspace(tmp_path / "<b>ws", {"a<img>.jsonl": [*HOSTILE, {"instruction": "<script>no answer"}]})


def add_figures(store: Store) -> None:
    """Rows of every further table, with names that try to get out of their place."""
    subsets = {arm: event.digest for arm, event in ledger.latest(store, "selected_subset").items()}
    trust = [
        ("length_auc", "", 0.93),
        ("length_spearman", "", 0.4),
        ("nestedness", "0.3", 1.0),
        ("arm_overlap", "random", 0.25),
        ("stratum_share", "<script>stratum", 0.5),
        ("probe_overlap", "another set of as many probes", 0.7),
    ]
    rows = [
        {
            "subset_id": subsets["icon"],
            "arm": "icon",
            "figure": f,
            "against": a,
            "value": v,
            "low": v - 0.1,
            "high": None,
            "detail": "<script>",
        }
        for f, a, v in trust
    ]
    old = {**rows[0], "subset_id": "an older subset", "value": 0.123}
    store.replace("trust_figures", pl.DataFrame([*rows, old], schema_overrides={"high": pl.Float64}))
    differences = [
        ("held_out", "worse", 0.2),
        ("<script>task", "not distinguishable", 0.1),
        ("held_out/x", "better", -0.3),
    ]
    rows = [
        {
            "arm": "icon",
            "against": "random",
            "task": t,
            "metric": "perplexity",
            "difference": d,
            "low": d - 0.15,
            "high": d + 0.15,
            "n_seeds": 2,
            "verdict": v,
            "n_items": 50,
            "p_value": 0.2,
            "n_comparisons": 4,
        }
        for t, v, d in differences
    ]
    store.replace("leaderboard_differences", pl.DataFrame(rows))
    selector = {
        "selector_id": "s",
        "kind": "light",
        "model_digest": "m" * 32,
        "control": "none",
        "n_train": 4,
        "n_held_out": 4,
        "path": "p",
        "digest": "d",
        "settings": "{}",
        "created_at": datetime.now(UTC),
    }
    store.append("selectors", pl.DataFrame([selector]))
    store.replace(
        "selector_metrics",
        pl.DataFrame(
            {
                "selector_id": ["s"],
                "predictor": ["length"],
                "metric": ["auc"],
                "value": [0.5],
                "low": [0.4],
                "high": [0.6],
            }
        ),
    )
    for seed in (0, 1):
        run = {
            "checkpoint_id": f"c{seed}",
            "arm": "icon",
            "seed": seed,
            "subset_id": subsets["icon"],
            "model_digest": "m" * 32,
            "path": "p",
            "digest": "d",
            "n_samples": 3,
            "n_tokens": 10**9,
            "n_response_tokens": 500,
            "n_steps": 4,
            "seconds": 2.5,
            "final_loss": 1.0,
            "flops": 10**15,
            "settings": '{"method":"lora"}',
            "created_at": datetime.now(UTC),
        }
        store.replace("checkpoints", pl.DataFrame([run]), checkpoint_id=f"c{seed}")
        losses = {"checkpoint_id": f"c{seed}", "step": [1, 2, 3, 4], "loss": [4.0, 3.0, 2.0, 1.0], "learning_rate": 0.1}
        store.replace("loss_curves", pl.DataFrame(losses), checkpoint_id=f"c{seed}")
        results = {
            "checkpoint_id": f"c{seed}",
            "arm": "icon",
            "seed": seed,
            "task": ["held_out", "held_out/<script>"],
            "metric": "perplexity",
            "value": [24.5 + seed, 3.0],
            "stderr": None,
        }
        store.replace(
            "eval_results", pl.DataFrame(results, schema_overrides={"stderr": pl.Float64}), checkpoint_id=f"c{seed}"
        )
        ledger.record(store, Recipe("eval_results", f"icon|{seed}"), "d", "run", {"checkpoint_id": f"c{seed}"})
    cost = {
        "created_at": datetime.now(UTC),
        "score_key": "k",
        "work": "pairs",
        "device": "<script>cpu",
        "engine": "e",
        "pairs": 5,
        "forwards": 1,
        "tokens": 1234567,
        "flops": 10**12,
        "seconds": 9.0,
        "peak_flops_per_second": 1e12,
    }
    store.append("scoring_costs", pl.DataFrame([cost]))


def assert_scripts_are_ours(path: Path) -> None:
    """The page has two script elements: JSON, which no browser runs, and the shipped code, the only one that the policy
    admits. Nothing of the JSON could begin or end an element."""
    data, code = Page(path).scripts
    assert not set(data) & set("<>&")
    assert json.loads(data).keys() == {"id", "text", "line", "more", "files", "arms"}
    assert code == search_script()
    text = path.read_text("utf-8")
    assert text.lower().count("<script") == text.lower().count("</script") == 2
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    hashed = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{hashed}'"


def test_hostile_samples_are_text_and_nothing_else(workspace: Workspace) -> None:
    add_figures(Store(workspace.store_dir))
    report = write_report(workspace)
    page = Page(report.path)
    assert_scripts_are_ours(report.path)
    assert not set(page.tags) & {"iframe", "img", "object", "embed", "link", "form", "base", "b" * 2}
    assert page.handlers == []
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }} {% raw %}" in page.text
    assert "\\x1b[31m \\u202eabc" in page.text, "what steers a terminal or turns the direction of writing is shown"
    assert "</style></svg></main>" in page.text
    assert "line one\nline two" in page.text
    assert "&lt;b&gt;" in page.text, "an entity in a sample stays the entity it is"


def test_nothing_on_the_page_is_invisible_or_turns_the_direction_of_writing(tmp_path: Path) -> None:
    hidden = "\u200b\u2060\ufeff\u202e\u2066\u00ad\u200d"
    rows = [alpaca(f"Question {n} {hidden}", f"Answer\n{hidden} {n}") for n in range(4)]
    workspace = selected_workspace(tmp_path / "ws", {f"file{hidden}.jsonl": [*rows, {hidden: 1}]})
    store = Store(workspace.store_dir)
    add_figures(store)
    for table, column in (("trust_figures", "detail"), ("scoring_costs", "device"), ("models", "name")):
        store.replace(table, store.query(f"FROM delta.{table}").with_columns(pl.lit(f"x{hidden}").alias(column)))
    text = write_report(workspace).path.read_text("utf-8")
    assert [character for character in hidden if character in text] == []
    assert text.count("\\u200b\\u2060\\ufeff\\u202e\\u2066\\xad\\u200d") >= 10


def test_joiners_that_writing_needs_stay_on_the_page(tmp_path: Path) -> None:
    workspace = selected_workspace(
        tmp_path / "ws", {"a.jsonl": [alpaca(f"می‌خواهم {n}", f"👨‍👩‍👧 {n}") for n in range(4)]}
    )
    text = Page(write_report(workspace).path).text
    assert "می‌خواهم 0" in text
    assert "👨‍👩‍👧 0" in text


def test_the_page_loads_nothing_from_anywhere(workspace: Workspace) -> None:
    add_figures(Store(workspace.store_dir))
    path = write_report(workspace).path
    assert [address for address in Page(path).addresses if not address.startswith("#")] == []
    text = path.read_text("utf-8")
    assert not re.search(r"url\((?!#)|@import", text)
    assert "default-src 'none'" in text, "and a browser would refuse to"


def test_every_section_is_filled_when_its_table_is(workspace: Workspace) -> None:
    add_figures(Store(workspace.store_dir))
    report = write_report(workspace)
    assert list(report.missing) == ["pairwise"]
    page = Page(report.path)
    assert page.text.count("To fill this section") == 1
    for shown in (
        "A loss: worse than random in held-out perplexity; 2 seeds.",
        "held_out perplexity against random: +0.20, +0.05 to +0.35",
        "Length alone separates its samples from the rest (AUC 0.93: they are longer)",
        "25",
        "± 0.71, 2 seeds",
        "1,234,567",
        "1 T",
        "2 P",
        "6 scored",
        "missing_field",
        "word word",
        "more characters",
    ):
        assert shown in page.text, shown
    assert "0.12" not in page.text, "figures of an older subset are left out"


@pytest.mark.parametrize(("auc", "said"), [(0.05, "(AUC 0.05: they are shorter)"), (0.8, None), (0.21, None)])
def test_a_choice_of_the_shortest_is_marked_as_one_by_length_too(
    workspace: Workspace, auc: float, said: str | None
) -> None:
    store = Store(workspace.store_dir)
    add_figures(store)
    rows = store.query("FROM delta.trust_figures WHERE figure = 'length_auc' AND subset_id <> 'an older subset'")
    store.replace("trust_figures", rows.with_columns(value=pl.lit(auc), low=None, high=None))
    path = write_report(workspace).path
    assert (re.search(rf'<span class="worse">\s*{auc}', path.read_text("utf-8")) is not None) == bool(said)
    assert ("Length alone separates" in Page(path).text) == bool(said)
    assert (said or "") in Page(path).text


def test_a_comparison_of_which_no_verdict_was_readable_is_shown_without_a_win_rate(workspace: Workspace) -> None:
    store = Store(workspace.store_dir)
    add_figures(store)
    row = {
        "checkpoint_id": "c0",
        "other_id": "c1",
        "arm": "icon",
        "against": "random",
        "seed": 0,
        "prompt_set": "talk",
        "n": 0,
        "wins": 0,
        "ties": 0,
        "losses": 0,
        "win_rate": None,
        "low": None,
        "high": None,
        "unreadable": 3,
        "judge": "j",
    }
    rates: Any = dict.fromkeys(("win_rate", "low", "high"), pl.Float64)
    store.append("pairwise_results", pl.DataFrame([row], schema_overrides=rates))
    report = write_report(workspace)
    assert list(report.missing) == []
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", report.path.read_text("utf-8").split("Answers compared by a judge")[1])
    assert cells[:9] == ["icon", "random", "0", "talk", "0", "3", "0", "0", "0"]
    assert cells[9] == "-"


def test_the_leaderboard_says_what_each_arm_cost(workspace: Workspace) -> None:
    store = Store(workspace.store_dir)
    add_figures(store)
    store.replace(
        "scoring_costs",
        store.query("SELECT * EXCLUDE peak_share FROM scoring_costs").with_columns(
            score_key=pl.lit(SCORE_KEY), flops=3 * 10**15
        ),
    )
    subset = ledger.newest(store, "selected_subset", "icon")
    assert subset is not None
    ledger.record(
        store, Recipe("selected_subset", "icon", settings=subset.settings), subset.digest, "run", {"owes": ["pairs"]}
    )
    row = write_report(workspace).path.read_text("utf-8").split('id="leaderboard"')[1].split("<b>icon</b>")[1]
    assert re.findall(r"[\w ]*\d P", row)[:3] == ["4 P", "scoring 3 P", "training 1 P"]


def test_an_empty_workspace_has_a_report_that_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({}))
    report = write_report(Workspace.load(tmp_path))
    page = Page(report.path)
    assert "Nothing has been run yet" in page.text
    assert page.text.count("To fill this section") >= 9
    assert "icon-assets run --select selected_subset" in page.text
    assert {"verdict", "leaderboard", "scores", "examples", "coverage", "trust", "losses", "lineage"} <= set(
        report.missing
    )


def test_equal_stores_make_equal_pages(workspace: Workspace) -> None:
    add_figures(Store(workspace.store_dir))
    first = write_report(workspace)
    text = first.path.read_bytes()
    assert write_report(workspace) == first
    assert first.path.read_bytes() == text


def test_chosen_and_not_chosen_are_told_apart_and_no_sample_is_shown_twice(tmp_path: Path) -> None:
    rows = [alpaca(f"Question number {n}.", "x" * (n + 1)) for n in range(40)]
    workspace = selected_workspace(tmp_path / "ws", {"a.jsonl": rows}, ("icon",), 0.25)
    text = Page(write_report(workspace).path).text
    best = text.index("Question number 39.")
    rest = text.index("Question number 29.")
    assert text.index("Chosen: first ranks") < best < text.index("Not chosen: highest") < rest
    shown = re.findall(r"Question number \d+\.", text)
    assert len(shown) == len(set(shown)) == 12
    assert text.index("Chosen: last ranks") < text.index("Question number 30.") < text.index("Question number 0.")


def test_samples_that_were_not_scored_count_for_length_and_are_said_to_lack_examples(tmp_path: Path) -> None:
    rows = [alpaca(f"Question number {n}.", "x" * (n + 1)) for n in range(40)]
    workspace = selected_workspace(tmp_path / "ws", {"a.jsonl": rows}, ("random", "longest"), 0.25)
    store = Store(workspace.store_dir)
    store.replace("sample_scores", store.query("FROM delta.sample_scores WHERE n_context_tokens <= 34"))
    trust = gather(workspace)["sections"]["trust"]
    assert trust["scored"]["longest"] == (4, 10)
    assert trust["scored"]["random"][0] < 10 == trust["scored"]["random"][1]
    assert trust["lengths"]["longest"] != 32.5, "that is the median of the scored ones"
    assert trust["pool_length"] != 17.5, "likewise"
    text = Page(write_report(workspace).path).text
    assert "longest: of the 4 of 10 chosen samples that are scored" in text
    assert "longest4 of 10 scored" in text
    assert "Question number 39." not in text


def test_only_an_earlier_report_is_written_over(workspace: Workspace, tmp_path: Path) -> None:
    mine = tmp_path / "thesis.html"
    mine.write_text("<!doctype html>mine")
    with pytest.raises(IconError, match=r"exists and is not a report of icon-assets; choose a different --out"):
        write_report(workspace, mine)
    assert mine.read_text() == "<!doctype html>mine"
    with pytest.raises(IconError, match="is among the inputs"):
        write_report(workspace, workspace.root / "pool" / "report.html")
    out = write_report(workspace, tmp_path / "out.html").path
    assert write_report(workspace, out).path == out


def test_samples_that_left_the_pool_do_not_stop_the_report(workspace: Workspace) -> None:
    store = Store(workspace.store_dir)
    gone: Any = store.query("FROM delta.samples").clear()
    store.replace("samples", gone)
    assert "no longer in the pool" in Page(write_report(workspace).path).text


def test_a_selection_whose_scores_are_of_an_earlier_model_does_not_stop_the_report(workspace: Workspace) -> None:
    newer = {"score_key": "newer", "model_digest": "n" * 32, "settings": "{}", "created_at": datetime.now(UTC)}
    Store(workspace.store_dir).append("score_keys", pl.DataFrame([newer]))
    report = write_report(workspace)
    assert "scores" in report.missing
    assert "0 scored" in Page(report.path).text
