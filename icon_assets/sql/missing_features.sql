-- The unique samples of one shard that have no features under a score_key yet, with their first row.
-- Parameters: $score_key, $shard.
SELECT sample_id, min("row") AS "row" FROM delta.pool WHERE shard = $shard
    AND sample_id NOT IN (SELECT sample_id FROM delta.sample_features WHERE score_key = $score_key)
GROUP BY sample_id ORDER BY "row"
