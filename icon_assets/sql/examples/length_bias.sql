-- How much of the ranking does length alone explain? (Spearman correlation of contribution with tokens, per control)
SELECT control, round(corr(r, l), 3) AS spearman_with_length, count(*) AS samples
FROM (
    SELECT control, rank() OVER (PARTITION BY control ORDER BY contribution) AS r,
        rank() OVER (PARTITION BY control ORDER BY n_context_tokens) AS l
    FROM current_scores
)
GROUP BY control;
