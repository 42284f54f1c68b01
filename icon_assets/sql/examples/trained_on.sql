-- What was a checkpoint trained on, line by line?
SELECT arm, seed, file, "row", "rank", round(score, 4) AS score, still_in_pool
FROM training_lineage WHERE arm = 'icon' ORDER BY seed, "rank";
