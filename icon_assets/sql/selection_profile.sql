-- A subset beside the pool it was chosen from: lengths, and contributions per control, as quantiles.
-- Parameters: $arm, $subset_id, $score_key.
WITH chosen AS (
    FROM delta.selections WHERE arm = $arm AND subset_id = $subset_id
),
figure AS (
    SELECT sample_id, 'response characters' AS figure, any_value(length(response))::DOUBLE AS x FROM delta.pool GROUP BY sample_id
    UNION ALL
    SELECT sample_id, 'tokens as a context', any_value(n_context_tokens)::DOUBLE FROM sample_scores WHERE score_key = $score_key GROUP BY sample_id
    UNION ALL
    SELECT sample_id, 'contribution (' || control || ')', contribution FROM sample_scores WHERE score_key = $score_key
),
both_sets AS (
    SELECT figure, x, 'pool' AS "of" FROM figure
    UNION ALL
    SELECT figure, x, 'chosen' FROM figure SEMI JOIN chosen USING (sample_id)
)
SELECT figure, "of", count(x) AS samples, avg(x) AS mean, min(x) AS lowest, quantile_cont(x, 0.05) AS "5 %", quantile_cont(x, 0.25) AS "25 %",
    median(x) AS median, quantile_cont(x, 0.75) AS "75 %", quantile_cont(x, 0.95) AS "95 %", max(x) AS highest
FROM both_sets GROUP BY figure, "of" ORDER BY figure, "of"
