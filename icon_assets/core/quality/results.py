"""Rules of results: metrics, answers, judgements and the leaderboard."""

from icon_assets.core.evaluation.metric import NLL, PERPLEXITY
from icon_assets.core.inputs.evaluation_files import choice_files, sample_files
from icon_assets.core.quality.rule import REMAKE, Finding, Subject, judge, rule


def _measured(subject: Subject) -> dict[str, str]:
    return {"checkpoint": subject.made.summary["checkpoint_id"]}


@rule("base_eval", "eval_results", blocking=True, mend=REMAKE)
def metrics_stand_once(subject: Subject) -> Finding:
    """A checkpoint has one value per task and metric. The leaderboard takes the mean over rows, and a duplicate would
    shift it."""
    return subject.doubled("eval_results", "task, metric", "checkpoint_id = $checkpoint", **_measured(subject))


@rule("base_eval", "eval_results", blocking=True, mend="check the checkpoint: its loss or logits are not finite")
def metrics_are_finite(subject: Subject) -> Finding:
    """Every metric is a finite number. A single NaN makes the mean of its arm NaN, and the comparison is lost."""
    sql = (
        "SELECT task || ' ' || metric AS id, NOT isfinite(value) AS wrong FROM delta.eval_results "
        "WHERE checkpoint_id = $checkpoint"
    )
    return subject.find(sql, "metrics are not finite", **_measured(subject))


@rule("base_eval", "eval_results", blocking=True, mend=REMAKE)
def every_task_is_measured(subject: Subject) -> Finding:
    """Every local task of the settings, and the held-out data, has a result. Otherwise an arm would be compared only on
    the tasks that it was measured on."""
    settings = subject.workspace.settings.evaluation
    tasks = [name for name, _ in (*choice_files(settings), *sample_files(settings))]
    return subject.find(
        """
        SELECT task AS id, task NOT IN (SELECT task FROM delta.eval_results WHERE checkpoint_id = $checkpoint) AS wrong
        FROM (SELECT unnest($tasks::VARCHAR[]) AS task)
        """,
        "tasks have no result",
        tasks=tasks,
        **_measured(subject),
    )


@rule("base_eval", "eval_results", blocking=True, mend=REMAKE)
def metrics_are_made_of_their_items(subject: Subject) -> Finding:
    """Accuracies of local tasks, the held-out loss and every other metric with items are the mean of the stored items,
    each stored once. Differences between arms are computed from these items. Otherwise verdicts and leaderboard would
    contradict each other."""
    tasks = [name for name, _ in choice_files(subject.workspace.settings.evaluation)]
    return subject.find(
        """
        WITH made AS (
            SELECT task, metric, sum(value) / sum(weight) AS mean, count(*) = count(DISTINCT item) AS once
            FROM delta.eval_items WHERE checkpoint_id = $checkpoint GROUP BY task, metric
        ), due AS (
            SELECT task, metric, value, metric = $nll OR list_contains($tasks::VARCHAR[], task) AS has_items
            FROM delta.eval_results WHERE checkpoint_id = $checkpoint AND metric <> $perplexity
        )
        SELECT task || ' ' || metric AS id, NOT (once AND abs(mean - value) <= 1e-9 * greatest(1, abs(value))) AS wrong
        FROM made FULL JOIN due USING (task, metric) WHERE has_items OR once IS NOT NULL
        """,
        "metrics are not the mean of their items",
        nll=NLL,
        perplexity=PERPLEXITY,
        tasks=tasks,
        **_measured(subject),
    )


@rule("answers", blocking=True, mend=REMAKE)
def answers_stand_once(subject: Subject) -> Finding:
    """A checkpoint has one answer per prompt. A duplicate would be judged twice and count twice in the win rate."""
    return subject.doubled("answers", "prompt_set, prompt_id", "checkpoint_id = $checkpoint", **_measured(subject))


@rule("answers", blocking=True, mend=REMAKE)
def every_prompt_is_answered(subject: Subject) -> Finding:
    """There are as many answers as recorded, all made with the recorded settings. An incomplete set would be compared
    on its first prompts only."""
    return subject.find(
        """
        SELECT $checkpoint AS id, count(*) <> $due
            OR count(*) FILTER (answer IS NULL OR answer_key IS DISTINCT FROM $key) > 0 AS wrong
        FROM delta.answers WHERE checkpoint_id = $checkpoint
        """,
        "checkpoints lack answers, or have answers made with different settings",
        due=subject.made.summary["answers"],
        key=subject.made.summary["answer_key"],
        **_measured(subject),
    )


@rule(
    "pairwise_results", blocking=True, mend="rows are added one by one, so something else wrote them: restore the store"
)
def judgements_stand_once(subject: Subject) -> Finding:
    """The judge was asked once about each pair of answers in each order. A duplicate could change whether both orders
    agree."""
    keys = "other_id, prompt_set, prompt_id, swapped, question"
    return subject.doubled("judgements", keys, "checkpoint_id = $checkpoint", **_measured(subject))


@rule("pairwise_results", blocking=True, mend=REMAKE)
def win_rates_add_up(subject: Subject) -> Finding:
    """Every prompt set has one row. In it, each pair of answers is a win, a tie, a loss or unreadable, and the win rate
    is a finite number inside its interval."""
    return subject.find(
        """
        SELECT prompt_set AS id, count(*) OVER (PARTITION BY prompt_set) > 1 OR n <> wins + ties + losses
            OR n + unreadable <> pairs
            OR n > 0 AND NOT (low BETWEEN 0 AND win_rate AND high BETWEEN win_rate AND 1) AS wrong
        FROM (SELECT unnest($sets::STRUCT(prompt_set VARCHAR, pairs BIGINT)[], recursive := true))
        LEFT JOIN (FROM delta.pairwise_results WHERE checkpoint_id = $checkpoint) USING (prompt_set)
        """,
        "prompt sets have no valid result",
        sets=subject.made.summary["sets"],
        **_measured(subject),
    )


@rule("leaderboard", blocking=True, mend=REMAKE)
def differences_stand_once(subject: Subject) -> Finding:
    """Two arms have one difference per task and metric, and there are as many differences as recorded. A duplicate
    could give two answers to one question."""
    keys = "arm, against, task, metric"
    finding = subject.doubled("leaderboard_differences", keys, "true")
    missing = abs(subject.made.summary["comparisons"] - finding.looked_at)
    return (
        finding
        if finding.wrong or not missing
        else judge(finding.looked_at, missing, "rows are missing or surplus", ())
    )


@rule("leaderboard", blocking=True, mend=REMAKE)
def differences_are_finite(subject: Subject) -> Finding:
    """Every difference lies inside its interval, and all three are finite numbers. A NaN would look like no
    difference."""
    return subject.find(
        """
        SELECT concat_ws(' ', arm, against, task, metric) AS id,
            NOT (isfinite(low) AND isfinite(high) AND difference BETWEEN low AND high) AS wrong
        FROM delta.leaderboard_differences
        """,
        "differences are not finite, or lie outside their interval",
    )


@rule(
    "leaderboard", warns=True, mend="materialize checkpoint and eval_results of these runs again, then the leaderboard"
)
def every_run_counts(subject: Subject) -> Finding:
    """Every arm of the settings is on the leaderboard with all of its seeds. Runs that were trained or measured
    differently from the newest one are left out. A mean over fewer seeds looks more certain than it is."""
    settings = subject.workspace.settings
    return subject.find(
        """
        WITH due AS (SELECT arm, unnest($seeds::BIGINT[]) AS seed FROM (SELECT unnest($arms::VARCHAR[]) AS arm)),
        measured AS (
            SELECT DISTINCT arm, seed, true AS counts FROM current_results
        )
        SELECT arm || '|' || seed AS id, NOT counts AS wrong FROM due LEFT JOIN measured USING (arm, seed)
        """,
        "runs have no results that can be compared with the newest ones",
        arms=list(settings.selection.arms),
        seeds=list(settings.training.seeds),
    )


@rule(
    "leaderboard",
    warns=True,
    mend="leave the task out, or rephrase it so that this model can answer it (see its rows in eval_items)",
)
def every_task_tells_runs_apart(subject: Subject) -> Finding:
    """Runs differ in at least one item of every multiple-choice task. If all of them answer alike, such as always with
    the first letter, the task says nothing about the arms and makes their means over tasks more similar."""
    return subject.find(
        """
        WITH item AS (
            SELECT i.task, i.item, count(DISTINCT i.value) AS answers, count(*) AS runs FROM eval_items i
            SEMI JOIN (FROM current_results WHERE arm <> 'base') r USING (checkpoint_id)
            WHERE i.metric = 'acc' GROUP BY ALL
        )
        SELECT task AS id, max(answers) = 1 AS wrong FROM item GROUP BY task HAVING max(runs) > 1
        """,
        "tasks have the same outcome for every run on every item",
    )
