-- Budgeted scoring: how many probes samples got, and how uncertain their scores are; 0 means scored on every probe.
SELECT n_probes, count(*) AS samples, round(avg(standard_error), 4) AS mean_standard_error, round(min(contribution), 4) AS lowest,
    round(max(contribution), 4) AS highest
FROM current_scores WHERE control = 'none' GROUP BY n_probes ORDER BY n_probes DESC;
