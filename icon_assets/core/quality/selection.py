"""Rules of subsets, and whether to believe one."""

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
    """The stored samples and their order are those that the subset's id was made from, each once. A checkpoint names
    its subset by this id: it must mean what was trained on."""
    rows = subject.rows(f'SELECT sample_id FROM {_SUBSET} ORDER BY "rank", sample_id', **_chosen(subject))  # noqa: S608
    ids = [row["sample_id"] for row in rows]
    same = subset_id(subject.partition, ids) == subject.made.digest
    return recorded(ids, same, "samples, and not those the subset was made of")


@rule("selected_subset", blocking=True, mend="materialize selected_subset again")
def subset_is_in_the_pool(subject: Subject) -> Finding:
    """Every chosen sample stands in a file of the pool. Lines of a file that was taken out would be trained on no more,
    and nobody would see that the arm became smaller."""
    return subject.find(
        f"""
        SELECT sample_id AS id, sample_id NOT IN (SELECT sample_id FROM samples)
            AS wrong FROM {_SUBSET}
        """,  # noqa: S608  (our own text)
        "chosen samples are not in the pool any more",
        **_chosen(subject),
    )


@rule("selected_subset", blocking=True, mend="materialize selected_subset again")
def subset_has_its_size(subject: Subject) -> Finding:
    """The subset is `selection.fraction` of the pool it was chosen from, in samples or in training tokens; all of it
    for `full`. Arms of different sizes would be compared as if they were alike, and a smaller one is cheaper than it
    looks."""
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


@rule("selected_subset", blocking=True, mend="mend the scores (see the checks of sample_scores), then select again")
def chosen_scores_are_finite(subject: Subject) -> Finding:
    """An arm that ranks by contribution chose by finite scores. NaN sorts above every number: it would come first."""
    return subject.find(
        f"SELECT sample_id AS id, NOT coalesce(isfinite(score), NOT $ranked) AS wrong FROM {_SUBSET}",  # noqa: S608
        "chosen samples have no finite score",
        ranked=has_score(subject.partition),
        **_chosen(subject),
    )


@rule("selected_subset", warns=True, mend="set probes.budget to exact, or controls.primary to the control of this arm")
def budget_looked_for_this_arm(subject: Subject) -> Finding:
    """Under a budget, probes go to samples near the cut of controls.primary (`probes.budget`). An arm that ranks by
    other contributions, or cuts elsewhere, chooses by scores that are as coarse near its own cut as far from it."""
    primary = subject.workspace.settings.controls.primary
    control = ranks_by(subject.partition)
    if control is None or is_top_of(subject.partition, primary):
        return Finding(0, 0, "does not choose by another contribution than the budget looks for")
    return subject.find(
        f"""
        SELECT sample_id AS id, n_probes < (SELECT count(*) FROM probes) AS wrong
        FROM current_scores SEMI JOIN (SELECT sample_id FROM {_SUBSET}) USING (sample_id) WHERE control = 'none'
        """,  # noqa: S608
        f"chosen samples have a score from some of the probes, drawn for the cut of control {primary}",
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
    """No chosen sample asks what an evaluation item asks, or holds 13 words in a row of its question or answer. The arm
    would be trained on the test, and win. Looked at before training too. Tasks named in evaluation.tasks are not on
    disk and are not looked at."""
    return meetings(_lines(subject), evaluation_index(subject.workspace), "chosen lines meet an evaluation item")


@rule("selected_subset", blocking=True, mend="materialize probe_set, sample_scores and selected_subset again")
def subset_holds_no_probe(subject: Subject) -> Finding:
    """No chosen sample asks what a probe asks, or holds 13 words in a row of its answer. It was chosen because it
    answers itself, not because it is worth training on."""
    return meetings(_lines(subject), probe_index(subject.rows("FROM probes")), "chosen lines meet a probe")


@rule("selection_trust", warns=True, mend="compare the arm with length_matched and longest before you believe in it")
def length_does_not_explain_it(subject: Subject) -> Finding:
    """How long a sample is does not tell whether it was chosen: the AUC of its length stays below
    `selection.length_warning`, on either side. Where length alone makes the selection, a gain of the arm may be one of
    longer training texts."""
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
    return judge(len(rows), len(wrong), f"lengths alone tell chosen from other samples with AUC above {limit}", wrong)
