"""Rules of measurements and of the scores that are computed from them."""

from dataclasses import replace

from icon_assets.core.digests import share_ceiling
from icon_assets.core.probes.leakage import probe_index
from icon_assets.core.quality.pool import meetings
from icon_assets.core.quality.rule import REMAKE, Finding, Subject, rule

_COMPARABLE = 10  # fewer samples can't show a drift
_MIN_CORRELATION = 0.9
_MAX_SHIFT = 0.5

APPENDED = "rows are added under a lock, so something else wrote them: restore the store, or score into a new one"


def _under_key(subject: Subject, table: str, keys: str) -> Finding:
    return subject.doubled(table, keys, "score_key = $key", key=subject.made.summary["score_key"])


@rule("probe_baseline", blocking=True, mend=APPENDED)
def controls_stand_once(subject: Subject) -> Finding:
    """A probe has one NLL per control context. A duplicate would count twice in the baseline of every sample."""
    return _under_key(subject, "control_scores", 'probe_id, control, seed, "length"')


@rule("probe_baseline", blocking=True, mend=APPENDED)
def pairs_stand_once(subject: Subject) -> Finding:
    """A (sample, probe) pair has one NLL under a score_key. A duplicate would count twice in its sample's contribution.
    It is checked here, once per run and before scores are derived. In the scores of a shard it would show in
    `n_probes`."""
    return _under_key(subject, "pair_scores", "sample_id, probe_id")


@rule("probe_baseline", blocking=True, mend=APPENDED)
def contexts_stand_once(subject: Subject) -> Finding:
    """A sample has one context length under a score_key. A duplicate would double each of its pairs in every join."""
    return _under_key(subject, "contexts", "sample_id")


@rule("probe_baseline", blocking=True, mend="check these probes; set model.dtype to float32 if the model overflows")
def every_probe_has_its_baseline(subject: Subject) -> Finding:
    """Every probe has a finite NLL without context, over at least one token. Every score divides by it. A probe without
    one would silently drop out of all means."""
    return subject.find(
        """
        SELECT probe_id AS id, NOT (isfinite(nll_sum) AND nll_sum >= 0 AND n_tokens > 0) AS wrong
        FROM probes LEFT JOIN (FROM delta.control_scores WHERE score_key = $key AND control = 'none') USING (probe_id)
        """,
        "probes have no finite baseline",
        key=subject.made.summary["score_key"],
    )


def under_current_key(subject: Subject) -> dict[str, str]:
    return {"shard": subject.partition, "key": subject.made.summary["score_key"]}


@rule("sample_scores", blocking=True, mend=REMAKE)
def scores_stand_once(subject: Subject) -> Finding:
    """A sample of the shard has one score per control. A duplicate would be ranked twice and could be selected
    twice."""
    where = "shard = $shard AND score_key = $key"
    return subject.doubled("sample_scores", "control, sample_id", where, **under_current_key(subject))


@rule(
    "sample_scores",
    blocking=True,
    mend="set model.dtype to float32, or find the values in pair_scores that are not finite",
)
def scores_are_finite(subject: Subject) -> Finding:
    """Every figure of a score is a finite number. NaN sorts above every number, so such a sample would be selected
    first."""
    figures = ("contribution", "consistency", "stability", "coverage", "significance", "standard_error")
    finite = " AND ".join(f"isfinite({figure})" for figure in figures)
    return subject.find(
        f"""
        SELECT control || ' ' || sample_id AS id, NOT ({finite}) AS wrong
        FROM delta.sample_scores WHERE shard = $shard AND score_key = $key
        """,  # noqa: S608  (our own text)
        "scores are not finite",
        **under_current_key(subject),
    )


@rule("sample_scores", blocking=True, mend=REMAKE)
def every_sample_is_scored(subject: Subject) -> Finding:
    """Every sample of the shard that is to be scored directly (`scoring.direct_share`) has a score under every control.
    The score is over the whole probe set, or over a part of it and then has a standard error. A sample without a score
    could never be selected, and a mean over easy probes is not a mean over all probes."""
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
        "scores are missing, or do not cover the probes that they claim",
        controls=list(subject.workspace.settings.controls.kinds),
        ceiling=ceiling,
        **under_current_key(subject),
    )
    left = subject.rows(
        "SELECT count(DISTINCT sample_id) AS n FROM delta.samples WHERE shard = $shard AND sample_id >= $ceiling",
        shard=subject.partition,
        ceiling=ceiling,
    )[0]["n"]
    return replace(finding, says=f"{finding.says}; {left:,} not drawn for direct scoring") if left else finding


@rule("sample_scores", blocking=True, mend=REMAKE)
def every_score_has_its_pairs(subject: Subject) -> Finding:
    """For every sample of the shard, its length and all pairs of its scores are stored. Without them nobody could
    verify the score, and a further control would need scoring again."""
    return subject.find(
        """
        WITH length AS (
            SELECT sample_id, origin FROM delta.contexts
            SEMI JOIN (FROM delta.samples WHERE shard = $shard) USING (sample_id)
            WHERE score_key = $key
        ), pair AS (
            SELECT sample_id, count(*) AS pairs FROM delta.pair_scores SEMI JOIN length USING (origin, sample_id)
            WHERE score_key = $key GROUP BY sample_id
        )
        SELECT sample_id AS id, max(n_probes) > coalesce(any_value(pairs), 0) AS wrong FROM delta.sample_scores
        LEFT JOIN pair USING (sample_id) WHERE shard = $shard AND score_key = $key GROUP BY sample_id
        """,
        "scored samples have fewer pairs than their scores were computed from",
        **under_current_key(subject),
    )


@rule("sample_scores", blocking=True, mend=REMAKE)
def no_score_is_a_stranger(subject: Subject) -> Finding:
    """Every score of the shard belongs to a sample that the shard holds now. The score of a removed line could replace
    the sample's current score."""
    return subject.find(
        """
        SELECT DISTINCT sample_id AS id,
            sample_id NOT IN (SELECT sample_id FROM delta.samples WHERE shard = $shard) AS wrong
        FROM delta.sample_scores WHERE shard = $shard AND score_key = $key
        """,
        "scored samples are not in the shard",
        **under_current_key(subject),
    )


@rule("sample_scores", blocking=True, mend="materialize probe_set again: it leaves such probes out")
def no_sample_is_a_probe(subject: Subject) -> Finding:
    """No sample of the shard asks what a probe asks, or holds 13 words in a row of its answer. A file that was added
    after the probes were drawn may contain some of them, and such samples answer themselves. This is also checked
    before scoring."""
    rows = subject.rows("SELECT * FROM delta.samples WHERE shard = $shard", shard=subject.partition)
    return meetings(rows, probe_index(subject.rows("FROM probes")), "samples overlap with a probe")


@rule("sample_scores", warns=True, mend="compare `inputs` and `settings` of its last two rows in the ledger")
def scores_have_not_drifted(subject: Subject) -> Finding:
    """The scores of the shard rank its samples as those of the previous run did (rank correlation 0.9 or more, mean
    within half a standard deviation). New probes or a new model change scores, and this check reports it before the
    selection changes unnoticed."""
    samples = subject.made.summary.get("drift_samples", 0)
    if subject.run_id not in ("", subject.made.run_id) or samples < _COMPARABLE:
        return Finding(0, 0, "nothing to compare: not scored again, or too few samples with a previous score")
    figures = {name: subject.made.summary[name] for name in ("drift_rank_correlation", "drift_mean_shift")}
    correlation, shift = figures.values()
    says = f"rank correlation {correlation:.2f}, mean {shift:+.2f} standard deviations, over {samples:,} samples"
    return Finding(samples, int(correlation < _MIN_CORRELATION or abs(shift) > _MAX_SHIFT), says, (), figures)
