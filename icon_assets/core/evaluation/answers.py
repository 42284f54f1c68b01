"""Answers of a model to prompts: greedy, in batches, and reproducible for the same model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from icon_assets.core.encoding.prompts import Rendered, Template, render_for_training
from icon_assets.core.encoding.tokens import closing_ids, encode, leading_ids
from icon_assets.core.inputs.sample import Sample
from icon_assets.core.model.batches import by_length, padded
from icon_assets.core.model.logits import placed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """`n_tokens`: without the end mark. `finished`: the model generated that mark itself."""

    text: str
    n_tokens: int
    finished: bool


def greedy_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sample],
    *,
    template: Template,
    max_new_tokens: int,
    batch_size: int,
    device: str,
) -> Iterator[list[tuple[int, Answer]]]:
    """Answers to prompts under the fine-tuning template, yielded per batch with the prompts' indices, longest prompts
    first.

    Special tokens written in a prompt are plain text. A prompt that leaves less than `max_new_tokens` of the model's
    positions loses its start."""
    placed(model, device)
    room = max(1, model.config.max_position_embeddings - max_new_tokens)
    rendered = [render_for_training(prompt, template, tokenizer) for prompt in prompts]
    ids = [_prompt_ids(tokenizer, each, room) for each in rendered]
    ends = {*_end_ids(model, tokenizer), *(closing_ids(tokenizer, rendered[0]) if rendered else [])}
    for batch in by_length([len(each) for each in ids], texts=batch_size):
        said = _generate(model, tokenizer, [ids[index] for index in batch], max_new_tokens, ends)
        yield list(zip(batch, said, strict=True))


def _prompt_ids(tokenizer: "PreTrainedTokenizerBase", prompt: Rendered, room: int) -> list[int]:
    """Token ids as in fine-tuning. A cut prompt keeps its end, after which the answer begins."""
    leading = [*leading_ids(tokenizer)]
    ids = encode(tokenizer, prompt, "prompt")
    return [*leading, *ids[-max(1, room - len(leading)) :]]


def _generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: set[int],
) -> list[Answer]:
    import torch
    from transformers import GenerationConfig

    any_model: Any = model
    # Padded left, so that every answer begins in the same column. What the padding is does not matter: it is masked.
    ids, real = (torch.tensor(each, device=model.device) for each in padded(prompts, left=True))
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        pad_token_id=min(ends, default=0),
        eos_token_id=sorted(ends) or None,
    )
    # The generation settings of the model, such as sampling or a repetition penalty, are not part of the comparison.
    any_model.generation_config = config
    with torch.no_grad():
        whole = any_model.generate(ids, attention_mask=real, generation_config=config)
    return [_answer(tokenizer, row, ends) for row in whole[:, ids.shape[1] :].tolist()]


def _end_ids(model: Any, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The marks that end an answer: that of fine-tuning, and those of the model."""
    own = model.generation_config.eos_token_id
    ends: Any = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return {end for end in ends if end is not None}


def _answer(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], ends: set[int]) -> Answer:
    stop = next((place for place, token in enumerate(ids) if token in ends), None)
    own = list(ids[:stop])
    text: Any = tokenizer.decode(own, skip_special_tokens=True)
    return Answer(text.strip(), len(own), stop is not None)
