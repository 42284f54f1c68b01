-- What scoring has cost, by kind of work and device, and how much of the device's matrix-product peak it used.
SELECT "work", device, engine, sum(pairs)::BIGINT AS pairs, sum(tokens)::BIGINT AS tokens, round(sum(flops) / 1e12, 1) AS tflops,
    round(sum(seconds), 1) AS seconds, round(sum(flops) / sum(seconds * peak_flops_per_second), 3) AS peak_share
FROM scoring_costs GROUP BY "work", device, engine ORDER BY seconds DESC;
