-- Can a selection be believed? What length alone tells of it, what another set of as many probes would keep, and what other arms chose too.
SELECT arm, figure, against, round(value, 3) AS value, round(low, 3) AS low, round(high, 3) AS high, detail
FROM trust_figures WHERE figure IN ('length_auc', 'probe_overlap', 'control_overlap', 'near_duplicates', 'arm_overlap')
ORDER BY arm, figure, against;
