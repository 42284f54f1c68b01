-- Every source line that contains a sample of a subset, best rank first. A sample in two lines has two rows.
-- Parameters: $arm, $subset_id.
SELECT c.sample_id, s.file, s."row", c."rank", c.score, c.reason,
    coalesce(s.metadata->>'license', s.metadata->>'licence', s.metadata->>'License', s.metadata->>'Licence') AS licence
FROM delta.selections c JOIN delta.pool s USING (sample_id)
WHERE c.arm = $arm AND c.subset_id = $subset_id
ORDER BY c."rank", s.file, s."row"
