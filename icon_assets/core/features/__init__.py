"""What one pass of the model says of a sample by itself.

Belongs here: NLL with and without prompt, embeddings, similarity of embeddings. Does not: contribution, arms.
Data comes as samples and leaves as rows of `sample_features` and `probe_features`.
"""
