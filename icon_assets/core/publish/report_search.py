"""The data of the report's search box, as JSON in the page: samples of the pool with scores, ranks and subsets."""

import base64
import hashlib
import json
import math
from importlib import resources
from typing import Any

import polars as pl
from markupsafe import Markup

from icon_assets.core.publish.rankings import Rankings
from icon_assets.core.publish.report_source import Source
from icon_assets.core.text import printable

MOST_SAMPLES = 20_000  # about 6 MB with five arms and texts in Latin letters
ASKED_CHARS = 120
ANSWERED_CHARS = 80
_LINES = 6  # of one sample
# No sequence of characters in the data can end the element, or begin one.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def search_script() -> Markup:
    """The script of the search box. It is the only one that the page's policy admits."""
    script = (resources.files("icon_assets") / "templates" / "search.js").read_text("utf-8")
    return Markup(script)  # noqa: S704  (our own text)


def script_hash(script: str) -> str:
    """The source expression of a script for a content-security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def embedded_json(value: Any) -> Markup:
    """JSON that can stand in a `script` element: it has no character that HTML gives a meaning there."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return Markup(text)  # noqa: S704  (escaped above)


def search_section(source: Source, most: int = MOST_SAMPLES) -> dict[str, Any] | None:
    """At most `most` samples: those that an arm chose first, then by the primary ranking. None for an empty pool."""
    rankings = Rankings(source.workspace, source.store)
    if rankings.pool.is_empty():
        return None
    chosen = {name: rankings.chosen(rankings.events[name]) for name in rankings.made()}
    shown = _shown(source, rankings.pool, chosen, most)
    columns = {**_texts(source, shown), "arms": [_arm(rankings, name, ids, shown) for name, ids in chosen.items()]}
    return {
        "samples": shown.height,
        "of": rankings.pool.height,
        "chars": (ASKED_CHARS, ANSWERED_CHARS),
        "data": embedded_json(columns),
    }


def _shown(source: Source, pool: pl.DataFrame, chosen: dict[str, list[str]], most: int) -> pl.DataFrame:
    """sample_id, in the order in which they are shown."""
    taken = {sample_id for name, ids in chosen.items() if name != "full" for sample_id in ids}
    placed = pool.select("sample_id", left=~pl.col("sample_id").is_in(list(taken))).join(
        source.ranking.select("sample_id", "place"), on="sample_id", how="left"
    )
    kept = placed.sort("left", "place", "sample_id", nulls_last=True).head(most)
    return kept.sort("place", "sample_id", nulls_last=True).select("sample_id")


def _texts(source: Source, shown: pl.DataFrame) -> dict[str, Any]:
    """Columns: id; text; line, as number of the file and row; more, the further lines by the number of the sample."""
    asked = {"ids": shown["sample_id"].to_list(), "chars": 4 * ASKED_CHARS, "lines": _LINES}
    rows = {row["sample_id"]: row for row in source.named("search", **asked)}
    files: dict[str, int] = {}
    ids = asked["ids"]
    by_id = {
        each: [(files.setdefault(line["file"], len(files)), line["row"]) for line in rows[each]["lines"]]
        for each in ids
    }
    return {
        "id": ids,
        "text": [_text(rows[each]["asked"], rows[each]["answered"]) for each in ids],
        "line": [by_id[each][0] for each in ids],
        "more": {number: by_id[each][1:] for number, each in enumerate(ids) if len(by_id[each]) > 1},
        "files": [printable(name) for name in files],
    }


def _text(asked: str, answered: str) -> str:
    return f"{_cut(asked, ASKED_CHARS)} → {_cut(answered, ANSWERED_CHARS)}"


def _cut(text: str, limit: int) -> str:
    """The beginning of a text in one line, without invisible characters."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _arm(rankings: Rankings, name: str, ids: list[str], shown: pl.DataFrame) -> dict[str, Any]:
    """Columns: rank in the pool and place in the subset, 0 for none; score with four digits, or None."""
    ranking = rankings.of(name)
    places = pl.DataFrame({"sample_id": ids}, schema={"sample_id": pl.String}).with_row_index("in", offset=1)
    rows = shown.join(ranking.rows, on="sample_id", how="left", maintain_order="left").join(
        places, on="sample_id", how="left", maintain_order="left"
    )
    score = [float(f"{each:.4g}") if each is not None and math.isfinite(each) else None for each in rows["score"]]
    return {
        "name": name,
        "of": ranking.rows.height,
        "chosen": len(ids),
        "rank": rows["rank"].fill_null(0).to_list(),
        "in": rows["in"].fill_null(0).to_list(),
        "score": score if any(each is not None for each in score) else None,
    }
