-- What scoring has cost, by kind of work and device.
SELECT "work", device, engine, sum(pairs)::BIGINT AS pairs, sum(tokens)::BIGINT AS tokens, sum(flops)::DOUBLE AS flops, sum(seconds) AS seconds,
    sum(flops) / nullif(sum(seconds * peak_flops_per_second), 0) AS peak_share
FROM scoring_costs GROUP BY "work", device, engine ORDER BY seconds DESC
