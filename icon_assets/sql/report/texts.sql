-- The texts of some samples and the first line of each. Parameter: $ids.
SELECT sample_id, any_value(instruction) AS instruction, any_value("input") AS "input", any_value(response) AS response, any_value(turns) AS turns,
    arg_min(file, (file, "row")) AS file, arg_min("row", (file, "row")) AS "row"
FROM delta.pool WHERE list_contains($ids, sample_id) GROUP BY sample_id
