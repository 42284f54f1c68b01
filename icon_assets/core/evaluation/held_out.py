"""The loss on held-out samples, overall and by stratum, in nats per response token and as a perplexity."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from icon_assets.core.encoding.tokens import Encoded
from icon_assets.core.evaluation.metric import NLL, PERPLEXITY, Item, Metric
from icon_assets.core.inputs.evaluation_files import HELD_OUT
from icon_assets.core.model.batches import by_length
from icon_assets.core.model.logits import last_logits, nll, placed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class HeldOutSample:
    """A sample of the held-out file: its row there, its kind of task, and its token ids."""

    row: int
    stratum: str
    encoded: Encoded


def held_out_metrics(
    model: "PreTrainedModel",
    samples: Sequence[HeldOutSample],
    task: str = HELD_OUT,
    *,
    device: str,
    tokens_per_batch: int = 4096,
) -> list[Metric]:
    """Loss on held-out samples, overall and by stratum. The model is moved to `device`, in eval mode.

    Overall (`task`) and per stratum (`<task>/<name>`) `nll_per_token`, in nats: R = sum(y) / sum(x) over samples
    with summed NLL y and x response tokens, which are its items; and `perplexity` exp(R). Standard error of this ratio
    over the n samples: sqrt(n / (n - 1) * sum((y - R x)^2)) / sum(x); of the perplexity, by the delta method: exp(R)
    times that.

    Args:
        samples: all response tokens count. If the prompt is empty, all but the first, which nothing predicts. Strata
            without a predicted token are left out.
        tokens_per_batch: padded tokens per forward. A longer sample gets its own forward.

    Returns:
        Sorted by task and metric.
    """
    sums = _summed_nll(placed(model, device), [sample.encoded for sample in samples], tokens_per_batch)
    scored: defaultdict[str, list[Item]] = defaultdict(list)
    for sample, (loss, n_tokens) in zip(samples, sums, strict=True):
        if n_tokens:
            item = Item(sample.row, loss, n_tokens)
            scored[task].append(item)
            scored[f"{task}/{sample.stratum}"].append(item)
    losses = [Metric(name, NLL, *_ratio(items), tuple(items)) for name, items in sorted(scored.items())]
    return [metric for loss in losses for metric in (loss, _perplexity(loss))]


def _perplexity(loss: Metric) -> Metric:
    value = math.exp(loss.value)
    return Metric(loss.task, PERPLEXITY, value, None if loss.stderr is None else value * loss.stderr)


def _ratio(items: Sequence[Item]) -> tuple[float, float | None]:
    """sum(y) / sum(x) and its standard error; see `held_out_metrics`."""
    n = len(items)
    tokens = sum(item.weight for item in items)
    ratio = sum(item.value for item in items) / tokens
    if n < 2:
        return ratio, None
    squares = sum((item.value - ratio * item.weight) ** 2 for item in items)
    return ratio, math.sqrt(n / (n - 1) * squares) / tokens


def _summed_nll(model: "PreTrainedModel", samples: Sequence[Encoded], tokens_per_batch: int) -> list[tuple[float, int]]:
    """Per sample: NLL in nats summed over its response tokens, and their number."""
    inputs = [(sample.prompt_ids + sample.response_ids)[:-1] for sample in samples]
    targets = [sample.response_ids if sample.prompt_ids else sample.response_ids[1:] for sample in samples]
    answers = [(0.0, len(wanted)) for wanted in targets]
    predicting = [index for index, wanted in enumerate(targets) if wanted]
    for group in by_length([len(inputs[index]) for index in predicting], tokens=tokens_per_batch):
        batch = [predicting[place] for place in group]
        rows = [(inputs[index], len(targets[index])) for index in batch]
        for index, logits in zip(batch, last_logits(model, rows), strict=True):
            answers[index] = (nll(logits, targets[index]), len(targets[index]))
    return answers
