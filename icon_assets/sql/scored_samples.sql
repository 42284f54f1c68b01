-- The directly scored samples that a selector learns from. Parameters: $score_key, $control; $most: how many at most, those with
-- the lowest ids (which are digests, so a random draw that growth of the pool hardly changes).
SELECT c.sample_id, c.contribution, c.n_context_tokens
FROM sample_scores c WHERE c.score_key = $score_key AND c.control = $control
ORDER BY c.sample_id LIMIT $most
