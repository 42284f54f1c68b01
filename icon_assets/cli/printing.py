"""Tables and texts on a terminal that data must not steer."""

import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

# Control characters, line and paragraph separators, and characters that change the writing direction.
_STEERING = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069"


def harmless(text: str) -> str:
    """The text without what steers a terminal."""
    return re.sub(f"[{_STEERING}]+", " ", text)


def print_frame(frame: "pl.DataFrame") -> None:
    """A table for people: one line per row, long texts cut, and no control characters, so that data can't control a
    terminal."""
    import polars as pl
    from rich.console import Console

    frame = frame.with_columns(pl.col(pl.String).str.replace_all(rf"[\s{_STEERING}]+", " "))
    names = [harmless(name) for name in frame.columns]
    if len(set(names)) == len(names):
        frame.columns = names
    width = Console().width if sys.stdout.isatty() else 200
    with pl.Config(
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        tbl_formatting="UTF8_FULL_CONDENSED",
        tbl_rows=200,
        tbl_cols=-1,
        fmt_str_lengths=60,
        tbl_width_chars=width,
        float_precision=4,
    ):
        print(frame)
