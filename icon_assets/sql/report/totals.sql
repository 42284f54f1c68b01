-- One row: the pool as a whole. Parameter: $score_key.
WITH scored AS (
    SELECT DISTINCT sample_id FROM delta.sample_scores SEMI JOIN shards USING (shard) WHERE score_key = $score_key AND control = 'none'
),
one AS (
    SELECT DISTINCT sample_id FROM delta.pool
)
SELECT (SELECT count(*) FROM shards) AS files, (SELECT coalesce(sum(n_samples), 0)::BIGINT FROM shards) AS usable_rows,
    (SELECT coalesce(sum(n_quarantined), 0)::BIGINT FROM shards) AS quarantined, (SELECT count(*) FROM one) AS unique_samples,
    (SELECT count(*) FROM one SEMI JOIN scored USING (sample_id)) AS scored, (SELECT count(*) FROM probes) AS probes,
    (SELECT count(DISTINCT stratum) FROM probes) AS strata
