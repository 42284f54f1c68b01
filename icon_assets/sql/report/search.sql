-- The beginnings of the texts of some samples, and their source lines, the first one first. Parameters: $ids; $chars of each text;
-- $lines of each sample.
SELECT sample_id, left(concat_ws(' ', any_value(instruction), any_value("input")), $chars) AS asked, left(any_value(response), $chars) AS answered,
    list({'file': file, 'row': "row"} ORDER BY file, "row")[:$lines] AS lines
FROM delta.pool SEMI JOIN (SELECT unnest($ids::VARCHAR[]) AS sample_id) USING (sample_id) GROUP BY sample_id
