-- Can a selection be trusted? How much length alone explains, how much a different probe set of the same size would keep, and the overlap with other arms.
SELECT arm, figure, against, round(value, 3) AS value, round(low, 3) AS low, round(high, 3) AS high, detail
FROM trust_figures WHERE figure IN ('length_auc', 'probe_overlap', 'control_overlap', 'near_duplicates', 'arm_overlap')
ORDER BY arm, figure, against;
