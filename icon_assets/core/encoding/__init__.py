"""How a sample becomes text, and how text becomes token ids.

Belongs here: prompt templates, tokenization, contexts without meaning. Does not: model weights, tables, scores.
Data comes as samples and leaves as token ids.
"""
