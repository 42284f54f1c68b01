"""The rule that compares rows with the ledger: every product holds the rows that were written when it was made."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from icon_assets.core.inputs.sample import sample_of
from icon_assets.core.quality.rule import EXAMPLES, REMAKE, Finding, Subject, judge, rule
from icon_assets.core.store.inventory import Difference, Where, differences

_DEARER = 10  # computing the id of a text takes so many times as long as comparing a row
Part = tuple[str, Where]  # a table, and which of its rows


def _shard(*tables: str) -> Callable[[Subject], list[Part]]:
    return lambda subject: [(table, {"shard": [subject.partition]}) for table in tables]


def _whole(*tables: str) -> Callable[[Subject], list[Part]]:
    return lambda subject: [(table, {}) for table in tables]


def _named(column: str, *tables: str) -> Callable[[Subject], list[Part]]:
    """Rows whose column has the value that the ledger gives for this name."""
    return lambda subject: [(table, {column: [str(subject.made.summary[column])]}) for table in tables]


def _baseline(subject: Subject) -> list[Part]:
    return [*_named("score_key", "control_scores")(subject), ("score_keys", {})]


def _scores(subject: Subject) -> list[Part]:
    """The scores, and the pairs that they are made of, even those that are stored under a different shard."""
    key = [str(subject.made.summary["score_key"])]
    of_pairs: Where = {"score_key": key, "origin": _origins(subject, "contexts", key[0])}
    scores: Where = {"shard": [subject.partition], "score_key": key}
    return [("sample_scores", scores), ("contexts", of_pairs), ("pair_scores", of_pairs)]


def _features(subject: Subject) -> list[Part]:
    key = [str(subject.made.summary["score_key"])]
    return [("sample_features", {"score_key": key, "origin": _origins(subject, "sample_features", key[0])})]


def _origins(subject: Subject, table: str, key: str) -> list[str]:
    rows = subject.rows(
        f"""
        SELECT DISTINCT origin FROM delta.{table} SEMI JOIN (FROM delta.samples WHERE shard = $shard) USING (sample_id)
        WHERE score_key = $key
        """,  # noqa: S608  (our own text)
        shard=subject.partition,
        key=key,
    )
    return sorted({subject.partition, *(row["origin"] for row in rows)})


def _selector(subject: Subject) -> list[Part]:
    return [("selectors", {}), *_named("selector_id", "selector_metrics")(subject)]


def _subset(subject: Subject) -> list[Part]:
    return [("selections", {"arm": [subject.partition], "subset_id": [subject.made.digest]})]


_PARTS: Mapping[str, Callable[[Subject], list[Part]]] = {
    "raw_pool": _shard("samples", "quarantine", "shards"),
    "probe_set": _whole("probe_candidates"),
    "base_model": _whole("models"),
    "probe_baseline": _baseline,
    "sample_scores": _scores,
    "sample_features": _features,
    "probe_features": _named("score_key", "probe_features"),
    "selector": _selector,
    "predicted_scores": _shard("predicted_scores"),
    "selected_subset": _subset,
    "selection_trust": lambda subject: [("trust_figures", {"arm": [subject.partition]})],
    "base_eval": _named("checkpoint_id", "eval_results", "eval_items"),
    "eval_results": _named("checkpoint_id", "eval_results", "eval_items"),
    "answers": _named("checkpoint_id", "answers"),
    "pairwise_results": _named("checkpoint_id", "judgements", "pairwise_results"),
    "leaderboard": _whole("leaderboard_differences"),
}
_TRAINED = _named("checkpoint_id", "checkpoints", "checkpoint_samples", "loss_curves")


def parts_of(subject: Subject) -> list[Part]:
    """The rows that make up the product, including inputs that no other product checks."""
    return (_TRAINED if subject.asset == "checkpoint" else _PARTS[subject.asset])(subject)


def unlike_record(subject: Subject) -> Iterator[Difference]:
    """Where the product differs from what was written."""
    most = subject.workspace.settings.checks.content_rows
    for table, where in parts_of(subject):
        yield from differences(subject.store, table, where, most_rows=most)


@rule("checkpoint", blocking=True, mend="delete its directory and materialize it again: it is trained again")
@rule(*_PARTS, blocking=True, mend=REMAKE)
def contents_are_as_recorded(subject: Subject) -> Finding:
    """The product holds the rows that were written when it was made. Their digest is computed again and compared with
    the ledger. Otherwise a score, a text or a metric that somebody changed in a file would be used for selection,
    training and reports. With more than `checks.content_rows` rows, only files that changed since the last comparison
    are read. `icon-assets verify` reads all of them."""
    unlike = [str(each) for each in unlike_record(subject)]
    return judge(len(parts_of(subject)), len(unlike), "parts of tables differ from what was written", unlike[:EXAMPLES])


def is_of_its_text(row: Mapping[str, Any], named: str) -> bool:
    try:
        return sample_of(row).sample_id == row[named]
    except (ValueError, TypeError):  # turns that are no list of turns
        return False


@rule("raw_pool", "probe_set", blocking=True, mend=REMAKE)
def ids_are_of_their_text(subject: Subject) -> Finding:
    """The id of every sample and probe is the digest of its text. Scores, selections and manifests refer to this id.
    With a wrong id, a different text would be trained on than the one that was scored."""
    table, where = ("samples", "WHERE shard = $shard") if subject.asset == "raw_pool" else ("probe_candidates", "")
    named = "sample_id" if table == "samples" else "probe_id"
    asked = {"shard": subject.partition} if where else {}
    n = subject.rows(f"SELECT count(*) AS n FROM delta.{table} {where}", **asked)[0]["n"]  # noqa: S608  (our own text)
    if n * _DEARER > subject.workspace.settings.checks.content_rows:
        return Finding(
            0,
            0,
            f"not computed for {n:,} rows (checks.content_rows): contents_are_as_recorded compares them, and "
            "`icon-assets verify` computes their ids",
        )
    rows = subject.rows(f"SELECT * FROM delta.{table} {where}", **asked)  # noqa: S608  (our own text)
    wrong = [row[named] for row in rows if row[named] is not None and not is_of_its_text(row, named)]
    return judge(len(rows), len(wrong), "ids are not the digest of their text", wrong[:EXAMPLES])
