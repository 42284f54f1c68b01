"""The contribution of each sample.

Belongs here: the scoring pass, controls, budget, estimates from some of the probes, peers. Does not belong here:
selection. Data comes as stored samples and probes and leaves as pairs and scores.
"""
