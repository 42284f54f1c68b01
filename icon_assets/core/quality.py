"""What must hold of everything that is stored: one rule each, why it exists, and what to do when it is broken.

A rule looks at one partition of its asset, in one snapshot of the store, and changes nothing. Its docstring is what people
read in the UI. Assets look through the same rules (`refuse`) before they spend money on what an earlier run has made.
"""

import inspect
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from icon_assets.core.digests import directory_digest, lines_digest, share_ceiling
from icon_assets.core.errors import IconError
from icon_assets.core.evaluation import HELD_OUT
from icon_assets.core.finetuning import load_fine_tuned
from icon_assets.core.language_model import files_unchanged, read_record
from icon_assets.core.leakage import evaluation_index, evaluation_references, pool_references, probe_index
from icon_assets.core.probes import Index
from icon_assets.core.selection import ranks_by, subset_id, subset_size
from icon_assets.core.store import Store, declared_columns
from icon_assets.settings import Workspace

EXAMPLES = 10
REMAKE = "run it again: what breaks this rule is made anew"
_COMPARABLE = 10  # samples from which a drift is told from chance
_COMPARABLE_HELD_OUT = 100  # and skill
_MIN_CORRELATION, _MAX_SHIFT = 0.9, 0.5


@dataclass(frozen=True)
class Finding:
    """What a rule saw: how many things it looked at, how many break it, and some of those by their ids."""

    looked_at: int
    wrong: int
    says: str
    examples: Sequence[str] = ()
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """The newest ledger row of a partition."""

    digest: str
    run_id: str
    summary: Mapping[str, Any]


class Subject:
    """One partition of an asset, in one snapshot of the store. Close it after use.

    `run_id` names the run that has just dealt with the partition; empty when nothing but rules are run.
    """

    def __init__(self, workspace: Workspace, asset: str, partition: str = "", run_id: str = "") -> None:
        self.workspace, self.asset, self.partition, self.run_id = workspace, asset, partition, run_id
        self.store = Store(workspace.store_dir)

    @cached_property
    def _con(self) -> duckdb.DuckDBPyConnection:
        return self.store.connect()

    def close(self) -> None:
        if "_con" in self.__dict__:
            self._con.close()

    @property
    def name(self) -> str:
        return f"{self.asset} [{self.partition}]" if self.partition else self.asset

    @cached_property
    def made(self) -> Made:
        """What the ledger says of it.

        Raises:
            IconError: it has never been materialized.
        """
        rows = self.rows(
            """
            SELECT digest, run_id, summary FROM delta.ledger WHERE asset = $asset AND "partition" = $partition
            ORDER BY created_at DESC, event_id LIMIT 1
            """,
            asset=self.asset, partition=self.partition,
        )  # fmt: skip
        if not rows:
            raise IconError(f"{self.name}: not materialized yet; materialize it first")
        return Made(rows[0]["digest"], rows[0]["run_id"], json.loads(rows[0]["summary"]))

    @cached_property
    def directory(self) -> Path:
        """Where the files of the product lie."""
        return self.workspace.root / self.made.summary["path"]

    @cached_property
    def files(self) -> str:
        """Digest of these files as they are now; empty when they are gone."""
        return directory_digest(self.directory) if self.directory.is_dir() else ""

    def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        return self._con.sql(sql, params=parameters or None).pl().to_dicts()

    def find(self, sql: str, what: str, **parameters: Any) -> Finding:
        """Judge rows of `id` and `wrong`. Where `wrong` is NULL it could not be told that the row is right."""
        judged = f"""
            SELECT count(*) AS looked_at, count(*) FILTER (wrong IS NOT FALSE) AS wrong,
                min(id, {EXAMPLES}) FILTER (wrong IS NOT FALSE) AS examples FROM ({sql})
        """  # noqa: S608  (our own text)
        (row,) = self.rows(judged, **parameters)
        return _finding(row["looked_at"], row["wrong"], what, row["examples"] or ())

    def doubled(self, table: str, keys: str, where: str, **parameters: Any) -> Finding:
        """Judge that no two rows of a table share the keys."""
        sql = f"SELECT concat_ws(' ', {keys}) AS id, count(*) > 1 AS wrong FROM delta.{table} WHERE {where} GROUP BY {keys}"  # noqa: S608
        return self.find(sql, f"keys stand in {table} more than once", **parameters)


def _finding(looked_at: int, wrong: int, what: str, examples: Iterable[object]) -> Finding:
    says = f"{wrong:,} of {looked_at:,} {what}" if wrong else f"{looked_at:,} looked at"
    return Finding(looked_at, wrong, says, [str(example) for example in examples])


Look = Callable[[Subject], Finding]


@dataclass(frozen=True)
class Rule:
    """A rule of one asset. `warns`: breaking it is worth a look, no more. `verdict_of`: for a dear rule, everything that its
    verdict depends on, so that the same thing is not judged twice.
    """

    asset: str
    look: Look
    mend: str
    blocking: bool
    warns: bool
    verdict_of: Callable[[Subject], str] | None

    @property
    def name(self) -> str:
        return self.look.__name__

    @property
    def why(self) -> str:
        return " ".join(inspect.cleandoc(self.look.__doc__ or "").split())

    def line(self, finding: Finding) -> str:
        """The finding in one line, with some of what is wrong and the mend."""
        if not finding.wrong:
            return finding.says
        some = f" ({', '.join(finding.examples[:3])})" if finding.examples else ""
        return f"{finding.says}{some}; {self.mend}"


RULES: list[Rule] = []


def rule(
    *assets: str, mend: str, blocking: bool = False, warns: bool = False,
    verdict_of: Callable[[Subject], str] | None = None,
) -> Callable[[Look], Look]:  # fmt: skip
    """Register a rule of these assets."""

    def register(look: Look) -> Look:
        RULES.extend(Rule(asset, look, mend, blocking, warns, verdict_of) for asset in assets)
        return look

    return register


def rules_of(asset: str) -> list[Rule]:
    return [each for each in RULES if each.asset == asset]


def refuse(workspace: Workspace, asset: str, partition: str = "", *looks: Look) -> None:
    """Go no further with something that breaks a rule: one of these, or (none named) any blocking rule of its asset.

    Raises:
        IconError: names the thing, what is wrong with it and the mend.
    """
    with closing(Subject(workspace, asset, partition)) as subject:
        for each in rules_of(asset):
            if (each.look in looks) if looks else each.blocking:
                finding = each.look(subject)
                if finding.wrong:
                    raise IconError(f"{subject.name}: {each.name}: {each.line(finding)}")


# Every table


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
    "checkpoint": ("checkpoints", "checkpoint_samples", "loss_curves"),
    "base_eval": ("eval_results",),
    "eval_results": ("eval_results",),
    "leaderboard": ("ledger",),
}  # fmt: skip


@rule(*_TABLES, blocking=True, mend="another version of icon_assets wrote this store: use that one, or a new store")
def columns_are_as_declared(subject: Subject) -> Finding:
    """The tables on disk have the columns and types of schema.sql. A store that another version wrote would otherwise give
    wrong figures or break queries in the middle of a run.
    """
    looked_at, wrong = 0, list[str]()
    for table in _TABLES[subject.asset]:
        declared = declared_columns(table)
        stored = subject.store.columns(table) or declared
        looked_at += len(stored)
        wrong += [f"{table}.{name}" for name in sorted({*stored, *declared}) if stored.get(name) != declared.get(name)]
    return _finding(looked_at, len(wrong), "columns differ from schema.sql", wrong[:EXAMPLES])


# Pool


@rule("raw_pool", blocking=True, mend=REMAKE)
def rows_stand_once(subject: Subject) -> Finding:
    """Every row of the source file is one row of `samples`. A doubled row would be trained on twice and would count twice in
    every figure over the pool.
    """
    return subject.doubled("samples", 'file, "row"', "shard = $shard", shard=subject.partition)


@rule("raw_pool", blocking=True, mend=REMAKE)
def every_row_is_accounted_for(subject: Subject) -> Finding:
    """The shard has its row in `shards`, and as many samples and quarantined rows as that says. Samples, quarantine and shard
    row are three commits: a run that is killed between them must not pass for a whole shard.
    """
    return subject.find(
        """
        SELECT $shard AS id, count(*) OVER () > 1
            OR n_samples <> (SELECT count(*) FROM delta.samples WHERE shard = $shard)
            OR n_quarantined <> (SELECT count(*) FROM delta.quarantine WHERE shard = $shard) AS wrong
        FROM (SELECT $shard AS shard) LEFT JOIN delta.shards USING (shard)
        """,
        "shard rows do not match the rows stored", shard=subject.partition,
    )  # fmt: skip


@rule("raw_pool", warns=True, mend="take these rows out of the pool; an arm that selects one will not be trained")
def holds_no_evaluation_item(subject: Subject) -> Finding:
    """No sample of the shard asks what an evaluation item asks, or holds 13 words in a row of its answer. Training on such a
    sample would make the leaderboard measure memory. Tasks named in evaluation.tasks are not on disk and are not looked at.
    """
    rows = subject.rows("SELECT * FROM delta.samples WHERE shard = $shard", shard=subject.partition)
    return _meetings(rows, evaluation_index(subject.workspace), "samples meet an evaluation item")


def _meetings(rows: Sequence[Mapping[str, Any]], index: Index, what: str) -> Finding:
    """Names only: what two texts share stays in the store."""
    met: dict[str, str] = {}
    for meeting in index.meetings(pool_references(rows)):
        met.setdefault(meeting.reference, f"{meeting.reference} meets {meeting.candidate.file}:{meeting.candidate.row}")
    return _finding(len(rows), len(met), what, sorted(met.values())[:EXAMPLES])


# Probes and model


@rule("probe_set", blocking=True, mend=REMAKE)
def probes_are_as_recorded(subject: Subject) -> Finding:
    """The selected probes are those that the ledger names, each once. Every score is a mean over this set: with another set
    under the same name, scores that can't be compared would stand in one ranking.
    """
    ids = [row["probe_id"] for row in subject.rows("SELECT probe_id FROM probes ORDER BY probe_id")]
    return _recorded(ids, lines_digest(ids) == subject.made.digest, "probes, and not the set that was drawn")


def _recorded(ids: Sequence[str], same: bool, what: str) -> Finding:
    """Ids that together are one thing, whose digest tells whether it is still the same; doubled ones are named."""
    if same:
        return Finding(len(ids), 0, f"{len(ids):,} looked at")
    doubled = [each for each, times in Counter(ids).items() if times > 1]
    return Finding(len(ids), 1, f"{len(ids):,} {what}", sorted(doubled)[:EXAMPLES])


@rule("probe_set", blocking=True, mend="materialize probe_set again: it leaves such probes out")
def no_probe_is_in_the_pool(subject: Subject) -> Finding:
    """No probe asks what a sample of the pool asks. Behind its own text as context every probe is easy, and that sample would
    rank first whatever it is worth.
    """
    prompt = r"trim(regexp_replace(lower(concat_ws(' ', turns, instruction, input)), '[^\p{L}\p{N}_]+', ' ', 'g'))"
    return subject.find(
        f"""
        SELECT file || ':' || "row" AS id, probe_id IN (SELECT sample_id FROM samples)
            OR ({prompt} <> '' AND {prompt} IN (SELECT {prompt} FROM samples)) AS wrong FROM probes
        """,  # noqa: S608  (our own text)
        "probes stand in the pool",
    )


@rule("probe_set", blocking=True, mend="materialize probe_set again: it leaves such probes out")
def no_probe_is_in_the_evaluation_data(subject: Subject) -> Finding:
    """No probe asks what an evaluation item asks, or shares 13 words in a row of its answer. Samples would be selected for the
    test itself, and the leaderboard would praise the selection for it.
    """
    rows = subject.rows("FROM probes")
    met = {m.candidate: m.reference for m in probe_index(rows).meetings(evaluation_references(subject.workspace))}
    examples = sorted(f"{probe.file}:{probe.row} meets {item}" for probe, item in met.items())
    return _finding(len(rows), len(met), "probes meet an evaluation item", examples[:EXAMPLES])


@rule("base_model", blocking=True, mend="delete its directory below models/ and materialize base_model again")
def model_files_are_as_recorded(subject: Subject) -> Finding:
    """Weights, configuration and tokenizer on disk have the digest that scores and checkpoints name. A model that was swapped
    in place would be scored with, trained and reported under the name of another.
    """
    same = subject.directory.is_dir() and files_unchanged(read_record(subject.directory))
    what = "model directories are gone or hold other files than were prepared"
    return _finding(1, int(not same), what, [subject.made.summary["path"]])


# Scores


_APPENDED = "rows are added under a lock, so something else wrote them: restore the store, or score into a new one"


def _under_key(subject: Subject, table: str, keys: str) -> Finding:
    return subject.doubled(table, keys, "score_key = $key", key=subject.made.summary["score_key"])


@rule("probe_baseline", blocking=True, mend=_APPENDED)
def controls_stand_once(subject: Subject) -> Finding:
    """A probe has one NLL per control context. A doubled one would weigh twice in what samples are compared with."""
    return _under_key(subject, "control_scores", 'probe_id, control, seed, "length"')


@rule("probe_baseline", blocking=True, mend=_APPENDED)
def pairs_stand_once(subject: Subject) -> Finding:
    """A (sample, probe) pair has one NLL under a score_key. A doubled pair would weigh twice in its sample's contribution.
    Looked at here, once per run and before scores are derived; a shard's own scores would show it in `n_probes`.
    """
    return _under_key(subject, "pair_scores", "sample_id, probe_id")


@rule("probe_baseline", blocking=True, mend=_APPENDED)
def contexts_stand_once(subject: Subject) -> Finding:
    """A sample has one context length under a score_key. A doubled one would double each of its pairs in every join."""
    return _under_key(subject, "contexts", "sample_id")


@rule("probe_baseline", blocking=True, mend="look at these probes; set model.dtype to float32 if the model overflows")
def every_probe_has_its_baseline(subject: Subject) -> Finding:
    """Every probe has a finite NLL without context, over at least one token. Every score divides by it: a probe without one
    would silently drop out of all means.
    """
    return subject.find(
        """
        SELECT probe_id AS id, NOT (isfinite(nll_sum) AND nll_sum >= 0 AND n_tokens > 0) AS wrong
        FROM probes LEFT JOIN (FROM delta.control_scores WHERE score_key = $key AND control = 'none') USING (probe_id)
        """,
        "probes have no finite baseline", key=subject.made.summary["score_key"],
    )  # fmt: skip


def _scores(subject: Subject) -> dict[str, str]:
    return {"shard": subject.partition, "key": subject.made.summary["score_key"]}


@rule("sample_scores", blocking=True, mend=REMAKE)
def scores_stand_once(subject: Subject) -> Finding:
    """A sample of the shard has one score per control. A doubled one would be ranked, and could be selected, twice."""
    where = "shard = $shard AND score_key = $key"
    return subject.doubled("sample_scores", "control, sample_id", where, **_scores(subject))


@rule("sample_scores", blocking=True, mend="set model.dtype to float32, or look in pair_scores for what is not finite")
def scores_are_finite(subject: Subject) -> Finding:
    """Every figure of a score is a finite number. NaN sorts above every number: such a sample would be selected first."""
    figures = ("contribution", "consistency", "stability", "coverage", "significance", "standard_error")
    finite = " AND ".join(f"isfinite({figure})" for figure in figures)
    return subject.find(
        f"""
        SELECT control || ' ' || sample_id AS id, NOT ({finite}) AS wrong
        FROM delta.sample_scores WHERE shard = $shard AND score_key = $key
        """,  # noqa: S608  (our own text)
        "scores are not finite", **_scores(subject),
    )  # fmt: skip


@rule("sample_scores", blocking=True, mend=REMAKE)
def every_sample_is_scored(subject: Subject) -> Finding:
    """Every sample of the shard that is to be scored directly (`scoring.direct_share`) has a score under every control, over the
    whole probe set; or over part of it, and then a standard error that says so. What lacks a score could never be selected, and
    a mean over easy probes is no mean over all.
    """
    ceiling = share_ceiling(subject.workspace.settings.scoring.direct_share)
    finding = subject.find(
        """
        WITH score AS (FROM delta.sample_scores WHERE shard = $shard AND score_key = $key),
        wanted AS (
            SELECT DISTINCT sample_id, unnest($controls::VARCHAR[]) AS control FROM delta.samples
            WHERE shard = $shard AND ($ceiling IS NULL OR sample_id < $ceiling)
        ),
        whole AS (SELECT count(*) AS n FROM probes)
        SELECT control || ' ' || sample_id AS id,
            NOT (n_probes BETWEEN 1 AND n AND (n_probes = n OR standard_error > 0)) AS wrong
        FROM wanted CROSS JOIN whole LEFT JOIN score USING (sample_id, control)
        """,
        "scores are missing, or over other probes than they claim",
        controls=list(subject.workspace.settings.controls.kinds), ceiling=ceiling, **_scores(subject),
    )  # fmt: skip
    left = subject.rows(
        "SELECT count(DISTINCT sample_id) AS n FROM delta.samples WHERE shard = $shard AND sample_id >= $ceiling",
        shard=subject.partition, ceiling=ceiling,
    )[0]["n"]  # fmt: skip
    return replace(finding, says=f"{finding.says}; {left:,} not drawn for direct scoring") if left else finding


@rule("sample_scores", blocking=True, mend=REMAKE)
def no_score_is_a_stranger(subject: Subject) -> Finding:
    """Every score of the shard is that of a sample which the shard holds now. The score of a line that was taken out could
    win over the sample's present one.
    """
    return subject.find(
        """
        SELECT DISTINCT sample_id AS id, sample_id NOT IN (SELECT sample_id FROM delta.samples WHERE shard = $shard) AS wrong
        FROM delta.sample_scores WHERE shard = $shard AND score_key = $key
        """,
        "scored samples are not in the shard", **_scores(subject),
    )  # fmt: skip


@rule("sample_scores", blocking=True, mend="materialize probe_set again: it leaves such probes out")
def no_sample_is_a_probe(subject: Subject) -> Finding:
    """No sample of the shard asks what a probe asks, or holds 13 words in a row of its answer. A file that came after the
    probe set was drawn may hold its probes: such samples answer themselves. Looked at before scoring too.
    """
    rows = subject.rows("SELECT * FROM delta.samples WHERE shard = $shard", shard=subject.partition)
    return _meetings(rows, probe_index(subject.rows("FROM probes")), "samples meet a probe")


@rule("sample_scores", warns=True, mend="compare `inputs` and `settings` of its last two rows in the ledger")
def scores_have_not_drifted(subject: Subject) -> Finding:
    """The scores of the shard rank its samples as the run before did (rank correlation 0.9 or more, mean within half a standard
    deviation). Other probes or another model move scores; nobody should find that out from a changed selection.
    """
    samples = subject.made.summary.get("drift_samples", 0)
    if subject.run_id not in ("", subject.made.run_id) or samples < _COMPARABLE:
        return Finding(0, 0, "nothing to compare: not scored anew, or too few samples that were scored before")
    figures = {name: subject.made.summary[name] for name in ("drift_rank_correlation", "drift_mean_shift")}
    correlation, shift = figures.values()
    says = f"rank correlation {correlation:.2f}, mean {shift:+.2f} standard deviations, over {samples:,} samples"
    return Finding(samples, int(correlation < _MIN_CORRELATION or abs(shift) > _MAX_SHIFT), says, (), figures)


def drift(store: Store, shard: str, after: pl.DataFrame) -> dict[str, float]:
    """How a shard's new scores of one control compare with those its last run stored, for the ledger; {} without any.

    Args:
        after: rows of `sample_scores` that are about to replace them.
    """
    before = store.query(
        """
        SELECT sample_id, contribution AS before FROM delta.sample_scores WHERE shard = $shard AND control = $control
            AND score_key = (SELECT max_by(summary->>'score_key', created_at) FROM delta.ledger
                WHERE asset = 'sample_scores' AND "partition" = $shard)
        """,
        {"shard": shard, "control": after["control"][0] if after.height else ""},
    )
    both = after.join(before, on="sample_id")
    figures = both.select(
        drift_rank_correlation=pl.corr("before", "contribution", method="spearman"),
        drift_mean_shift=(pl.col("contribution") - pl.col("before")).mean() / pl.col("before").std(),
    ).row(0, named=True)
    told = {name: round(value, 4) for name, value in figures.items() if value is not None and math.isfinite(value)}
    return {"drift_samples": both.height, **told} if len(told) == len(figures) else {}


# Features and selector


_FEATURES = """
    SELECT * FROM delta.sample_features SEMI JOIN (FROM delta.samples WHERE shard = $shard) USING (sample_id) WHERE score_key = $key
"""


@rule("sample_features", blocking=True, mend=_APPENDED)
def features_stand_once(subject: Subject) -> Finding:
    """A sample has one row of features under a score_key. A doubled one would be learned from, and predicted, twice."""
    return subject.find(
        f"SELECT sample_id AS id, count(*) > 1 AS wrong FROM ({_FEATURES}) GROUP BY sample_id",  # noqa: S608  (our own text)
        "samples have their features more than once", **_scores(subject),
    )  # fmt: skip


@rule("sample_features", blocking=True, mend=REMAKE)
def every_sample_has_its_features(subject: Subject) -> Finding:
    """Every sample of the shard was read. The selector could not rank one without features, and `rds`, `perplexity` and `ifd`
    would choose from a smaller pool than the other arms.
    """
    return subject.find(
        f"""
        SELECT DISTINCT sample_id AS id, sample_id NOT IN (SELECT sample_id FROM ({_FEATURES})) AS wrong
        FROM delta.samples WHERE shard = $shard
        """,  # noqa: S608  (our own text)
        "samples have no features", **_scores(subject),
    )  # fmt: skip


@rule("sample_features", blocking=True, mend="set model.dtype to float32, or look at these samples")
def features_are_finite(subject: Subject) -> Finding:
    """NLL and embedding of every sample are finite, over at least one token, and all embeddings have one length. A NaN in one of
    them would spread to every sample that it is compared, or learned, with.
    """
    return subject.find(
        f"""
        SELECT sample_id AS id, NOT (isfinite(nll_sum) AND isfinite(nll_alone) AND n_tokens > 0 AND isfinite(list_sum(embedding))
            AND len(embedding) = mode(len(embedding)) OVER ()) AS wrong FROM ({_FEATURES})
        """,  # noqa: S608  (our own text)
        "features are not finite, or of another length", **_scores(subject),
    )  # fmt: skip


@rule("probe_features", blocking=True, mend=REMAKE)
def every_probe_has_its_embedding(subject: Subject) -> Finding:
    """Every probe has one finite embedding. `rds` goes round over the probes: one that is missing would choose nothing."""
    return subject.find(
        """
        WITH stored AS (FROM delta.probe_features WHERE score_key = $key)
        SELECT probe_id AS id, NOT (count(*) = 1 AND bool_and(isfinite(list_sum(embedding)))) AS wrong
        FROM probes LEFT JOIN stored USING (probe_id) GROUP BY probe_id
        """,
        "probes have no finite embedding", key=subject.made.summary["score_key"],
    )  # fmt: skip


@rule("selector", blocking=True, mend=REMAKE)
def selector_is_as_recorded(subject: Subject) -> Finding:
    """The selector's directory holds the files that training left, byte for byte, and it stands in `selectors` with its metrics. A
    ranking must be traceable to the very model that made it.
    """
    own = "WHERE selector_id = $id"
    (row,) = subject.rows(
        f"""
        SELECT (SELECT count(*) FROM delta.selectors {own}) > 0 AND (SELECT count(*) FROM delta.selector_metrics {own}) > 0 AS whole
        """,  # noqa: S608  (our own text)
        id=subject.made.summary["selector_id"],
    )
    sound = row["whole"] and subject.files == subject.made.digest
    what = "selectors are gone, hold other files than training left, or have no metrics"
    return _finding(1, int(not sound), what, [subject.made.summary["path"]])


@rule(
    "selector", warns=True, mend="read selector_metrics; score more samples directly, or select by length_matched arms"
)
def selector_knows_more_than_length(subject: Subject) -> Finding:
    """On samples it has not seen, the selector's ranking goes with contribution even where length is equal: the interval of the
    partial rank correlation lies above 0. Otherwise it is a dear way to sort by length.
    """
    rows = subject.rows(
        """
        SELECT value, low, high FROM delta.selector_metrics
        WHERE selector_id = $id AND predictor = 'selector' AND metric = 'partial_spearman'
            AND (SELECT any_value(n_held_out) FROM delta.selectors WHERE selector_id = $id) >= $least
        """,
        id=subject.made.summary["selector_id"], least=_COMPARABLE_HELD_OUT,
    )  # fmt: skip
    if not rows:
        return Finding(0, 0, f"fewer than {_COMPARABLE_HELD_OUT} held-out samples: too few to tell")
    value, low, high = rows[0].values()
    says = f"rank correlation with contribution at equal length {value:.2f} [{low:.2f}, {high:.2f}]"
    return Finding(1, int(not low > 0), says, (), {"partial_spearman": value, "low": low, "high": high})


def _predictions(subject: Subject) -> dict[str, str]:
    return {"shard": subject.partition, "selector": subject.made.summary["selector_id"]}


@rule("predicted_scores", blocking=True, mend=REMAKE)
def predictions_stand_once(subject: Subject) -> Finding:
    """A sample of the shard has one predicted score. A doubled one could be selected twice."""
    where = "shard = $shard AND selector_id = $selector"
    return subject.doubled("predicted_scores", "sample_id", where, **_predictions(subject))


@rule("predicted_scores", blocking=True, mend=REMAKE)
def every_sample_is_predicted(subject: Subject) -> Finding:
    """Every sample of the shard, and no other, has a finite predicted score. One without could never be selected, and NaN sorts
    above every number.
    """
    return subject.find(
        """
        WITH own AS (SELECT DISTINCT sample_id, true AS there FROM delta.samples WHERE shard = $shard),
        stored AS (FROM delta.predicted_scores WHERE shard = $shard AND selector_id = $selector)
        SELECT sample_id AS id, NOT (there AND isfinite(score)) AS wrong FROM own FULL JOIN stored USING (sample_id)
        """,
        "samples have no finite prediction, or are not in the shard", **_predictions(subject),
    )  # fmt: skip


# Selection


def _chosen(subject: Subject) -> dict[str, str]:
    return {"arm": subject.partition, "subset": subject.made.digest}


_SUBSET = "delta.selections WHERE arm = $arm AND subset_id = $subset"


@rule("selected_subset", blocking=True, mend=REMAKE)
def subset_is_as_recorded(subject: Subject) -> Finding:
    """The stored samples and their order are those that the subset's id was made from, each once. A checkpoint names its
    subset by this id: it must mean what was trained on.
    """
    rows = subject.rows(f'SELECT sample_id FROM {_SUBSET} ORDER BY "rank", sample_id', **_chosen(subject))  # noqa: S608
    ids = [row["sample_id"] for row in rows]
    same = subset_id(subject.partition, ids) == subject.made.digest
    return _recorded(ids, same, "samples, and not those the subset was made of")


@rule("selected_subset", blocking=True, mend="materialize selected_subset again")
def subset_is_in_the_pool(subject: Subject) -> Finding:
    """Every chosen sample stands in a file of the pool. Lines of a file that was taken out would be trained on no more, and
    nobody would see that the arm became smaller.
    """
    return subject.find(
        f"""
        SELECT sample_id AS id, sample_id NOT IN (SELECT sample_id FROM samples)
            AS wrong FROM {_SUBSET}
        """,  # noqa: S608  (our own text)
        "chosen samples are not in the pool any more", **_chosen(subject),
    )  # fmt: skip


@rule("selected_subset", blocking=True, mend="materialize selected_subset again")
def subset_has_its_size(subject: Subject) -> Finding:
    """The subset is `selection.fraction` of the pool it was chosen from; all of it for `full`. Arms of different sizes would be
    compared as if they were alike, and a smaller one is cheaper than it looks.
    """
    (row,) = subject.rows(f"SELECT count(*) AS n FROM {_SUBSET}", **_chosen(subject))  # noqa: S608
    pool, fraction = subject.made.summary["pool_samples"], subject.workspace.settings.selection.fraction
    due = subset_size(subject.partition, pool, fraction)
    return Finding(row["n"], int(row["n"] != due), f"{row['n']:,} samples chosen, {due:,} of {pool:,} due")


@rule("selected_subset", blocking=True, mend="mend the scores (see the checks of sample_scores), then select again")
def chosen_scores_are_finite(subject: Subject) -> Finding:
    """An arm that ranks by contribution chose by finite scores. NaN sorts above every number: it would come first."""
    return subject.find(
        f"SELECT sample_id AS id, NOT coalesce(isfinite(score), NOT $ranked) AS wrong FROM {_SUBSET}",  # noqa: S608
        "chosen samples have no finite score", ranked=ranks_by(subject.partition) is not None, **_chosen(subject),
    )  # fmt: skip


def _lines(subject: Subject) -> list[dict[str, Any]]:
    """Every line of the pool that holds a chosen sample."""
    return subject.rows(
        f"FROM samples SEMI JOIN (SELECT sample_id FROM {_SUBSET}) USING (sample_id)",  # noqa: S608
        **_chosen(subject),
    )


@rule("selected_subset", blocking=True, mend="take these rows out of the pool or the evaluation data, and run again")
def subset_holds_no_evaluation_item(subject: Subject) -> Finding:
    """No chosen sample asks what an evaluation item asks, or holds 13 words in a row of its answer. The arm would be trained on
    the test, and win. Looked at before training too. Tasks named in evaluation.tasks are not on disk and are not looked at.
    """
    return _meetings(_lines(subject), evaluation_index(subject.workspace), "chosen lines meet an evaluation item")


@rule("selected_subset", blocking=True, mend="materialize probe_set, sample_scores and selected_subset again")
def subset_holds_no_probe(subject: Subject) -> Finding:
    """No chosen sample asks what a probe asks, or holds 13 words in a row of its answer. It was chosen because it answers
    itself, not because it is worth training on.
    """
    return _meetings(_lines(subject), probe_index(subject.rows("FROM probes")), "chosen lines meet a probe")


# Checkpoints


@rule("checkpoint", blocking=True, mend="delete its directory and materialize it again: it is trained anew")
def files_are_as_recorded(subject: Subject) -> Finding:
    """The checkpoint's directory holds the files that training left, byte for byte. What is evaluated, exported or served must be
    what the lineage describes.
    """
    what = "checkpoint directories are gone or hold other files than training left"
    return _finding(1, int(subject.files != subject.made.digest), what, [subject.made.summary["path"]])


def _base_model(subject: Subject) -> dict[str, str]:
    """Digest and directory of the model that the checkpoint was made from."""
    rows = subject.rows(
        """
        SELECT m.model_digest AS digest, m.path FROM delta.checkpoints c JOIN delta.models m USING (model_digest)
        WHERE c.checkpoint_id = $checkpoint ORDER BY m.prepared_at DESC LIMIT 1
        """,
        checkpoint=subject.made.summary["checkpoint_id"],
    )
    if not rows:
        raise IconError(f"{subject.name}: its base model is not in the table models; materialize it again")
    return rows[0]


def _loaded_with(subject: Subject) -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return f"checkpoint {subject.files}, base model {_base_model(subject)['digest']}, {libraries}"


@rule(
    "checkpoint", blocking=True, mend="look at its files; delete its directory to train anew", verdict_of=_loaded_with
)
def checkpoint_loads(subject: Subject) -> Finding:
    """Base model and checkpoint load with transformers and peft on a CPU, and answer with finite numbers. Else it would come out
    at the first use, long after the money was spent. The same files are loaded again only by the check on its own.
    """
    import torch
    from safetensors import SafetensorError

    base = subject.workspace.root / _base_model(subject)["path"]
    try:
        model, tokenizer = load_fine_tuned(base, subject.directory, "float32", "cpu")
        with torch.inference_mode():
            logits = model(torch.tensor([tokenizer("Hello.").input_ids or [0]])).logits
    except (IconError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        return Finding(1, 1, f"it does not load ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
    finite = bool(torch.isfinite(logits).all())
    return Finding(1, int(not finite), "it loads and answers" if finite else "it loads, but its logits are not finite")


@rule("checkpoint", blocking=True, mend="materialize it again after deleting its directory: it is trained anew")
def manifest_names_the_subset(subject: Subject) -> Finding:
    """The checkpoint's manifest names the samples of its subset, all of them and no other, each source line once. It is what
    answers which lines a model was trained on.
    """
    return subject.find(
        """
        WITH manifest AS (
            SELECT sample_id, count(*) = count(DISTINCT (shard, "row")) AS once FROM delta.checkpoint_samples
            WHERE checkpoint_id = $checkpoint GROUP BY sample_id
        ), subset AS (SELECT DISTINCT sample_id, true AS chosen FROM delta.selections WHERE subset_id = $subset)
        SELECT sample_id AS id, NOT (once AND chosen) AS wrong FROM manifest FULL JOIN subset USING (sample_id)
        """,
        "samples differ between manifest and subset",
        checkpoint=subject.made.summary["checkpoint_id"], subset=subject.made.summary["subset_id"],
    )  # fmt: skip


# Results


def _measured(subject: Subject) -> dict[str, str]:
    return {"checkpoint": subject.made.summary["checkpoint_id"]}


@rule("base_eval", "eval_results", blocking=True, mend=REMAKE)
def metrics_stand_once(subject: Subject) -> Finding:
    """A checkpoint has one value per task and metric. The leaderboard takes the mean over rows: a doubled one shifts it."""
    return subject.doubled("eval_results", "task, metric", "checkpoint_id = $checkpoint", **_measured(subject))


@rule("base_eval", "eval_results", blocking=True, mend="look at the checkpoint: its loss or logits are not finite")
def metrics_are_finite(subject: Subject) -> Finding:
    """Every metric is a finite number. One NaN makes an arm's mean NaN, and the comparison is void."""
    sql = "SELECT task || ' ' || metric AS id, NOT isfinite(value) AS wrong FROM delta.eval_results WHERE checkpoint_id = $checkpoint"
    return subject.find(sql, "metrics are not finite", **_measured(subject))


@rule("base_eval", "eval_results", blocking=True, mend=REMAKE)
def every_task_is_measured(subject: Subject) -> Finding:
    """Every local task of the settings, and the held-out data, has a result. An arm that was not measured on all of them would be
    compared on the others only.
    """
    settings = subject.workspace.settings.evaluation
    tasks = [task.name for task in settings.multiple_choice] + ([HELD_OUT] if settings.held_out else [])
    return subject.find(
        """
        SELECT task AS id, task NOT IN (SELECT task FROM delta.eval_results WHERE checkpoint_id = $checkpoint) AS wrong
        FROM (SELECT unnest($tasks::VARCHAR[]) AS task)
        """,
        "tasks have no result", tasks=tasks, **_measured(subject),
    )  # fmt: skip


@rule("leaderboard", warns=True, mend="materialize eval_results of these, and the leaderboard again")
def every_run_counts(subject: Subject) -> Finding:
    """Every arm of the settings stands on the leaderboard with all of its seeds. The mean over fewer seeds has a smaller spread
    than it should, and looks more certain than it is.
    """
    settings = subject.workspace.settings
    return subject.find(
        """
        WITH due AS (SELECT arm, unnest($seeds::BIGINT[]) AS seed FROM (SELECT unnest($arms::VARCHAR[]) AS arm)),
        measured AS (
            SELECT DISTINCT arm, seed, true AS counts FROM eval_results
            SEMI JOIN (FROM checkpoints WHERE is_current) USING (checkpoint_id)
        )
        SELECT arm || '|' || seed AS id, NOT counts AS wrong FROM due LEFT JOIN measured USING (arm, seed)
        """,
        "runs have no results", arms=list(settings.selection.arms), seeds=list(settings.training.seeds),
    )  # fmt: skip
