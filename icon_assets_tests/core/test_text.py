"""Strings of data as text: read back by a real Markdown parser, whatever they try to be."""

import re
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from icon_assets.core.text import Markdown, code, markdown, plain, printable, printable_lines
from icon_assets_tests.injections import AS_REPORTED, CORPUS

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
# What renderers of GitHub's Markdown look for in each text of the tree, after escapes and entities are resolved.
AUTOLINK = re.compile(
    r"(https?://|www(?=\.))([-.\w]+)([^ \t\r\n]*)|(?<![-.\w+])[-.\w+]+@[-\w]+(?:\.[-\w]+)+", re.IGNORECASE
)
STILL = {
    "paragraph_open",
    "paragraph_close",
    "inline",
    "text",
    "code_inline",
    "table_open",
    "table_close",
    "thead_open",
    "thead_close",
    "tbody_open",
    "tbody_close",
    "tr_open",
    "tr_close",
    "th_open",
    "th_close",
    "td_open",
    "td_close",
    "bullet_list_open",
    "bullet_list_close",
    "list_item_open",
    "list_item_close",
    "softbreak",
    "strong_open",
    "strong_close",
}
signs = st.text(st.sampled_from(list("\\`*_[]()<>!|~$&#;:/@.-+=1 ahtpw\n\t\u200b\u202e")), max_size=30)


def tokens(source: str) -> list[Token]:
    parsed = PARSER.parse(source)
    return parsed + [child for token in parsed for child in token.children or ()]


def live(source: str, allowed: set[str] = STILL) -> list[str]:
    """What in a Markdown text is more than text: links, images other than our own plots, HTML, blocks, addresses."""
    found = []
    for token in tokens(source):
        if token.type == "image" and str(token.attrs["src"]).startswith("data:image/png;base64,"):
            continue
        if token.type not in allowed:
            found.append(f"{token.type}: {token.content}")
        if token.type == "text" and AUTOLINK.search(token.content):
            found.append(f"address: {token.content}")
    return found


def shown(source: str) -> str:
    """What a reader sees."""
    return "".join(token.content for token in tokens(source) if token.type in {"text", "code_inline"})


def is_visible(text: str) -> bool:
    return all(
        unicodedata.category(c) not in {"Cc", "Cs", "Zl", "Zp"} and c not in "\u200b\u202e\u2060\ufeff" for c in text
    )


ONE_PARAGRAPH = {"paragraph_open", "paragraph_close", "inline", "text", "code_inline"}


@pytest.mark.parametrize("text", CORPUS)
def test_an_injection_is_shown_as_the_text_it_is(text: str) -> None:
    assert live(markdown(text), ONE_PARAGRAPH) == []
    assert shown(markdown(text)) == printable(text).strip()
    assert plain(markdown(text)) == printable(text).strip()


@pytest.mark.parametrize("text", CORPUS)
def test_an_injection_stays_in_its_cell(text: str) -> None:
    rows = tokens(f"| a | b |\n|---|---|\n| {markdown(text)} | {code(text)} |\n| last | row |")
    cells = [after.content for token, after in pairwise(rows) if token.type == "td_open"]
    assert len(cells) == 4
    assert cells[2:] == ["last", "row"]
    assert [shown(cell) for cell in cells[:2]] == [printable(text).strip()] * 2


@given(signs)
def test_no_mixture_of_signs_is_more_than_text(text: str) -> None:
    expected = printable(text).strip()
    assert live(markdown(text), ONE_PARAGRAPH) == []
    assert shown(markdown(text)) == plain(markdown(text)) == expected
    assert live(f"| a |\n|---|\n| {markdown(text)} |") == []
    assert live(code(text), ONE_PARAGRAPH) == []
    assert shown(code(text)) == expected


@given(st.text(max_size=40))
def test_nothing_stays_invisible(text: str) -> None:
    assert is_visible(printable(text))
    assert printable(printable(text)) == printable(text)


def test_what_people_write_reads_as_before_also_where_nobody_renders_it() -> None:
    for usual in (
        "my_file (1).jsonl",
        "2024-05-01, 3.5 %",
        "-0.5",
        "a-b/c.d: e",
        "What is 2+2?",
        "Q&A",
        "naïve 日本語",
        "held_out/x",
    ):
        assert markdown(usual) == usual
    assert markdown("http://a.example/b_c?d") == "http`://a.example`/b_c?d"
    assert markdown(markdown("a*b")) == markdown("a*b") == Markdown("a\\*b"), (
        "what is Markdown already is not escaped again"
    )
    assert code("my_file.jsonl") == "`my_file.jsonl`"


def test_joiners_stay_where_writing_needs_them_and_nowhere_else() -> None:
    for needed in ("می‌خواهم", "क्‍ष", "👨‍👩‍👧", "👍🏽", "❤️", "🏳️‍🌈", "1️⃣"):
        assert printable(needed) == needed
    assert printable("pass\u200dword\u200c") == "pass\\u200dword\\u200c"
    assert printable("👍\u200d\u200d\u200c") == "👍\\u200d\\u200d\\u200c"
    assert printable("a\ufe0f\U000e0061") == "a\\ufe0f\\U000e0061"


def test_lines_of_a_text_stay_lines() -> None:
    assert printable_lines("a\n\tb\r\u200b") == "a\n    b\\r\\u200b"


def test_the_old_way_would_have_been_alive() -> None:
    """The parser of these tests sees what a browser did."""
    (image,) = live(f"missing_field: the row has `{AS_REPORTED}`".replace("|", "\\|"))
    assert image.startswith("image")
    assert live("www.evil.example") == ["address: www.evil.example"]
    assert live("http&#58;//evil.example") == ["address: http://evil.example"]
