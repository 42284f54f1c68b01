-- What one sample does to each probe, most helpful first: the end of a query that influence.sql begins. NLL in nats per response token
-- under the control and behind the sample; `influence` as in the contribution.
SELECT a.probe_id, p.stratum, p.instruction, p."input", p.response, p.turns, a.control_nll AS nll_without, a.nll AS nll_with, i.x AS influence
FROM against a JOIN influence i USING (sample_id, probe_id, control) JOIN probes p USING (probe_id)
ORDER BY influence DESC, probe_id
