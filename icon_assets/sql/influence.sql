-- Influence of samples on probes under each control, from the stored pairs (method; arXiv 2505.05327): the beginning of a query.
-- Parameters: $score_key; $shard: its samples (with ids below $ceiling, where not NULL), and $samples: a list of further ones; $controls: list of control names;
-- $seeds: list of the control seeds to average over; $lengths: the lengths at which random_tokens is measured.
WITH wanted AS (
    SELECT sample_id FROM delta.pool WHERE shard = $shard AND ($ceiling IS NULL OR sample_id < $ceiling)
    UNION SELECT unnest($samples::VARCHAR[])
),
context AS (
    SELECT c.* FROM contexts c SEMI JOIN wanted USING (sample_id) WHERE c.score_key = $score_key
),
pair AS (
    SELECT p.sample_id, p.probe_id, p.nll_sum / p.n_tokens AS nll
    FROM delta.pair_scores p SEMI JOIN (SELECT DISTINCT origin FROM context) USING (origin) SEMI JOIN wanted USING (sample_id) SEMI JOIN probes USING (probe_id)
    WHERE p.score_key = $score_key
),
-- Mean over draws, per probe and control length, in nats per token.
control AS (
    SELECT probe_id, control, "length", avg(nll_sum / n_tokens ORDER BY seed) AS nll
    FROM control_scores
    WHERE score_key = $score_key AND (control = 'none' OR seed IN (SELECT unnest($seeds::BIGINT[])))
        AND (control <> 'random_tokens' OR "length" IN (SELECT unnest($lengths::BIGINT[])))
    GROUP BY ALL
),
base AS (
    SELECT probe_id, nll FROM control WHERE control = 'none'
),
-- random_tokens is measured at a few lengths; between two of them the NLL is linear in log length, outside it stays flat.
knot AS (
    SELECT probe_id, "length" AS lower, nll AS lower_nll,
        lead("length", 1, "length") OVER w AS upper, lead(nll, 1, nll) OVER w AS upper_nll
    FROM control WHERE control = 'random_tokens' WINDOW w AS (PARTITION BY probe_id ORDER BY "length")
),
size AS (
    SELECT DISTINCT n_context_tokens,
        greatest(n_context_tokens, (SELECT min("length") FROM control WHERE control = 'random_tokens')) AS n_tokens
    FROM context
),
interpolated AS (
    SELECT s.n_context_tokens, k.probe_id,
        k.lower_nll + (k.upper_nll - k.lower_nll)
            * CASE WHEN k.upper > k.lower THEN ln(s.n_tokens / k.lower) / ln(k.upper / k.lower) ELSE 0 END AS nll
    FROM size s JOIN knot k ON k.lower <= s.n_tokens AND (s.n_tokens < k.upper OR k.upper = k.lower)
),
against AS (
    SELECT p.sample_id, p.probe_id, p.nll, b.nll AS base_nll, 'none' AS control, b.nll AS control_nll
    FROM pair p JOIN base b USING (probe_id)
    UNION ALL
    SELECT p.sample_id, p.probe_id, p.nll, b.nll, 'random_tokens', i.nll
    FROM pair p JOIN base b USING (probe_id) JOIN context c USING (sample_id)
    JOIN interpolated i ON i.probe_id = p.probe_id AND i.n_context_tokens = c.n_context_tokens
    UNION ALL
    SELECT p.sample_id, p.probe_id, p.nll, b.nll, 'random_chars', r.nll
    FROM pair p JOIN base b USING (probe_id) JOIN context c USING (sample_id)
    JOIN control r ON r.control = 'random_chars' AND r.probe_id = p.probe_id AND r."length" = c.n_context_chars
),
influence AS (
    SELECT sample_id, probe_id, control, (exp(control_nll) - exp(nll)) / (exp(base_nll) + 1e-6) AS x,
        control_nll - nll AS gain -- nats per token, the log of the ratio of perplexities
    FROM against WHERE control IN (SELECT unnest($controls::VARCHAR[]))
)
