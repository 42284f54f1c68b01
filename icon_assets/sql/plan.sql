-- The work of scoring: one row per shard of the pool. A sample in several shards is scored for the first of them.
-- Parameters: $score_key; $enough: probes from which a sample counts as scored, NULL for all; $n: how many samples without
-- scores to name, drawn by their ids (which are digests, so at random); $ceiling: samples with other ids are not drawn for
-- direct scoring, NULL where all are.
WITH stored AS (
    SELECT sample_id, count(*) AS n FROM pair_scores SEMI JOIN probes USING (probe_id)
    WHERE score_key = $score_key GROUP BY sample_id
),
earlier AS (
    SELECT DISTINCT sample_id FROM delta.sample_scores
),
sample AS (
    SELECT s.shard, s.sample_id, bool_and(s.is_duplicate) AS is_duplicate, any_value(n) AS n, bool_or(e.sample_id IS NOT NULL) AS has_scores
    FROM samples s LEFT JOIN stored USING (sample_id) LEFT JOIN earlier e USING (sample_id)
    GROUP BY s.shard, s.sample_id
),
judged AS (
    SELECT *, $ceiling IS NULL OR sample_id < $ceiling AS is_drawn, coalesce(n, 0) >= coalesce($enough, n_probes) AS is_complete,
        CASE WHEN is_complete OR is_duplicate OR NOT is_drawn THEN 0 ELSE n_probes - coalesce(n, 0) END AS missing
    FROM sample CROSS JOIN (SELECT count(*) AS n_probes FROM probes)
),
removed AS (
    SELECT shard, count(DISTINCT sample_id) AS removed FROM delta.sample_scores
    SEMI JOIN shards USING (shard) ANTI JOIN sample USING (shard, sample_id) GROUP BY shard
)
SELECT h.shard, any_value(h.file) AS file, count(j.sample_id) AS samples,
    count(*) FILTER (is_drawn AND NOT is_complete AND NOT has_scores) AS new_samples,
    count(*) FILTER (is_drawn AND NOT is_complete AND has_scores) AS stale_samples,
    count(*) FILTER (is_drawn AND is_complete) AS unchanged_samples,
    count(*) FILTER (NOT is_drawn) AS not_drawn_samples,
    any_value(coalesce(r.removed, 0)) AS removed_samples,
    count(*) FILTER (missing > 0) AS unscored_samples, coalesce(sum(missing), 0)::BIGINT AS new_pairs,
    min(j.sample_id, $n) FILTER (missing > 0) AS drawn
FROM shards h LEFT JOIN judged j USING (shard) LEFT JOIN removed r USING (shard)
GROUP BY h.shard ORDER BY h.shard
