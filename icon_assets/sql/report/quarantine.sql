-- Why rows could not be used, with one place of each.
SELECT reason, count(*) AS "rows", arg_min(file, (file, "row")) AS file, arg_min("row", (file, "row")) AS "row", arg_min(detail, (file, "row")) AS detail
FROM quarantine GROUP BY reason ORDER BY "rows" DESC, reason
