"""Secrets in every encoding in which a service may repeat them."""

import base64
import html
import json
import time
from collections.abc import Callable
from urllib.parse import quote

import pytest

from icon_assets.core.errors import IconError
from icon_assets.core.secrets import HIDDEN, hide, scrubbed

KEY = "sk-p/roj+a=b?c'd\"e\\f_1234567890"


@pytest.fixture(autouse=True)
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icon_assets.core.secrets._hidden", {})
    hide(KEY)


@pytest.mark.parametrize(
    "form",
    [
        KEY,
        KEY.upper(),
        quote(KEY),
        quote(KEY, safe=""),
        quote(quote(KEY, safe=""), safe=""),
        json.dumps(KEY)[1:-1],
        json.dumps(KEY)[1:-1].replace("/", "\\/"),
        json.dumps(json.dumps(KEY))[3:-3],
        repr(KEY)[1:-1],
        html.escape(KEY),
        "".join(f"\\u{ord(c):04X}" for c in KEY),
        "".join(f"\\x{ord(c):02x}" for c in KEY),
        "".join(f"&#{ord(c)};" for c in KEY),
        KEY.encode().hex(),
    ],
)
def test_a_secret_is_hidden_however_it_is_escaped(form: str) -> None:
    assert scrubbed(f"before {form} after") == f"before {HIDDEN} after"


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("before", ["", ":", "u:", "us:", "user:", "Bearer "])
@pytest.mark.parametrize("after", ["", "\n", ":x"])
def test_a_secret_is_hidden_in_base64_wherever_in_the_text_it_stands(
    encode: Callable[[bytes], bytes], before: str, after: str
) -> None:
    encoded = encode((before + KEY + after).encode()).decode()
    shown = scrubbed(f"Basic {encoded}.").replace(HIDDEN, "")
    assert len(shown) < len("Basic .") + len(before) + 4, "nothing but what stood before it"


def test_user_names_and_passwords_are_taken_out_of_urls_in_every_message_for_the_user() -> None:
    assert str(IconError("x: https://me:pa%40ss@host/a@b and user@example.org")) == (
        "x: https://***@host/a@b and user@example.org"
    )
    assert str(IconError(f"{KEY}: no")) == "***: no"


@pytest.mark.parametrize("unit", ["A", "\\", "%25", "://a", "s", "&#0", "\\u00"])
def test_hiding_takes_time_in_proportion_to_the_text(unit: str) -> None:
    start = time.process_time()
    scrubbed(unit * 100_000)
    assert time.process_time() - start < 2, "in proportion 0.1 s, otherwise hours"


def test_a_short_word_is_not_looked_for_in_base64() -> None:
    hide("abc")
    assert scrubbed("YWJj eHlhYmM=") == "YWJj eHlhYmM="
