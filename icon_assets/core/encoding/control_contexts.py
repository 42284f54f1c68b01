"""Control contexts, the baselines of a probe. They are random, but seeded, and depend only on the length, so that one
context serves every candidate of that length (method, "The contribution score").
"""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " "


@dataclass(frozen=True)
class ControlContext:
    """A context without meaning. `length` is in the control's own unit: tokens, or characters for `random_chars`."""

    control: str
    seed: int
    length: int
    ids: tuple[int, ...]


def no_context() -> ControlContext:
    return ControlContext("none", 0, 0, ())


def random_tokens(vocabulary: Sequence[int], seed: int, length: int) -> ControlContext:
    """`length` ids drawn evenly from `vocabulary` (see `plain_vocabulary`)."""
    draw = random.Random(f"random_tokens {seed} {length}")  # noqa: S311  (reproducible, not secret)
    return ControlContext("random_tokens", seed, length, tuple(draw.choices(vocabulary, k=length)))


def random_chars(tokenizer: "PreTrainedTokenizerBase", seed: int, length: int, max_tokens: int) -> ControlContext:
    """`length` random letters, digits, punctuation marks and spaces, tokenized; about 4 times as many tokens as
    English."""
    draw = random.Random(f"random_chars {seed} {length}")  # noqa: S311
    text = "".join(draw.choices(_CHARACTERS, k=length))
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    return ControlContext("random_chars", seed, length, tuple(ids[:max_tokens]))


def plain_vocabulary(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids that a text can contain: all but special and added tokens."""
    vocabulary: Any = tokenizer  # the stubs type a tokenizer's methods as any attribute
    taken = set(tokenizer.all_special_ids) | set(vocabulary.get_added_vocab().values())
    return sorted(set(vocabulary.get_vocab().values()) - taken)
