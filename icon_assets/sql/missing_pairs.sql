-- Pairs of samples with current probes that are not stored under a score_key yet.
-- Parameters: $score_key; $shard: its samples, or $samples: these, where it is not NULL; $probes: only these, where it is
-- not NULL. One row per sample, with the ids of the probes it still needs.
SELECT s.sample_id, any_value(s.instruction) AS instruction, any_value(s."input") AS "input",
    any_value(s.response) AS response, any_value(s.turns) AS turns, list(p.probe_id ORDER BY p.probe_id) AS probe_ids
FROM (
    SELECT DISTINCT ON (sample_id) * FROM samples
    WHERE CASE WHEN $samples IS NULL THEN shard = $shard ELSE sample_id IN (SELECT unnest($samples::VARCHAR[])) END
) s
CROSS JOIN (FROM probes WHERE $probes IS NULL OR probe_id IN (SELECT unnest($probes::VARCHAR[]))) p
ANTI JOIN (SELECT * FROM pair_scores WHERE score_key = $score_key) done
    ON done.sample_id = s.sample_id AND done.probe_id = p.probe_id
GROUP BY s.sample_id
ORDER BY s.sample_id
