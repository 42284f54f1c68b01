-- Source files of the pool: what each holds, what could not be used, what is scored under $score_key.
WITH scored AS (
    SELECT DISTINCT sample_id FROM delta.sample_scores SEMI JOIN shards USING (shard) WHERE score_key = $score_key AND control = 'none'
),
part AS (
    SELECT shard, count(DISTINCT sample_id) AS unique_samples, count(DISTINCT s.sample_id) FILTER (c.sample_id IS NOT NULL) AS scored
    FROM delta.pool s LEFT JOIN scored c USING (sample_id) GROUP BY shard
)
SELECT h.file, h.digest, h.n_bytes, h.n_samples, h.n_quarantined, coalesce(p.unique_samples, 0) AS unique_samples,
    coalesce(p.scored, 0) AS scored
FROM shards h LEFT JOIN part p USING (shard) ORDER BY h.n_samples DESC, h.file
