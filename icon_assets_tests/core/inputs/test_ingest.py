"""Reading source files: every format, and a reason for every row that can't be used."""

import json
from pathlib import Path

import polars as pl
import pytest

from icon_assets.core.digests import digest
from icon_assets.core.errors import IconError
from icon_assets.core.inputs.ingest import Ingested, ingest, quarantine_frame, sample_frame
from icon_assets.core.inputs.source_files import SourceFile, discover, shard_key

ROW = {"instruction": "Say hi", "input": "", "output": "hi"}
LINE = json.dumps(ROW).encode()


def read(path: Path) -> Ingested:
    return ingest(SourceFile("s", path.name, path), 1000)


def reasons(path: Path) -> list[tuple[int, str]]:
    return [(q.row, q.reason) for q in read(path).quarantine]


def test_all_formats_give_the_same_sample(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINE)
    (tmp_path / "b.json").write_text(json.dumps([ROW]))
    (tmp_path / "c.csv").write_text("instruction,input,output\nSay hi,,hi\n")
    pl.DataFrame([ROW]).write_parquet(tmp_path / "d.parquet")
    found = [ingest(source, 1000).samples for source in discover(tmp_path)]
    assert [len(samples) for samples in found] == [1, 1, 1, 1]
    assert len({samples[0].sample.sample_id for samples in found}) == 1


def test_chat_rows_are_read_from_parquet(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Say hi"}, {"role": "assistant", "content": "hi"}]
    pl.DataFrame([{"messages": messages}]).write_parquet(tmp_path / "chat.parquet")
    assert read(tmp_path / "chat.parquet").samples[0].sample.response == "hi"


def test_a_bad_line_never_stops_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    empty = json.dumps({**ROW, "output": ""}).encode()
    path.write_bytes(b"\n".join([LINE, b"{broken", b"\xff\xfe", empty, b'"text"', b"NaN", b"", LINE]))
    assert reasons(path) == [
        (2, "bad_json"),
        (3, "not_utf8"),
        (4, "empty_response"),
        (5, "wrong_type"),
        (6, "wrong_type"),
    ]
    assert [s.row for s in read(path).samples] == [1, 8]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    for name, content in {"a.jsonl": LINE, "b.csv": b"instruction,output\nSay hi,hi\n"}.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
        assert len(read(tmp_path / name).samples) == 1


def test_csv_cells_may_hold_quotes_commas_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('instruction,output\n"Say ""hi"",\nplease","hi, there"\nshort,ok\n')
    samples = read(tmp_path / "a.csv").samples
    assert [(s.row, s.sample.instruction) for s in samples] == [(1, 'Say "hi",\nplease'), (2, "short")]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", b'{"instruction": 1}', [(0, "wrong_type")]),
        ("a.json", b"[1", [(1, "bad_json")]),
        ("a.txt", LINE, [(0, "wrong_format")]),
        ("a.csv", b"instruction,output\n\xe9,b\n", [(1, "not_utf8")]),
        ("a.csv", b"question_text,label\nx,y\n", [(1, "missing_field")]),
        ("a.csv", b"instruction,output\na,b,c\n", [(1, "wrong_type")]),
        ("a.parquet", b"PAR1 cut off", [(0, "bad_parquet")]),
        ("a.jsonl", b"", [(0, "empty_file")]),
        ("a.jsonl", b"[" * 100_000, [(1, "bad_json")]),
    ],
)
def test_an_unusable_file_is_quarantined_with_its_reason(
    tmp_path: Path, name: str, content: bytes, expected: list[tuple[int, str]]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert reasons(tmp_path / name) == expected


def test_equal_content_has_an_equal_digest_whatever_the_file_is_called(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(LINE + b"\n{broken")
    (tmp_path / "c.jsonl").write_bytes(LINE)
    first, second, third = (ingest(source, 1000).content_digest for source in discover(tmp_path))
    assert first == second != third


def test_files_are_found_in_sub_folders_and_hidden_ones_are_left_out(tmp_path: Path) -> None:
    for name in ("b.jsonl", "deep/er/a.CSV", ".hidden/x.jsonl", ".y.jsonl", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(LINE)
    assert [source.file for source in discover(tmp_path)] == ["b.jsonl", "deep/er/a.CSV"]


def test_a_symlink_out_of_the_folder_is_found_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "outside.jsonl").write_bytes(LINE)
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "in.jsonl").symlink_to(tmp_path / "outside.jsonl")
    (source,) = discover(tmp_path / "pool")
    assert (source.file, source.refused and source.refused.reason) == ("in.jsonl", "outside_folder")
    assert [(q.row, q.reason) for q in ingest(source, 1000).quarantine] == [(0, "outside_folder")]


def test_a_single_file_may_be_a_symlink_because_the_settings_name_it(tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_bytes(LINE)
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    (source,) = discover(tmp_path / "link.jsonl")
    assert (source.file, len(ingest(source, 1000).samples)) == ("link.jsonl", 1)


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_missing_or_empty_folder_says_what_to_do(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(IconError, match=r"change pool\.path"):
        discover(tmp_path / folder)


def test_shard_keys_are_safe_and_distinct() -> None:
    names = ["a b.jsonl", "a-b.jsonl", "../x.csv", "日本.json", "x" * 255 + ".csv"]
    keys = [shard_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") for key in keys)
    assert all(key[0].isalnum() and len(key) < 100 for key in keys)


# Named to collide, found in 49,868 tries: their digests begin with the same 8 digits.
TWINS = ["part!~ =1.jsonl", "part;&^;1.jsonl"]


def test_files_whose_former_keys_are_the_same_have_keys_of_their_own(tmp_path: Path) -> None:
    former = "part-1.jsonl-b5a12bf3"
    assert {shard_key(name)[: len(former)] for name in TWINS} == {former}
    for name in TWINS:
        (tmp_path / name).write_bytes(LINE)
    assert len({source.shard for source in discover(tmp_path)}) == 2
    known = {former: TWINS[1]}
    assert {s.file: s.shard for s in discover(tmp_path, on_record=known)} == {
        TWINS[0]: shard_key(TWINS[0]),
        TWINS[1]: former,
    }, "what was ingested under a former key keeps it"
    assert not any(source.refused for source in discover(tmp_path, on_record=known))


def test_of_two_files_with_one_key_the_second_is_refused_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icon_assets.core.inputs.source_files.digest", lambda value: digest(value)[:8])
    for name in (*TWINS, "z.jsonl"):
        (tmp_path / name).write_bytes(LINE)
    first, second, other = discover(tmp_path)
    assert len({first.shard, second.shard, other.shard}) == 3
    assert (first.refused, other.refused) == (None, None)
    (bad,) = ingest(second, 1000).quarantine
    assert (bad.row, bad.reason) == (0, "same_key")
    assert bad.detail == f"its name has the same digest as that of {TWINS[0]}; rename one of them"


def test_tables_hold_what_was_read_and_why_the_rest_was_not(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**ROW, "tag": "é", "n": 1}) + "\n{broken\n")
    source = SourceFile("s", "a.jsonl", path)
    samples = sample_frame(source, ingest(source, 1000))
    quarantine = quarantine_frame(source, ingest(source, 1000))
    assert json.loads(samples["metadata"][0]) == {"tag": "é", "n": 1}
    assert samples.select("shard", "file", "row", "instruction", "n_chars").rows() == [("s", "a.jsonl", 1, "Say hi", 8)]
    assert quarantine.select("file", "row", "reason", "excerpt").rows() == [("a.jsonl", 2, "bad_json", "{broken")]
