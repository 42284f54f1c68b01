"""Rules of subsets and of their trust figures."""

from typing import Any

from icon_assets.core.probes.leakage import evaluation_index, probe_index
from icon_assets.core.quality.pool import meetings
from icon_assets.core.quality.probes import recorded
from icon_assets.core.quality.rule import REMAKE, Finding, Subject, judge, rule
from icon_assets.core.selection.arm import has_score, ranks_by
from icon_assets.core.selection.arms import is_top_of
from icon_assets.core.selection.choose import subset_id, subset_size
from icon_assets.core.trust.warnings import explained_by_length


def _chosen(subject: Subject) -> dict[str, str]:
    return {"arm": subject.partition, "subset": subject.made.digest}


_SUBSET = "delta.selections WHERE arm = $arm AND subset_id = $subset"


@rule("selected_subset", blocking=True, mend=REMAKE)
def subset_is_as_recorded(subject: Subject) -> Finding:
    """The stored samples and their order match the subset's id, and each occurs once. A checkpoint names its subset by
    this id, so the id must identify the training data."""
    rows = subject.rows(f'SELECT sample_id FROM {_SUBSET} ORDER BY "rank", sample_id', **_chosen(subject))  # noqa: S608
    ids = [row["sample_id"] for row in rows]
    same = subset_id(subject.partition, ids) == subject.made.digest
    return recorded(ids, same, "samples, but not those that the subset's id was made from")


@rule("selected_subset", blocking=True, mend="materialize selected_subset again")
def subset_is_in_the_pool(subject: Subject) -> Finding:
    """Every chosen sample is in a file of the pool. Lines of a removed file are not trained on, and the arm would
    become smaller without notice."""
    return subject.find(
        f"""
        SELECT sample_id AS id, sample_id NOT IN (SELECT sample_id FROM samples)
            AS wrong FROM {_SUBSET}
        """,  # noqa: S608  (our own text)
        "chosen samples are no longer in the pool",
        **_chosen(subject),
    )


@rule("selected_subset", blocking=True, mend="materialize selected_subset again")
def subset_has_its_size(subject: Subject) -> Finding:
    """The subset is `selection.fraction` of the pool that it was chosen from, in samples or in training tokens, and the
    whole pool for `full`. Otherwise arms of different sizes would be compared as if they had the same size."""
    (row,) = subject.rows(f"SELECT count(*) AS n FROM {_SUBSET}", **_chosen(subject))  # noqa: S608
    made = subject.made.summary
    settings = subject.workspace.settings.selection
    if settings.budget == "tokens" and subject.partition != "full":
        budget = settings.fraction * made.get("pool_training_tokens", 0)
        tokens = made.get("training_tokens", 0)
        right = (
            row["n"] == made["samples"] and made.get("token_budget") == budget and (tokens <= budget or row["n"] == 1)
        )
        return Finding(row["n"], int(not right), f"{row['n']:,} samples of {tokens:,} tokens chosen, {budget:,.0f} due")
    due = subset_size(subject.partition, made["pool_samples"], settings.fraction)
    return Finding(
        row["n"], int(row["n"] != due), f"{row['n']:,} samples chosen, {due:,} of {made['pool_samples']:,} due"
    )


@rule("selected_subset", blocking=True, mend="fix the scores (see the checks of sample_scores), then select again")
def chosen_scores_are_finite(subject: Subject) -> Finding:
    """An arm that ranks by contribution chose by finite scores. NaN sorts above every number, so it would come
    first."""
    return subject.find(
        f"SELECT sample_id AS id, NOT coalesce(isfinite(score), NOT $ranked) AS wrong FROM {_SUBSET}",  # noqa: S608
        "chosen samples have no finite score",
        ranked=has_score(subject.partition),
        **_chosen(subject),
    )


@rule("selected_subset", warns=True, mend="set probes.budget to exact, or controls.primary to the control of this arm")
def budget_looked_for_this_arm(subject: Subject) -> Finding:
    """With a budget (`probes.budget`), most probes go to samples near the cut of controls.primary. An arm that ranks by
    a different control, or has a different cut, chooses by scores that are not more precise near its own cut."""
    settings = subject.workspace.settings
    primary = settings.controls.primary
    control = ranks_by(subject.partition)
    if control is None or is_top_of(subject.partition, primary, settings.selection):
        return Finding(0, 0, "does not rank by a control that the budget does not serve")
    return subject.find(
        f"""
        SELECT sample_id AS id, n_probes < (SELECT count(*) FROM probes) AS wrong
        FROM current_scores SEMI JOIN (SELECT sample_id FROM {_SUBSET}) USING (sample_id) WHERE control = 'none'
        """,  # noqa: S608
        f"chosen samples are scored on some of the probes only, which were drawn for the cut of control {primary}",
        **_chosen(subject),
    )


def _lines(subject: Subject) -> list[dict[str, Any]]:
    """Every line of the pool that holds a chosen sample."""
    return subject.rows(
        f"FROM samples SEMI JOIN (SELECT sample_id FROM {_SUBSET}) USING (sample_id)",  # noqa: S608
        **_chosen(subject),
    )


@rule("selected_subset", blocking=True, mend="take these rows out of the pool or the evaluation data, and run again")
def subset_holds_no_evaluation_item(subject: Subject) -> Finding:
    """No chosen sample asks what an evaluation item asks, or holds 13 words in a row of its question or answer.
    Otherwise the arm would be trained on the test, and win. This is also checked before training. Tasks named in
    evaluation.tasks are not on disk and are not checked."""
    return meetings(
        _lines(subject), evaluation_index(subject.workspace), "chosen lines overlap with an evaluation item"
    )


@rule("selected_subset", blocking=True, mend="materialize probe_set, sample_scores and selected_subset again")
def subset_holds_no_probe(subject: Subject) -> Finding:
    """No chosen sample asks what a probe asks, or holds 13 words in a row of its answer. Such a sample is chosen
    because it answers itself, not because it is worth training on."""
    return meetings(_lines(subject), probe_index(subject.rows("FROM probes")), "chosen lines overlap with a probe")


@rule("selection_trust", warns=True, mend="compare the arm with length_matched and longest before you trust it")
def length_does_not_explain_it(subject: Subject) -> Finding:
    """The length of a sample does not predict whether it was chosen: the AUC of length stays below
    `selection.length_warning`, in either direction. If length alone explains the selection, a gain of the arm may come
    from longer training texts."""
    limit = subject.workspace.settings.selection.length_warning
    rows = subject.rows(
        """
        SELECT against, value FROM delta.trust_figures
        WHERE arm = $arm AND subset_id = $subset AND figure = 'length_auc'
        """,
        arm=subject.partition,
        subset=subject.made.summary["subset_id"],
    )
    wrong = [f"{row['against']}: AUC {row['value']:.2f}" for row in rows if explained_by_length(row["value"], limit)]
    return judge(
        len(rows),
        len(wrong),
        f"comparisons separate chosen from other samples by length alone, with an AUC above {limit}",
        wrong,
    )
