"""What leaves the house: export and report.

Belongs here: the place that may be written to, data files, data card, report, plots, templates. Does not: new figures.
Data comes from the store and leaves as files for people and other tools.
"""
