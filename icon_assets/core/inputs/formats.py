"""From the bytes of one source file to decoded rows. There is one reader per format, which yields each row, or the
reason why it can't be read.

No reader holds much more of a text file than one row, and a row longer than the limit is skipped in pieces. JSON is
read as I-JSON (RFC 7493), where a text has one meaning: no name occurs twice in an object, and no number is beyond a
double.
"""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, TextIO

from icon_assets.core.inputs.sample import Rejected

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 1 << 20
_HEAD_BYTES = 4096  # of a file, to recognize its type
_PARQUET_ROWS = 256  # at a time
_BOM = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SIGNATURES = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"BZh91AY&SY": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"PAR1\x15": "Parquet",
}
_MAX_DIGITS = 308  # of an integer: the range of a double
_MAX_DEPTH = 200  # of nested JSON
_JSON_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)
_JSON_MARK = re.compile(rb'\\.|["\[\]{},]', re.DOTALL)
_REST_UNREAD = "the rest of the file is not read"
_SHOWN = 200  # characters of a library's message
# Errors of converting a value of Parquet.
_NO_PYTHON_FORM = (ValueError, OverflowError, KeyError, NotImplementedError, RecursionError)


class Row(NamedTuple):
    """The entry at a place of a file, counted from 1: a decoded value, or a Rejected.

    `raw` is the row's text or its beginning, where there is one.
    """

    number: int
    value: Any
    raw: bytes = b""


def row_limit(max_chars: int) -> int:
    """Length from which a row is not decoded: room for every character as an escape, and 1 MiB of other fields."""
    return 16 * max_chars + (1 << 20)


def read_rows(handle: BinaryIO, suffix: str, limit: int) -> Iterator[Row]:
    """The rows of an open file in the format of its suffix (one of `FORMATS`).

    Args:
        limit: bytes from which a row is skipped.

    Raises:
        Rejected: the file is not in the format of its name.
    """
    if suffix not in _READERS:
        raise Rejected("wrong_format", f"{suffix or 'no suffix'}: not one of {', '.join(FORMATS)}")
    head = handle.read(_HEAD_BYTES)
    if suffix != ".parquet":
        _refuse_foreign(head, suffix)
    handle.seek(len(_BOM) if head.startswith(_BOM) else 0)
    yield from _READERS[suffix](handle, limit)


def _refuse_foreign(head: bytes, suffix: str) -> None:
    """Reject a file whose first bytes show that it is not UTF-8 text at all. Less certain cases are judged row by
    row."""
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            raise Rejected("wrong_format", f"{name} data under the name of a {suffix} file; unpack or rename it")
    if _is_utf16(head):
        raise Rejected("not_utf8", "the file is UTF-16; save it as UTF-8")


def _is_utf16(head: bytes) -> bool:
    """Whether every second byte of the ASCII in it is NUL, all at even or all at odd places."""
    few, many = sorted((head[::2].count(0), head[1::2].count(0)))
    return 0 in head[:4] and few * 8 <= many and (many * 4 >= len(head) or head.startswith(_UTF16_MARKS))


def decode_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        Rejected: `bad_json`; `wrong_type` for NaN and Infinity; `duplicate_key`; `over_limit` for a number beyond the
            range of a double.
    """
    if text.count("[") + text.count("{") > _MAX_DEPTH and _depth(text) > _MAX_DEPTH:
        raise Rejected("bad_json", f"nested deeper than {_MAX_DEPTH} levels")
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise Rejected("bad_json", f"{error.msg} at line {error.lineno} column {error.colno}") from error


def _depth(text: str) -> int:
    """Nesting depth of brackets. It is counted here, because Python's own limit depends on the caller."""
    depth = deepest = 0
    for match in _JSON_BRACKET.finditer(text):
        depth += (match[0] in "[{") - (match[0] in "]}")
        deepest = max(deepest, depth)
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        _refuse_twice([key for key, _ in pairs], "key")
    return value


def _refuse_twice(names: Sequence[str], kind: str) -> None:
    for name, times in Counter(names).most_common(1):
        if times > 1:
            raise Rejected("duplicate_key", f"the {kind} `{name[:40]}` occurs {times} times; only one is allowed")


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise Rejected("over_limit", f"a number of {len(digits)} digits; write it as text")
    return int(digits)


def _real_number(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise Rejected("over_limit", f"the number {digits[:40]} is too large; write it as text")
    return value


def _refuse_constant(name: str) -> Any:
    raise Rejected("wrong_type", f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_whole_number, parse_float=_real_number, parse_constant=_refuse_constant
)


def _json_row(number: int, raw: bytes, limit: int) -> Row:
    """A JSON text as a row. A text longer than `limit` was cut off and is not decoded."""
    if len(raw) > limit:
        return Row(number, _too_long(limit), raw[:_HEAD_BYTES])
    try:
        return Row(number, decode_json(raw.removeprefix(_BOM).decode("utf-8")), raw)
    except UnicodeDecodeError as error:
        fault = f"byte 0x{error.object[error.start]:02x} at position {error.start} is not UTF-8"
        return Row(number, Rejected("not_utf8", fault), raw)
    except Rejected as error:
        return Row(number, error, raw)


def _too_long(limit: int) -> Rejected:
    return Rejected("over_limit", f"the row is longer than {limit:,} bytes (16 times pool.max_chars, plus 1 MiB)")


# JSON Lines


def _read_jsonl(handle: BinaryIO, limit: int) -> Iterator[Row]:
    for number, line in enumerate(_lines(handle, limit), 1):
        if line.strip():
            yield _json_row(number, line, limit)


def _lines(handle: BinaryIO, limit: int) -> Iterator[bytes]:
    """The lines of a file. Of a line longer than `limit`, only the beginning, one byte longer than that."""
    while line := handle.readline(limit + 1):
        yield line
        while len(line) > limit and line[-1:] != b"\n":
            line = handle.readline(limit + 1)


# JSON


def _read_json(handle: BinaryIO, limit: int) -> Iterator[Row]:
    if not _enters_list(handle):
        return
    number = 0
    try:
        for number, item in enumerate(_list_items(handle, limit), 1):
            yield _json_row(number, item, limit)
    except Rejected as error:
        yield Row(number + 1, error)


def _enters_list(handle: BinaryIO) -> bool:
    """Read up to the bracket that opens the list. False when the file is empty."""
    while (byte := handle.read(1)).isspace():
        pass
    if byte == b"{":
        raise Rejected(
            "wrong_type", "a .json file must hold a list of rows, not an object; one object a line is .jsonl"
        )
    if byte not in (b"[", b""):
        raise Rejected("bad_json", f"a .json file must hold a list of rows; this one begins with {byte!r}")
    return byte == b"["


def _list_items(handle: BinaryIO, limit: int) -> Iterator[bytes]:
    """The texts between the commas of a list, each cut off one byte after `limit`, so that a bad row does not affect
    others."""
    item = bytearray()
    depth = 0
    known = False
    pieces = _pieces(handle)
    for piece, mark in pieces:
        ends = depth == 0 and mark in (b",", b"]")
        item += (piece if ends else piece + mark)[: max(0, limit + 1 - len(item))]
        depth += (mark in (b"[", b"{")) - (mark in (b"]", b"}") and depth > 0)
        if ends and (known or mark == b"," or item.strip()):
            known = True
            yield bytes(item)
        if ends:
            item.clear()
        if ends and mark == b"]":
            break
    else:
        raise Rejected("bad_json", "the file ends before its list does")
    if any(piece.strip() or mark for piece, mark in pieces):
        raise Rejected("bad_json", f"more text after the end of the list; {_REST_UNREAD}")


def _pieces(handle: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """A JSON text cut at each bracket and comma outside of strings: the text before the mark, and the mark.

    The mark is empty at the end of each block that is read.
    """
    in_string = False
    while block := handle.read(_BLOCK):
        if (len(block) - len(block.rstrip(b"\\"))) % 2:
            block += handle.read(1)  # an escape is not cut in two
        start = 0
        for match in _JSON_MARK.finditer(block):
            mark = match.group()
            if mark == b'"':
                in_string = not in_string
            elif not in_string and len(mark) == 1:
                yield block[start : match.start()], mark
                start = match.end()
        yield block[start:], b""


# CSV


class _CsvLines:
    """Lines for `csv.reader`, at most so many characters of one record."""

    def __init__(self, text: TextIO, limit: int) -> None:
        self._text = text
        self._limit = limit
        self._number = 0
        self._first = 1
        self._left = limit

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._left + 1)
        if not line:
            raise StopIteration
        self._number += 1
        if len(line) > self._left:
            self._refuse(line)
        self._left -= len(line)
        return line

    def begin_record(self) -> None:
        self._first = self._number + 1
        self._left = self._limit

    def fault(self, reason: str) -> Rejected:
        return Rejected("bad_csv", f"{reason} in the record that begins in line {self._first}; {_REST_UNREAD}")

    def _refuse(self, line: str) -> NoReturn:
        """A long line that is a record by itself is skipped. Otherwise the end of the record is unknown."""
        quotes = line.count('"')
        while line and line[-1] not in "\r\n":
            line = self._text.readline(_BLOCK)
            quotes += line.count('"')
        if self._first == self._number and quotes % 2 == 0:
            raise _too_long(self._limit)
        raise csv.Error(f"more than {self._limit:,} characters")


def _read_csv(handle: BinaryIO, limit: int) -> Iterator[Row]:
    """Bytes that are not UTF-8 become half surrogates here, so that only their own row is rejected."""
    csv.field_size_limit(limit)
    lines = _CsvLines(TextIOWrapper(handle, "utf-8", "surrogateescape", newline=""), limit)
    records = _csv_records(lines)
    header = next(records, [])
    if isinstance(header, Rejected):
        raise header
    names = _column_names(header)
    for number, cells in enumerate(records, 1):
        yield Row(number, cells if isinstance(cells, Rejected) else _csv_value(names, cells))


def _csv_records(lines: _CsvLines) -> Iterator[list[str] | Rejected]:
    """The records that are not blank. After a broken quote the ends of cells are unknown, so reading stops there."""
    reader = csv.reader(lines, strict=True)
    while True:
        lines.begin_record()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except Rejected as error:
            yield error
        except csv.Error as error:
            yield lines.fault(str(error))
            return
        else:
            if cells:
                yield _not_utf8(cells) or cells


def _not_utf8(cells: list[str]) -> Rejected | None:
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError as error:
        return Rejected("not_utf8", f"byte 0x{ord(error.object[error.start]) - 0xDC00:02x} is not UTF-8")
    return None


def _column_names(header: list[str]) -> list[str]:
    names = [name or f"column {place}" for place, name in enumerate(header, 1)]
    _refuse_twice(names, "column")
    return names


def _csv_value(names: list[str], cells: list[str]) -> dict[str, str] | Rejected:
    """A record by column. The last columns may be missing."""
    if len(cells) > len(names):
        return Rejected("wrong_type", f"{len(cells)} cells; the header has {len(names)} columns")
    return dict(zip(names, cells, strict=False))


# Parquet


def _read_parquet(handle: BinaryIO, limit: int) -> Iterator[Row]:
    """Row group by row group, so that damage in one does not affect the others."""
    import pyarrow as pa
    from pyarrow import parquet

    damage = (pa.ArrowException, OSError, UnicodeDecodeError)
    try:
        file = parquet.ParquetFile(handle, pre_buffer=False, buffer_size=_BLOCK, page_checksum_verification=True)
        _refuse_twice(file.schema_arrow.names, "column")
    except damage as error:
        raise Rejected("bad_parquet", _one_line(error)) from error
    done = 0  # rows
    for group in range(file.num_row_groups):
        end = done + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(_PARQUET_ROWS, row_groups=[group], use_threads=False):
                yield from (Row(number, value) for number, value in enumerate(_values(batch), done + 1))
                done += batch.num_rows
        except damage as error:
            yield Row(done + 1, Rejected("bad_parquet", f"rows {done + 1} to {end}: {_one_line(error)}"))
        done = end


def _values(batch: "pa.RecordBatch") -> list[Any]:
    """The rows of a batch. Some Parquet values, such as the year 20000, have no Python form, and their row is
    rejected."""
    try:
        return batch.to_pylist()
    except _NO_PYTHON_FORM as error:
        if batch.num_rows == 1:
            return [Rejected("wrong_type", f"a value has no form here ({_one_line(error)})")]
        half = batch.num_rows // 2
        return _values(batch.slice(0, half)) + _values(batch.slice(half))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:_SHOWN]


_READERS: dict[str, Callable[[BinaryIO, int], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
FORMATS = tuple(_READERS)
