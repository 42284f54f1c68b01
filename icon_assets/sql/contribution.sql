-- Contribution and side figures of samples; follows influence.sql. A sample that lacks probes (budgeted mode) gets its
-- contribution and standard error from a model of the probes instead. Sums have an order: equal pairs give equal bits.
, figure AS (
    SELECT sample_id, control, avg(x ORDER BY probe_id) AS contribution, avg((x > 0)::INT) AS consistency, var_pop(x ORDER BY probe_id) AS stability,
        avg((x > 0.5)::INT) AS coverage, count(*) AS n_probes
    FROM influence GROUP BY sample_id, control
)
SELECT $shard AS shard, $score_key AS score_key, control, sample_id, contribution, consistency, stability, coverage,
    0.0::DOUBLE AS standard_error, n_probes, n_context_tokens, truncated
FROM figure JOIN context USING (sample_id)
ORDER BY control, contribution DESC, sample_id
