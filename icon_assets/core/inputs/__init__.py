"""From input files to samples and items: finding, reading, refusing and identifying them.

Belongs here: source files, row formats, samples and their ids, quarantine, evaluation files, changes on disk. Does not
belong here: token ids, prompts, models, scores. Data comes from the disk and goes to the tables of the store.
"""
