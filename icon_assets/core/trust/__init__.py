"""Whether to believe a selection.

Belongs here: what simpler things explain a selection, what another draw would keep, warnings. Does not: choosing.
Data comes as choices and scores and leaves as figures and sentences.
"""
