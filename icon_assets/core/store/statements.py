"""Restricts SQL texts to reading. DuckDB's own parser classifies each statement, and it is run where it can only read.

The statement type alone is not a protection: `WITH x AS (COPY ... TO 'file') FROM x` is also a SELECT, and EXPLAIN
ANALYZE runs the statement that it explains. So no text is run unchanged. It becomes a subquery, where DuckDB refuses
everything that changes something."""

import re

import duckdb

from icon_assets.core.errors import IconError

MAX_CHARS = 100_000  # the parser's recursion overflows its stack at about ten times this
ADMITTED = "SELECT, FROM, WITH, VALUES, PIVOT, SHOW, DESCRIBE, SUMMARIZE and EXPLAIN"
_SELECT = duckdb.StatementType.SELECT
_EXPLAIN = duckdb.StatementType.EXPLAIN
_PIVOT = duckdb.StatementType.MULTI
_EXPLAINED = re.compile(
    r"\s*EXPLAIN\s+(?P<options>ANALYZE\s|\(\s*(?:ANALYZE|FORMAT\s+\w+)(?:\s*,\s*(?:ANALYZE|FORMAT\s+\w+))*\s*\))?(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
# PIVOT without IN runs twice, the first time outside of the subquery, to find its columns.
_CHANGING = {"COPY", "INSERT", "UPDATE", "DELETE", "MERGE"}


def reading(con: duckdb.DuckDBPyConnection, text: str) -> list[str]:
    """The statements of a text, each in a form that can only read.

    Raises:
        IconError: one of them is not a query, or there is none, or the text is too long. duckdb.Error: it can't be
        parsed.
    """
    if len(text) > MAX_CHARS:
        raise IconError(f"sql: a text of {len(text):,} characters; at most {MAX_CHARS:,} are read")
    statements = [_contained(con, each) for each in con.extract_statements(text)]
    if not statements:
        raise IconError("sql: no statement in it; write a query such as: FROM current_scores LIMIT 10")
    return statements


def _kind(statement: duckdb.Statement) -> duckdb.StatementType | None:
    """None for a statement type that the Python package does not name."""
    try:
        return statement.type
    except ValueError:
        return None


def _contained(con: duckdb.DuckDBPyConnection, statement: duckdb.Statement) -> str:
    kind = _kind(statement)
    text = statement.query
    name = kind.name if kind else "this"
    if kind in (_EXPLAIN, _PIVOT) and _EXPLAINED.fullmatch(text):
        return _explanation(con, text)
    if kind not in (_SELECT, _PIVOT):
        raise _refused(name)
    if kind == _PIVOT and (found := _keywords(text) & _CHANGING):
        raise _refused(f"{min(found)} inside PIVOT", "; a column of that name needs double quotes")
    subquery = f"FROM (\n{_without_end(text)}\n)"
    if [_kind(each) for each in con.extract_statements(subquery)] != [kind]:
        raise _refused(name)
    return subquery


def _explanation(con: duckdb.DuckDBPyConnection, text: str) -> str:
    """EXPLAIN of a contained statement, never of the original text."""
    match = _EXPLAINED.fullmatch(text)
    assert match is not None
    inner = con.extract_statements(match["rest"])
    if len(inner) != 1 or _EXPLAINED.fullmatch(inner[0].query):
        raise _refused("EXPLAIN of this")
    return f"EXPLAIN {match['options'] or ''} {_contained(con, inner[0])}"


def _without_end(text: str) -> str:
    """DuckDB's text of a statement extends to the next one, so the semicolon and comments after it are cut off."""
    end = len(text.encode())
    for start, kind, token in reversed(_tokens(text)):
        if kind != duckdb.token_type.comment and token != b";":
            break
        end = start
    return text.encode()[:end].decode()


def _keywords(text: str) -> set[str]:
    """The keywords of a text in capitals, without strings, comments and quoted names."""
    named = (duckdb.token_type.keyword, duckdb.token_type.identifier)
    words = [token.decode() for _, kind, token in _tokens(text) if kind in named]
    return {match[0].upper() for word in words if (match := re.match(r"\w+", word))}


def _tokens(text: str) -> list[tuple[int, duckdb.token_type, bytes]]:
    """Position, kind and text of each token. DuckDB counts bytes, and with characters one `ü` would shift everything
    after it."""
    encoded = text.encode()
    tokens = duckdb.tokenize(text)
    ends = [start for start, _ in tokens[1:]] + [len(encoded)]
    return [(start, kind, encoded[start:end].strip()) for (start, kind), end in zip(tokens, ends, strict=True)]


def _refused(kind: str, more: str = "") -> IconError:
    return IconError(
        f"sql: {kind.replace('_', ' ')} is not allowed here: only {ADMITTED} are, which change nothing{more}"
    )
