-- What is not scored yet: one row per shard, a sample that stands in several shards counted in the first of them.
-- Parameters: $score_key; $enough: probes from which a sample counts as scored, NULL for all; $n: how many unscored samples to name, drawn by their ids (which are digests, so at random).
WITH stored AS (
    SELECT sample_id, count(*) AS n FROM pair_scores SEMI JOIN probes USING (probe_id)
    WHERE score_key = $score_key GROUP BY sample_id
),
sample AS (
    SELECT s.shard, s.file, s.sample_id,
        CASE WHEN n >= $enough THEN 0 ELSE (SELECT count(*) FROM probes) - coalesce(n, 0) END AS missing
    FROM samples s LEFT JOIN stored USING (sample_id) WHERE NOT s.is_duplicate
)
SELECT shard, any_value(file) AS file, count(*) AS samples, count(*) FILTER (missing > 0) AS unscored_samples,
    sum(missing)::BIGINT AS new_pairs, min(sample_id, $n) FILTER (missing > 0) AS drawn
FROM sample GROUP BY shard ORDER BY shard
