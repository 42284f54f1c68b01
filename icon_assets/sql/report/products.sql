-- The newest event of each partition of each asset; the report itself is left out, or it would never be made of the same.
SELECT asset, "partition", digest, created_at, run_id, code_version FROM ledger WHERE asset <> 'report'
QUALIFY row_number() OVER (PARTITION BY asset, "partition" ORDER BY created_at DESC, event_id) = 1
ORDER BY created_at DESC, asset, "partition"
