"""Exports and the report.

Belongs here: permitted places, data files, data card, report, plots, templates. Does not belong here: new figures. Data
comes from the store and leaves as files for people and other tools.
"""
