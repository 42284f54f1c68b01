-- One row: what a workspace holds now.
SELECT
    (SELECT count(*) FROM shards) AS shards,
    (SELECT count(*) FROM samples) AS samples,
    (SELECT count(DISTINCT sample_id) FROM samples) AS unique_samples,
    (SELECT count(*) FROM quarantine) AS quarantined,
    (SELECT count(*) FROM probes) AS probes,
    (SELECT max_by("name" || ' (' || dtype || ', ' || device || ')', prepared_at) FROM models) AS model,
    (SELECT count(*) FROM pair_scores) AS pairs_stored,
    (SELECT count(DISTINCT sample_id) FROM current_scores) AS samples_scored,
    (SELECT string_agg(DISTINCT arm, ', ' ORDER BY arm) FROM selections WHERE NOT contains(arm, '.')) AS arms_selected,
    (SELECT count(*) FROM checkpoints WHERE is_current) AS checkpoints,
    (SELECT count(DISTINCT checkpoint_id) FROM eval_results) AS evaluations,
    (SELECT max_by(created_at, seq)::VARCHAR FROM ledger) AS last_change
