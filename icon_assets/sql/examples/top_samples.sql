-- Which samples help most, and where do they come from?
SELECT rank, round(contribution, 4) AS contribution, consistency, file, "row", left(instruction, 60) AS instruction
FROM current_scores WHERE control = 'none' ORDER BY rank LIMIT 10;
