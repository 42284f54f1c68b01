"""Many (context, probe) pairs per forward, with the same figures as one pair per forward; whole texts, read together.

Belongs here: packing, attention, compiling, the model's head, the trial of every faster way against the model's plain
forward. Does not: tables, score keys, controls, budgets. Data comes as token ids and leaves as NLL and hidden states.
"""
