-- Loss over the share of the training that is done, in $bins parts, mean over the seeds of each arm.
SELECT arm, 100 * (floor((step - 0.5) / last * $bins) + 0.5) / $bins AS percent, avg(loss) AS loss
FROM (SELECT *, max(step) OVER (PARTITION BY checkpoint_id) AS last FROM loss_curves)
JOIN checkpoints USING (checkpoint_id) WHERE is_current
GROUP BY arm, percent ORDER BY arm, percent
