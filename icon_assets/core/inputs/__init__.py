"""From the files that people put in to samples and items: finding, reading, refusing and identifying them.

Belongs here: source files, row formats, samples and their ids, quarantine, evaluation files, what changed on disk.
Does not: token ids, prompts, models, scores. Data comes from the disk and goes to the tables of the store.
"""
