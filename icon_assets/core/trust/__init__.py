"""How far to trust a selection.

Belongs here: simpler explanations of a selection, its stability over redraws, warnings. Does not belong here: choosing.
Data comes as selections and scores and leaves as figures and sentences.
"""
