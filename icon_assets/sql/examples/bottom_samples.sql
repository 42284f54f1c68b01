-- Which samples hurt most?
SELECT round(contribution, 4) AS contribution, file, "row", left(instruction, 60) AS instruction, left(response, 60) AS response
FROM current_scores WHERE control = 'none' ORDER BY contribution LIMIT 10;
