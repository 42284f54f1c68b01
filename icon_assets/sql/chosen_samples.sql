-- The samples of a subset with their texts and the first line of each, best rank first, each once.
-- Parameters: $arm, $subset_id.
SELECT c.sample_id, c."rank", c.score, any_value(s.instruction) AS instruction, any_value(s."input") AS "input",
    any_value(s.response) AS response, any_value(s.turns) AS turns, min((s.file, s."row")) AS line
FROM delta.selections c JOIN delta.pool s USING (sample_id)
WHERE c.arm = $arm AND c.subset_id = $subset_id
GROUP BY c.sample_id, c."rank", c.score ORDER BY c."rank"
