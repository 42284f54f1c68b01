"""Bad input: every row of every hostile file is ingested rightly or quarantined with its reason, in bounded memory."""

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import Table, parquet

from icon_assets.core.inputs.changes import Known, compare
from icon_assets.core.inputs.ingest import Ingested, ingest, quarantine_frame, sample_frame
from icon_assets.core.inputs.source_files import SourceFile, discover, shard_key, source_digest
from icon_assets.core.store.schema import sql_text
from icon_assets_tests.hostile import (
    MAX_CHARS,
    SPECIAL_TOKENS,
    Hostile,
    corpus,
    lay_out,
    line,
    reads_everything,
    row,
    rows,
)

CORPUS = corpus()


@pytest.fixture(autouse=True)
def impatience() -> Iterator[None]:
    """Who waits for a pipe fails here instead of hanging for ever."""

    def give_up(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SourceFile]:
    """The whole corpus in one folder, as it is discovered, by shard."""
    folder = tmp_path_factory.mktemp("hostile") / "pool"
    lay_out(CORPUS, folder)
    return {source.shard: source for source in discover(folder)}


def in_pool(pool: dict[str, SourceFile], name: str) -> Ingested:
    return ingest(pool[shard_key(name)], MAX_CHARS)


def shard_of(case: Hostile) -> str:
    return shard_key(case.name)


def test_each_file_is_found_whatever_its_name_and_nothing_else(pool: dict[str, SourceFile]) -> None:
    assert sorted(pool) == sorted(map(shard_of, CORPUS))
    assert all(source.file.isprintable() for source in pool.values())


@pytest.mark.parametrize("case", CORPUS, ids=shard_of)
def test_every_row_is_ingested_or_quarantined_with_its_reason(case: Hostile, pool: dict[str, SourceFile]) -> None:
    source = pool[shard_of(case)]
    ingested = ingest(source, MAX_CHARS)
    assert tuple((q.row, q.reason) for q in ingested.quarantine) == case.bad
    assert tuple(s.row for s in ingested.samples) == case.good
    assert all(q.detail and (q.detail + q.excerpt).isprintable() for q in ingested.quarantine)
    assert sample_frame(source, ingested).to_arrow().num_rows == len(case.good)
    assert quarantine_frame(source, ingested).to_arrow().num_rows == len(case.bad)


def test_the_reasons_are_the_words_that_the_schema_explains() -> None:
    (explained,) = re.findall(r"COLUMN quarantine.reason IS '(.*)';", sql_text("schema.sql"))
    assert {reason for case in CORPUS for _, reason in case.bad} == set(
        re.findall(r"[a-z0-9]+_[a-z0-9_]+|missing|unreadable", explained)
    )


def test_no_metadata_of_one_row_fails_a_query_over_all(pool: dict[str, SourceFile]) -> None:
    frames = [sample_frame(source, ingest(source, MAX_CHARS)) for source in pool.values()]
    with duckdb.connect() as con:
        con.register("samples", pl.concat(frames).to_arrow())
        assert con.sql("SELECT count(metadata->>'x') FROM samples").fetchall() == [(3,)]


def test_what_json_has_no_form_for_is_kept_as_text(pool: dict[str, SourceFile]) -> None:
    first, second = (located.fields for located in in_pool(pool, "odd_types.parquet").samples)
    assert (first["day"], first["price"], first["blob"], first["map"]) == ("2024-02-29", "1.50", "ff00", [["k", 1]])
    assert (first["number"], second["number"]) == ("nan", "inf")
    assert first["nested"] == {"a": [{"b": None}]}


def test_control_characters_and_special_tokens_are_kept_as_they_are(pool: dict[str, SourceFile]) -> None:
    kept = in_pool(pool, "control_characters.jsonl").samples[1].sample.response
    assert kept == "\x01\x07\x1b[31mred\x7f\x85\u2028\u202e."
    assert in_pool(pool, "special_tokens.jsonl").samples[1].sample.instruction == SPECIAL_TOKENS


def test_a_broken_record_says_where_it_begins_and_what_is_not_read(pool: dict[str, SourceFile]) -> None:
    assert in_pool(pool, "unclosed_quote.csv").quarantine[0].detail == (
        "unexpected end of data in the record that begins in line 3; the rest of the file is not read"
    )
    assert in_pool(pool, "damaged.parquet").quarantine[0].detail.startswith("rows 3 to 4: ")
    assert "`instruction;output`" in in_pool(pool, "semicolons.csv").quarantine[0].detail


# What changes between discovery and reading


def found(path: Path, content: bytes = b"") -> SourceFile:
    path.write_bytes(content or rows(1))
    return discover(path.parent)[0]


def only_reason(source: SourceFile) -> tuple[int, str]:
    (quarantined,) = ingest(source, MAX_CHARS).quarantine
    return quarantined.row, quarantined.reason


def test_a_file_that_vanishes_is_missing_and_no_failure(tmp_path: Path) -> None:
    source = found(tmp_path / "a.jsonl")
    source.path.unlink()
    assert only_reason(source) == (0, "missing")


def test_a_file_that_becomes_a_pipe_or_a_folder_is_not_read(tmp_path: Path) -> None:
    source = found(tmp_path / "a.jsonl")
    for put in (os.mkfifo, os.mkdir):
        source.path.rmdir() if source.path.is_dir() else source.path.unlink()
        put(source.path)
        assert only_reason(source) == (0, "not_a_file")


@pytest.mark.skipif(reads_everything(), reason="permissions mean nothing to root")
def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    assert [(s.file, only_reason(s)) for s in discover(tmp_path)] == [("closed", (0, "unreadable"))]


def test_a_file_that_was_refused_is_read_once_its_fault_is_gone(tmp_path: Path) -> None:
    link = tmp_path / "a.jsonl"
    link.symlink_to("b.txt")
    (refused,) = discover(tmp_path)
    (again,) = discover(tmp_path)
    (tmp_path / "b.txt").write_bytes(rows(1))
    (mended,) = discover(tmp_path)
    assert source_digest(refused) == source_digest(again) != source_digest(mended)
    assert [located.row for located in ingest(mended, MAX_CHARS).samples] == [1]


def test_what_is_refused_is_compared_by_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("b.txt")

    def kind(known: dict[str, Known]) -> tuple[str, dict[str, Known]]:
        (file,) = compare(discover(tmp_path), known, 3600)
        return file.kind, {file.source.shard: file.known}

    first, known = kind({})
    (tmp_path / "b.txt").mkdir()
    second, other = kind(known)
    assert (first, kind(known)[0], second, kind(other)[0]) == ("new", "changed", "changed", "unchanged")


# Anything at all


@given(st.binary().filter(lambda odd: b"\n" not in odd))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_a_line_its_neighbours_are_read(tmp_path: Path, odd: bytes) -> None:
    ingested = ingest(found(tmp_path / "a.jsonl", rows(1) + odd + b"\n" + rows(3)), MAX_CHARS)
    assert [located.row for located in ingested.samples] == [1, 3]
    assert [q.row for q in ingested.quarantine] == ([2] if odd.strip() else [])


SOUND = [{**row(n), "tags": [{"y": n}], "note": 'é "[,]" \\'} for n in range(20)]


def sound_file(suffix: str) -> bytes:
    buffer = io.BytesIO()
    if suffix == ".parquet":
        parquet.write_table(Table.from_pylist(SOUND), buffer, row_group_size=5)
        return buffer.getvalue()
    if suffix == ".csv":
        return pl.DataFrame(SOUND).select("instruction", "output", "note").write_csv().encode()
    return json.dumps(SOUND).encode() if suffix == ".json" else b"".join(map(line, SOUND))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_damage_anywhere_stops_no_reader(tmp_path: Path, suffix: str) -> None:
    draw = random.Random(suffix)
    sound = sound_file(suffix)
    assert len(ingest(found(tmp_path / f"a{suffix}", sound), MAX_CHARS).samples) == len(SOUND)
    for _ in range(200):
        damaged = bytearray(sound)
        for _ in range(draw.choice([1, 2, 9])):
            start = draw.randrange(len(damaged))
            damaged[start : start + draw.randrange(9)] = draw.choice([b"", b'"', b"\\", b"]", b"\0", draw.randbytes(5)])
        source = found(tmp_path / f"a{suffix}", bytes(damaged))
        ingested = ingest(source, MAX_CHARS)
        assert ingested.samples or ingested.quarantine
        sample_frame(source, ingested).to_arrow()
        quarantine_frame(source, ingested).to_arrow()


# Memory and time

MEASURED = """
import sys, time
from pathlib import Path
from icon_assets.core.inputs.source_files import discover
from icon_assets.core.inputs.ingest import ingest, sample_frame

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10

(source,), before, started = discover(Path(sys.argv[1])), peak(), time.perf_counter()
ingested = ingest(source, 100_000)
rows = sample_frame(source, ingested).height
reasons = [f"{q.row}:{q.reason}" for q in ingested.quarantine]
print(rows, *reasons, peak() - before, round(time.perf_counter() - started))
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")


def measured(path: Path) -> tuple[list[str], int, int]:
    """Rows and quarantine of a file, ingested in a process of its own; MiB it took at most; seconds."""
    command = [sys.executable, "-c", MEASURED, str(path)]
    *found, mib, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return found, int(mib), int(seconds)


@linux
@pytest.mark.parametrize(
    ("suffix", "before", "after"),
    [
        (".jsonl", rows(1) + b'{"instruction":"', b'","output":"b"}\n' + rows(3)),
        (".json", b"[" + rows(1) + b',{"instruction":"', b'","output":"b"},' + rows(3) + b"]"),
        (".csv", b"instruction,output\na,b\n", b",b\nc,d\n"),
    ],
    ids=["jsonl", "json", "csv"],
)
def test_a_line_of_200_megabytes_takes_little_memory(tmp_path: Path, suffix: str, before: bytes, after: bytes) -> None:
    with (tmp_path / f"a{suffix}").open("wb") as handle:
        handle.write(before)
        handle.writelines([b"x" * 1_000_000] * 200)
        handle.write(after)
    result, mib, _ = measured(tmp_path / f"a{suffix}")
    assert result == ["2", "2:over_limit"]
    assert mib < 60


@linux
def test_a_million_rows_take_bounded_memory_and_time(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("w") as handle:
        handle.writelines(f'{{"instruction": "Question {n}", "output": "Answer {n}"}}\n' for n in range(1_000_000))
    result, mib, seconds = measured(tmp_path / "a.jsonl")
    assert result == ["1000000"]
    assert mib < 1200
    assert seconds < 90, "some ten; the bound leaves room for busy machines"
