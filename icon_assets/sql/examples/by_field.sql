-- Does a field of the source rows (here `quality`) go together with the score? Fields that are not text or sample stay in metadata.
SELECT metadata->>'quality' AS quality, count(*) AS samples, round(avg(contribution), 4) AS mean_contribution,
    avg(n_context_tokens)::INT AS mean_tokens
FROM current_scores WHERE control = 'none' GROUP BY quality ORDER BY mean_contribution DESC;
