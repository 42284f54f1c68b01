"""Greedy answers of tiny random models: the same as one token at a time, whatever the batch."""

from typing import Any

import pytest

from icon_assets.core.encoding.prompts import render_for_training
from icon_assets.core.evaluation.answers import Answer, greedy_answers
from icon_assets.core.inputs.sample import Sample
from icon_assets_tests.conftest import make_model, make_tokenizer

PROMPTS = [
    Sample(text, "", "")
    for text in ("Why?", "Name three rivers of Europe, and say where each of them ends.", "Say it.", "12 times 12?")
]


def answered(model: Any, tokenizer: Any, prompts: list[Sample], batch_size: int = 4, n: int = 12) -> list[Answer]:
    batches = greedy_answers(
        model, tokenizer, prompts, template="alpaca", max_new_tokens=n, batch_size=batch_size, device="cpu"
    )
    by_index = {index: answer for batch in batches for index, answer in batch}
    return [by_index[index] for index in range(len(prompts))]


def plain(model: Any, tokenizer: Any, prompt: Sample, n: int, ends: set[int]) -> tuple[list[int], bool]:
    import torch

    rendered = render_for_training(prompt, "alpaca")
    ids = [0, *tokenizer(rendered.prompt, add_special_tokens=False, split_special_tokens=True).input_ids]
    said = []
    for _ in range(n):
        with torch.no_grad():
            token = int(model(torch.tensor([[*ids, *said]])).logits[0, -1].argmax())
        if token in ends:
            return said, True
        said.append(token)
    return said, False


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_answers_equal_one_token_at_a_time(kind: str, batch_size: int) -> None:
    model = make_model(kind)
    tokenizer = make_tokenizer(bos=True)
    for prompt, answer in zip(PROMPTS, answered(model, tokenizer, PROMPTS, batch_size), strict=True):
        said, finished = plain(model, tokenizer, prompt, 12, {1})
        assert answer == Answer(tokenizer.decode(said, skip_special_tokens=True).strip(), len(said), finished)


def test_an_answer_ends_at_the_mark_and_says_so() -> None:
    model = make_model("llama")
    tokenizer = make_tokenizer(bos=True)
    said, _ = plain(model, tokenizer, PROMPTS[0], 12, set())
    model.generation_config.eos_token_id = [said[4]]
    stop = said.index(said[4])
    (answer,) = answered(model, tokenizer, PROMPTS[:1])
    assert (answer.n_tokens, answer.finished) == (stop, True)
    assert answer.text == tokenizer.decode(said[:stop], skip_special_tokens=True).strip()


def test_what_the_makers_of_a_model_recommend_is_no_part_of_it() -> None:
    model = make_model("llama")
    tokenizer = make_tokenizer(bos=True)
    before = answered(model, tokenizer, PROMPTS)
    for name, value in {"do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0, "top_k": 3}.items():
        setattr(model.generation_config, name, value)
    assert answered(model, tokenizer, PROMPTS) == before


def test_special_tokens_in_a_prompt_are_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    tokenizer = make_tokenizer(bos=True)
    seen = []
    real = model.generate
    monkeypatch.setattr(model, "generate", lambda ids, **more: (seen.extend(ids.tolist()), real(ids, **more))[1])
    answered(model, tokenizer, [Sample("</s>Stop<s> here<pad>", "", "")])
    (ids,) = seen
    assert [token for token in ids if token < 3] == [0], "the BOS that the tokenizer puts, and no other"
    assert "</s>Stop<s> here<pad>" in tokenizer.decode(ids[1:])


def test_a_prompt_too_long_for_the_model_loses_its_start() -> None:
    model = make_model("llama", max_position_embeddings=64)
    tokenizer = make_tokenizer(bos=True)
    (long,) = answered(model, tokenizer, [Sample("word " * 300 + "Why?", "", "")], n=20)
    (longer,) = answered(model, tokenizer, [Sample("other " * 400 + "word " * 300 + "Why?", "", "")], n=20)
    assert long == longer
    assert long.n_tokens <= 20
