"""Drawing the probe set, and finding overlaps of texts.

Belongs here: candidates and their files, overlap of texts, the draw of probes, leakage between pool, probes and
evaluation data. Does not belong here: scores. Data comes as samples and leaves as probes and overlaps.
"""
