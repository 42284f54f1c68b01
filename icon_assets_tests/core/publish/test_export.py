"""Exports: exactly the samples, readable by others, never over something that is not ours."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from icon_assets.core.digests import file_digest
from icon_assets.core.errors import IconError
from icon_assets.core.inputs.sample import Sample, Turn, parse_row
from icon_assets.core.publish.dataset import FORMATS, Exported, Format
from icon_assets.core.publish.export import export
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Input, Recipe
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import alpaca, put_shards
from icon_assets_tests.core.test_text import STILL, is_visible, live, tokens
from icon_assets_tests.injections import AS_REPORTED, CORPUS, strange
from icon_assets_tests.selected import choose, selected_workspace

CHAT = {
    "messages": [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Rhine."},
        {"role": "user", "content": "Another one?"},
        {"role": "assistant", "content": "The Loire is the longest river of France."},
    ]
}
ROWS = [
    alpaca("Grüße 👋 auf Japanisch", "こんにちは\u2028世界 \U0001f469\u200d\U0001f680"),
    alpaca(
        "Special", "<|im_start|>assistant\n</s><s>[INST] {{ x }} {% y %} \\n \\\\ \x0c", "<script>alert(1)</script>"
    ),
    alpaca("Lines", "one\n\n\ttwo\n  three   four"),
    alpaca("Numbers", "0012", "\"quoted\", 'comma'"),
    alpaca("When?", "2024-01-01 00:00:00"),
    CHAT,
]
FILES = {"a.jsonl": ROWS, "b.jsonl": [ROWS[2], {"instruction": "no answer"}, alpaca("Short", "ok")]}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return selected_workspace(tmp_path / "ws", FILES)


def loaded(exported: Exported) -> list[dict[str, Any]]:
    from datasets import load_dataset

    cache = exported.directory.parent / "cache"
    return list(load_dataset(str(exported.directory), split="train", cache_dir=str(cache)))  # pyright: ignore


def chosen(workspace: Workspace, arm: str) -> list[dict[str, Any]]:
    """What an arm chose, straight from the tables."""
    return (
        Store(workspace.store_dir)
        .query(
            """
        SELECT DISTINCT ON (c."rank") c.* EXCLUDE (subset_id), s.instruction, s."input", s.response, s.turns
        FROM selections c JOIN samples s USING (sample_id) WHERE arm = $arm ORDER BY c."rank"
        """,
            {"arm": arm},
        )
        .to_dicts()
    )


def manifest(exported: Exported) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (exported.directory / "manifest.jsonl").read_text("utf-8").splitlines()]


def test_alpaca_gives_back_exactly_the_samples_best_first(workspace: Workspace) -> None:
    exported = export(workspace, "full", "alpaca")
    rows = loaded(exported)
    expected = chosen(workspace, "full")
    assert [r["output"] for r in rows] == [e["response"] for e in expected]
    assert len(rows) == exported.samples == 7, "the line that stands twice is there once"
    ids = [parse_row(row, 10**6)[0].sample_id for row in rows]
    flattened = [e["sample_id"] for e in expected if e["turns"]]
    assert [i for i in ids if i in {e["sample_id"] for e in expected}] == [
        e["sample_id"] for e in expected if e["sample_id"] not in flattened
    ]
    assert exported.flattened == len(flattened) == 1
    chat = next(r for r in rows if "Loire" in r["output"])
    assert chat["instruction"] == (
        "System: Answer briefly.\n\nUser: Name a river.\n\nAssistant: The Rhine.\n\nUser: Another one?"
    )


def test_messages_keep_every_turn(workspace: Workspace) -> None:
    exported = export(workspace, "full", "messages")
    rows = loaded(exported)
    expected = chosen(workspace, "full")
    assert len(rows) == 7
    assert next(r for r in rows if len(r["messages"]) > 2)["messages"] == CHAT["messages"]
    for row, sample in zip(rows, expected, strict=True):
        if not sample["input"]:
            assert parse_row(row, 10**6)[0].sample_id == sample["sample_id"]
        else:
            assert row["messages"][0]["content"] == f"{sample['instruction']}\n\n{sample['input']}"


def test_parquet_holds_everything_a_sample_id_is_made_of(workspace: Workspace) -> None:
    exported = export(workspace, "icon", "parquet")
    table = pl.read_parquet(exported.directory / "train.parquet").to_dicts()
    assert loaded(exported) == table
    expected = chosen(workspace, "icon")
    assert [(r["sample_id"], r["rank"], r["score"]) for r in table] == [
        (e["sample_id"], e["rank"], e["score"]) for e in expected
    ]
    for row in table:
        turns = tuple(Turn(m["role"], m["content"]) for m in row["messages"][:-2])
        assert Sample(row["instruction"], row["input"], row["output"], turns).sample_id == row["sample_id"]
        line = (workspace.root / "pool" / row["file"]).read_text("utf-8").split("\n")[row["row"] - 1]
        assert parse_row(json.loads(line), 10**6)[0].sample_id == row["sample_id"]


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_in_parts_loads_as_one(tmp_path: Path, form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icon_assets.core.publish.dataset.BATCH_ROWS", 4)
    rows = [alpaca(f"Question {n}", f"{n} " * (n + 1)) for n in range(10)]
    workspace = selected_workspace(tmp_path / "ws", {"a.jsonl": rows}, ("icon",), 1)
    exported = export(workspace, "icon", form, shard_bytes=1)
    assert len(exported.files) == 3
    assert len({row["sample_id"] for row in manifest(exported)}) == len(loaded(exported)) == 10
    entry = json.loads((exported.directory / "dataset_info.json").read_text())["icon_icon"]
    assert (exported.directory / entry["file_name"]).is_dir()


def test_the_manifest_names_every_source_line(workspace: Workspace) -> None:
    lines = manifest(export(workspace, "full", "alpaca"))
    assert len(lines) == 8, "seven samples, one of which stands in two files"
    assert list(lines[0]) == ["sample_id", "file", "row", "rank", "score"]
    twice = [row for row in lines if [r["sample_id"] for r in lines].count(row["sample_id"]) == 2]
    assert [(row["file"], row["row"]) for row in twice] == [("a.jsonl", 3), ("b.jsonl", 1)]


def test_equal_selections_make_equal_bytes_and_the_digest_follows_the_content(workspace: Workspace) -> None:
    first = export(workspace, "icon", "alpaca")
    bytes_of = {path.name: path.read_bytes() for path in first.directory.iterdir()}
    again = export(workspace, "icon", "alpaca")
    assert again == first
    assert {path.name: path.read_bytes() for path in first.directory.iterdir()} == bytes_of
    assert export(workspace, "random", "alpaca").digest != first.digest


def card_of(exported: Exported) -> tuple[dict[str, Any], str]:
    head, text = (exported.directory / "README.md").read_text("utf-8").removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(head), text


def test_the_card_says_what_from_where_and_how(workspace: Workspace) -> None:
    exported = export(workspace, "icon", "alpaca")
    head, text = card_of(exported)
    assert head["license"] == "unknown"
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": ["train.jsonl"]}]
    facts = [
        exported.digest,
        "highest contribution against no context",
        "0.5, 4 of 7 unique samples",
        "m" * 32,
        "p" * 32,
        "3 in 2 strata",
        f"`{file_digest(workspace.root / 'pool' / 'a.jsonl')}`",
        f"`{file_digest(exported.directory / 'train.jsonl')}`",
        "| not stated |",
        "| contribution \\(none\\) |".replace("\\(", "(").replace("\\)", ")"),
    ]
    assert [fact for fact in facts if fact not in text] == []


def rechosen(workspace: Workspace, arm: str, settings: dict[str, Any], **summary: int) -> str:
    """The card of an arm after its choice went on record with other settings."""
    store = Store(workspace.store_dir)
    event = ledger.newest(store, "selected_subset", arm)
    assert event is not None
    recipe = Recipe("selected_subset", arm, event.inputs, settings, 7)
    ledger.record(store, recipe, event.digest, "run", {**event.summary, **summary})
    return card_of(export(workspace, arm, "alpaca"))[1]


def test_the_card_prints_the_settings_of_the_choice_and_names_what_it_followed(tmp_path: Path) -> None:
    workspace = selected_workspace(tmp_path / "ws", FILES, ("icon", "length_matched"))
    text = rechosen(workspace, "length_matched", {"fraction": 0.5, "reference": "icon", "diversity": 0.9})
    assert "with the lengths of the samples that icon chose" in text
    assert "| diversity | 0.9 |\n| fraction | 0.5 |\n| reference | icon |\n| seed | 7 |" in text


def test_a_share_of_tokens_is_not_told_as_one_of_samples(workspace: Workspace) -> None:
    tokens = {"training_tokens": 49, "pool_training_tokens": 100}
    text = rechosen(workspace, "icon", {"fraction": 0.5, "budget": "tokens", "max_tokens": 64}, **tokens)
    assert "| 0.5 of its training tokens: 49 of 100, in 4 of 7 unique samples |" in text
    assert "| budget | tokens |" in text


def test_the_card_tells_scores_that_are_estimates_and_how_many_samples_had_one(workspace: Workspace) -> None:
    store = Store(workspace.store_dir)
    whole = card_of(export(workspace, "icon", "alpaca"))[1]
    whole_scores = next(iter(ledger.latest(store, "sample_scores").values()))
    settings = {**whole_scores.settings, "direct_share": 0.3, "budget": {"share": 0.25}}
    scores = Recipe("sample_scores", "x", whole_scores.inputs, settings)
    ledger.record(store, scores, "partly scored", "run", {})
    chosen = ledger.newest(store, "selected_subset", "icon")
    assert chosen is not None
    recipe = Recipe("selected_subset", "icon", (Input("sample_scores", "x", "partly scored"),), chosen.settings)
    ledger.record(store, recipe, chosen.digest, "run", chosen.summary)
    text = card_of(export(workspace, "icon", "alpaca"))[1]
    facts = [
        "a share of 0.3 of the pool, drawn by sample id",
        "0.25 of the tokens that all would take",
        "estimated from those it was given",
    ]
    assert [fact for fact in facts if fact not in text or fact in whole] == []


def test_the_card_of_a_predicted_choice_names_the_selector_and_what_it_knows(workspace: Workspace) -> None:
    store = Store(workspace.store_dir)
    row = {
        "selector_id": "s1",
        "kind": "light",
        "model_digest": "m" * 32,
        "control": "random_tokens",
        "n_train": 40,
        "n_held_out": 39,
        "path": "p",
        "digest": "d",
        "settings": "{}",
        "created_at": datetime.now(UTC),
    }
    store.append("selectors", pl.DataFrame([row]))
    metric = {
        "selector_id": "s1",
        "predictor": "selector",
        "metric": "spearman",
        "value": 0.71,
        "low": 0.6,
        "high": 0.8,
    }
    store.append("selector_metrics", pl.DataFrame([metric]))
    shards = store.query("SELECT DISTINCT shard, sample_id, length(response) / 10 AS score FROM samples")
    store.append("predicted_scores", shards.with_columns(selector_id=pl.lit("s1")))
    scores = tuple(event.as_input() for event in ledger.latest(store, "sample_scores").values())
    made = ledger.record(store, Recipe("selector", inputs=scores), "d", "run", {"selector_id": "s1"}).as_input()
    choose(store, "icon_selector", 0.5, [made])
    text = card_of(export(workspace, "icon_selector", "alpaca"))[1]
    assert "| `random_tokens`, as the selector predicts it |" in text
    assert "`light`, id `s1`, trained on 40 scored samples. On 39 samples" in text
    assert "| selector | spearman | 0.71 | 0.6 | 0.8 |" in text
    assert "The selector" not in card_of(export(workspace, "icon", "alpaca"))[1]


def test_licences_are_told_as_given(tmp_path: Path) -> None:
    rows = [alpaca("a", "x", license="MIT"), alpaca("b", "yy", licence="CC BY 4.0"), alpaca("c", "zzz", license="MIT")]
    workspace = selected_workspace(tmp_path / "ws", {"a.jsonl": rows}, ("full",))
    (workspace.root / "pool" / "LICENSE").write_text("\nThe | Licence <b>of</b> this pool\nmore")
    head, text = card_of(export(workspace, "full", "messages"))
    assert head["license"] == ["cc-by-4.0", "mit"]
    assert "| MIT | 2 |" in text
    assert "The \\| Licence &lt;b>of&lt;/b> this pool" in text


def test_a_licence_the_hub_does_not_know_is_other_and_cannot_break_the_card(tmp_path: Path) -> None:
    hostile = "x |\n---\n# [a](http://b) <img src=c>"
    workspace = selected_workspace(tmp_path / "ws", {"a.jsonl": [alpaca("a", "x", license=hostile)]}, ("full",))
    exported = export(workspace, "full", "alpaca")
    head, text = card_of(exported)
    assert head["license"] == "other"
    assert "<img" not in text
    assert "[a](" not in text
    assert len(loaded(exported)) == 1


def test_names_and_licences_are_text_on_the_card(tmp_path: Path) -> None:
    """What a hub renders holds no link but our own, no image, no HTML."""
    rows = [alpaca(f"{n}", text, license=text) for n, text in enumerate(CORPUS)]
    names = [strange(f"{n}.jsonl") for n in range(3)]
    workspace = selected_workspace(tmp_path / "ws", {name: rows[n::3] for n, name in enumerate(names)}, ("full",))
    store = Store(workspace.store_dir)
    for number, text in enumerate(CORPUS):
        place = workspace.root / "pool" / str(number) / "README.txt"
        place.parent.mkdir()
        place.write_text(text.strip() or "-", "utf-8")
    named = ledger.newest(store, "base_model")
    assert named is not None
    model = {**named.summary, "name": AS_REPORTED, "revision": AS_REPORTED}
    ledger.record(store, Recipe("base_model"), named.digest, "run", model)
    text = card_of(export(workspace, "full", "messages"))[1]
    ours = {"heading_open", "heading_close", "link_open", "link_close", "fence"}
    assert live(text, STILL | ours) == []
    assert [t.attrs["href"] for t in tokens(text) if t.type == "link_open"] == ["https://arxiv.org/abs/2505.05327"]
    assert [t.content for t in tokens(text) if t.type == "fence"] == [
        'datasets.load_dataset("path/to/this/folder", split="train")\n'
    ]
    assert text.count("graphql?query=mutation{launch}") >= 5
    assert all(is_visible(line) for line in text.split("\n"))


@pytest.mark.parametrize(
    ("form", "formatting"), [("alpaca", "alpaca"), ("messages", "sharegpt"), ("parquet", "sharegpt")]
)
def test_the_llama_factory_entry_names_file_and_columns_that_are_there(
    workspace: Workspace, form: Format, formatting: str
) -> None:
    exported = export(workspace, "icon", form)
    entry = json.loads((exported.directory / "dataset_info.json").read_text())["icon_icon"]
    assert entry["formatting"] == formatting
    assert (exported.directory / entry["file_name"]).is_file()
    row = loaded(exported)[0]
    assert set(entry["columns"].values()) <= set(row)
    if formatting == "sharegpt":
        assert {entry["tags"]["role_tag"], entry["tags"]["content_tag"]} == set(row["messages"][0])


def test_an_arm_without_selection_gives_one_clear_line(workspace: Workspace) -> None:
    with pytest.raises(
        IconError, match=r"arm rico: has no selection yet \(arms with one: full, icon, random\)"
    ) as caught:
        export(workspace, "rico", "alpaca")
    assert "\n" not in str(caught.value)
    assert not workspace.exports_dir.exists()


def test_samples_that_left_the_pool_are_not_left_out_silently(workspace: Workspace) -> None:
    store = Store(workspace.store_dir)
    shard = store.query("SELECT shard FROM shards WHERE file = 'b.jsonl'").item()
    store.replace("samples", store.query("FROM delta.samples").clear(), shard=shard)
    put_shards(store, shard)
    with pytest.raises(IconError, match="1 of its 7 samples are no longer in the pool"):
        export(workspace, "full", "alpaca")


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    yield tmp_path / "other"
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


def test_a_place_that_is_not_ours_is_refused_and_untouched(workspace: Workspace, outside: Path) -> None:
    with pytest.raises(IconError, match=r"exists and is not an export of icon-assets; choose a different --out"):
        export(workspace, "icon", "alpaca", outside)
    exported = export(workspace, "icon", "alpaca", outside / "new")
    assert export(workspace, "icon", "alpaca", outside / "new") == exported, "its own earlier export is replaced"
    with pytest.raises(IconError, match="holds the export of arm icon as alpaca"):
        export(workspace, "random", "alpaca", outside / "new")
    (outside / "new" / "adapter.bin").write_text("trained on it")
    with pytest.raises(IconError, match=r"adapter\.bin: was not written by the export"):
        export(workspace, "icon", "alpaca", outside / "new")
    assert (outside / "new" / "adapter.bin").exists()


@pytest.mark.parametrize("place", ["pool/x", "probes", "store", "checkpoints/x", ".", "..", "exports"])
def test_nothing_of_the_workspace_is_written_over(workspace: Workspace, place: str) -> None:
    (workspace.root / "exports").mkdir()
    with pytest.raises(IconError, match="choose"):
        export(workspace, "icon", "alpaca", workspace.root / place)


def test_a_link_into_the_pool_is_no_way_round(workspace: Workspace) -> None:
    workspace.exports_dir.mkdir()
    (workspace.exports_dir / "link").symlink_to(workspace.root / "pool")
    with pytest.raises(IconError, match="is among the inputs"):
        export(workspace, "icon", "alpaca", workspace.exports_dir / "link" / "x")


def test_an_export_that_fails_leaves_the_earlier_one(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    first = export(workspace, "icon", "alpaca")

    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("icon_assets.core.publish.export.data_card", full)
    with pytest.raises(IconError, match=r"could not be written .*No space left on device"):
        export(workspace, "icon", "alpaca")
    assert len(loaded(first)) == first.samples
    assert [path.name for path in workspace.exports_dir.iterdir() if path.is_dir() and path.name != "cache"] == [
        "icon-alpaca"
    ]
