-- The views users rely on, over the tables of schema `delta`. Also the home of every derived figure that is plain SQL.

-- Entries of the ledger in the order in which they were written, independent of the clock: `seq` is 1 for the first. The counter is the
-- beginning of event_id (ledger.py); entries from before it existed come first, by their time.
CREATE VIEW delta.events AS
WITH counted AS (SELECT *, CASE WHEN event_id[12] = '-' THEN try_cast(event_id[:11] AS BIGINT) END AS counter FROM delta.ledger)
SELECT *, row_number() OVER (ORDER BY counter NULLS FIRST, created_at, event_id DESC) AS seq FROM counted;
-- Rows of a deleted file stay in the tables only, for audits and for the file's return.
CREATE VIEW shards AS SELECT * EXCLUDE (removed_at) FROM delta.shards WHERE removed_at IS NULL;
CREATE VIEW removed_shards AS SELECT * FROM delta.shards WHERE removed_at IS NOT NULL;
-- For queries on a few shards: to know what is a duplicate, `samples` reads the whole pool.
CREATE VIEW delta.pool AS
SELECT * FROM delta.samples SEMI JOIN (FROM delta.shards WHERE removed_at IS NULL) USING (shard);
CREATE VIEW samples AS
SELECT *, row_number() OVER (PARTITION BY sample_id ORDER BY file, "row") > 1 AS is_duplicate FROM delta.pool;
CREATE VIEW removed_samples AS SELECT * FROM delta.samples SEMI JOIN removed_shards USING (shard);
CREATE VIEW quarantine AS SELECT * FROM delta.quarantine SEMI JOIN shards USING (shard);
CREATE VIEW probe_candidates AS SELECT * FROM delta.probe_candidates;
CREATE VIEW probes AS
SELECT probe_id, stratum, instruction, "input", response, turns, file, "row" FROM delta.probe_candidates WHERE status = 'selected';
CREATE VIEW models AS SELECT * FROM delta.models;
-- A key that is used again (back to an earlier model) is recorded again. The newest record determines the current key.
CREATE VIEW score_keys AS
SELECT score_key, any_value(model_digest) AS model_digest, any_value(settings) AS settings, max(created_at) AS created_at,
    max(created_at) = max(max(created_at)) OVER () AS is_current
FROM delta.score_keys GROUP BY score_key;
CREATE VIEW contexts AS SELECT * FROM delta.contexts;
CREATE VIEW pair_scores AS SELECT score_key, sample_id, probe_id, nll_sum, n_tokens FROM delta.pair_scores;
CREATE VIEW control_scores AS SELECT * FROM delta.control_scores;
-- A sample in two shards is reported with both. With a budget, the later one may have more of its probes.
CREATE VIEW sample_scores AS
SELECT score_key, control, sample_id, arg_max(contribution, n_probes) AS contribution,
    arg_max(consistency, n_probes) AS consistency, arg_max(stability, n_probes) AS stability,
    arg_max(coverage, n_probes) AS coverage, arg_max(significance, n_probes) AS significance,
    arg_max(standard_error, n_probes) AS standard_error, max(n_probes) AS n_probes,
    any_value(n_context_tokens) AS n_context_tokens, any_value(truncated) AS truncated
FROM delta.sample_scores SEMI JOIN shards USING (shard) GROUP BY score_key, control, sample_id;
CREATE VIEW scoring_costs AS
SELECT *, flops / nullif(seconds * peak_flops_per_second, 0) AS peak_share FROM delta.scoring_costs;
CREATE VIEW sample_features AS SELECT * FROM delta.sample_features;
CREATE VIEW probe_features AS SELECT * FROM delta.probe_features;
-- A selector that is made again (back to earlier settings) is recorded again: the newest record decides.
CREATE VIEW selectors AS
SELECT *, created_at = max(created_at) OVER () AS is_current FROM delta.selectors
QUALIFY row_number() OVER (PARTITION BY selector_id ORDER BY created_at DESC) = 1;
CREATE VIEW selector_metrics AS SELECT * FROM delta.selector_metrics;
CREATE VIEW predicted_scores AS
SELECT * FROM delta.predicted_scores SEMI JOIN shards USING (shard)
WHERE selector_id = (SELECT max_by(selector_id, created_at) FROM delta.selectors);
CREATE VIEW selections AS SELECT subset_id, arm, sample_id, "rank", score, reason FROM delta.selections;
-- The newest subset of each arm and draw, and whether it can be compared with what was chosen last: from the same scores of the same
-- pool, at the same fraction; but for `full`, which is all of the pool, of the same budget and with the same diversity.
CREATE VIEW subsets AS
WITH newest AS (
    SELECT "partition" AS arm, digest AS subset_id, created_at, seq, settings->>'fraction' AS fraction,
        CASE WHEN "partition" <> 'full' THEN concat(coalesce(settings->>'budget', 'samples'), ' ', settings->>'diversity') END AS way,
        list_sort(list_filter(from_json(inputs, '[{"asset": "VARCHAR", "partition": "VARCHAR", "digest": "VARCHAR"}]'),
            lambda i: i.asset = 'sample_scores'))::VARCHAR AS pool
    FROM delta.events WHERE asset = 'selected_subset'
    QUALIFY row_number() OVER (PARTITION BY "partition" ORDER BY seq DESC) = 1
)
SELECT arm, subset_id, created_at, fraction IS NOT DISTINCT FROM max_by(fraction, seq) OVER ()
    AND pool = max_by(pool, seq) OVER ()
    AND (way IS NULL OR way = max_by(way, seq) FILTER (way IS NOT NULL) OVER ()) AS is_comparable
FROM newest;
-- Figures of replaced subsets say nothing about the current ones.
CREATE VIEW trust_figures AS SELECT * FROM delta.trust_figures SEMI JOIN subsets USING (arm, subset_id);
-- Current is the newest run of an arm and seed, if it can be compared with what was made last: trained by the same settings on a
-- comparable subset. A kept product is recorded again, and is then the newest, if the settings differed in between.
CREATE VIEW checkpoints AS
SELECT c.*, coalesce(s.is_comparable, false) AND settings = max_by(settings, c.created_at) OVER ()
    AND row_number() OVER (PARTITION BY arm, seed ORDER BY c.created_at DESC) = 1 AS is_current
FROM delta.checkpoints c
LEFT JOIN (SELECT subset_id, bool_or(is_comparable) AS is_comparable FROM subsets GROUP BY ALL) s USING (subset_id);
CREATE VIEW checkpoint_samples AS SELECT * FROM delta.checkpoint_samples;
CREATE VIEW loss_curves AS SELECT * FROM delta.loss_curves;
CREATE VIEW eval_results AS SELECT checkpoint_id, arm, seed, task, metric, value, stderr FROM delta.eval_results;
CREATE VIEW eval_items AS SELECT * FROM delta.eval_items;
CREATE VIEW answers AS SELECT * FROM delta.answers;
CREATE VIEW judgements AS SELECT * FROM delta.judgements;
-- By the judge, and against the arm, of the last comparison.
CREATE VIEW pairwise_results AS
WITH newest AS (
    SELECT max_by(settings, seq) AS settings FROM delta.events WHERE asset = 'pairwise_results'
)
SELECT r.* FROM delta.pairwise_results r
JOIN newest n ON r.judge = coalesce(n.settings->>'judge', r.judge) AND r.against = coalesce(n.settings->>'against', r.against)
WHERE checkpoint_id IN (SELECT checkpoint_id FROM checkpoints WHERE is_current)
    AND other_id IN (SELECT checkpoint_id FROM checkpoints WHERE is_current);
CREATE VIEW ledger AS SELECT * EXCLUDE (counter) FROM delta.events;

CREATE VIEW current_scores AS
SELECT c.sample_id, c.control, c.contribution, c.consistency, c.stability, c.coverage, c.standard_error, c.n_probes, c.n_context_tokens,
    rank() OVER (PARTITION BY c.control ORDER BY c.contribution DESC) AS "rank",
    s.file, s."row", s.instruction, s."input", s.response, s.metadata
FROM sample_scores c
JOIN score_keys k ON k.score_key = c.score_key AND k.is_current
JOIN samples s ON s.sample_id = c.sample_id AND NOT s.is_duplicate;

-- Which metrics count: of the current checkpoints and of the base model as it is now, as far as they were measured on the same files
-- in the same way as the last of them.
CREATE VIEW current_results AS
WITH measured AS (
    SELECT summary->>'checkpoint_id' AS checkpoint_id, seq,
        settings || list_sort(list_filter(from_json(inputs, '[{"asset": "VARCHAR", "partition": "VARCHAR", "digest": "VARCHAR"}]'),
            lambda i: i.asset NOT IN ('checkpoint', 'base_model')))::VARCHAR AS how
    FROM delta.events WHERE asset IN ('eval_results', 'base_eval')
    QUALIFY row_number() OVER (PARTITION BY summary->>'checkpoint_id' ORDER BY seq DESC) = 1
)
SELECT * FROM eval_results
WHERE checkpoint_id IN (SELECT checkpoint_id FROM measured WHERE how = (SELECT max_by(how, seq) FROM measured))
    AND (checkpoint_id IN (SELECT checkpoint_id FROM checkpoints WHERE is_current)
        OR checkpoint_id = 'base-' || (SELECT max_by(model_digest, prepared_at) FROM delta.models));

-- Differences and verdicts are valid only for the results that they were computed from.
CREATE VIEW delta.results_now AS
SELECT md5(string_agg(concat_ws(' ', checkpoint_id, task, metric, "value"), ';' ORDER BY checkpoint_id, task, metric)) AS digest
FROM current_results;
CREATE VIEW leaderboard_differences AS
SELECT * FROM delta.leaderboard_differences
WHERE (FROM delta.results_now) = (
    SELECT coalesce(max_by(summary, seq)->>'results', (FROM delta.results_now)) FROM delta.events WHERE asset = 'leaderboard'
);

-- Which work of scoring an arm owes is in the record of its subset; what that work has cost grows with every run.
CREATE VIEW arm_scoring_costs AS
WITH owed AS (
    SELECT "partition" AS arm, coalesce((summary->'owes')::VARCHAR[],
        CASE WHEN (summary->>'scoring_tokens')::BIGINT > 0 THEN ['pairs', 'controls'] ELSE [] END) AS kinds
    FROM delta.events WHERE asset = 'selected_subset'
    QUALIFY row_number() OVER (PARTITION BY "partition" ORDER BY seq DESC) = 1
), spent AS (
    SELECT "work", sum(tokens) AS tokens, sum(flops) AS flops, sum(seconds) AS seconds
    FROM delta.scoring_costs SEMI JOIN (FROM score_keys WHERE is_current) USING (score_key) GROUP BY "work"
)
SELECT arm, coalesce(sum(tokens), 0)::BIGINT AS scoring_tokens, coalesce(sum(seconds), 0.0) AS scoring_seconds,
    coalesce(sum(flops), 0)::DOUBLE AS scoring_flops
FROM owed LEFT JOIN spent ON list_contains(kinds, "work") GROUP BY arm;

CREATE VIEW leaderboard AS
SELECT r.arm, r.task, r.metric, avg(r.value) AS mean, stddev_samp(r.value) AS sd_over_seeds, count(*) AS n_seeds,
    avg(r.stderr) AS mean_stderr, max(c.n_samples) AS n_samples, avg(c.n_tokens)::BIGINT AS training_tokens, avg(c.n_steps)::BIGINT AS training_steps,
    round(avg(c.seconds), 1) AS training_seconds, max(s.scoring_tokens) AS scoring_tokens,
    round(max(s.scoring_seconds), 1) AS scoring_seconds, max(s.scoring_flops) AS scoring_flops,
    avg(c.flops) AS training_flops, coalesce(max(s.scoring_flops), 0) + coalesce(avg(c.flops), 0) AS total_flops
FROM current_results r
LEFT JOIN checkpoints c USING (checkpoint_id)
LEFT JOIN arm_scoring_costs s ON s.arm = r.arm
GROUP BY r.arm, r.task, r.metric;

-- From a checkpoint to the source lines it was trained on, and back; also when the source file is gone from the pool.
CREATE VIEW training_lineage AS
SELECT c.checkpoint_id, c.arm, c.seed, c.path AS checkpoint_path, c.subset_id, m.sample_id, m.file, m."row", m."rank", m.score,
    s.sample_id IS NOT NULL AS still_in_pool
FROM checkpoints c
JOIN checkpoint_samples m USING (checkpoint_id)
LEFT JOIN samples s ON s.sample_id = m.sample_id AND s.shard = m.shard AND s."row" = m."row";

COMMENT ON VIEW removed_shards IS 'Source files that were deleted from the pool.';
COMMENT ON VIEW removed_samples IS 'The samples of source files that were deleted from the pool, kept for audits.';
COMMENT ON VIEW probes IS 'The current probe set: one row per selected probe.';
COMMENT ON VIEW current_scores IS 'Scores under the newest score_key with rank, source line and text of each sample.';
COMMENT ON VIEW subsets IS 'The newest subset of each arm and draw, and whether it can be compared with the last choice.';
COMMENT ON VIEW leaderboard IS 'Comparison of the arms: mean over seeds of each metric, its spread, and the cost of the arm: scoring, and training one seed.';
COMMENT ON COLUMN leaderboard.scoring_flops IS 'All scoring that the arm needs, under the current score_key; 0 for arms that need none.';
COMMENT ON COLUMN leaderboard.training_flops IS 'Mean over seeds.';
COMMENT ON COLUMN leaderboard.total_flops IS 'Scoring and training of one seed.';
COMMENT ON VIEW current_results IS 'The metrics that count on the leaderboard: those of current checkpoints and of the current base model, measured in the same way.';
COMMENT ON VIEW arm_scoring_costs IS 'The cost of scoring for the arms that need it, under the current score_key.';
COMMENT ON VIEW training_lineage IS 'Every source line each checkpoint was trained on, with its rank and score.';
