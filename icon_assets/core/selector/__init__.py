"""Learning to predict contribution from directly scored samples.

Belongs here: light and LoRA selector, how well they do, a selector's files and rows. Does not: arms, direct scoring.
Data comes as scores and features and leaves as predicted scores.
"""
