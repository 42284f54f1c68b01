"""Many (context, probe) pairs per forward, with the same figures as one pair per forward.

Belongs here: packing, attention, compiling, the trial of every faster way against the model's plain forward. Does not
belong here: tables, score keys, controls, budgets. Data comes as token ids and leaves as NLL per pair.
"""
