-- A product and everything it was made from, back to the files, by the ledger: one row per thing, with the event that made it.
-- Parameters: $asset, $partition, $digest of the product.
WITH RECURSIVE event AS (
    SELECT DISTINCT ON (asset, "partition", digest) * FROM delta.events ORDER BY seq DESC
),
input AS (
    SELECT e.asset, e."partition", e.digest, i.asset AS input_asset, i."partition" AS input_partition, i.digest AS input_digest
    FROM event e, unnest(from_json(e.inputs, '[{"asset": "VARCHAR", "partition": "VARCHAR", "digest": "VARCHAR"}]')) AS t(i)
),
made_from AS (
    SELECT $asset AS asset, $partition AS "partition", $digest AS digest
    UNION
    SELECT i.input_asset, i.input_partition, i.input_digest FROM made_from m JOIN input i USING (asset, "partition", digest)
)
SELECT m.asset, m."partition", m.digest, e.created_at, e.run_id, e.code_version, e.settings, e.seed, e.summary
FROM made_from m LEFT JOIN event e USING (asset, "partition", digest)
ORDER BY m.asset, m."partition", m.digest
