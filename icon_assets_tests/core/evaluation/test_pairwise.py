"""Pairs of answers before judges of several habits, over real HTTP and a real store."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from icon_assets.core.errors import IconError
from icon_assets.core.evaluation.answers import Answer
from icon_assets.core.evaluation.judge import Judge
from icon_assets.core.evaluation.pairwise import (
    Pair,
    Result,
    answer_rows,
    check_pairwise,
    judge_missing,
    missing_answers,
    pairs_of,
    prompt_text,
    read_prompts,
    result_rows,
    results,
    wilson,
)
from icon_assets.core.inputs.sample import Sample
from icon_assets.core.store.tables import Store
from icon_assets.settings import JudgeSettings, Settings
from icon_assets.workspace import Workspace
from icon_assets_tests import judges
from icon_assets_tests.conftest import write_jsonl
from icon_assets_tests.judges import Service, serving

PAIRS = [
    Pair("talk", "p1", "Why?", "Because it is so.", "No."),
    Pair("talk", "p2", "Who?", "Me.", "All of us together."),
    Pair("talk", "p3", "When?", "Later on, then.", "Now."),
    Pair("code", "p1", "Why?", "Same!", "Size!"),
]
MINE = "checkpoint-a"
OTHER = "checkpoint-b"


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def judge_of(service: Service) -> Judge:
    return Judge(JudgeSettings(url=service.url, model="wise"), 10, pause=lambda seconds: None)


def judged(store: Store, service: Service, pairs: list[Pair] = PAIRS, mine: str = MINE) -> tuple[int, dict[str, Any]]:
    """How often the judge was asked, and the results by prompt set."""
    judge = judge_of(service)
    asked = judge_missing(store, judge, pairs, mine, OTHER, at_once=3)
    return asked, {each.prompt_set: each for each in results(store, judge, pairs, mine, OTHER)}


def counts(result: Any) -> tuple[int, int, int, int]:
    return result.wins, result.ties, result.losses, result.unreadable


def test_a_pair_is_won_when_both_orders_say_so(tmp_path: Path) -> None:
    with serving(judges.good) as service:
        asked, found = judged(Store(tmp_path), service)
    assert asked == len(service.asked) == 8
    assert counts(found["talk"]) == (2, 0, 1, 0)
    assert found["talk"].win_rate == pytest.approx(2 / 3)
    assert counts(found["code"]) == (0, 1, 0, 0)
    assert found["code"].win_rate == 0.5
    shown = [judges.answers_shown(request) for request in service.asked]
    assert {(s["A"], s["B"]) for s in shown} == {(p.own, p.other) for p in PAIRS} | {(p.other, p.own) for p in PAIRS}


def test_a_judge_that_prefers_what_comes_first_gives_ties_and_is_found_out(tmp_path: Path) -> None:
    with serving(judges.biased) as service:
        _, found = judged(Store(tmp_path), service)
    assert counts(found["talk"]) == (0, 3, 0, 0)
    assert found["talk"].first == 3


def test_a_verdict_in_one_order_and_a_tie_in_the_other_is_a_tie(tmp_path: Path) -> None:
    def wavers(service: Service, request: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
        return judges.said("VERDICT: A" if judges.answers_shown(request)["A"] == PAIRS[0].own else "VERDICT: TIE")

    with serving(wavers) as service:
        _, found = judged(Store(tmp_path), service, PAIRS[:1])
    assert counts(found["talk"]) == (0, 1, 0, 0)


def test_what_no_verdict_could_be_read_of_is_counted_apart(tmp_path: Path) -> None:
    with serving(judges.garbage) as service:
        asked, found = judged(Store(tmp_path), service)
        assert (asked, len(service.asked)) == (8, 24)
        assert counts(found["talk"]) == (0, 0, 0, 3)
        assert found["talk"].win_rate is None
        assert judged(Store(tmp_path), service)[0] == 0, "and not asked for ever"


def test_nothing_is_asked_twice_and_equal_answers_never(tmp_path: Path) -> None:
    store = Store(tmp_path)
    alike = Pair("talk", "p4", "What?", "This.", "This.")
    with serving(judges.good) as service:
        assert judged(store, service, [*PAIRS, alike])[0] == 8
        assert judged(store, service, [*PAIRS, alike])[0] == 0
        asked, found = judged(store, service, [*PAIRS, alike], mine="another checkpoint with the same answers")
        assert asked == 0
        assert counts(found["talk"]) == (2, 1, 1, 0)
        changed = [Pair("talk", "p1", "Why?", "Because I say so.", "No."), *PAIRS[1:]]
        assert judged(store, service, changed)[0] == 2, "a new answer is a new question"
    rows = store.query(
        "SELECT count(*), count(DISTINCT (checkpoint_id, prompt_set, prompt_id, swapped, question)) FROM judgements"
    )
    assert rows.row(0) == (22, 22)


def test_judgements_of_before_a_failure_are_kept_and_the_rest_is_not_asked(tmp_path: Path) -> None:
    def gives_up(service: Service, request: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
        if len(service.asked) > 3:
            return judges.locked(service, request)
        return judges.good(service, request)

    store = Store(tmp_path)
    many = [Pair("talk", f"p{n}", f"Why {n}?", "Because.", "No.") for n in range(20)]
    with serving(gives_up) as service:
        judge = judge_of(service)
        with pytest.raises(IconError, match="HTTP 401"):
            judge_missing(store, judge, many, MINE, OTHER, at_once=1)
        assert len(service.asked) == 4, "the other questions were not asked"
        kept = store.query("SELECT count(*) FROM judgements").item()
        assert kept == 3
        service.habit = judges.good
        assert judge_missing(store, judge, many, MINE, OTHER, at_once=4) == 40 - kept
    assert store.query("SELECT count(*) FROM judgements").item() == 40


def test_only_prompts_that_both_have_answered_under_the_same_settings_are_paired(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for checkpoint, answers in ((MINE, {"p1": "k", "p2": "k"}), (OTHER, {"p1": "k", "p2": "old", "p3": "k"})):
        store.append(
            "answers",
            pl.DataFrame(
                [
                    {
                        "checkpoint_id": checkpoint,
                        "arm": "x",
                        "seed": 0,
                        "prompt_set": "talk",
                        "prompt_id": prompt,
                        "prompt": "?",
                        "answer": f"{checkpoint} {prompt}",
                        "n_tokens": 2,
                        "finished": True,
                        "answer_key": key,
                    }
                    for prompt, key in answers.items()
                ]
            ),
        )
    assert pairs_of(store, MINE, OTHER) == [Pair("talk", "p1", "?", f"{MINE} p1", f"{OTHER} p1")]


@pytest.mark.parametrize(
    ("share", "n", "low", "high"), [(0.5, 10, 0.2366, 0.7634), (1.0, 10, 0.7225, 1.0), (0.0, 4, 0.0, 0.4899)]
)
def test_wilson_s_interval_has_its_known_values(share: float, n: int, low: float, high: float) -> None:
    assert wilson(share, n, 0.95) == pytest.approx((low, high), abs=1e-4)


def _settings(**pairwise: Any) -> dict[str, Any]:
    judge = {"url": "http://127.0.0.1:9/v1", "model": "m"}
    sets = [{"name": "talk", "path": "eval/talk.jsonl"}]
    return {"held_out": None, "pairwise": {"prompts": sets, "judge": judge, **pairwise}}


def test_prompts_come_in_every_format_of_the_pool_and_need_no_response(
    make_workspace: Callable[..., Workspace],
) -> None:
    workspace = make_workspace(evaluation=_settings())
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi?"}]
    rows = [
        {"instruction": "Shorten.", "input": "A long text."},
        {"instruction": "Shorten.", "input": "A long text.", "output": "Its response does not matter"},
        {"prompt": "Why?"},
        {"prompt": "Who?", "completion": ""},
        {"messages": chat},
        {"messages": [*chat, {"role": "assistant", "content": "Hello."}], "note": 1},
        {"instruction": "Last.", "output": ""},
    ]
    write_jsonl(workspace.root / "eval" / "talk.jsonl", rows)
    prompts = read_prompts(workspace)["talk"]
    texts = ["Shorten.\n\nA long text.", "Why?", "Who?", "System: Be kind.\n\nUser: Hi?", "Last."]
    assert [prompt_text(prompt) for prompt in prompts] == texts
    assert {prompt.response for prompt in prompts} == {""}

    limited = make_workspace(evaluation=_settings(limit=2))
    assert len(read_prompts(limited)["talk"]) == 2


def test_a_prompt_that_can_not_be_read_is_named(make_workspace: Callable[..., Workspace]) -> None:
    workspace = make_workspace(evaluation=_settings())
    write_jsonl(workspace.root / "eval" / "talk.jsonl", [{"prompt": "Why?"}, {"question_text": "?"}])
    with pytest.raises(IconError, match=r"talk.jsonl, row 2: none of `prompt`"):
        read_prompts(workspace)


@pytest.mark.parametrize(
    ("selection", "pairwise", "fault"),
    [
        (
            {"arms": ["icon", "full"]},
            {},
            "against: 'random' is not among selection.arms; add it there, or name one of icon, full",
        ),
        ({"arms": ["random"]}, {}, "there is no other arm to compare"),
    ],
)
def test_a_comparison_without_its_arms_is_refused(selection: Any, pairwise: Any, fault: str) -> None:
    settings = Settings.model_validate({"selection": selection, "evaluation": _settings(**pairwise)})
    with pytest.raises(IconError, match=fault):
        check_pairwise(settings)


def test_the_address_of_a_judge_holds_neither_key_nor_query() -> None:
    for url in ("ftp://x/v1", "http://user:secret@host/v1", "https://host/v1?key=1", "host/v1"):
        with pytest.raises(ValueError, match="url"):
            JudgeSettings(url=url, model="m")
    assert json.loads(JudgeSettings(url="https://host/v1", model="m").model_dump_json())["options"] == {
        "temperature": 0
    }


def test_what_is_answered_under_the_key_is_not_missing_and_what_nobody_asks_for_is_taken_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second, third = (Sample(text, "", "") for text in ("Why?", "Who?", "When?"))
    named = {"checkpoint_id": MINE, "arm": "icon", "seed": 0}
    answer = Answer("So.", 2, True)
    store.append(
        "answers", answer_rows([("talk", first, answer), ("talk", third, answer)], {**named, "answer_key": "k"})
    )
    store.append("answers", answer_rows([("talk", second, answer)], {**named, "answer_key": "of before"}))
    wanted = [("talk", first), ("talk", second)]
    assert missing_answers(store, MINE, "k", wanted) == [("talk", second)]
    left = store.query("SELECT prompt_id, prompt, answer, n_tokens, finished FROM delta.answers")
    assert left.rows() == [(first.sample_id, "Why?", "So.", 2, True)]
    assert missing_answers(store, OTHER, "k", wanted) == wanted


def test_results_are_rows_with_intervals_and_without_them_where_nothing_was_judged() -> None:
    rows = result_rows([Result("code", 3, 1, 0, 2, 1), Result("talk", 0, 0, 0, 4, 0)], 0.95, {"arm": "icon"})
    judged, unjudged = rows.to_dicts()
    assert (judged["n"], judged["win_rate"], judged["unreadable"], judged["arm"]) == (4, 0.875, 2, "icon")
    assert (judged["low"], judged["high"]) == wilson(0.875, 4, 0.95)
    assert (unjudged["n"], unjudged["win_rate"], unjudged["low"], unjudged["high"]) == (0, None, None, None)
