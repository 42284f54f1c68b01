"""Rules of features, selectors and predictions."""

from icon_assets.core.quality.rule import REMAKE, Finding, Subject, judge, rule
from icon_assets.core.quality.scores import APPENDED, under_current_key

_COMPARABLE_HELD_OUT = 100  # fewer held-out samples can't show skill

_FEATURES = """
    SELECT * FROM delta.sample_features SEMI JOIN (FROM delta.samples WHERE shard = $shard) USING (sample_id)
    WHERE score_key = $key
"""


@rule("sample_features", blocking=True, mend=APPENDED)
def features_stand_once(subject: Subject) -> Finding:
    """A sample has one row of features under a score_key. A duplicate would be learned from and predicted twice."""
    return subject.find(
        f"SELECT sample_id AS id, count(*) > 1 AS wrong FROM ({_FEATURES}) GROUP BY sample_id",  # noqa: S608  (our own text)
        "samples have their features more than once",
        **under_current_key(subject),
    )


@rule("sample_features", blocking=True, mend=REMAKE)
def every_sample_has_its_features(subject: Subject) -> Finding:
    """Every sample of the shard has features. The selector can't rank a sample without features, and `rds`,
    `perplexity` and `ifd` would choose from a smaller pool than the other arms."""
    return subject.find(
        f"""
        SELECT DISTINCT sample_id AS id, sample_id NOT IN (SELECT sample_id FROM ({_FEATURES})) AS wrong
        FROM delta.samples WHERE shard = $shard
        """,  # noqa: S608  (our own text)
        "samples have no features",
        **under_current_key(subject),
    )


@rule("sample_features", blocking=True, mend="set model.dtype to float32, or look at these samples")
def features_are_finite(subject: Subject) -> Finding:
    """NLL and embedding of every sample are finite, over at least one token, and all embeddings have the same length. A
    single NaN would spread to every sample that is compared with it or learned from together with it."""
    return subject.find(
        f"""
        SELECT sample_id AS id, NOT (isfinite(nll_sum) AND isfinite(nll_alone) AND n_tokens > 0
            AND isfinite(list_sum(embedding)) AND len(embedding) = mode(len(embedding)) OVER ()) AS wrong
        FROM ({_FEATURES})
        """,  # noqa: S608  (our own text)
        "features are not finite, or their length differs",
        **under_current_key(subject),
    )


@rule("probe_features", blocking=True, mend=REMAKE)
def every_probe_has_its_embedding(subject: Subject) -> Finding:
    """Every probe has one finite embedding. `rds` lets the probes choose in turn, and a probe without an embedding
    would choose nothing."""
    return subject.find(
        """
        WITH stored AS (FROM delta.probe_features WHERE score_key = $key)
        SELECT probe_id AS id, NOT (count(*) = 1 AND bool_and(isfinite(list_sum(embedding)))) AS wrong
        FROM probes LEFT JOIN stored USING (probe_id) GROUP BY probe_id
        """,
        "probes have no finite embedding",
        key=subject.made.summary["score_key"],
    )


@rule("selector", blocking=True, mend=REMAKE)
def selector_is_as_recorded(subject: Subject) -> Finding:
    """The selector's directory holds exactly the files that training wrote, and `selectors` lists it with its metrics.
    Every ranking must be traceable to the model that made it."""
    own = "WHERE selector_id = $id"
    (row,) = subject.rows(
        f"""
        SELECT (SELECT count(*) FROM delta.selectors {own}) > 0
            AND (SELECT count(*) FROM delta.selector_metrics {own}) > 0 AS whole
        """,  # noqa: S608  (our own text)
        id=subject.made.summary["selector_id"],
    )
    sound = row["whole"] and subject.files == subject.made.digest
    what = "selectors are missing, differ from the files that training wrote, or have no metrics"
    return judge(1, int(not sound), what, [subject.made.summary["path"]])


@rule(
    "selector", warns=True, mend="read selector_metrics; score more samples directly, or select by length_matched arms"
)
def selector_knows_more_than_length(subject: Subject) -> Finding:
    """On samples that it has not seen, the selector's ranking correlates with contribution even at equal length: the
    interval of the partial rank correlation lies above 0. Otherwise the selector is an expensive way to sort by
    length."""
    rows = subject.rows(
        """
        SELECT value, low, high FROM delta.selector_metrics
        WHERE selector_id = $id AND predictor = 'selector' AND metric = 'partial_spearman'
            AND (SELECT any_value(n_held_out) FROM delta.selectors WHERE selector_id = $id) >= $least
        """,
        id=subject.made.summary["selector_id"],
        least=_COMPARABLE_HELD_OUT,
    )
    if not rows:
        return Finding(0, 0, f"fewer than {_COMPARABLE_HELD_OUT} held-out samples: too few for a verdict")
    value, low, high = rows[0].values()
    says = f"rank correlation with contribution at equal length {value:.2f} [{low:.2f}, {high:.2f}]"
    return Finding(1, int(not low > 0), says, (), {"partial_spearman": value, "low": low, "high": high})


def _predictions(subject: Subject) -> dict[str, str]:
    return {"shard": subject.partition, "selector": subject.made.summary["selector_id"]}


@rule("predicted_scores", blocking=True, mend=REMAKE)
def predictions_stand_once(subject: Subject) -> Finding:
    """A sample of the shard has one predicted score. A duplicate could be selected twice."""
    where = "shard = $shard AND selector_id = $selector"
    return subject.doubled("predicted_scores", "sample_id", where, **_predictions(subject))


@rule("predicted_scores", blocking=True, mend=REMAKE)
def every_sample_is_predicted(subject: Subject) -> Finding:
    """Every sample of the shard, and no other, has a finite predicted score. A sample without one could never be
    selected, and NaN sorts above every number."""
    return subject.find(
        """
        WITH own AS (SELECT DISTINCT sample_id, true AS there FROM delta.samples WHERE shard = $shard),
        stored AS (FROM delta.predicted_scores WHERE shard = $shard AND selector_id = $selector)
        SELECT sample_id AS id, NOT (there AND isfinite(score)) AS wrong FROM own FULL JOIN stored USING (sample_id)
        """,
        "samples have no finite prediction, or are not in the shard",
        **_predictions(subject),
    )
