-- The unique samples of the pool with their lengths and everything an arm may rank them by; NULL where it is not known.
-- Lengths are in tokens as a context; of samples that were not scored, estimated from their characters.
-- Parameter: $score_key.
WITH scored AS (
    SELECT sample_id, any_value(n_context_tokens) AS n_context_tokens,
        max(contribution) FILTER (control = 'none') AS "none",
        max(contribution) FILTER (control = 'random_tokens') AS random_tokens,
        max(contribution) FILTER (control = 'random_chars') AS random_chars
    FROM sample_scores WHERE score_key = $score_key GROUP BY sample_id
),
feature AS (
    SELECT sample_id, any_value(exp(nll_sum / n_tokens)) AS perplexity, any_value(exp((nll_sum - nll_alone) / n_tokens)) AS ifd
    FROM sample_features WHERE score_key = $score_key GROUP BY sample_id
),
predicted AS (SELECT sample_id, max(score) AS predicted FROM predicted_scores GROUP BY sample_id),
pool AS (
    SELECT sample_id, any_value(length(response)) AS n_response_chars, any_value(n_chars) AS n_chars
    FROM delta.pool GROUP BY sample_id
)
SELECT sample_id, n_response_chars, "none", random_tokens, random_chars, perplexity, ifd, predicted,
    coalesce(n_context_tokens, round(n_chars * (
        sum(n_context_tokens) OVER () / sum(n_chars) FILTER (n_context_tokens IS NOT NULL) OVER ()
    )))::BIGINT AS n_tokens
FROM pool LEFT JOIN scored USING (sample_id) LEFT JOIN feature USING (sample_id) LEFT JOIN predicted USING (sample_id)
ORDER BY sample_id
