"""Which texts of the pool meet a probe or an evaluation item."""

from collections.abc import Callable
from typing import Any

from icon_assets.core.inputs.sample import Sample, Turn
from icon_assets.core.probes.leakage import evaluation_index, evaluation_references, pool_references, probe_index
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import alpaca, write_jsonl

TALK = (Turn("user", "What is the capital of France?"), Turn("assistant", "Paris."))


def row(sample: Sample, number: int = 1) -> dict[str, Any]:
    texts = {"instruction": sample.instruction, "input": sample.input, "response": sample.response}
    return {**texts, "turns": sample.turns_json(), "file": "f.jsonl", "row": number, "stratum": "s"}


def meets(probe: Sample, *pool: Sample) -> list[str]:
    references = pool_references(row(sample, number) for number, sample in enumerate(pool, 1))
    return [meeting.reference for meeting in probe_index([row(probe)]).meetings(references)]


def test_a_chat_that_the_pool_holds_as_it_is_is_found() -> None:
    chat = Sample("And of Spain?", "", "Madrid.", TALK)
    assert meets(chat, chat) == ["f.jsonl:1"]
    assert meets(chat, Sample("And of Spain?", "", "Madrid.")) == [], "another question without what was said before"


def test_a_question_is_the_same_under_a_system_prompt_and_at_the_end_of_a_chat() -> None:
    plain = Sample("What is 3 times 4?", "", "12")
    told = Sample("What is 3 times 4?", "", "It is 12.", (Turn("system", "You are a calculator."),))
    last = Sample("what is 3 times 4", "", "12.", TALK)
    assert meets(plain, told, last) == ["f.jsonl:1", "f.jsonl:2"]
    assert meets(told, plain, last) == ["f.jsonl:1", "f.jsonl:2"]


def test_items_of_every_kind_of_evaluation_data_are_found(make_workspace: Callable[..., Workspace]) -> None:
    workspace = make_workspace()
    pool = [Sample("What is 2 plus 1?", "", "3"), Sample("Name a bird that cannot fly.", "", "A kiwi.")]
    references = list(pool_references(map(row, pool)))
    met = {f"{m.candidate.file}:{m.candidate.row}" for m in evaluation_index(workspace).meetings(references)}
    assert met == {"eval/sums.jsonl:3", "eval/held_out.jsonl:1"}
    assert "3 7" in {r.name: r.text for r in evaluation_references(workspace)}["eval/sums.jsonl:3"], "every choice"


def test_prompts_that_a_judge_compares_answers_to_are_evaluation_data(make_workspace: Callable[..., Workspace]) -> None:
    pairwise = {
        "prompts": [{"name": "talk", "path": "eval/talk.jsonl"}],
        "judge": {"url": "http://127.0.0.1:9/v1", "model": "m"},
        "against": "random",
    }
    workspace = make_workspace(evaluation={"pairwise": pairwise})
    write_jsonl(workspace.root / "eval" / "talk.jsonl", [{"prompt": "Tell me a joke."}, {"prompt": "Who won?"}])
    references = list(pool_references([row(Sample("Tell me a joke.", "", "Knock, knock."))]))
    met = [f"{m.candidate.file}:{m.candidate.row}" for m in evaluation_index(workspace).meetings(references)]
    assert met == ["eval/talk.jsonl:1"]


def test_a_question_of_a_test_is_found_without_its_marks_and_inside_other_text(
    make_workspace: Callable[..., Workspace],
) -> None:
    long = "A ball is dropped from a tower that is twenty metres high; how fast does it hit the ground?"
    asked = [{"query": f"Question: {text}\nAnswer:", "choices": ["A", "B"], "gold": 0} for text in (long, "Why is it?")]
    workspace = make_workspace()
    write_jsonl(workspace.root / "eval" / "sums.jsonl", asked)
    pool = [
        Sample(f"Solve this riddle. {long}", "", "Fast."),
        Sample("Why is it?", "", "So."),
        Sample("Who is it?", "", ""),
    ]
    met = {
        m.reference: m.candidate.row
        for m in evaluation_index(workspace).meetings(pool_references(map(row, pool, [7, 8, 9])))
    }
    assert met == {"f.jsonl:7": 1, "f.jsonl:8": 2}


def test_evaluation_data_that_was_edited_is_read_again(make_workspace: Callable[..., Workspace]) -> None:
    workspace = make_workspace()
    assert evaluation_index(workspace) is evaluation_index(Workspace.load(workspace.root))
    write_jsonl(workspace.root / "eval" / "held_out.jsonl", [alpaca("New?", "Yes.")])
    references = list(pool_references([row(Sample("New?", "", "No."))]))
    assert [m.candidate.row for m in evaluation_index(workspace).meetings(references)] == [1]
