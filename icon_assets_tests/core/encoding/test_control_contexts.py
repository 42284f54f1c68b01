"""Control contexts."""

import string

import pytest

from icon_assets.core.encoding.control_contexts import no_context, plain_vocabulary, random_chars, random_tokens
from icon_assets.core.scoring.controls import knots
from icon_assets_tests.conftest import make_tokenizer

TOKENIZER = make_tokenizer(bos=True)


def test_random_tokens_have_the_length_and_no_special_token() -> None:
    vocabulary = plain_vocabulary(TOKENIZER)
    ids = random_tokens(vocabulary, 0, 500).ids
    assert len(ids) == 500
    assert not {0, 1, 2} & set(ids)
    assert len(set(ids)) > 200, "drawn evenly, not a few over and over"


def test_random_chars_have_as_many_characters_and_are_printable() -> None:
    context = random_chars(TOKENIZER, 0, 300, 10_000)
    text = TOKENIZER.decode(context.ids)
    assert len(text) == 300 == context.length
    assert set(text) <= set(string.ascii_letters + string.digits + string.punctuation + " ")
    assert len(random_chars(TOKENIZER, 0, 300, 20).ids) == 20


@pytest.mark.parametrize("length", [1, 64])
def test_a_control_is_the_same_for_the_same_seed_and_length_only(length: int) -> None:
    vocabulary = plain_vocabulary(TOKENIZER)
    assert random_tokens(vocabulary, 3, length) == random_tokens(vocabulary, 3, length)
    assert random_tokens(vocabulary, 3, length).ids != random_tokens(vocabulary, 4, length).ids
    assert random_chars(TOKENIZER, 3, length, 999) == random_chars(TOKENIZER, 3, length, 999)


def test_no_context_is_empty() -> None:
    assert no_context().ids == ()


@pytest.mark.parametrize(
    ("lengths", "needed"),
    [([], []), ([100], [32, 256]), ([32], [32]), ([5], [32]), ([40, 300], [32, 256, 2040]), ([9999], [2040])],
)
def test_only_the_lengths_around_the_samples_are_measured(lengths: list[int], needed: list[int]) -> None:
    assert knots([32, 256, 2040], lengths) == needed
