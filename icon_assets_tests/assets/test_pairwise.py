"""Answers and their comparison as assets, with a real judge service: what is made, kept, made again, and what it
says."""

from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import dagster as dg
import pytest

from icon_assets.assets import pairwise
from icon_assets.core.store.tables import Store
from icon_assets.definitions import build_assets
from icon_assets.runner import Outcome, run_stages
from icon_assets.workspace import Workspace
from icon_assets_tests import judges
from icon_assets_tests.conftest import STAGES, change, write_jsonl
from icon_assets_tests.judges import Service, serving

KEY = "sk-not/to+be=seen"
COMPARED = ("answers", "pairwise_results")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as fresh:
        yield fresh


def evaluation(service: Service, **more: Any) -> dict[str, Any]:
    judge = {"url": service.url, "model": "wise", "api_key_variable": "JUDGE_KEY"}
    sets = [{"name": "talk", "path": "eval/talk.jsonl"}]
    return {"held_out": None, "pairwise": {"prompts": sets, "judge": judge, "max_new_tokens": 8, **more}}


def test_answers_are_generated_and_judged_once(
    make_workspace: Callable[..., Workspace], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)

    def run(stages: tuple[str, ...] = COMPARED) -> dict[str, Outcome]:
        loaded = Workspace.load(workspace.root)
        outcomes = list(run_stages(build_assets(loaded), loaded, instance, stages))
        assert [o.error for o in outcomes if o.error] == []
        return {o.name: o for o in outcomes}

    with serving(judges.good) as service:
        training = {"seeds": [0], "epochs": 8, "batch_size": 1, "micro_batch_size": 1, "max_tokens": 128}
        workspace = make_workspace(
            evaluation=evaluation(service),
            selection={"arms": ["random", "icon"], "fraction": 0.5},
            training={**training, "learning_rate": 0.05},
        )
        prompts = [{"instruction": "Name a river."}, {"prompt": "Why?</s>"}, {"prompt": "What is 2 plus 2?"}]
        write_jsonl(workspace.root / "eval" / "talk.jsonl", prompts)
        made = run(STAGES)
        assert set(made) >= {"answers[icon|0]", "answers[random|0]", "pairwise_results[icon|0]", "leaderboard"}
        assert "pairwise_results[random|0]" not in made
        store = Store(workspace.store_dir)
        assert store.query("SELECT count(*), count(DISTINCT prompt_id) FROM answers").row(0) == (6, 3)
        result = store.query("FROM pairwise_results").row(0, named=True)
        assert (result["arm"], result["against"], result["seed"], result["prompt_set"], result["n"]) == (
            "icon",
            "random",
            0,
            "talk",
            3,
        )
        longer = store.query("""
            SELECT count(*) FILTER (length(i.answer) > length(r.answer)),
                count(*) FILTER (length(i.answer) < length(r.answer))
            FROM answers i JOIN answers r USING (prompt_id) WHERE i.arm = 'icon' AND r.arm = 'random'
        """).row(0)
        assert (result["wins"], result["losses"]) == longer
        assert result["low"] <= result["win_rate"] <= result["high"]
        differ = store.query("SELECT count(DISTINCT answer) FROM answers GROUP BY prompt_id")["count(DISTINCT answer)"]
        asked = len(service.asked)
        assert asked == 2 * sum(differ > 1) > 0, "each pair that differs, in both orders"
        assert set(service.keys) == {f"Bearer {KEY}"}

        monkeypatch.setattr(pairwise, "load_fine_tuned", _refuse_to_load)
        assert not any(o.metadata["changed"] for o in run().values())
        change(workspace, "evaluation", evaluation(service, timeout_seconds=5))
        assert not any(o.metadata["changed"] for o in run().values()), "how long is waited changes nothing"
        monkeypatch.undo()
        monkeypatch.setenv("JUDGE_KEY", KEY)

        write_jsonl(workspace.root / "eval" / "talk.jsonl", [*prompts, {"prompt": "One more?"}])
        more = run()
        assert [more[f"answers[{arm}|0]"].metadata["new_answers"] for arm in ("icon", "random")] == [1, 1]
        assert len(service.asked) - asked <= 2, "only the new pair is judged"
        assert store.query("SELECT n FROM pairwise_results").item() == 4

        change(workspace, "evaluation", evaluation(service, max_new_tokens=2))
        assert run()["answers[icon|0]"].metadata["new_answers"] == 4
        assert store.query("SELECT max(n_tokens), count(*) FROM answers").row(0) == (2, 8)
    history = workspace.root / "history"
    history.mkdir()
    for talk in (judges.repeats_the_key_everywhere, judges.moves_on_with_the_key, judges.encodes_the_key):
        with judges.talking(talk) as url, dg.DagsterInstance.local_temp(str(history)) as kept:
            change(workspace, "evaluation", evaluation(Service(judges.good, url=url), max_new_tokens=2))
            loaded = Workspace.load(workspace.root)
            failed = list(run_stages(build_assets(loaded), loaded, kept, ("pairwise_results",)))
        assert "the judge refuses" in str(failed[0].error)
    assert len(list(history.rglob("*.db"))) > 3, "Dagster has stored the whole chain of errors"
    encoded = (KEY, quote(KEY, safe=""), b64encode(f"x:{KEY}".encode()).decode()[4:-4], KEY.encode().hex())
    for path in workspace.root.rglob("*"):
        stored = path.read_bytes() if path.is_file() else b""
        assert [form for form in encoded if form.encode() in stored] == [], path


def _refuse_to_load(*_: Any) -> Any:
    raise AssertionError("the model was loaded although nothing is missing")
