-- Pairs of samples with current probes that are not stored under a score_key yet.
-- Parameters: $score_key; $shard, $samples, $probes: only the samples of this shard, only these, only these probes, where
-- not NULL; $ceiling: only samples whose ids are below it, where not NULL. One row per sample, with one of its shards and
-- the ids of the probes it still needs.
WITH wanted AS (
    SELECT DISTINCT ON (sample_id) * FROM delta.pool
    WHERE ($shard IS NULL OR shard = $shard) AND ($samples IS NULL OR list_contains($samples::VARCHAR[], sample_id))
        AND ($ceiling IS NULL OR sample_id < $ceiling)
),
origin AS (
    SELECT DISTINCT origin FROM delta.contexts SEMI JOIN wanted USING (sample_id) WHERE score_key = $score_key
)
SELECT s.sample_id, any_value(s.shard) AS shard, any_value(s.instruction) AS instruction, any_value(s."input") AS "input",
    any_value(s.response) AS response, any_value(s.turns) AS turns, list(p.probe_id ORDER BY p.probe_id) AS probe_ids
FROM wanted s
CROSS JOIN (FROM probes WHERE $probes IS NULL OR probe_id IN (SELECT unnest($probes::VARCHAR[]))) p
ANTI JOIN (SELECT * FROM delta.pair_scores SEMI JOIN origin USING (origin) WHERE score_key = $score_key) done
    ON done.sample_id = s.sample_id AND done.probe_id = p.probe_id
GROUP BY s.sample_id
ORDER BY s.sample_id
