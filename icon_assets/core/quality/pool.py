"""Rules of the pool: no row is duplicated, and none is lost."""

from collections.abc import Mapping, Sequence
from typing import Any

from icon_assets.core.probes.leakage import evaluation_index, pool_references
from icon_assets.core.probes.overlap import Index
from icon_assets.core.quality.rule import EXAMPLES, REMAKE, Finding, Subject, judge, rule


@rule("raw_pool", blocking=True, mend=REMAKE)
def rows_stand_once(subject: Subject) -> Finding:
    """Every row of the source file is one row of `samples`. A duplicate would be trained on twice and would count twice
    in every figure over the pool."""
    return subject.doubled("samples", 'file, "row"', "shard = $shard", shard=subject.partition)


@rule("raw_pool", blocking=True, mend=REMAKE)
def every_row_is_accounted_for(subject: Subject) -> Finding:
    """The shard has one row in `shards`, and as many samples and quarantined rows as that row says. Samples, quarantine
    and shard row are three commits. The result of a run that was killed between them must not pass for a complete
    shard."""
    return subject.find(
        """
        SELECT $shard AS id, count(*) OVER () > 1
            OR n_samples <> (SELECT count(*) FROM delta.samples WHERE shard = $shard)
            OR n_quarantined <> (SELECT count(*) FROM delta.quarantine WHERE shard = $shard) AS wrong
        FROM (SELECT $shard AS shard) LEFT JOIN delta.shards USING (shard)
        """,
        "shard rows do not match the stored rows",
        shard=subject.partition,
    )


@rule("raw_pool", warns=True, mend="take these rows out of the pool; an arm that selects one will not be trained")
def holds_no_evaluation_item(subject: Subject) -> Finding:
    """No sample of the shard asks what an evaluation item asks, or holds 13 words in a row of its question or answer.
    Training on such a sample would make the leaderboard measure memory. Tasks named in evaluation.tasks are not on disk
    and are not checked."""
    rows = subject.rows("SELECT * FROM delta.samples WHERE shard = $shard", shard=subject.partition)
    return meetings(rows, evaluation_index(subject.workspace), "samples overlap with an evaluation item")


def meetings(rows: Sequence[Mapping[str, Any]], index: Index, what: str) -> Finding:
    """Name the rows only: the text that they share stays in the store."""
    met: dict[str, str] = {}
    for meeting in index.meetings(pool_references(rows)):
        met.setdefault(
            meeting.reference, f"{meeting.reference} overlaps with {meeting.candidate.file}:{meeting.candidate.row}"
        )
    return judge(len(rows), len(met), what, sorted(met.values())[:EXAMPLES])
