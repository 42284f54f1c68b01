-- What training of each arm has cost, over its seeds. FLOPs are an estimate: forward and backward are three times two operations per
-- weight and token, two thirds of it when the weights are frozen (LoRA).
SELECT arm, count(*) AS seeds, max(n_samples) AS samples, avg(n_steps)::BIGINT AS steps, sum(n_tokens)::BIGINT AS tokens,
    sum(n_tokens::DOUBLE * n_parameters * if(settings->>'method' = 'full', 6, 4)) AS flops, sum(seconds) AS seconds, avg(final_loss) AS final_loss
FROM checkpoints LEFT JOIN (SELECT model_digest, max(n_parameters) AS n_parameters FROM models GROUP BY model_digest) USING (model_digest)
WHERE is_current GROUP BY arm ORDER BY arm
