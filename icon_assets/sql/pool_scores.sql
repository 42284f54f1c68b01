-- The unique samples of the pool with their lengths and contributions, one column per control.
-- Parameter: $score_key.
SELECT s.sample_id, any_value(length(s.response)) AS n_response_chars, any_value(c.n_context_tokens) AS n_context_tokens,
    max(c.contribution) FILTER (c.control = 'none') AS "none",
    max(c.contribution) FILTER (c.control = 'random_tokens') AS random_tokens,
    max(c.contribution) FILTER (c.control = 'random_chars') AS random_chars
FROM delta.pool s
LEFT JOIN (FROM sample_scores WHERE score_key = $score_key) c USING (sample_id)
GROUP BY s.sample_id
ORDER BY s.sample_id
