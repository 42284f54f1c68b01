"""Samples as text for a model: the scoring templates of the method, and the fine-tuning templates.

Scoring and training deliberately use different templates: the paper scores with a bare one and trains with Stanford's.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from icon_assets.core.errors import IconError
from icon_assets.core.inputs.sample import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["alpaca", "chat"]

_STANFORD_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_STANFORD = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_MARK = "\ue000"  # private use: placeholder for a message while the chat template is applied


@dataclass(frozen=True)
class Rendered:
    """Prompt and response as text; a context is `prompt + response`.

    `pieces` is set for chat templates: the prompt, split into text of the template (True: its special tokens are real)
    and text of the data (False: special tokens in it are plain text).
    """

    prompt: str
    response: str
    pieces: tuple[tuple[str, bool], ...] | None = None


def transcript(sample: Sample) -> str:
    """The instruction with any earlier turns before it, as plain text."""
    said = [f"{turn.role.capitalize()}: {turn.content}" for turn in sample.turns]
    return "\n\n".join([*said, f"User: {sample.instruction}"]) if said else sample.instruction


def messages_before_response(sample: Sample) -> list[dict[str, str]]:
    """The prompt as chat messages, with the input below the instruction."""
    request = f"{sample.instruction}\n\n{sample.input}" if sample.input else sample.instruction
    earlier = [{"role": turn.role, "content": turn.content} for turn in sample.turns]
    return [*earlier, {"role": "user", "content": request}]


def _chat(sample: Sample, tokenizer: "PreTrainedTokenizerBase") -> Rendered:
    messages = messages_before_response(sample)
    marked = [{**message, "content": f"{_MARK}{i}{_MARK}"} for i, message in enumerate(messages)]
    text = _applied(tokenizer, marked, prompt=True)
    pieces = tuple(
        (messages[int(piece)]["content"], False) if i % 2 else (piece, True)
        for i, piece in enumerate(text.split(_MARK))
        if piece
    )
    return Rendered("".join(piece for piece, _ in pieces), sample.response, pieces)


def _applied(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], *, prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise IconError(
            "the model's tokenizer has no chat template; set scoring.template and training.template to alpaca"
        )
    text: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    return text


def after_response(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of the chat template after a response: the end-of-turn mark, and what follows it."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _MARK}]
    return _applied(tokenizer, messages, prompt=False).rpartition(_MARK)[2]


def render_for_scoring(
    sample: Sample, template: Template, tokenizer: "PreTrainedTokenizerBase | None" = None
) -> Rendered:
    """The text of a sample as context or probe (method, "Text"; arXiv 2505.05327).

    `alpaca`: `### Instruction:\\n...\\n\\n### Input: ...\\n\\n### Response:` and the response right after the colon.
    """
    if template == "chat":
        assert tokenizer is not None, "the chat template belongs to a tokenizer"
        return _chat(sample, tokenizer)
    middle = f"\n\n### Input: {sample.input}" if sample.input else ""
    return Rendered(f"### Instruction:\n{transcript(sample)}{middle}\n\n### Response:", sample.response)


def render_for_training(
    sample: Sample, template: Template, tokenizer: "PreTrainedTokenizerBase | None" = None
) -> Rendered:
    """The text of a sample for fine-tuning, and for the held-out loss of a fine-tuned model."""
    if template == "chat":
        assert tokenizer is not None, "the chat template belongs to a tokenizer"
        return _chat(sample, tokenizer)
    form = _STANFORD_WITH_INPUT if sample.input else _STANFORD
    return Rendered(form.format(instruction=transcript(sample), input=sample.input), sample.response)
