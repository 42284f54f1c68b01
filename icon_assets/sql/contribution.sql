-- Contribution and side figures of samples, from the stored pairs (method; arXiv 2505.05327, eq. of the contribution score).
-- Parameters: $score_key; $shard; $controls: list of control names; $seeds: list of the control seeds to average over;
-- $reference: list of samples that were scored on every probe, empty when every sample was.
WITH own AS (
    SELECT DISTINCT sample_id FROM samples WHERE shard = $shard
),
wanted AS (
    FROM own UNION SELECT unnest($reference::VARCHAR[])
),
context AS (
    SELECT c.* FROM contexts c SEMI JOIN wanted USING (sample_id) WHERE c.score_key = $score_key
),
pair AS (
    SELECT p.sample_id, p.probe_id, p.nll_sum / p.n_tokens AS nll
    FROM pair_scores p SEMI JOIN wanted USING (sample_id) SEMI JOIN probes USING (probe_id)
    WHERE p.score_key = $score_key
),
-- Mean over draws, per probe and control length, in nats per token.
control AS (
    SELECT probe_id, control, "length", avg(nll_sum / n_tokens) AS nll
    FROM control_scores
    WHERE score_key = $score_key AND (control = 'none' OR seed IN (SELECT unnest($seeds::BIGINT[])))
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
    SELECT sample_id, probe_id, control, (exp(control_nll) - exp(nll)) / (exp(base_nll) + 1e-6) AS x
    FROM against WHERE control IN (SELECT unnest($controls::VARCHAR[]))
),
-- Not every sample needs every probe (budgeted mode): a sample's effect on the probes it lacks is what the reference does to
-- them, plus the sample's mean difference from the reference on the probes it has. With all probes that is the plain mean.
reference AS (
    SELECT control, probe_id, avg(x) AS usual, coalesce(var_samp(x), 0) AS spread
    FROM influence WHERE sample_id IN (SELECT unnest($reference::VARCHAR[])) GROUP BY ALL
),
whole AS (
    SELECT control, avg(usual) AS usual, avg(spread) AS spread FROM reference GROUP BY control
),
figure AS (
    SELECT sample_id, control, avg(x - coalesce(usual, 0)) AS difference,
        coalesce(var_samp(x - coalesce(usual, 0)), 0) AS difference_variance,
        avg((x > 0)::INT) AS consistency, var_pop(x) AS stability, avg((x > 0.5)::INT) AS coverage, count(*) AS n_probes
    FROM influence LEFT JOIN reference USING (control, probe_id)
    WHERE sample_id IN (FROM own)
    GROUP BY sample_id, control
),
-- The spread over a sample's few probes is itself uncertain: it counts together with 8 probes' worth of the usual one.
estimate AS (
    SELECT figure.*, difference + coalesce(usual, 0) AS contribution,
        sqrt(((n_probes - 1) * difference_variance + 8 * coalesce(spread, 0)) / (n_probes + 7) / n_probes
            * greatest(0, 1 - n_probes / (SELECT count(*) FROM probes))) AS standard_error
    FROM figure LEFT JOIN whole USING (control)
)
SELECT $shard AS shard, $score_key AS score_key, control, sample_id, contribution, consistency, stability, coverage,
    CASE WHEN contribution > 0.5 THEN 1 WHEN contribution < -0.5 THEN -1
        ELSE 2 / (1 + exp(-50 * contribution)) - 1 END AS significance,
    standard_error, n_probes, n_context_tokens, truncated
FROM estimate JOIN context USING (sample_id)
ORDER BY control, contribution DESC, sample_id
