-- Contributions against peers: each pair held against the curve of its probe at the length of its sample. Sums are exact, so that
-- equal pairs give equal bits in whatever order they are added.
-- Tables: known(sample_id, n_context_tokens, pattern, constant), weight(pattern, probe_id, weight), curve(probe_id,
-- n_context_tokens, perplexity). Parameter: $score_key.
SELECT sample_id,
    any_value(k.constant) + sum(((c.perplexity - least(exp(p.nll_sum / p.n_tokens), 1e12)) * w.weight)::DECIMAL(38, 15))::DOUBLE AS peers
FROM pair_scores p
JOIN known k USING (sample_id)
JOIN weight w ON w.pattern = k.pattern AND w.probe_id = p.probe_id
JOIN curve c ON c.probe_id = p.probe_id AND c.n_context_tokens = k.n_context_tokens
WHERE p.score_key = $score_key
GROUP BY sample_id
