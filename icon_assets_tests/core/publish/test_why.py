"""Why a sample was chosen or not: what is said of every kind of sample, from stored rows and without a model."""

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from icon_assets.core.digests import share_ceiling
from icon_assets.core.errors import IconError
from icon_assets.core.publish.named_sample import named_sample
from icon_assets.core.publish.standing import Standing, least_fraction
from icon_assets.core.publish.why import Why, why
from icon_assets.core.publish.why_lines import why_lines
from icon_assets.core.selection.choose import subset_size
from icon_assets.core.store import ledger
from icon_assets.core.store.tables import Store
from icon_assets.core.strict_json import strict_json
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import alpaca, change, write_jsonl
from icon_assets_tests.selected import CONTROLS, SCORE_KEY, choose, selected_workspace

ROWS = [alpaca(f"Question number {n}.", "x" * (n + 1)) for n in range(40)]
ARMS = ("full", "random", "longest", "icon", "lowest")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """40 samples: the longer the response, the higher the score."""
    return selected_workspace(tmp_path / "ws", {"a.jsonl": ROWS}, ARMS, 0.25)


def store_of(workspace: Workspace) -> Store:
    return Store(workspace.store_dir)


def choose_again(workspace: Workspace, arm: str, fraction: float = 0.25, **settings: Any) -> None:
    store = store_of(workspace)
    choose(store, arm, fraction, [e.as_input() for e in ledger.latest(store, "sample_scores").values()], **settings)


def add_probes(workspace: Workspace, influences: dict[str, float], row: int = 40) -> None:
    """Probes of one response token with perplexity e without context. The sample in this row takes away the given share
    of it from each."""
    store = store_of(workspace)
    names = list(influences)
    texts = {"instruction": [f"Probe {n}?" for n in names], "input": "", "response": [f"Answer {n}" for n in names]}
    nulls: dict[str, Any] = {"turns": pl.String}
    probes = {"probe_id": names, "stratum": "facts", **texts, "turns": None, "file": "p.jsonl", "row": 1, "detail": ""}
    store.replace("probe_candidates", pl.DataFrame({**probes, "status": "selected"}, schema_overrides=nulls))
    key = {"score_key": SCORE_KEY, "probe_id": names, "n_tokens": 1}
    control = {"control": "none", "seed": 0, "length": 0, "n_context_tokens": 0, "truncated": False, "nll_sum": 1.0}
    store.append("control_scores", pl.DataFrame({**key, **control}))
    noise = {"control": "random_tokens", "seed": 0, "length": 128, "n_context_tokens": 128, "truncated": False}
    store.append("control_scores", pl.DataFrame({**key, **noise, "nll_sum": 2.0}))
    sample = {"score_key": SCORE_KEY, "origin": "a", "sample_id": named_sample(store, f"a.jsonl:{row}")}
    behind = [math.log(math.e * (1 - x)) for x in influences.values()]
    store.append("pair_scores", pl.DataFrame({**sample, "probe_id": names, "nll_sum": behind, "n_tokens": 1}))
    lengths = {"n_context_tokens": 128, "n_context_chars": 40, "truncated": True}
    store.append("contexts", pl.DataFrame([{**sample, **lengths}]))


def of(answer: Why, arm: str) -> Standing:
    return next(each for each in answer.arms if each.arm == arm)


def text(answer: Why) -> str:
    return "\n".join(why_lines(answer))


def test_a_chosen_sample_has_its_rank_and_what_would_put_it_out(workspace: Workspace) -> None:
    answer = why(workspace, "a.jsonl:40")
    icon = of(answer, "icon")
    assert (icon.state, icon.rank, icon.of, icon.chosen_rank) == ("chosen", 1, 40, 1)
    assert icon.score == pytest.approx(math.log(41) / 20)
    assert icon.reason == "rank 1 of 10 chosen: highest contribution against no context"
    assert icon.change.startswith("leaves below selection.fraction 0.025 (1 of 40), or with a score below 0.17")
    assert of(answer, "longest").score == 40
    assert of(answer, "full").change == "nothing: the arm takes every sample"
    assert answer.pool == 40


def test_a_sample_below_the_cut_is_told_by_how_much_and_the_fraction_that_takes_it(workspace: Workspace) -> None:
    answer = why(workspace, "a.jsonl:28")
    icon = of(answer, "icon")
    assert (icon.state, icon.rank, icon.chosen_rank, icon.places_below) == ("below_cut", 13, None, 3)
    assert icon.score_at_cut == pytest.approx(math.log(32) / 20)
    assert icon.short_of_cut == pytest.approx((math.log(32) - math.log(29)) / 20)
    assert icon.reason == (
        "below the cut by 3 ranks and 0.004922 (score at the cut 0.1733); selection.fraction 0.25 takes 10 of 40"
    )
    assert icon.change == "a score above 0.1733, or selection.fraction 0.325 (13 of 40) or more"
    lowest = of(answer, "lowest")
    assert (lowest.state, lowest.rank) == ("below_cut", 28)
    assert lowest.change.startswith("a score below 0.1199, or selection.fraction 0.7 ")
    random = of(answer, "random")
    assert random.score is random.score_at_cut is None


def test_what_is_said_of_the_fraction_is_so(workspace: Workspace) -> None:
    for row in (28, 1, 17):
        before = of(why(workspace, f"a.jsonl:{row}"), "random")
        if before.state == "below_cut":
            choose_again(workspace, "random", least_fraction(before.rank or 0, 40))
            assert of(why(workspace, f"a.jsonl:{row}"), "random").state == "chosen"
            choose_again(workspace, "random")


@pytest.mark.parametrize("pool", [3, 7, 40, 387, 10_001])
def test_the_least_fraction_takes_the_rank_and_hardly_more(pool: int) -> None:
    for rank in range(1, pool + 1):
        assert rank <= subset_size("icon", pool, least_fraction(rank, pool)) <= rank + pool // 10_000 + 1


def test_one_arm_may_be_asked_for_with_its_draws(workspace: Workspace) -> None:
    choose_again(workspace, "random.1")
    assert [each.arm for each in why(workspace, "a.jsonl:1", "random").arms] == ["random", "random.1"]
    assert [each.arm for each in why(workspace, "a.jsonl:1", "random.1").arms] == ["random.1"]
    with pytest.raises(IconError, match=r"^arm rico: is not among selection.arms: full, random, random.1, longest"):
        why(workspace, "a.jsonl:1", "rico")


def test_an_estimate_has_an_interval_and_says_whether_the_cut_is_in_it(workspace: Workspace) -> None:
    store = store_of(workspace)
    scores = store.query("FROM delta.sample_scores")
    store.replace("sample_scores", scores.with_columns(standard_error=pl.lit(0.01)))
    near, far = (of(why(workspace, f"a.jsonl:{row}"), "icon") for row in (28, 2))
    assert near.low == pytest.approx(math.log(29) / 20 - 0.0195996, abs=1e-6)
    assert near.high == pytest.approx(math.log(29) / 20 + 0.0195996, abs=1e-6)
    assert "score at the cut 0.1733), within its interval;" in near.reason
    assert "interval" not in far.reason
    assert of(why(workspace, "a.jsonl:28"), "longest").low is None


def test_a_sample_without_a_score_is_not_scored_or_not_drawn(workspace: Workspace) -> None:
    store = store_of(workspace)
    sample_id = named_sample(store, "a.jsonl:3")
    store.replace("sample_scores", store.query(f"FROM delta.sample_scores WHERE sample_id <> '{sample_id}'"))
    answer = why(workspace, "a.jsonl:3")
    icon = of(answer, "icon")
    assert (icon.state, icon.score, icon.rank, icon.of) == ("not_scored", None, None, 39)
    assert icon.reason == "not scored under control none"
    assert of(answer, "longest").rank == 38
    assert "tokens as a context (estimated from its characters)" in text(answer)
    share = int(sample_id, 16) / 16**32
    change(workspace, "scoring", {"direct_share": share / 2})
    icon = of(why(Workspace.load(workspace.root), "a.jsonl:3"), "icon")
    assert icon.state == "not_drawn"
    assert icon.change.startswith(f"scoring.direct_share above {share:.4f}")
    ceiling = share_ceiling(share + 1e-4)
    assert ceiling is None or sample_id < ceiling


def test_arms_that_rank_by_features_or_predictions_say_that_there_are_none(workspace: Workspace) -> None:
    arms = ["ifd", "icon_selector", "rds", "icon_peers", "icon"]
    change(workspace, "selection", {"arms": arms, "fraction": 0.25})
    answer = why(Workspace.load(workspace.root), "a.jsonl:3")
    assert {each.arm: each.state for each in answer.arms} == {
        "ifd": "no_features",
        "icon_selector": "no_prediction",
        "rds": "not_ranked",
        "icon_peers": "not_ranked",
        "icon": "below_cut",
    }
    assert "no embedding of any probe" in of(answer, "rds").reason


def test_an_arm_without_a_subset_says_where_the_sample_would_be(workspace: Workspace) -> None:
    change(workspace, "selection", {"arms": ["rico"], "fraction": 0.1})
    workspace = Workspace.load(workspace.root)
    chosen, left = (of(why(workspace, f"a.jsonl:{row}"), "rico") for row in (37, 36))
    assert chosen.reason == left.reason == "the arm has no subset yet"
    assert (chosen.rank, left.rank) == (4, 5)
    assert chosen.change.endswith("at selection.fraction 0.1 it would be in")
    assert left.change.endswith("it would be left out")


def test_a_subset_that_is_older_than_the_scores_is_said_to_be(workspace: Workspace) -> None:
    store = store_of(workspace)
    scores = store.query("FROM delta.sample_scores")
    store.replace("sample_scores", scores.with_columns(contribution=-pl.col("contribution")))
    now_best, was_best = (of(why(workspace, f"a.jsonl:{row}"), "icon") for row in (1, 40))
    assert (now_best.state, now_best.rank) == ("older_subset", 1)
    assert (was_best.state, was_best.rank, was_best.chosen_rank) == ("chosen", 40, 1)
    assert "so choose again" in now_best.reason
    assert "so choose again" in was_best.reason


def test_chosen_samples_that_left_the_pool_do_not_stop_the_answer(workspace: Workspace) -> None:
    store = store_of(workspace)
    store.replace("samples", store.query('FROM delta.samples WHERE "row" NOT IN (40, 5)'))
    left, chosen = (of(why(workspace, f"a.jsonl:{row}"), "icon") for row in (3, 39))
    assert (left.state, left.rank, left.of) == ("below_cut", 36, 38)
    assert (chosen.state, chosen.rank, chosen.chosen_rank) == ("chosen", 1, 2)
    assert "so choose again" in left.reason
    store.replace("samples", store.query('FROM delta.samples WHERE "row" < 4'))
    assert {each.state for each in why(workspace, "a.jsonl:3").arms} <= {"chosen", "older_subset"}


def test_a_subset_is_explained_by_the_settings_that_it_was_chosen_with(workspace: Workspace) -> None:
    change(workspace, "selection", {"arms": list(ARMS), "fraction": 0.9, "seed": 7})
    assert why(Workspace.load(workspace.root), "a.jsonl:28").arms == why(workspace, "a.jsonl:28").arms


def test_a_skipped_sample_names_the_chosen_one_that_it_nearly_repeats(workspace: Workspace) -> None:
    store = store_of(workspace)
    ids = store.query('SELECT sample_id FROM samples ORDER BY "row"')["sample_id"].to_list()
    vectors = {name: [float(place == n) for n in range(40)] for place, name in enumerate(ids)}
    vectors[ids[37]] = [0.0] * 38 + [0.05, 1.0]  # row 38 nearly repeats row 40
    vectors[ids[20]] = [0.0] * 19 + [1.0, 0.05] + [0.0] * 19  # and row 21, row 20, but ranks before it
    features = {"score_key": SCORE_KEY, "origin": "a", "n_tokens": 4, "nll_sum": 2.0, "nll_alone": 3.0}
    rows = [{**features, "sample_id": name, "truncated": False, "embedding": v} for name, v in vectors.items()]
    store.append("sample_features", pl.DataFrame(rows))
    choose_again(workspace, "icon", diversity=0.9)
    skipped = of(why(workspace, "a.jsonl:38"), "icon")
    assert (skipped.state, skipped.rank, skipped.chosen_rank, skipped.near) == ("near_duplicate", 3, None, ids[39])
    assert skipped.near_cosine == pytest.approx(1 / math.sqrt(1 + 0.05**2), abs=1e-5)
    assert skipped.reason.startswith(f"skipped: nearly the same as the chosen sample {ids[39]} (cosine 0.9988")
    assert skipped.change.startswith("selection.diversity 0.9988")
    assert of(why(workspace, "a.jsonl:30"), "icon").chosen_rank == 10
    left = of(why(workspace, "a.jsonl:29"), "icon")
    assert (left.state, left.rank, left.places_below) == ("below_cut", 12, 1)
    assert "selection.fraction 0.275 (11 of 40) or more" in left.change
    repeats = of(why(workspace, "a.jsonl:20"), "icon")
    assert (repeats.state, repeats.near) == ("below_cut", ids[20])
    assert f"it also nearly repeats {ids[20]}" in repeats.change


def test_with_a_budget_of_tokens_the_budget_is_the_reason(workspace: Workspace) -> None:
    choose_again(workspace, "longest", budget="tokens")
    answer = of(why(workspace, "a.jsonl:10"), "longest")
    assert answer.state == "below_cut"
    assert "the budget of 205 training tokens was full after rank 5" in answer.reason
    assert "selection.fraction 0.95 (about: " in answer.change


def test_the_probes_it_helps_and_hurts_most_are_shown_with_both_texts(workspace: Workspace) -> None:
    shares = {"p1": 0.5, "p2": -0.2, "p3": 0.1, "p4": 0.3, "p5": -0.4, "p6": 0.2, "p7": -0.1, "p8": -0.3}
    add_probes(workspace, shares)
    answer = why(workspace, "a.jsonl:40")
    assert [each.probe_id for each in answer.helps] == ["p1", "p4", "p6"]
    assert [each.probe_id for each in answer.hurts] == ["p5", "p8", "p2"]
    assert (answer.control, answer.scored_probes, answer.probes) == ("none", 8, 8)
    best = answer.helps[0]
    assert (best.nll_without, best.nll_with) == (pytest.approx(1), pytest.approx(math.log(math.e / 2)))
    assert best.perplexity_change == pytest.approx(-math.e / 2)
    assert best.texts["probe"]["instruction"] == "Probe p1?"
    assert best.texts["sample"]["instruction"] == "Question number 39."
    said = text(answer)
    assert "1.000 -> 0.307  perplexity -1.36 (-50.0%)   facts  Probe p1? => Answer p1" in said
    assert "(cut to scoring.max_context_tokens)" in said
    assert json.loads(strict_json(asdict(answer)))["helps"][0]["texts"]["probe"]["response"] == "Answer p1"


def test_an_arm_that_was_asked_for_compares_under_its_own_control(workspace: Workspace) -> None:
    change(workspace, "selection", {"arms": ["rico", "icon_peers"], "fraction": 0.25})
    change(workspace, "controls", {**CONTROLS, "draws": 1, "lengths": [128]})
    workspace = Workspace.load(workspace.root)
    add_probes(workspace, {"p1": 0.5, "p2": -0.2})
    answer = why(workspace, "a.jsonl:40", "rico")
    assert answer.control == "random_tokens"
    assert answer.helps[0].nll_without == pytest.approx(2)
    assert why(workspace, "a.jsonl:40", "icon_peers").control == "none"


def test_an_arm_that_compares_with_peers_is_ranked_from_stored_pairs(workspace: Workspace) -> None:
    add_probes(workspace, {"p1": 0.5, "p2": -0.2})
    store = store_of(workspace)
    scored = store.query("SELECT DISTINCT sample_id, n_context_tokens FROM sample_scores")
    key = {"score_key": pl.lit(SCORE_KEY), "origin": pl.lit("a")}
    store.replace("contexts", scored.with_columns(**key, n_context_chars=1, truncated=False))
    best = pl.col("sample_id") == named_sample(store, "a.jsonl:9")
    pairs = [
        scored.select(
            "sample_id", **key, probe_id=pl.lit(p), nll_sum=pl.when(best).then(0.5).otherwise(0.9), n_tokens=1
        )
        for p in ("p1", "p2")
    ]
    store.replace("pair_scores", pl.concat(pairs))
    change(workspace, "selection", {"arms": ["icon_peers"], "fraction": 0.25})
    (peers,) = why(Workspace.load(workspace.root), "a.jsonl:9").arms
    assert (peers.state, peers.rank, peers.of) == ("not_selected_yet", 1, 40)
    assert (peers.score or 0) > 0.2


def test_few_probes_are_on_one_side_only(workspace: Workspace) -> None:
    add_probes(workspace, {"p1": 0.5, "p2": 0.2})
    answer = why(workspace, "a.jsonl:40")
    assert ([each.probe_id for each in answer.helps], answer.hurts) == (["p1", "p2"], [])
    assert "The probes it hurts most\n  none" in text(answer)
    assert "No probe was measured with this sample." in text(why(workspace, "a.jsonl:39"))


def test_an_overlap_with_evaluation_data_or_a_probe_is_said(workspace: Workspace) -> None:
    write_jsonl(workspace.root / "eval" / "held_out.jsonl", [alpaca("Other.", "y"), alpaca("question NUMBER 5", "z")])
    add_probes(workspace, {"p1": 0.5})
    store = store_of(workspace)
    probes = store.query("FROM delta.probe_candidates").with_columns(instruction=pl.lit("Question number 6"))
    store.replace("probe_candidates", probes)
    evaluated, probed, free = (why(workspace, f"a.jsonl:{row}").findings for row in (6, 7, 8))
    assert evaluated == [
        "overlaps with evaluation item eval/held_out.jsonl:2 (same prompt): an arm that chooses it is not trained "
        "(check subset_holds_no_evaluation_item)"
    ]
    assert probed == [
        "overlaps with probe p.jsonl:1 (same prompt): an arm that chooses it is not trained (check "
        "subset_holds_no_probe)"
    ]
    assert free == []


def test_missing_evaluation_data_does_not_stop_the_answer(workspace: Workspace) -> None:
    (finding,) = why(workspace, "a.jsonl:6").findings
    assert finding.startswith("not compared with each evaluation item: ")


def test_every_source_line_is_named_and_the_first_one_is_the_sample(tmp_path: Path) -> None:
    files = {"a.jsonl": ROWS[:3], "b.jsonl": [ROWS[1], ROWS[3], {"instruction": "no answer"}]}
    workspace = selected_workspace(tmp_path / "ws", files, ("icon",))
    answer = why(workspace, "a.jsonl:2")
    assert [tuple(line.values()) for line in answer.sample.lines] == [("a.jsonl", 2, False), ("b.jsonl", 1, True)]
    assert "lines    a.jsonl:2, b.jsonl:1 (duplicate)" in text(answer)
    assert answer.sample.stratum in {"a.jsonl", "b.jsonl"}
    assert why(workspace, "pool/a.jsonl:2") == answer
    assert why(workspace, answer.sample.sample_id[:8].upper()) == answer


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("b.jsonl:1", r"b.jsonl:1: is a duplicate of a.jsonl:2, sample (\w{32}); see `icon-assets why \1`"),
        ("b.jsonl:3", r"b.jsonl:3: is quarantined: missing_field \(.+\); mend it in the file and run again"),
        ("b.jsonl:4", r"b.jsonl:4: no such row; 3 rows of the file were read, counted from 1"),
        ("b.jsonl:0", r"b.jsonl:0: no such row; .+"),
        ("c.jsonl:1", r"c.jsonl:1: its whole file is quarantined: empty_file \(.*\); .+"),
        ("d.jsonl:1", r"d.jsonl: no such file in the pool; it has a.jsonl, b.jsonl, c.jsonl"),
        ("abcdef", r"abcdef: too short for an id; give at least its first 8 characters"),
        ("00000000", r"00000000: no sample of the pool has an id that begins with it"),
        ("0" * 32, r"0{32}: no sample of the pool has the id"),
        ("what is this", r"'what is this': is neither an id nor FILE:ROW; such as 3f2a9c01, or a.jsonl:2"),
        ("\x1b[31m:x", r".*is neither an id nor FILE:ROW.*"),
        ("", r"'': is neither an id nor FILE:ROW.*"),
    ],
)
def test_what_is_no_usable_sample_is_named_in_one_line(tmp_path: Path, named: str, said: str) -> None:
    files = {"a.jsonl": ROWS[:3], "b.jsonl": [ROWS[1], ROWS[3], {"instruction": "no answer"}], "c.jsonl": []}
    workspace = selected_workspace(tmp_path / "ws", files, ("icon",))
    with pytest.raises(IconError) as fault:
        why(workspace, named)
    assert re.fullmatch(said, str(fault.value)), str(fault.value)
    assert str(fault.value).isprintable()


def test_a_beginning_of_several_ids_names_them(workspace: Workspace) -> None:
    store = store_of(workspace)
    rows = store.query("FROM delta.samples").with_columns(sample_id="abcdef012345" + pl.col("sample_id").str.slice(12))
    store.replace("samples", rows)
    with pytest.raises(IconError, match=r"^abcdef01: 40 samples begin with it: abcdef012345\w{20}, .+, \.\.\.$"):
        named_sample(store, "abcdef01")


def test_a_sample_of_a_deleted_file_is_no_longer_in_the_pool(workspace: Workspace) -> None:
    store = store_of(workspace)
    sample_id = named_sample(store, "a.jsonl:1")
    shards = store.query("FROM delta.shards").with_columns(removed_at=pl.col("ingested_at"))
    store.replace(
        "shards", pl.concat([shards, shards.with_columns(shard=pl.lit("x"), removed_at=None, file=pl.lit("x"))])
    )
    with pytest.raises(IconError, match=r"is no longer in the pool; it was in a\.jsonl, which was deleted"):
        why(workspace, sample_id)


def test_a_workspace_without_a_pool_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({}))
    with pytest.raises(IconError, match="the pool has not been read; run `icon-assets run --select raw_pool` first"):
        why(Workspace.load(tmp_path), "a.jsonl:1")


def test_texts_of_data_do_not_steer_a_terminal(tmp_path: Path) -> None:
    hidden = "\x1b[31m\u202e\u200b\n\t"
    rows = [alpaca(f"Ask {hidden} {n}", f"Say {hidden} {n}", stratum=f"kind{hidden}{n}") for n in range(4)]
    workspace = selected_workspace(tmp_path / "ws", {"file\u202e\x1b.jsonl": rows}, ("icon",))
    said = text(why(workspace, "file\u202e\x1b.jsonl:1"))
    assert all(line.isprintable() for line in said.split("\n"))
    assert "Ask \\x1b[31m\\u202e\\u200b 0 => Say \\x1b[31m" in said
