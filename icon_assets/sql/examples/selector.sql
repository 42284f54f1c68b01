-- What does the current selector know, beside length alone and chance? (On samples it was neither trained on nor chosen by, with 95 % intervals)
SELECT metric, predictor, round(value, 3) AS value, round(low, 3) AS low, round(high, 3) AS high
FROM selector_metrics SEMI JOIN (FROM selectors WHERE is_current) USING (selector_id) ORDER BY metric, predictor DESC;
