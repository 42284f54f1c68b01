"""Multiple-choice tasks of local files and the harness's own tasks, run through lm-evaluation-harness.

The harness keeps everything that makes its figures comparable: tasks, few-shot rules, tokenization, metrics. The
forwards are computed here.
"""

import copy
import io
import math
import os
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from numbers import Real
from typing import TYPE_CHECKING, Any

from icon_assets.core.errors import IconError
from icon_assets.core.evaluation.metric import Item, Metric
from icon_assets.core.inputs.choice_items import ChoiceItem
from icon_assets.core.model.batches import by_length
from icon_assets.core.model.logits import last_logits, nll, placed
from icon_assets.core.model.quiet import quiet_libraries

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_SEED = 1234  # the harness's own default
_BOOTSTRAP_DRAWS = 100  # only for metrics without a closed formula; accuracies have one


def choice_metrics(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Mapping[str, Sequence[ChoiceItem]],
    *,
    names: Sequence[str] = (),
    limit: int | None,
    batch_size: int,
    device: str,
) -> list[Metric]:
    """Run tasks of lm-evaluation-harness on a model in memory. The model is moved to `device`, in eval mode.

    Args:
        tasks: local items by task name; each gives `acc` (the likeliest choice is right) and `acc_norm` (the
            same per character). Standard errors are those of a mean over items.
        names: the harness's own tasks or groups, which it downloads. Finding them takes seconds. Each gives all its
            numeric metrics, named `metric` or `metric,filter`.
        limit: items per task, from the start; None for all.
        batch_size: sequences per forward.

    Returns: Sorted by task and metric, with items where the metric is their mean and higher is better.

    Raises:
        IconError: a name unknown to the harness, without network or package, or taken by a local task.
    """
    if not tasks and not names:
        return []
    with quiet_libraries(), _seeded(), _bootstrap_in_process() if names else nullcontext():
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks import TaskManager

        # Listing the harness's own tasks reads thousands of files, so only if they are needed.
        loaded = _load_tasks(TaskManager(include_defaults=bool(names)), tasks, names)
        harness_model = _harness_model(placed(model, device), tokenizer, batch_size)
        # Not `simple_evaluate`, which describes the environment after each evaluation (`pip list`, git).
        results: Any = evaluate(harness_model, loaded, limit=limit, bootstrap_iters=_BOOTSTRAP_DRAWS)
    return sorted(_read_results(results), key=lambda metric: (metric.task, metric.metric))


def _load_tasks(manager: Any, local: Mapping[str, Sequence[ChoiceItem]], names: Sequence[str]) -> Any:
    loaded = manager.load([_task_config(name, items) for name, items in local.items()])
    for name in names:
        more = _load_harness_task(manager, name)
        if taken := sorted(local.keys() & {*more["tasks"], *more["groups"]}):
            fault = f"{taken[0]!r} is a task of {name!r} too"
            raise IconError(f"evaluation.multiple_choice: {fault}; rename the local one")
        for part in ("tasks", "groups", "group_map"):
            loaded[part].update(more[part])
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_SEED)
    return loaded


def _task_config(name: str, items: Sequence[ChoiceItem]) -> dict[str, Any]:
    """A task of the harness over items in memory, because the harness's file reader caches files and misses changes."""

    def dataset(**_: Any) -> "dict[str, Dataset]":
        from datasets import Dataset

        rows = [{"prompt": item.prompt, "choices": list(item.choices), "gold": item.gold} for item in items]
        return {"test": Dataset.from_list(rows)}

    mean = {"aggregation": "mean", "higher_is_better": True}
    return {
        "task": name,
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": "multiple_choice",
        # Functions, not column names or templates: the harness evaluates some texts as Python literals.
        "doc_to_text": lambda row: row["prompt"],
        "doc_to_choice": lambda row: row["choices"],
        "doc_to_target": lambda row: row["gold"],
        "target_delimiter": " ",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}],
    }


def _load_harness_task(manager: Any, name: str) -> Any:
    # Looked up here, because the harness would also accept a path to a file with Python code.
    if name not in manager.task_index:
        raise IconError(f"evaluation.tasks: {name!r} is no task of lm-eval; `lm-eval ls tasks` lists them")
    try:
        loaded = manager.load([name])
    except OSError as error:
        fault = f"{name!r} could not be downloaded ({' '.join(str(error).split())})"
        raise IconError(f"evaluation.tasks: {fault}; connect to a network or remove the task") from error
    except ImportError as error:
        fault = f"{name!r} needs a package that is absent ({' '.join(str(error).split())})"
        raise IconError(f"evaluation.tasks: {fault}; install it or remove the task") from error
    if any(getattr(task, "UNSAFE_CODE", False) for task in loaded["tasks"].values()):
        raise IconError(f"evaluation.tasks: {name!r} runs code that the model writes; remove the task")
    return loaded


def _harness_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int) -> Any:
    from lm_eval.models import huggingface

    base: Any = huggingface.HFLM

    class ScoredPositions(base):
        """HFLM takes logits at every position and normalizes in the model's dtype: slow, coarse in bf16."""

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            """HFLM's own method drops the BOS before a text that begins like one, although special tokens in data are
            text."""
            return own(string, add_special_tokens=add_special_tokens is not False).input_ids

        def _loglikelihood_tokens(
            self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            pairs = [(tuple(context), tuple(continuation)) for _, context, continuation in requests]
            return _log_likelihoods(model, pairs, override_bs or batch_size, self.max_length)

    # Not the caller's tokenizer: the harness adds a padding token if there is none, and special tokens in data must be
    # text in its generation prompts, too.
    own: Any = copy.deepcopy(tokenizer)
    own.split_special_tokens = True
    return ScoredPositions(pretrained=model, tokenizer=own, batch_size=batch_size)


def _log_likelihoods(
    model: "PreTrainedModel",
    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    batch_size: int,
    max_length: int,
) -> list[tuple[float, bool]]:
    """Per (context, continuation): the continuation's log-likelihood in nats, and whether it is greedy.

    Continuations that differ in their last token only share one row, as in the harness, so that letters as choices cost
    one. A text longer than `max_length` loses its start.

    Raises:
        IconError: a continuation alone is longer.
    """
    if (longest := max((len(continuation) for _, continuation in pairs), default=0)) > max_length:
        fault = f"an answer of {longest} tokens; the model has {max_length} positions"
        raise IconError(f"evaluation: {fault}; shorten the choice, or remove the item or task")
    sharing: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, (context, continuation) in enumerate(pairs):
        sharing[(context + continuation)[-(max_length + 1) : -1]].append(index)
    answers = [(0.0, False)] * len(pairs)
    order = sorted(sharing)
    for group in by_length([len(ids) for ids in order], texts=batch_size):
        keys = [order[place] for place in group]
        rows = [(ids, max(len(pairs[index][1]) for index in sharing[ids])) for ids in keys]
        for ids, logits in zip(keys, last_logits(model, rows), strict=True):
            for index in sharing[ids]:
                answers[index] = _likelihood(logits, pairs[index][1])
    return answers


def _likelihood(logits: "torch.Tensor", continuation: tuple[int, ...]) -> tuple[float, bool]:
    own = logits[-len(continuation) :]
    return -nll(own, continuation), own.argmax(-1).tolist() == list(continuation)


def _read_results(results: Mapping[str, Any]) -> Iterator[Metric]:
    """The harness's keys are like `acc,none` and `acc_stderr,none`: metric, then filter of the answers."""
    for task, values in results["results"].items():
        better_high = results["higher_is_better"].get(task) or {}
        samples = results["samples"].get(task, ())
        for key, value in values.items():
            metric, comma, rule = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, Real):
                stderr = values.get(f"{metric}_stderr,{rule}")
                yield Metric(
                    task,
                    metric if rule == "none" else key,
                    float(value),
                    float(stderr) if isinstance(stderr, Real) else None,
                    _items(samples, metric, rule, float(value)) if better_high.get(metric) else (),
                )


def _items(samples: Sequence[Mapping[str, Any]], metric: str, rule: str, mean: float) -> tuple[Item, ...]:
    """The items of a metric that is their mean; nothing for other metrics, such as BLEU."""
    own = [sample for sample in samples if sample["filter"] == rule]
    values = [sample.get(metric) for sample in own]
    if not own or not all(isinstance(value, Real) for value in values):
        return ()
    numbers = [float(value) for value in values if isinstance(value, Real)]
    if not math.isclose(sum(numbers) / len(numbers), mean, rel_tol=1e-9, abs_tol=1e-12):
        return ()
    return tuple(Item(int(sample["doc_id"]), value) for sample, value in zip(own, numbers, strict=True))


@contextmanager
def _bootstrap_in_process() -> Iterator[None]:
    """Keep the harness from bootstrapping in forks of this process, and from printing a line per metric."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        del os.environ["DISABLE_MULTIPROC"]
        if before is not None:
            os.environ["DISABLE_MULTIPROC"] = before


@contextmanager
def _seeded() -> Iterator[None]:
    """Fixed seeds for the draws of tasks. Afterwards the states of the caller's generators are restored."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(_SEED)
        np.random.seed(_SEED)
        torch.manual_seed(_SEED)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
