-- The unique samples of the other shards with the contributions they have under one control; NULL where not scored yet.
-- Parameters: $score_key, $control, $shard; $ceiling: only samples whose ids are below it, where not NULL.
WITH own AS (SELECT sample_id FROM delta.pool WHERE shard = $shard),
other AS (
    SELECT DISTINCT sample_id FROM delta.pool ANTI JOIN own USING (sample_id) WHERE $ceiling IS NULL OR sample_id < $ceiling
)
SELECT contribution FROM other
LEFT JOIN (FROM sample_scores WHERE score_key = $score_key AND control = $control) USING (sample_id)
