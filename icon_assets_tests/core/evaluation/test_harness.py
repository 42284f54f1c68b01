"""Tasks on tiny random models: the harness really runs; figures are checked against plain sums."""

import io
import json
import logging
import math
import random
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from icon_assets.core.errors import IconError
from icon_assets.core.evaluation.harness import choice_metrics
from icon_assets.core.evaluation.metric import Item, Metric
from icon_assets.core.inputs.choice_items import ChoiceItem, read_choice_items
from icon_assets_tests.core.plain import VOCABULARY, make_model, plain_nll

ITEMS = [
    ChoiceItem("What is wet?", ("water", "a dry stone", "sand"), 0),
    ChoiceItem("Question: Which letter?\nChoices:\nA. one\nB. two\nAnswer:", ("A", "B"), 1),
    ChoiceItem("To open a door,", ("turn the handle.", "sing.", "wait for a long while beside it."), 0),
    ChoiceItem("12", ("[1, 2]", "34", "None"), 2),
    ChoiceItem("Was it {{ query }}?", ("{% if %}", "yes"), 1),
]


@pytest.fixture
def tokenizer():
    """Byte-level, without merges: one token per byte; and no padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 1]
    raw = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(["<eos>", *alphabet])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")


def plain_choice(model, tokenizer, item):
    """Index of the likeliest choice: summed, and per character."""
    prompt = tokenizer(item.prompt).input_ids
    sums = [-sum(plain_nll(model, prompt, tokenizer(f" {choice}").input_ids)) for choice in item.choices]
    normed = [total / len(choice) for total, choice in zip(sums, item.choices, strict=True)]
    return sums.index(max(sums)), normed.index(max(normed))


def write_rows(path: Path, *rows) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n", "utf-8")
    return path


# Reading items


def test_items_are_read_in_order_cleaned_and_with_empty_lines_passed_over(tmp_path):
    path = write_rows(
        tmp_path / "a.jsonl",
        {"query": " Which?\r\nThis? ", "choices": [" a ", "b"], "gold": 1, "source": "mine"},
        "",
        {"query": "Next?", "choices": ["é", "d"], "gold": 0},
    )
    assert read_choice_items(path) == [
        ChoiceItem("Which?\nThis?", ("a", "b"), 1),
        ChoiceItem("Next?", ("é", "d"), 0),
    ]


GOOD = {"query": "q", "choices": ["a", "b"], "gold": 0}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ('{"query": ', "not valid JSON"),
        ("[1]", "must be an object"),
        ({"query": "q", "choices": ["a", "b"]}, "`gold` is missing"),
        ({**GOOD, "query": None}, "`query` is missing"),
        ({**GOOD, "gold": 2}, "0 to 1; got '2'"),
        ({**GOOD, "gold": -1}, "0 to 1"),
        ({**GOOD, "gold": True}, "0 to 1"),
        ({**GOOD, "gold": "a"}, "0 to 1"),
        ({**GOOD, "choices": ["a"]}, "at least 2"),
        ({**GOOD, "choices": "ab"}, "at least 2"),
        ({**GOOD, "choices": ["a", 3]}, "`choices` must hold text"),
        ({**GOOD, "choices": ["a", " "]}, "`choices` holds an empty text"),
        ({**GOOD, "query": ""}, "`query` holds an empty text"),
        ({**GOOD, "query": "\ud800"}, "surrogate"),
        ({**GOOD, "query": "a\0b"}, "NUL"),
        ('{"query": "q", "query": "r", "choices": ["a", "b"], "gold": 0}', "`query` occurs 2 times"),
        ('{"gold": 1' + "0" * 5000 + "}", "5001 digits"),
        ("[" * 100_000, "nested deeper"),
    ],
)
def test_a_bad_row_is_named_by_file_and_number_in_one_line(tmp_path, row, fault):
    path = write_rows(tmp_path / "bad.jsonl", GOOD, row)
    with pytest.raises(IconError) as caught:
        read_choice_items(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, row 2: ")
    assert fault in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "fault"), [(b"", "holds no items"), (b"\n\n", "holds no items"), (b"\xff\n", "not UTF-8")]
)
def test_a_file_without_readable_items_is_refused(tmp_path, content, fault):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(IconError, match=fault):
        read_choice_items(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(IconError, match="no such file"):
        read_choice_items(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("query", "prompt"),
    [
        ("Why?", "Question: Why?\nAnswer:"),
        ("Question: Why", "Question: Why\nAnswer:"),
        ("Question: Why?\nAnswer:", "Question: Why?\nAnswer:"),
        ("To sharpen a pencil,", "To sharpen a pencil,"),
    ],
)
def test_only_questions_are_put_between_question_and_answer(query, prompt):
    assert ChoiceItem(query, ("a", "b"), 0).prompt == prompt


# Multiple choice


@pytest.mark.parametrize("tied", [True, False])
def test_accuracies_equal_a_plain_count_of_the_likeliest_choices(tokenizer, tied):
    model = make_model(tied)
    items = ITEMS * 2
    metrics = choice_metrics(model, tokenizer, {"mine": items}, limit=None, batch_size=3, device="cpu")
    plain = [plain_choice(model, tokenizer, item) for item in items]
    for column, name in enumerate(("acc", "acc_norm")):
        right = [float(picks[column] == item.gold) for picks, item in zip(plain, items, strict=True)]
        mean = sum(right) / len(right)
        stderr = math.sqrt(mean * (1 - mean) / (len(right) - 1))
        metric = metrics[column]
        assert (metric.task, metric.metric) == ("mine", name)
        assert (metric.value, metric.stderr) == pytest.approx((mean, stderr))
        assert metric.items == tuple(Item(number, value) for number, value in enumerate(right))
    assert len(metrics) == 2


def test_log_likelihoods_equal_those_of_the_harness_itself(tokenizer):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from icon_assets.core.evaluation.harness import _harness_model

    model = make_model()
    texts = [(item.prompt, f" {choice}") for item in ITEMS for choice in item.choices]
    texts += [("", "no context"), ("x" * 300, " too long")]
    requests = [Instance("loglikelihood", {}, text, 0) for text in texts]
    rolling = [Instance("loglikelihood_rolling", {}, ("some words " * 40,), 0)]
    theirs: HFLM = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)  # pyright: ignore
    ours = _harness_model(model, tokenizer, 4)
    for (ll, greedy), (expected, expected_greedy) in zip(
        ours.loglikelihood(requests), theirs.loglikelihood(requests), strict=True
    ):
        assert ll == pytest.approx(expected, abs=1e-3)
        assert greedy == expected_greedy
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(theirs.loglikelihood_rolling(rolling), abs=1e-2)


def test_results_do_not_depend_on_batch_size_or_on_the_order_of_tasks(tokenizer):
    model = make_model()
    one = choice_metrics(model, tokenizer, {"b": ITEMS[:3], "a": ITEMS}, limit=None, batch_size=1, device="cpu")
    many = choice_metrics(model, tokenizer, {"a": ITEMS, "b": ITEMS[:3]}, limit=None, batch_size=64, device="cpu")
    assert one == many
    assert [(m.task, m.metric) for m in one] == [
        ("a", "acc"),
        ("a", "acc_norm"),
        ("b", "acc"),
        ("b", "acc_norm"),
    ]


def test_a_changed_item_changes_the_result_under_the_same_task_name(tokenizer):
    model = make_model()
    item = ITEMS[0]
    best = plain_choice(model, tokenizer, item)[0]
    for gold, expected in ((best, 1.0), ((best + 1) % 3, 0.0)):
        items = [ChoiceItem(item.query, item.choices, gold)]
        metrics = choice_metrics(model, tokenizer, {"same": items}, limit=None, batch_size=4, device="cpu")
        assert metrics[0] == Metric("same", "acc", expected, None, (Item(0, expected),))


def test_special_tokens_written_in_items_are_plain_text_and_cost_no_bos(tokenizer, monkeypatch):
    from tokenizers import processors

    from icon_assets.core.evaluation import harness

    tokenizer.bos_token = "<eos>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<eos> $A", special_tokens=[("<eos>", 0)]
    )
    seen = []
    real = harness._log_likelihoods
    monkeypatch.setattr(harness, "_log_likelihoods", lambda *given: (seen.extend(given[1]), real(*given))[1])
    items = [ChoiceItem("<eos>Stop<eos>,", ("a<eos>", "<eos>b"), 0)]
    choice_metrics(make_model(), tokenizer, {"t": items}, limit=None, batch_size=4, device="cpu")
    assert [(context[0], context.count(0), continuation.count(0)) for context, continuation in seen] == [(0, 1, 0)] * 2
    assert tokenizer.decode(seen[0][0][1:]) == "<eos>Stop<eos>,"
    assert not tokenizer.split_special_tokens, "the caller's tokenizer stays as it was"


def test_an_answer_longer_than_the_model_is_refused_and_a_long_question_cut(tokenizer):
    model = make_model()  # 256 positions, a token per byte
    long = ChoiceItem("Why " * 200 + "?", ("a", "b"), 0)
    assert len(choice_metrics(model, tokenizer, {"t": [long]}, limit=None, batch_size=4, device="cpu")) == 2
    too_long = ChoiceItem("Why?", ("a" * 300, "b"), 0)
    with pytest.raises(IconError, match="an answer of 301 tokens; the model has 256 positions"):
        choice_metrics(model, tokenizer, {"t": [too_long]}, limit=None, batch_size=4, device="cpu")


def test_limit_takes_the_first_items(tokenizer):
    model = make_model()
    limited = choice_metrics(model, tokenizer, {"t": ITEMS}, limit=2, batch_size=4, device="cpu")
    first = choice_metrics(model, tokenizer, {"t": ITEMS[:2]}, limit=None, batch_size=4, device="cpu")
    assert limited == first


def test_nothing_is_printed_logged_drawn_or_changed(tokenizer, caplog):
    import torch
    from tqdm import tqdm

    model = make_model()
    random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), torch.get_rng_state(), tqdm.__init__
    out = io.StringIO()
    err = io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), caplog.at_level(logging.INFO):
        choice_metrics(model, tokenizer, {"t": ITEMS}, limit=None, batch_size=4, device="cpu")
    assert (out.getvalue(), err.getvalue(), caplog.text) == ("", "", "")
    assert (before[0], before[2]) == (random.getstate(), tqdm.__init__)
    assert torch.equal(before[1], torch.get_rng_state())
    assert tokenizer.pad_token is None


def test_no_tasks_give_no_metrics(tokenizer):
    assert choice_metrics(make_model(), tokenizer, {}, limit=None, batch_size=4, device="cpu") == []


class Manager:
    """The two things asked of the harness's task manager; the real one reads 14,000 files first."""

    def __init__(self, answer):
        self.task_index = {"known": None}
        self.answer = answer

    def load(self, specs):
        if specs == ["known"] and isinstance(self.answer, Exception):
            raise self.answer
        return self.answer if specs == ["known"] else {"tasks": {}, "groups": {}, "group_map": {}}


class Unsafe:
    UNSAFE_CODE = True


@pytest.mark.parametrize(
    ("name", "answer", "fault"),
    [
        ("unknown", {}, "'unknown' is no task of lm-eval"),
        (
            "known",
            ConnectionError("Couldn't\nreach it"),
            r"'known' could not be downloaded \(Couldn't reach it\)",
        ),
        ("known", ModuleNotFoundError("No module named 'x'"), "'known' needs a package that is absent"),
        ("known", {"tasks": {"known": Unsafe()}}, "runs code that the model writes"),
        ("known", {"tasks": {"mine": None}, "groups": {}}, "'mine' is a task of 'known' too; rename"),
    ],
)
def test_a_harness_task_that_can_not_run_is_named_with_the_mend(name, answer, fault):
    from icon_assets.core.evaluation.harness import _load_tasks

    with pytest.raises(IconError, match=fault) as caught:
        _load_tasks(Manager(answer), {"mine": ITEMS}, [name])
    assert "\n" not in str(caught.value)


def test_results_of_the_harness_keep_filters_other_than_none():
    from icon_assets.core.evaluation.harness import _read_results

    values = {
        "alias": "t",
        "sample_len": 3,
        "exact_match,strict": 0.5,
        "exact_match_stderr,strict": 0.1,
        "f1,none": 0.25,
        "f1_stderr,none": "N/A",
        "note,none": "text",
    }
    results = {"results": {"t": values}, "higher_is_better": {}, "samples": {}}
    assert list(_read_results(results)) == [
        Metric("t", "exact_match,strict", 0.5, 0.1),
        Metric("t", "f1", 0.25, None),
    ]


@pytest.mark.parametrize(
    ("values", "mean", "higher", "kept"),
    [
        ([1, 0, 1, 0], 0.5, True, True),
        ([True, False, True, False], 0.5, True, True),
        ([1.0, 0.0, 1.0, 0.0], 0.4, True, False),
        ([(1, 2), (0, 2), (1, 2), (0, 2)], 0.5, True, False),
        ([1, 0, 1, 0], 0.5, False, False),
        ([1, 0, 1, 0], 0.5, None, False),
    ],
)
def test_a_metric_of_the_harness_has_items_where_it_is_their_mean_and_more_is_better(values, mean, higher, kept):
    from icon_assets.core.evaluation.harness import _read_results

    samples = [{"doc_id": n, "filter": "strict", "f1": value} for n, value in enumerate(values)]
    samples += [{"doc_id": n, "filter": "loose", "f1": 9.0} for n in range(4)]
    results = {
        "results": {"t": {"f1,strict": mean}},
        "higher_is_better": {"t": {"f1": higher}},
        "samples": {"t": samples},
    }
    (metric,) = _read_results(results)
    assert metric.metric == "f1,strict"
    assert metric.items == (tuple(Item(n, float(value)) for n, value in enumerate(values)) if kept else ())


def test_importing_the_module_loads_no_heavy_library(tmp_path):
    code = (
        "import sys, icon_assets.core.evaluation.harness;"
        "print(sorted({'torch', 'lm_eval', 'datasets', 'transformers', 'dagster'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="needs CUDA")
def test_figures_on_cuda_equal_those_on_the_cpu(tokenizer):
    model = make_model()
    figures = [
        choice_metrics(model, tokenizer, {"t": ITEMS}, limit=None, batch_size=4, device=device)
        for device in ("cpu", "cuda")
    ]
    for cpu, cuda in zip(*figures, strict=True):
        assert cuda.value == pytest.approx(cpu.value, rel=1e-3)
