"""Learning to predict contribution from directly scored samples.

Belongs here: the light and the LoRA selector, and their skill. Does not belong here: arms, direct scoring. Data comes
as scores and features and leaves as predicted scores.
"""
