"""The rule of every table: its columns are as declared."""

from icon_assets.core.quality.rule import EXAMPLES, Finding, Subject, judge, rule
from icon_assets.core.store.schema import declared_columns

_TABLES = {
    "raw_pool": ("samples", "shards", "quarantine"),
    "probe_set": ("probe_candidates",),
    "base_model": ("models",),
    "probe_baseline": ("control_scores", "score_keys"),
    "sample_scores": ("sample_scores", "pair_scores", "contexts", "scoring_costs"),
    "sample_features": ("sample_features",),
    "probe_features": ("probe_features",),
    "selector": ("selectors", "selector_metrics"),
    "predicted_scores": ("predicted_scores",),
    "selected_subset": ("selections",),
    "selection_trust": ("trust_figures",),
    "checkpoint": ("checkpoints", "checkpoint_samples", "loss_curves"),
    "base_eval": ("eval_results", "eval_items"),
    "eval_results": ("eval_results", "eval_items"),
    "answers": ("answers",),
    "pairwise_results": ("judgements", "pairwise_results"),
    "leaderboard": ("leaderboard_differences", "ledger"),
    "report": ("ledger",),
}


@rule(
    *_TABLES,
    blocking=True,
    mend="a different version of icon_assets wrote this store: use that version, or a new store",
)
def columns_are_as_declared(subject: Subject) -> Finding:
    """The tables on disk have the columns and types of schema.sql. Otherwise a store of a different version would give
    wrong figures, or break queries in the middle of a run."""
    looked_at = 0
    wrong = list[str]()
    for table in _TABLES[subject.asset]:
        declared = declared_columns(table)
        stored = subject.store.columns(table) or declared
        looked_at += len(stored)
        wrong += [f"{table}.{name}" for name in sorted({*stored, *declared}) if stored.get(name) != declared.get(name)]
    return judge(looked_at, len(wrong), "columns differ from schema.sql", wrong[:EXAMPLES])
