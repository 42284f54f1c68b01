"""The shared parts of all passes of the model over stored rows.

Belongs here: the score key, rows as token ids, costs, progress, keeping finished work. Does not belong here: the
figures that a pass computes.
"""
