"""What every pass of the model over stored rows shares.

Belongs here: the score key, rows as token ids, costs, progress, keeping finished work. Does not: what a pass computes.
"""
