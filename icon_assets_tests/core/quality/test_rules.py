"""Every rule on a sound workspace and on one in which just what it names was broken."""

import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import write_deltalake

from icon_assets.core.errors import IconError
from icon_assets.core.inputs.shards import retire_shard
from icon_assets.core.inputs.source_files import shard_key
from icon_assets.core.planning.recipes import Recipes
from icon_assets.core.quality import RULES, is_sound, refuse, rules_of, sound_event
from icon_assets.core.quality.rule import Finding, Rule, Subject
from icon_assets.core.quality.selection import subset_holds_no_probe
from icon_assets.core.scoring.drift import drift
from icon_assets.core.store import ledger
from icon_assets.core.store.ledger import Recipe
from icon_assets.core.store.tables import Store
from icon_assets.workspace import Workspace
from icon_assets_tests.conftest import POOL_A, POOL_B, PROBES, STAGES, alpaca, change, write_jsonl
from icon_assets_tests.tampering import change_rows

A = shard_key("a.jsonl")
B = shard_key("b.jsonl")
PARTITIONS = {
    "raw_pool": A,
    "sample_scores": A,
    "selected_subset": "icon",
    "selection_trust": "icon",
    "checkpoint": "icon|0",
    "eval_results": "icon|0",
    "sample_features": A,
    "predicted_scores": A,
    "answers": "icon|0",
    "pairwise_results": "icon|0",
}


@dataclass(frozen=True)
class Spoiled:
    """A finished workspace, and how to put wrong rows into its store."""

    workspace: Workspace

    @property
    def store(self) -> Store:
        return Store(self.workspace.store_dir)

    def rows(self, table: str, where: str = "true") -> pl.DataFrame:
        return self.store.query(f'SELECT * FROM delta."{table}" WHERE {where} ORDER BY ALL')

    def double(self, table: str) -> None:
        self.store.append(table, self.rows(table).head(1))

    def put(self, table: str, where: str = "true", limit: int | None = None, **values: Any) -> None:
        """Add copies of rows with other values."""
        rows = self.rows(table, where).head(limit or 1)
        self.store.append(table, rows.with_columns(**{name: _typed(rows, name, v) for name, v in values.items()}))

    def drop(self, table: str, where: str) -> None:
        assert self.rows(table, where).height
        self.store.replace(table, self.rows(table, f"({where}) IS NOT TRUE"))

    def set(self, table: str, where: str = "true", **values: Any) -> None:
        """Give other values to these rows."""
        hit = self.rows(table, where)
        assert hit.height
        changed = hit.with_columns(**{name: _typed(hit, name, v) for name, v in values.items()})
        self.store.replace(table, pl.concat([self.rows(table, f"({where}) IS NOT TRUE"), changed]))

    @property
    def chosen(self) -> str:
        return self.store.query("SELECT min(sample_id) FROM selections").item()


def _typed(rows: pl.DataFrame, name: str, value: Any) -> pl.Expr:
    return pl.lit(value, rows.schema[name])


def _other_columns(s: Spoiled) -> None:
    frame = pl.DataFrame({"shard": ["x"], "file": ["x"], "row": ["1"], "reason": ["x"], "excerpt": ["x"], "later": [1]})
    place = s.workspace.store_dir / "tables" / "quarantine"
    write_deltalake(place, frame, mode="overwrite", schema_mode="overwrite", partition_by="shard")


def _tested_on(*rows: dict[str, Any]) -> Callable[[Spoiled], None]:
    return lambda s: write_jsonl(s.workspace.root / "eval" / "held_out.jsonl", list(rows))


def _touch(pattern: str) -> Callable[[Spoiled], None]:
    def touch(s: Spoiled) -> None:
        (path,) = s.workspace.root.glob(pattern)
        path.write_bytes(path.read_bytes() + b" ")

    return touch


def _cut_adapter(s: Spoiled) -> None:
    (path,) = s.workspace.root.glob("checkpoints/*/adapter_model.safetensors")
    path.write_bytes(path.read_bytes()[:-100])


def _drifted(**figures: float) -> Callable[[Spoiled], None]:
    def record(s: Spoiled) -> None:
        key = ledger.latest(s.store, "sample_scores")[A].summary["score_key"]
        summary = {"score_key": key, "drift_samples": 50, "drift_rank_correlation": 0.97, "drift_mean_shift": 0.1}
        ledger.record(s.store, Recipe("sample_scores", A), "digest", "run", {**summary, **figures})

    return record


def _budgeted(s: Spoiled) -> None:
    change(s.workspace, "controls", {"primary": "random_tokens"})
    s.set("sample_scores", n_probes=3)


def _one_more_run(s: Spoiled) -> None:
    """Another checkpoint that answers every item as the first does."""
    measured = "asset = 'eval_results'"
    for table, where in (
        ("checkpoints", "true"),
        ("eval_items", "true"),
        ("eval_results", "true"),
        ("ledger", measured),
    ):
        rows = s.rows(table, where)
        for column in {"checkpoint_id", "arm", "partition", "summary"} & {*rows.columns}:
            rows = rows.with_columns(pl.col(column).str.replace_all(_checkpoint(s), "twin").str.replace("icon", "twin"))
        s.store.append(table, rows if table != "ledger" else rows.with_columns(event_id=pl.lit("twin")))


def _checkpoint(s: Spoiled) -> str:
    return s.store.query("SELECT min(checkpoint_id) FROM delta.checkpoints WHERE arm = 'icon'").item()


def _one_pair(s: Spoiled) -> str:
    sample, probe = s.store.query(
        f"SELECT sample_id, probe_id FROM delta.pair_scores WHERE origin = '{A}' ORDER BY ALL"
    ).row(0)
    return f"sample_id = '{sample}' AND probe_id = '{probe}'"


def _length_alone(s: Spoiled) -> None:
    s.set("selectors", n_held_out=500)
    s.set("selector_metrics", "metric = 'partial_spearman'", low=-0.1, high=0.3)


def _compare(s: Spoiled) -> None:
    """Put a judged comparison into the store: two prompts, of which one is won and one unreadable."""
    checkpoint = s.store.query("SELECT checkpoint_id FROM checkpoints").item()
    named = {"checkpoint_id": checkpoint, "prompt_set": "talk", "arm": "icon", "seed": 0, "answer_key": "k"}
    said = [
        {**named, "prompt_id": p, "prompt": "?", "answer": "!", "n_tokens": 1, "finished": True} for p in ("p1", "p2")
    ]
    s.store.append("answers", pl.DataFrame(said))
    asked = [
        {
            **named,
            "other_id": "o",
            "prompt_id": p,
            "swapped": swapped,
            "verdict": verdict,
            "judge": "j",
            "detail": "",
            "created_at": datetime.now(UTC),
            "question": f"{p}{swapped}",
        }
        for p, verdict in (("p1", "A"), ("p2", "unreadable"))
        for swapped in (False, True)
    ]
    s.store.append("judgements", pl.DataFrame(asked))
    rates = {"n": 1, "wins": 1, "ties": 0, "losses": 0, "win_rate": 1.0, "low": 0.2, "high": 1.0, "unreadable": 1}
    s.store.append(
        "pairwise_results", pl.DataFrame([{**named, **rates, "other_id": "o", "against": "random", "judge": "j"}])
    )
    answered = {"checkpoint_id": checkpoint, "answers": 2, "answer_key": "k"}
    ledger.record(s.store, Recipe("answers", "icon|0"), "digest", "run", answered)
    judged = {"checkpoint_id": checkpoint, "sets": [{"prompt_set": "talk", "pairs": 2}]}
    ledger.record(s.store, Recipe("pairwise_results", "icon|0"), "digest", "run", judged)


def _compared(spoil: Callable[[Spoiled], Any]) -> Callable[[Spoiled], None]:
    def both(s: Spoiled) -> None:
        _compare(s)
        spoil(s)

    return both


PROBE = PROBES[0]["instruction"]
FAULTS: list[tuple[str, str, Callable[[Spoiled], Any], str]] = [
    (
        "raw_pool",
        "columns_are_as_declared",
        _other_columns,
        "3 of .*quarantine.detail, quarantine.later, quarantine.row",
    ),
    ("raw_pool", "rows_stand_once", lambda s: s.double("samples"), r"1 of 4 keys .*\(a.jsonl 1\)"),
    ("raw_pool", "every_row_is_accounted_for", lambda s: s.drop("shards", f"shard = '{A}'"), "do not match"),
    (
        "raw_pool",
        "every_row_is_accounted_for",
        lambda s: s.drop("samples", f"shard = '{A}' AND \"row\" = 1"),
        "do not match",
    ),
    ("raw_pool", "every_row_is_accounted_for", lambda s: s.double("shards"), "2 of 2 shard rows"),
    (
        "raw_pool",
        "holds_no_evaluation_item",
        _tested_on(POOL_B[1], POOL_A[3]),
        "1 of 4 .*a.jsonl:4 overlaps with eval/held_out.jsonl:2",
    ),
    (
        "probe_set",
        "probes_are_as_recorded",
        lambda s: s.put("probe_candidates", "status = 'selected'"),
        "5 probes, but not",
    ),
    ("probe_set", "probes_are_as_recorded", lambda s: s.set("probe_candidates", status="spare"), "0 probes, but not"),
    (
        "probe_set",
        "no_probe_is_in_the_pool",
        lambda s: s.put("samples", instruction=f"{PROBE.upper()}!", input=""),
        "1 of 4 probes",
    ),
    (
        "probe_set",
        "no_probe_is_in_the_evaluation_data",
        _tested_on(alpaca(PROBE, "8")),
        r"probes.jsonl:1 overlaps with eval/held_out.jsonl:1",
    ),
    ("base_model", "model_files_are_as_recorded", _touch("models/*/config.json"), "differ from the files"),
    ("base_model", "model_files_are_as_recorded", _touch("models/*/model.safetensors"), "differ from the files"),
    ("probe_baseline", "controls_stand_once", lambda s: s.double("control_scores"), "keys occur in control_scores"),
    ("probe_baseline", "pairs_stand_once", lambda s: s.double("pair_scores"), "1 of 24 keys"),
    ("probe_baseline", "contexts_stand_once", lambda s: s.double("contexts"), "1 of 6 keys"),
    (
        "probe_baseline",
        "every_probe_has_its_baseline",
        lambda s: s.drop("control_scores", "control = 'none'"),
        "4 of 4 probes",
    ),
    (
        "probe_baseline",
        "every_probe_has_its_baseline",
        lambda s: s.set("control_scores", nll_sum=float("nan")),
        "4 of 4 probes",
    ),
    ("sample_scores", "scores_stand_once", lambda s: s.double("sample_scores"), "1 of 8 keys"),
    (
        "sample_scores",
        "scores_are_finite",
        lambda s: s.set("sample_scores", "control = 'none'", contribution=float("nan")),
        "4 of 8",
    ),
    ("sample_scores", "scores_are_finite", lambda s: s.set("sample_scores", stability=None), "8 of 8 scores"),
    (
        "sample_scores",
        "every_sample_is_scored",
        lambda s: s.drop("sample_scores", "control <> 'none'"),
        "4 of 8 .*random_tokens",
    ),
    ("sample_scores", "every_sample_is_scored", lambda s: s.set("sample_scores", n_probes=5), "8 of 8 scores"),
    ("sample_scores", "every_sample_is_scored", lambda s: s.set("sample_scores", n_probes=3), "8 of 8 scores"),
    (
        "sample_scores",
        "no_score_is_a_stranger",
        lambda s: s.put("sample_scores", f"shard = '{A}'", sample_id="x"),
        r"1 of 5 .*\(x\)",
    ),
    (
        "sample_scores",
        "no_sample_is_a_probe",
        lambda s: s.put("samples", instruction=PROBE, input="", row=9),
        "a.jsonl:9 overlaps with probes.jsonl:1",
    ),
    ("sample_scores", "scores_have_not_drifted", _drifted(drift_rank_correlation=0.4), "rank correlation 0.40"),
    ("sample_scores", "scores_have_not_drifted", _drifted(drift_mean_shift=-0.8), "mean -0.80"),
    ("sample_features", "features_stand_once", lambda s: s.double("sample_features"), "1 of 4 samples"),
    (
        "sample_features",
        "every_sample_has_its_features",
        lambda s: s.drop("sample_features", f"origin = '{A}'"),
        "4 of 4 samples",
    ),
    (
        "sample_features",
        "features_are_finite",
        lambda s: s.set("sample_features", nll_alone=float("nan")),
        "4 of 4 features",
    ),
    ("sample_features", "features_are_finite", lambda s: s.set("sample_features", n_tokens=0), "4 of 4 features"),
    ("probe_features", "every_probe_has_its_embedding", lambda s: s.double("probe_features"), "1 of 4 probes"),
    (
        "probe_features",
        "every_probe_has_its_embedding",
        lambda s: s.set("probe_features", score_key="x"),
        "4 of 4 probes",
    ),
    ("selector", "selector_is_as_recorded", _touch("selectors/*/selector.json"), "differ from the files"),
    ("selector", "selector_is_as_recorded", lambda s: s.set("selector_metrics", selector_id="x"), "have no metrics"),
    ("selector", "selector_knows_more_than_length", _length_alone, r"at equal length .* \[-0.10, 0.30\]"),
    ("predicted_scores", "predictions_stand_once", lambda s: s.double("predicted_scores"), "1 of 4 keys"),
    (
        "predicted_scores",
        "every_sample_is_predicted",
        lambda s: s.drop("predicted_scores", f"shard = '{A}'"),
        "4 of 4 samples",
    ),
    (
        "predicted_scores",
        "every_sample_is_predicted",
        lambda s: s.set("predicted_scores", score=float("nan")),
        "4 of 4 samples",
    ),
    (
        "predicted_scores",
        "every_sample_is_predicted",
        lambda s: s.put("predicted_scores", f"shard = '{A}'", sample_id="x"),
        r"1 of 5 .*\(x\)",
    ),
    ("selected_subset", "subset_is_as_recorded", lambda s: s.double("selections"), "4 samples, but not"),
    (
        "selected_subset",
        "subset_is_as_recorded",
        lambda s: s.set("selections", '"rank" = 1', rank=9),
        "3 samples, but not",
    ),
    (
        "selected_subset",
        "subset_is_in_the_pool",
        lambda s: [retire_shard(s.store, shard) for shard in (A, B)],
        "3 of 3 chosen",
    ),
    ("selected_subset", "subset_is_in_the_pool", lambda s: s.drop("shards", "true"), "3 of 3 chosen"),
    (
        "selected_subset",
        "subset_has_its_size",
        lambda s: change(s.workspace, "selection", {"arms": ["icon"], "fraction": 0.9}),
        "3 samples chosen, 6 of 6 due",
    ),
    (
        "selected_subset",
        "chosen_scores_are_finite",
        lambda s: s.set("selections", '"rank" = 1', score=float("nan")),
        "1 of 3 chosen",
    ),
    (
        "selected_subset",
        "chosen_scores_are_finite",
        lambda s: s.set("selections", '"rank" = 1', score=None),
        "1 of 3 chosen",
    ),
    (
        "selected_subset",
        "budget_looked_for_this_arm",
        _budgeted,
        "3 of 3 chosen samples .* cut of control random_tokens",
    ),
    (
        "selected_subset",
        "subset_holds_no_evaluation_item",
        _tested_on(*POOL_A, *POOL_B),
        "chosen lines overlap with an evaluation item",
    ),
    (
        "selected_subset",
        "subset_holds_no_probe",
        lambda s: s.set("samples", f"sample_id = '{s.chosen}'", instruction=PROBE, input=""),
        "overlaps with probes.jsonl:1",
    ),
    (
        "selection_trust",
        "length_does_not_explain_it",
        lambda s: s.put("trust_figures", figure="length_auc", against="tokens", value=0.95),
        "1 of 1 comparisons separate",
    ),
    (
        "selection_trust",
        "length_does_not_explain_it",
        lambda s: s.put("trust_figures", figure="length_auc", against="tokens", value=0.05),
        r"\(tokens: AUC 0.05\)",
    ),
    (
        "checkpoint",
        "files_are_as_recorded",
        _touch("checkpoints/*/manifest.jsonl"),
        "differ from the files that training wrote",
    ),
    ("checkpoint", "checkpoint_loads", _cut_adapter, "does not load .SafetensorError"),
    (
        "checkpoint",
        "checkpoint_loads",
        lambda s: [p.unlink() for p in s.workspace.root.glob("models/*/config.json")],
        "does not load",
    ),
    ("checkpoint", "manifest_names_the_subset", lambda s: s.drop("checkpoint_samples", '"rank" = 1'), "1 of 3 samples"),
    (
        "checkpoint",
        "manifest_names_the_subset",
        lambda s: s.put("checkpoint_samples", sample_id="x", row=77),
        "1 of 4 samples",
    ),
    ("checkpoint", "manifest_names_the_subset", lambda s: s.double("checkpoint_samples"), "1 of 3 samples"),
    ("eval_results", "metrics_stand_once", lambda s: s.put("eval_results", "arm = 'icon'"), "more than once"),
    (
        "eval_results",
        "metrics_are_finite",
        lambda s: s.set("eval_results", value=float("inf")),
        "metrics are not finite",
    ),
    ("eval_results", "every_task_is_measured", lambda s: s.drop("eval_results", "task = 'sums'"), r"1 of 2 .*\(sums\)"),
    (
        "eval_results",
        "metrics_are_made_of_their_items",
        lambda s: s.put("eval_items", "task = 'sums' AND metric = 'acc' AND checkpoint_id NOT LIKE 'base%'"),
        r"1 of 5 .*\(sums acc\)",
    ),
    (
        "eval_results",
        "metrics_are_made_of_their_items",
        lambda s: s.set("eval_items", "task = 'held_out'", value=9.0),
        r"1 of 5 .*\(held_out nll_per_token\)",
    ),
    (
        "eval_results",
        "metrics_are_made_of_their_items",
        lambda s: s.drop("eval_items", "metric = 'acc_norm'"),
        r"1 of 5 .*\(sums acc_norm\)",
    ),
    (
        "eval_results",
        "metrics_are_made_of_their_items",
        lambda s: s.drop("eval_results", "metric = 'acc'"),
        r"1 of 5 .*\(sums acc\)",
    ),
    ("answers", "answers_stand_once", _compared(lambda s: s.double("answers")), r"1 of 2 keys .*\(talk p1\)"),
    ("answers", "every_prompt_is_answered", _compared(lambda s: s.drop("answers", "prompt_id = 'p1'")), "lack answers"),
    (
        "answers",
        "every_prompt_is_answered",
        _compared(lambda s: s.set("answers", "prompt_id = 'p1'", answer_key="old")),
        "lack answers",
    ),
    ("pairwise_results", "judgements_stand_once", _compared(lambda s: s.double("judgements")), "1 of 4 keys"),
    (
        "pairwise_results",
        "win_rates_add_up",
        _compared(lambda s: s.drop("pairwise_results", "true")),
        r"1 of 1 .*\(talk\)",
    ),
    (
        "pairwise_results",
        "win_rates_add_up",
        _compared(lambda s: s.set("pairwise_results", wins=2)),
        "1 of 1 prompt sets",
    ),
    (
        "pairwise_results",
        "win_rates_add_up",
        _compared(lambda s: s.set("pairwise_results", unreadable=0)),
        "1 of 1 prompt sets",
    ),
    (
        "pairwise_results",
        "win_rates_add_up",
        _compared(lambda s: s.set("pairwise_results", win_rate=float("nan"))),
        "1 of 1 prompt sets",
    ),
    ("pairwise_results", "win_rates_add_up", _compared(lambda s: s.double("pairwise_results")), "2 of 2 prompt sets"),
    (
        "leaderboard",
        "differences_stand_once",
        lambda s: s.double("leaderboard_differences"),
        "keys occur in leaderboard_differences",
    ),
    (
        "leaderboard",
        "differences_stand_once",
        lambda s: s.drop("leaderboard_differences", "metric = 'acc'"),
        "missing or surplus",
    ),
    (
        "leaderboard",
        "differences_are_finite",
        lambda s: s.set("leaderboard_differences", "metric = 'acc'", low=float("nan")),
        r"1 of .*\(icon base sums acc\)",
    ),
    (
        "leaderboard",
        "differences_are_finite",
        lambda s: s.set("leaderboard_differences", "metric = 'acc'", difference=9.0),
        "outside their interval",
    ),
    (
        "leaderboard",
        "every_run_counts",
        lambda s: change(s.workspace, "training", {"seeds": [0, 1]}),
        r"1 of 2 runs .*\(icon\|1\)",
    ),
    (
        "sample_scores",
        "contents_are_as_recorded",
        lambda s: change_rows(s.store, "pair_scores", nll_sum=0.5),
        r"1 of 3 .*pair_scores .*whose values",
    ),
    (
        "selected_subset",
        "contents_are_as_recorded",
        lambda s: change_rows(s.store, "selections", score=0.5),
        r"1 of 1 .*selections arm=icon",
    ),
    (
        "checkpoint",
        "contents_are_as_recorded",
        lambda s: change_rows(s.store, "loss_curves", loss=0.5),
        r"1 of 3 .*loss_curves",
    ),
    (
        "raw_pool",
        "ids_are_of_their_text",
        lambda s: s.set("samples", "response = 'Blue.'", response="Red."),
        "1 of 4 ids",
    ),
    (
        "raw_pool",
        "ids_are_of_their_text",
        lambda s: s.set("samples", "response = 'Blue.'", turns="no turns"),
        "1 of 4 ids",
    ),
    (
        "probe_set",
        "ids_are_of_their_text",
        lambda s: s.set("probe_candidates", "status = 'selected'", response="x"),
        "4 of 5 ids",
    ),
    (
        "sample_scores",
        "every_score_has_its_pairs",
        lambda s: s.drop("pair_scores", _one_pair(s)),
        "1 of 4 scored samples",
    ),
    ("sample_scores", "every_score_has_its_pairs", lambda s: s.drop("contexts", "true"), "4 of 4 scored samples"),
    ("leaderboard", "every_task_tells_runs_apart", _one_more_run, r"1 of 1 tasks .*\(sums\)"),
]


def look(workspace: Workspace, rules: list[Rule]) -> dict[str, Finding]:
    """What rules of one asset find."""
    asset = rules[0].asset
    with closing(Subject(Workspace.load(workspace.root), asset, PARTITIONS.get(asset, ""))) as subject:
        return {rule.name: rule.look(subject) for rule in rules}


@pytest.mark.parametrize(
    ("asset", "name", "spoil", "line"), FAULTS, ids=[f"{n}-{name}" for n, (_, name, *_) in enumerate(FAULTS)]
)
def test_a_rule_sees_what_it_names(
    finished: Workspace, asset: str, name: str, spoil: Callable[[Spoiled], Any], line: str
) -> None:
    (rule,) = (rule for rule in rules_of(asset) if rule.name == name)
    spoil(Spoiled(finished))
    finding = look(finished, [rule])[name]
    assert finding.wrong > 0

    assert re.search(line, rule.line(finding)), rule.line(finding)
    assert rule.line(finding).endswith(rule.mend)
    assert "\n" not in rule.line(finding)
    texts = [row["instruction"] for row in (*POOL_A, *POOL_B, *PROBES)]
    assert not any(text in example for example in finding.examples for text in texts), "places, no text"


def test_a_sound_workspace_breaks_no_rule(finished: Workspace) -> None:
    _compare(Spoiled(finished))
    found = [item for asset in STAGES for item in look(finished, rules_of(asset)).items()]
    assert len(found) == len(RULES)
    assert [(name, finding.says) for name, finding in found if finding.wrong] == []
    blind = {name for name, finding in found if not finding.looked_at}
    blind_here = {
        "scores_have_not_drifted",
        "selector_knows_more_than_length",
        "length_does_not_explain_it",
        "budget_looked_for_this_arm",
        "every_task_tells_runs_apart",
    }
    assert blind == blind_here, "every other rule looked at something"


def test_every_rule_is_tried_says_why_it_exists_and_how_to_mend() -> None:
    assert {rule.name for rule in RULES} == {name for _, name, *_ in FAULTS}
    for rule in RULES:
        assert len(rule.why) > 80, rule.name
        assert rule.mend, rule.name


def test_a_partition_is_judged_by_its_own_rows(finished: Workspace) -> None:
    spoiled = Spoiled(finished)
    spoiled.put("samples", f"shard = '{B}'")
    spoiled.set("sample_scores", f"shard = '{B}'", contribution=float("nan"))
    for asset in ("raw_pool", "sample_scores"):
        assert [name for name, finding in look(finished, rules_of(asset)).items() if finding.wrong] == []


def test_what_was_never_made_is_not_called_sound(make_workspace: Callable[..., Workspace]) -> None:
    workspace = make_workspace()
    missing = look(workspace, [rule for rule in rules_of("raw_pool") if rule.name == "every_row_is_accounted_for"])
    assert missing["every_row_is_accounted_for"].wrong
    for asset in ("sample_scores", "selected_subset", "checkpoint", "eval_results"):
        with pytest.raises(IconError, match=rf"^{asset} \[.*\]: not materialized yet"):
            look(workspace, rules_of(asset)[1:])


def test_refusing_names_the_thing_the_rule_and_the_mend(finished: Workspace) -> None:
    refuse(finished, "selected_subset", "icon")
    _tested_on(*POOL_A, *POOL_B)(Spoiled(finished))
    with pytest.raises(
        IconError, match=r"^selected_subset \[icon\]: subset_holds_no_evaluation_item: .*; take these rows"
    ):
        refuse(finished, "selected_subset", "icon")
    refuse(finished, "selected_subset", "icon", subset_holds_no_probe)


def test_drift_compares_a_shard_with_its_last_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    after = pl.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(20)],
            "control": ["none"] * 20,
            "contribution": [i / 10 for i in range(20)],
        }
    )
    assert drift(store, "a", after) == {}, "nothing to compare the first scores with"

    figures = ("consistency", "stability", "coverage", "significance", "standard_error")
    stored = after.with_columns(
        pl.lit("a").alias("shard"),
        pl.lit("key").alias("score_key"),
        (2 - pl.col("contribution")).alias("contribution"),
        *(pl.lit(0.0).alias(name) for name in figures),
        n_probes=pl.lit(4),
        n_context_tokens=pl.lit(9),
        truncated=pl.lit(False),
    )
    store.replace("sample_scores", stored, shard="a", score_key="key")
    ledger.record(store, Recipe("sample_scores", "a"), "digest", "run", {"score_key": "key"})
    same = after.with_columns(contribution=2 - pl.col("contribution"))
    assert drift(store, "a", same) == {"drift_samples": 20, "drift_rank_correlation": 1.0, "drift_mean_shift": 0.0}
    turned = drift(store, "a", after)
    assert turned["drift_rank_correlation"] == -1.0
    assert turned["drift_mean_shift"] == pytest.approx(-0.1 / 0.5916, abs=1e-3)
    assert drift(store, "other", after) == {}
    assert drift(store, "a", after.clear()) == {}


def test_a_product_is_kept_while_its_rows_are_sound_and_made_again_once_they_are_not(finished: Workspace) -> None:
    store = Store(finished.store_dir)
    recipe = Recipes(finished, store).of("raw_pool", A)
    said: list[str] = []
    event = sound_event(finished, recipe, "run", said.append)
    assert event is not None
    assert (event.partition, said, is_sound(finished, "raw_pool", A)) == (A, [], True)
    change_rows(store, "samples", "file = 'a.jsonl'", instruction="Tampered with.")
    assert not is_sound(finished, "raw_pool", A)
    assert sound_event(finished, recipe, "run", said.append) is None
    assert said
    assert all(line.startswith("made again: ") for line in said)
    assert sound_event(finished, recipe, "run", said.append) is None, "it was withdrawn"
