"""Source files that nobody should trust: how each is made, and what must become of every row in it.

Each holds usable rows where its fault leaves room for them, because a fault must not cost its neighbours.
"""

import codecs
import datetime
import gzip
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from icon_assets_tests.conftest import alpaca

MAX_CHARS = 100_000
TOO_LONG = 16 * MAX_CHARS + (2 << 20)  # bytes that are surely refused unread
SPECIAL_TOKENS = "<|im_start|>system\nobey<|im_end|><s>[INST]<<SYS>></s><|endoftext|><pad>"

Make = Callable[[Path], None]


@dataclass(frozen=True)
class Hostile:
    """`good`: the rows that must be ingested; `bad`: the rows that must be quarantined, with their reasons."""

    name: str
    make: Make
    good: tuple[int, ...] = ()
    bad: tuple[tuple[int, str], ...] = ()


def row(n: int) -> dict[str, Any]:
    return alpaca(f"Question {n}", f"Answer {n}")


def line(value: Any) -> bytes:
    """A line of JSON, with half surrogates and the like as escapes."""
    return json.dumps(value).encode() + b"\n"


def rows(*numbers: int) -> bytes:
    return b"".join(line(row(n)) for n in numbers)


def text(*parts: bytes) -> Make:
    return lambda path: _ignore(path.write_bytes(b"".join(parts)))


def table(columns: dict[str, Any], **options: Any) -> Make:
    return lambda path: parquet.write_table(pa.table(columns), path, **options)


def between(name: str, odd: bytes, reason: str | None) -> Hostile:
    """An odd line between two usable ones; without a reason it is usable as well."""
    content = text(rows(1), odd.removesuffix(b"\n") + b"\n", rows(3))
    return Hostile(name, content, (1, 3) if reason else (1, 2, 3), ((2, reason),) if reason else ())


def whole(name: str, content: bytes, reason: str) -> Hostile:
    return Hostile(name, text(content), (), ((0, reason),))


def _ignore(_: Any) -> None:
    pass


def corpus() -> list[Hostile]:
    """All of them, as far as this machine's file system and user allow."""
    return [*odd_lines(), *jsonl_files(), *json_files(), *csv_files(), *parquet_files(), *names(), *no_files()]


def small_corpus() -> list[Hostile]:
    """What the graph is tried on, where a shard takes a second: all odd lines as one file, the worst names, every path
    that is no file, and of the rest one file per reason of a row or of the whole.
    """
    files = [*parquet_files(), *csv_files(), *json_files(), *jsonl_files()]
    reasons = {(case.bad[0][0] > 0, case.bad[0][1]) if case.bad else None: case for case in reversed(files)}
    return [joined(odd_lines()), *reasons.values(), *worst_names(), *no_files()]


def joined(cases: list[Hostile]) -> Hostile:
    """Files made by `between` as one: a shard costs more than a row."""

    def make(path: Path) -> None:
        content = bytearray()
        for case in cases:
            case.make(path)
            content += path.read_bytes()
        path.write_bytes(content)

    good = tuple(3 * i + n for i, case in enumerate(cases) for n in case.good)
    return Hostile("joined.jsonl", make, good, tuple((3 * i + n, why) for i, c in enumerate(cases) for n, why in c.bad))


def lay_out(cases: list[Hostile], folder: Path) -> None:
    for case in cases:
        (folder / case.name).parent.mkdir(parents=True, exist_ok=True)
        case.make(folder / case.name)


def odd_lines() -> list[Hostile]:
    odd = alpaca("Odd", "odd")
    return [
        between("deep.jsonl", b'{"a":' * 100_000, "bad_json"),
        between("deep_field.jsonl", line({**odd, "x": _nested(150)}), None),
        between("deeper_field.jsonl", line({**odd, "x": _nested(400)}), "bad_json"),
        between("duplicate_key.jsonl", line(odd)[:-2] + b',"output":"other"}', "duplicate_key"),
        between("duplicate_key_below.jsonl", line(odd)[:-2] + b',"x":{"a":1,"a":2}}', "duplicate_key"),
        between("nan.jsonl", line({**odd, "x": float("nan")}), "wrong_type"),
        between("infinity.jsonl", line({**odd, "x": -float("inf")}), "wrong_type"),
        between("1e400.jsonl", line(odd)[:-2] + b',"x":1e400}', "over_limit"),
        between("huge_integer.jsonl", line(odd)[:-2] + b',"x":1' + b"0" * 5000 + b"}", "over_limit"),
        between("big_integer.jsonl", line({**odd, "x": 10**300}), None),
        between("half_surrogate.jsonl", line(alpaca("Odd", "half \ud800")), "not_utf8"),
        between("half_surrogate_in_a_field.jsonl", line({**odd, "x": "\udfff"}), "not_utf8"),
        between("half_surrogate_as_key.jsonl", line({"\ud800": 1}), "missing_field"),
        between("whole_surrogates.jsonl", line(alpaca("Odd", "\U0001f600")), None),
        between("nul_escape.jsonl", line(alpaca("Odd", "a\0b")), "control_chars"),
        between("nul_bytes.jsonl", line(odd).replace(b"odd", b"o\0d"), "bad_json"),
        between("zeros.jsonl", bytes(5000), "bad_json"),
        between("control_characters.jsonl", line(alpaca("Odd", "\x01\x07\x1b[31mred\x7f\x85\u2028\u202e.")), None),
        between("raw_control_character.jsonl", line(odd).replace(b"odd", b"o\x07d"), "bad_json"),
        between("combining_marks.jsonl", line(alpaca("Odd", "a" + "\u0315\u0300" * 20_000)), "over_limit"),
        between("special_tokens.jsonl", line(alpaca(SPECIAL_TOKENS, SPECIAL_TOKENS)), None),
        between("longer_than_the_context.jsonl", line(alpaca("word " * 15_000, "ok")), None),
        between("too_long.jsonl", line(alpaca("a" * MAX_CHARS, "b")), "over_limit"),
        between("gigantic_line.jsonl", line(alpaca("a" * TOO_LONG, "b")), "over_limit"),
        between("not_utf8.jsonl", line(odd).replace(b"odd", b"\xe9t\xe9"), "not_utf8"),
        between("utf8_of_a_surrogate.jsonl", line(odd).replace(b"odd", b"\xed\xa0\x80"), "not_utf8"),
        between("bom_in_the_middle.jsonl", codecs.BOM_UTF8 + line(odd), None),
        between("a_list.jsonl", line([odd]), "wrong_type"),
        between("a_text.jsonl", line("odd"), "wrong_type"),
        between("null.jsonl", b"null", "wrong_type"),
        between("two_values.jsonl", line(odd)[:-1] + line(odd), "bad_json"),
        between("single_quotes.jsonl", str(odd).encode(), "bad_json"),
        between("wrong_columns.jsonl", line({"Instruction": "a", "Output": "b"}), "missing_field"),
        between("odd_column_names.jsonl", line({"a" * 10_000: 1, "b\n\x1b": 2}), "missing_field"),
        between("wrong_types.jsonl", line(alpaca("Odd", {"text": "odd"})), "wrong_type"),  # pyright: ignore
        between("number_as_text.jsonl", line({**odd, "instruction": 5}), "wrong_type"),
        between("no_content.jsonl", line(alpaca("\u00a0\t", "odd")), "empty_prompt"),
        between("no_response.jsonl", line(alpaca("Odd", "\u3000")), "empty_response"),
        between("odd_messages.jsonl", line({"messages": [{"role": "user", "content": [1]}]}), "wrong_type"),
        between("csv_in_jsonl.jsonl", b"instruction,output", "bad_json"),
    ]


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def jsonl_files() -> list[Hostile]:
    wide = rows(1, 2).decode()
    noise = random.Random(0).randbytes(3000).replace(b"\n", b"")
    return [
        whole("empty.jsonl", b"", "empty_file"),
        whole("white.jsonl", b"\n \r\n\t\n", "empty_file"),
        Hostile("binary.jsonl", text(noise, b"\n", noise), (), ((1, "not_utf8"), (2, "not_utf8"))),
        Hostile("bom.jsonl", text(codecs.BOM_UTF8, rows(1, 2)), (1, 2)),
        whole("utf16_bom.jsonl", wide.encode("utf-16"), "not_utf8"),
        whole("utf16_le.jsonl", wide.encode("utf-16-le"), "not_utf8"),
        whole("utf16_be.jsonl", wide.encode("utf-16-be"), "not_utf8"),
        whole("gzip.jsonl", gzip.compress(rows(1)), "wrong_format"),
        Hostile("parquet.jsonl", table({"instruction": ["a"], "output": ["b"]}), (), ((0, "wrong_format"),)),
        Hostile("crlf.jsonl", text(rows(1, 2).replace(b"\n", b"\r\n")), (1, 2)),
        Hostile("no_last_line_end.jsonl", text(rows(1, 2)[:-1]), (1, 2)),
        Hostile("half_written.jsonl", text(rows(1, 2), line(row(3))[:20]), (1, 2), ((3, "bad_json"),)),
        Hostile("cut_in_a_character.jsonl", text(rows(1), '{"a":"é'.encode()[:-1]), (1,), ((2, "not_utf8"),)),
        Hostile("gigantic_last_line.jsonl", text(rows(1), b"x" * TOO_LONG), (1,), ((2, "over_limit"),)),
        Hostile("blank_lines.jsonl", text(b"\n\n", rows(1), b"  \n", rows(2)), (3, 5)),
    ]


def json_files() -> list[Hostile]:
    good = rows(1, 2).strip().replace(b"\n", b",")
    odd = line(row(3)).strip()
    return [
        whole("empty.json", b"", "empty_file"),
        whole("empty_list.json", b" [ ] ", "empty_file"),
        whole("object.json", line({"data": [row(1)]}), "wrong_type"),
        whole("lines.json", rows(1, 2), "wrong_type"),
        whole("text.json", b"instruction,output\na,b\n", "bad_json"),
        whole("utf16.json", json.dumps([row(1)]).encode("utf-16-le"), "not_utf8"),
        Hostile("bom.json", text(codecs.BOM_UTF8, b"[", good, b"]"), (1, 2)),
        Hostile("one_long_line.json", text(b"[", b",".join([odd] * 30_000), b"]"), tuple(range(1, 30_001))),
        Hostile("half_written.json", text(b"[", good, b",", odd[:20]), (1, 2), ((3, "bad_json"),)),
        Hostile("last_comma.json", text(b"[", good, b",]"), (1, 2), ((3, "bad_json"),)),
        Hostile("two_lists.json", text(b"[", good, b"][", odd, b"]"), (1, 2), ((3, "bad_json"),)),
        Hostile(
            "bad_rows.json",
            text(b'[1,NaN,{"a" 1},[[', b"]],", b"\xff,", good, b"]"),
            (6, 7),
            (
                (1, "wrong_type"),
                (2, "wrong_type"),
                (3, "bad_json"),
                (4, "wrong_type"),
                (5, "not_utf8"),
            ),
        ),
        Hostile(
            "gigantic_row.json",
            text(b"[", odd, b',{"a":"', b'\\"],}' * (TOO_LONG // 5), b'"},', odd, b"]"),
            (1, 3),
            ((2, "over_limit"),),
        ),
        Hostile(
            "deep.json",
            text(b"[", odd, b",", b"[" * 100_000, b"]" * 100_000, b",", odd, b"]"),
            (1, 3),
            ((2, "bad_json"),),
        ),
        Hostile("brackets_in_texts.json", text(json.dumps([alpaca('[{"a\\', '"]},'), row(2)]).encode()), (1, 2)),
    ]


def csv_files() -> list[Hostile]:
    head = b"instruction,output\n"
    return [
        whole("empty.csv", b"", "empty_file"),
        whole("only_a_header.csv", head, "empty_file"),
        whole("utf16.csv", "instruction,output\na,b\n".encode("utf-16"), "not_utf8"),
        whole("header_not_utf8.csv", b"instruction,\xe9\na,b\n", "not_utf8"),
        whole("duplicate_column.csv", b"instruction,output,output\na,b,c\n", "duplicate_key"),
        whole("zip.csv", b"PK\x03\x04\x14\0\0\0", "wrong_format"),
        Hostile("bom.csv", text(codecs.BOM_UTF8, head, b"a,b\n"), (1,)),
        Hostile("crlf.csv", text(b"instruction,output\r\na,b\r\n\r\nc,d\r\n"), (1, 2)),
        Hostile("quotes.csv", text(head, b'"say ""hi"",\n\nplease","a\r\nb"\nc,d\n'), (1, 2)),
        Hostile("semicolons.csv", text(b"instruction;output\na;b\n"), (), ((1, "missing_field"),)),
        Hostile("tabs.csv", text(b"instruction\toutput\na\tb\n"), (), ((1, "missing_field"),)),
        Hostile("wrong_columns.csv", text(b"Frage,Antwort\na,b\n"), (), ((1, "missing_field"),)),
        Hostile("unnamed_columns.csv", text(b",instruction,output,\n0,a,b,\n"), (1,)),
        Hostile(
            "more_and_fewer_cells.csv",
            text(head, b"a,b\na,b,c\na\nc,d\n"),
            (1, 4),
            (
                (2, "wrong_type"),
                (3, "missing_field"),
            ),
        ),
        Hostile("unclosed_quote.csv", text(head, b'a,b\n"c,d\ne,f\n'), (1,), ((2, "bad_csv"),)),
        Hostile("text_after_a_quote.csv", text(head, b'a,b\n"c"c,d\ne,f\n'), (1,), ((2, "bad_csv"),)),
        Hostile("unclosed_for_ever.csv", text(head, b'a,b\n"c,', b"d,e\n" * (TOO_LONG // 4)), (1,), ((2, "bad_csv"),)),
        Hostile("gigantic_line.csv", text(head, b"a,b\n", b"c" * TOO_LONG, b",d\ne,f\n"), (1, 3), ((2, "over_limit"),)),
        Hostile("not_utf8.csv", text(head, b"a,b\nc,\xe9\ne,f\n"), (1, 3), ((2, "not_utf8"),)),
        Hostile("nul.csv", text(head, b"a,b\nc,\0d\ne,f\n"), (1, 3), ((2, "control_chars"),)),
        Hostile("json_in_csv.csv", text(rows(1), head, b"a,b\n"), (), ((1, "missing_field"), (2, "missing_field"))),
    ]


def parquet_files() -> list[Hostile]:
    good = {"instruction": ["a", "b"], "output": ["c", "d"]}
    far = pa.array([0, 10_000_000], pa.int32()).cast(pa.date32())
    bad_text = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    odd = {
        "day": [datetime.date(2024, 2, 29)] * 2,
        "price": [Decimal("1.50")] * 2,
        "blob": [b"\xff\0"] * 2,
        "word": pa.array(["x", "y"]).dictionary_encode(),
        "map": pa.array([[("k", 1)]] * 2, pa.map_(pa.string(), pa.int64())),
        "number": [float("nan"), float("inf")],
        "nested": [{"a": [{"b": None}]}] * 2,
        "nothing": pa.nulls(2),
        "moment": pa.array([1, 2], pa.timestamp("ns", tz="Europe/Berlin")),
        "span": pa.array([1, 2], pa.duration("ns")),
    }
    return [
        Hostile("odd_types.parquet", table({**good, **odd}), (1, 2)),
        Hostile(
            "dictionary.parquet", table({name: pa.array(c).dictionary_encode() for name, c in good.items()}), (1, 2)
        ),
        Hostile("no_rows.parquet", table({name: pa.array([], pa.string()) for name in good}), (), ((0, "empty_file"),)),
        Hostile("truncated.parquet", lambda path: _cut(path, good), (), ((0, "bad_parquet"),)),
        whole("empty.parquet", b"", "bad_parquet"),
        whole("text.parquet", rows(1), "bad_parquet"),
        Hostile("damaged.parquet", _damage, (1, 2, 5, 6), ((3, "bad_parquet"),)),
        Hostile("wrong_columns.parquet", table({"a": [1]}), (), ((1, "missing_field"),)),
        Hostile(
            "wrong_types.parquet", table({**good, "output": [b"c", b"d"]}), (), ((1, "wrong_type"), (2, "wrong_type"))
        ),
        Hostile("nulls.parquet", table({**good, "output": ["c", None]}), (1,), ((2, "missing_field"),)),
        Hostile("far_future.parquet", table({**good, "day": far}), (1,), ((2, "wrong_type"),)),
        Hostile("not_utf8.parquet", table({**good, "output": bad_text}), (1,), ((2, "wrong_type"),)),
        Hostile(
            "unknown_time_zone.parquet",
            table({**good, "at": pa.array([None, 1], pa.timestamp("us", tz="No/Where"))}),
            (1,),
            ((2, "wrong_type"),),
        ),
        Hostile("duplicate_column.parquet", _twice, (), ((0, "duplicate_key"),)),
        Hostile("large_fields.parquet", table({**good, "x": ["x", "x" * TOO_LONG]}), (1,), ((2, "over_limit"),)),
    ]


def _cut(path: Path, columns: dict[str, Any]) -> None:
    table(columns)(path)
    path.write_bytes(path.read_bytes()[:-6])


def _damage(path: Path) -> None:
    """Three row groups of two rows; the data of the second one are overwritten."""
    columns = {"instruction": [f"ask {n}" for n in range(6)], "output": [f"say {n}" for n in range(6)]}
    table(columns, row_group_size=2, compression="none", use_dictionary=False, write_page_checksum=True)(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"say 2", b"say X"))


def _twice(path: Path) -> None:
    parquet.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, names=["instruction", "output", "output"]), path)


def names() -> list[Hostile]:
    """Usable files under names that break what is careless with names."""
    odd = [
        "with space.jsonl",
        "-rf.jsonl",
        "a..b.jsonl",
        "日本語 🎉.jsonl",
        "glob[1]*?.jsonl",
        "$(touch x);&.jsonl",
        "100%25.jsonl",
        "back\\slash.jsonl",
        "right\u202eto_left.jsonl",
        "folder.jsonl/a.jsonl",
        "dots.csv.jsonl",
    ]
    return [*worst_names(), *(Hostile(name, text(rows(1)), (1,)) for name in odd)]


def worst_names() -> list[Hostile]:
    odd = [
        "new\nline.jsonl",
        "bell\x07\x1b[31m.jsonl",
        "x" * 249 + ".jsonl",
        "quote'\".jsonl",
        "UPPER.JSONL",
        "a=b/__HIVE_DEFAULT_PARTITION__.jsonl",
        "caf\u00e9.jsonl",
    ]
    if sys.platform == "linux":  # elsewhere names must be UTF-8, or are the same in both forms
        odd += ["cafe\u0301.jsonl", os.fsdecode(b"not\xffutf8.jsonl")]
    return [Hostile(name, text(rows(1)), (1,)) for name in odd]


def no_files() -> list[Hostile]:
    """What is called like a source file, or leads to one, and must not be opened."""
    found = [
        Hostile("pipe.jsonl", os.mkfifo, (), ((0, "not_a_file"),)),
        Hostile("dangling.jsonl", link("nowhere.jsonl"), (), ((0, "missing"),)),
        Hostile("loop.jsonl", link("loop.jsonl"), (), ((0, "unreadable"),)),
        Hostile("outside.jsonl", _link_outside, (), ((0, "outside_folder"),)),
        Hostile("zeros_without_end.jsonl", link("/dev/zero"), (), ((0, "outside_folder"),)),
        Hostile("to_the_root", link("/"), (), ((0, "outside_folder"),)),
        Hostile("to_itself", link("."), (), ((0, "not_a_file"),)),
        Hostile("inside.jsonl", link("UPPER.JSONL"), (1,)),
        Hostile("other_suffix.jsonl", _link_to_other_suffix, (1,)),
    ]
    if not reads_everything():
        found.append(Hostile("locked.jsonl", _locked, (), ((0, "unreadable"),)))
    return found


def reads_everything() -> bool:
    """Whether permissions mean nothing to this user, as to root."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).chmod(0)
        return os.access(file.name, os.R_OK)


def link(target: str) -> Make:
    return lambda path: path.symlink_to(target)


def _link_outside(path: Path) -> None:
    secret = path.parent.parent / "secret.jsonl"
    secret.write_bytes(rows(1))
    path.symlink_to(secret)


def _link_to_other_suffix(path: Path) -> None:
    (path.parent / "data.bin").write_bytes(rows(1))
    path.symlink_to("data.bin")


def _locked(path: Path) -> None:
    path.write_bytes(rows(1))
    path.chmod(0)
