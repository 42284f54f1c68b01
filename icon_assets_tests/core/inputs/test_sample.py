"""Canonical form and content ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icon_assets.core.inputs.sample import Rejected, Sample, Turn, clean, parse_row

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40).filter(str.strip)


def parsed(row: object, max_chars: int = 1000) -> Sample:
    return parse_row(row, max_chars)[0]


@given(TEXT, TEXT)
def test_the_same_content_has_the_same_id_in_every_format(prompt: str, response: str) -> None:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    ids = {
        parsed({"instruction": prompt, "output": response}).sample_id,
        parsed({"instruction": prompt, "input": None, "output": response, "task": "x"}).sample_id,
        parsed({"prompt": prompt, "completion": response}).sample_id,
        parsed({"messages": messages}).sample_id,
    }
    assert len(ids) == 1
    assert all(len(sample_id) == 32 and set(sample_id) <= set("0123456789abcdef") for sample_id in ids)


@given(TEXT)
def test_cleaning_twice_changes_nothing(text: str) -> None:
    assert clean(clean(text)) == clean(text)


def test_moving_text_between_fields_changes_the_id() -> None:
    assert Sample("a", "b", "c").sample_id != Sample("a", "", "c").sample_id != Sample("a\nb", "", "c").sample_id


def test_line_ends_and_unicode_forms_do_not_change_the_id() -> None:
    assert parsed({"instruction": "a\r\nb", "output": "caf\u0065\u0301 "}) == parsed(
        {"instruction": "a\nb", "output": "café"}
    )


def test_in_a_chat_the_last_assistant_turn_is_the_response_and_the_rest_the_prompt() -> None:
    roles = [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Bye"),
        ("assistant", "See you"),
    ]
    sample = parsed({"messages": [{"role": role, "content": content} for role, content in roles]})
    assert (sample.instruction, sample.response) == ("Bye", "See you")
    assert sample.turns == (Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hello"))


def test_fields_that_are_not_part_of_the_sample_are_handed_back() -> None:
    assert parse_row({"instruction": "a", "output": "b", "task": "t", "n": 3, "gone": None}, 100)[1] == {
        "task": "t",
        "n": 3,
    }


def test_control_characters_but_nul_are_part_of_the_text() -> None:
    text = "".join(map(chr, (*range(1, 9), 0x1B, 0x7F))) + "."
    assert clean(text) == text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1, 2], "wrong_type"),
        ({"instruction": "a"}, "missing_field"),
        ({"prompt": "a"}, "missing_field"),
        ({}, "missing_field"),
        ({"instruction": "a", "output": 3}, "wrong_type"),
        ({"instruction": 5, "output": "b"}, "wrong_type"),
        ({"instruction": " ", "output": "b"}, "empty_prompt"),
        ({"instruction": "a", "output": " \n"}, "empty_response"),
        ({"instruction": "a" * 200, "output": "b"}, "over_limit"),
        ({"instruction": "a", "output": "\ud800"}, "not_utf8"),
        ({"instruction": "a\0", "output": "b"}, "control_chars"),
        ({"instruction": "a" + "\u0301" * 201, "output": "b"}, "over_limit"),
        ({"messages": []}, "wrong_type"),
        ({"messages": "hi"}, "wrong_type"),
        ({"messages": [{"role": "user", "content": "a"}]}, "missing_field"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "missing_field"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "wrong_type"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}, "missing_field"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: object, reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        parse_row(row, max_chars=100)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)
