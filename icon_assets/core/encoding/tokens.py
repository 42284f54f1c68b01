"""From text to token ids: the boundaries between the parts of a sequence, cutting, and BOS.

Every part (context, separator, prompt, response) is tokenized separately, without special tokens, so that a probe's ids
do not depend on the text before it. One BOS opens the sequence if the tokenizer itself would add one.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from icon_assets.core.encoding.prompts import Rendered, after_response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Token ids of one rendered sample; `truncated` when a limit cut any part of it."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    truncated: bool = False

    @property
    def n_input(self) -> int:
        """Tokens that go through the model. The last one of the response is only a target."""
        return len(self.prompt_ids) + len(self.response_ids) - 1


@dataclass(frozen=True)
class Context:
    """Token ids of a candidate as context, without BOS and separator, and the length of its text in characters."""

    ids: tuple[int, ...]
    n_chars: int
    truncated: bool = False


def encode(tokenizer: "PreTrainedTokenizerBase", rendered: Rendered, part: str) -> list[int]:
    """Ids of `rendered.prompt` or `rendered.response` (`part`). Special tokens written in data stay plain text."""
    text = getattr(rendered, part)
    if part == "prompt" and rendered.pieces is not None:
        ids = [
            token
            for piece, trusted in rendered.pieces
            for token in tokenizer(piece, add_special_tokens=False, split_special_tokens=not trusted).input_ids
        ]
        # A chat template may also write the BOS: the one before the whole sequence is enough.
        leading = leading_ids(tokenizer)
        return ids[1:] if leading and ids[:1] == [*leading] else ids
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


def leading_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The ids that the tokenizer puts before a text: `(bos,)`, or nothing (method: no BOS is assumed, none is
    stripped)."""
    bos: Any = tokenizer.bos_token_id
    ids = tokenizer("a").input_ids
    return (bos,) if bos is not None and ids and ids[0] == bos else ()


def closing_ids(tokenizer: "PreTrainedTokenizerBase", rendered: Rendered) -> list[int]:
    """The end of a response: for a chat the mark of the template, if it has one, else EOS."""
    if rendered.pieces is not None:
        marks = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {
            *tokenizer.all_special_ids
        }
        ids: Any = tokenizer(after_response(tokenizer), add_special_tokens=False).input_ids
        if ids and ids[0] in marks:
            return ids[:1]
    eos: Any = tokenizer.eos_token_id
    return [] if eos is None else [eos]


def encode_context(tokenizer: "PreTrainedTokenizerBase", rendered: Rendered, max_tokens: int) -> Context:
    """A candidate as context: prompt and response tokenized as one text, cut at the end to `max_tokens`."""
    if rendered.pieces is None:
        text = rendered.prompt + rendered.response
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    else:
        ids = encode(tokenizer, rendered, "prompt") + encode(tokenizer, rendered, "response")
    n_chars = len(rendered.prompt) + len(rendered.response)
    return Context(tuple(ids[:max_tokens]), n_chars, len(ids) > max_tokens)


def encode_probe(
    tokenizer: "PreTrainedTokenizerBase", rendered: Rendered, max_prompt_tokens: int, max_response_tokens: int
) -> Encoded:
    """A probe. The prompt keeps its end, because the response marker must precede the response. The response keeps its
    start."""
    prompt = encode(tokenizer, rendered, "prompt")
    response = encode(tokenizer, rendered, "response")
    cut = len(prompt) > max_prompt_tokens or len(response) > max_response_tokens
    return Encoded(tuple(prompt[-max_prompt_tokens:]), tuple(response[:max_response_tokens]), cut)


def encode_training(tokenizer: "PreTrainedTokenizerBase", rendered: Rendered, max_tokens: int) -> Encoded:
    """A sample for fine-tuning: BOS where the tokenizer puts one, response closed, `max_tokens` at most.

    The response is cut at its end, to at least a quarter of `max_tokens`. Then the prompt is cut at its start, because
    the text just before a response announces it."""
    leading = list(leading_ids(tokenizer))
    prompt = encode(tokenizer, rendered, "prompt")
    response = [*encode(tokenizer, rendered, "response"), *closing_ids(tokenizer, rendered)]
    cut = len(leading) + len(prompt) + len(response) > max_tokens
    room = max_tokens - len(leading) - min(len(response), max(1, max_tokens // 4))
    prompt = [*leading, *prompt[max(0, len(prompt) - room) :]]
    return Encoded(tuple(prompt), tuple(response[: max_tokens - len(prompt)]), cut)
