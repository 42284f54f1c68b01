-- Which source files are worth most?
SELECT file, count(*) AS samples, round(avg(contribution), 4) AS mean, round(median(contribution), 4) AS median,
    round(avg((contribution > 0)::INT), 3) AS share_above_zero
FROM current_scores WHERE control = 'none' GROUP BY file ORDER BY mean DESC;
