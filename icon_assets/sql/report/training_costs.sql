-- What training of each arm has cost, over its seeds.
SELECT arm, count(*) AS seeds, max(n_samples) AS samples, avg(n_steps)::BIGINT AS steps, sum(n_tokens)::BIGINT AS tokens,
    sum(flops)::DOUBLE AS flops, sum(seconds) AS seconds, avg(final_loss) AS final_loss
FROM checkpoints WHERE is_current GROUP BY arm ORDER BY arm
