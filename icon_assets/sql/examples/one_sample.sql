-- What does one sample do to each probe? (Perplexity without and with it; here: the best sample)
SELECT p.stratum, left(p.instruction, 50) AS probe, round(exp(b.nll_sum / b.n_tokens), 2) AS ppl_without,
    round(exp(s.nll_sum / s.n_tokens), 2) AS ppl_with
FROM pair_scores s
JOIN control_scores b ON b.score_key = s.score_key AND b.probe_id = s.probe_id AND b.control = 'none'
JOIN probes p ON p.probe_id = s.probe_id
WHERE s.sample_id = (SELECT sample_id FROM current_scores WHERE control = 'none' ORDER BY rank LIMIT 1)
ORDER BY ppl_with / ppl_without;
