-- The newest event of each partition of each asset. The report itself is left out, or it would never be made of the same; and what
-- the store says of itself.
SELECT asset, "partition", digest, created_at, run_id, code_version FROM ledger WHERE asset NOT IN ('report', 'store')
QUALIFY row_number() OVER (PARTITION BY asset, "partition" ORDER BY seq DESC) = 1
ORDER BY seq DESC
