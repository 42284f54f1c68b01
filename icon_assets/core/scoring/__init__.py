"""The contribution of each sample.

Belongs here: the scoring pass, controls, scoring within a budget, estimates from some of the probes, peers. Does not:
selection.
Data comes as stored samples and probes and leaves as pairs and scores.
"""
