-- What could not be used, and why?
SELECT file, "row", reason, detail FROM quarantine ORDER BY file, "row";
