"""How a sample becomes text, and how text becomes token ids.

Belongs here: prompt templates, tokenization, control contexts. Does not belong here: model weights, tables, scores.
Data comes as samples and leaves as token ids.
"""
