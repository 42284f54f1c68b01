-- Features of samples under a score_key. Parameters: $score_key; $shard: the samples of this shard, and $samples: a list of
-- further ones; $origins: where their features lie, so that no other files are opened.
WITH wanted AS (
    SELECT sample_id FROM delta.pool WHERE shard = $shard UNION SELECT unnest($samples::VARCHAR[])
),
size AS (SELECT sample_id, any_value(n_chars) AS n_chars FROM delta.pool SEMI JOIN wanted USING (sample_id) GROUP BY sample_id)
SELECT f.sample_id, f.n_tokens, f.nll_sum, f.nll_alone, f.embedding, s.n_chars
FROM delta.sample_features f JOIN size s USING (sample_id)
WHERE f.score_key = $score_key AND list_contains($origins::VARCHAR[], f.origin)
